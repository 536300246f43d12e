"""Loading targets: adapters equal plain PEFT, swapping costs no reload, the lock is checked."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.inference.loaded_model import LoadedModel, load
from engine.inference.sampling import Sampling
from engine.models import targets, template_lock
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.training.harness import make_model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> LoadedModel:
    """In float32, which every CPU really computes in: 16 bits may be widened."""
    return load(str(smollm2), home=Home(smollm2.parent.parent), dtype="float32", device="cpu")


def target(folder: Path, home: Home) -> targets.Target:
    return targets.resolve(str(folder), home, folder)


@pytest.mark.slow
def test_logits_equal_plain_peft_through_any_order_of_swaps(
    loaded: LoadedModel, adapters: list[Path], smollm2: Path, home: Home
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def plain(adapter: Path | None) -> Any:
        base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        return (PeftModel.from_pretrained(base, adapter) if adapter else base).eval()

    ids = torch.tensor([loaded.prompt(QUESTION)])

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model(input_ids=ids).logits

    expected = {folder: logits(plain(folder)) for folder in (*adapters, None)}
    base = loaded._adapters.base
    first, second, other = adapters
    for folder in (first, second, other, first, None, second, first, None):
        loaded.swap(target(folder or smollm2, home))
        assert torch.equal(logits(loaded.model), expected[folder]), folder
    assert loaded._adapters.base is base
    assert not torch.equal(expected[first], expected[second])


@pytest.mark.slow
def test_an_adapter_of_a_16_bit_base_has_the_numbers_of_its_file(
    smollm2: Path, adapters: list[Path], home: Home
) -> None:
    import torch
    from safetensors.torch import load_file

    bfloat16 = load(str(smollm2), home=home, dtype="bfloat16", device="cpu")
    for folder in adapters:
        bfloat16.swap(target(folder, home))
        found = dict(bfloat16.model.named_parameters())
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            assert torch.equal(found[name.replace(".weight", ".default.weight")], tensor), name
            assert not torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.slow
def test_adapters_of_any_rank_swap_within_half_a_second(
    loaded: LoadedModel, adapters: list[Path], smollm2: Path, home: Home
) -> None:
    """CPU time, so that other programs do not count, the lesser of two, since they slow a core down all the same; the
    layers are built once, whatever comes between."""
    order = (adapters[1], adapters[2], smollm2, adapters[0], adapters[2])
    taken: list[list[float]] = [[] for _ in order]
    loaded.swap(target(adapters[0], home))
    for _ in range(2):
        for folder, seconds in zip(order, taken, strict=True):
            began = time.process_time()
            loaded.swap(target(folder, home))
            seconds.append(time.process_time() - began)
    assert max(map(min, taken)) < 0.5


@pytest.mark.slow
def test_a_damaged_adapter_leaves_the_loaded_one_answering(
    loaded: LoadedModel, adapters: list[Path], home: Home, tmp_path: Path
) -> None:
    loaded.swap(target(adapters[0], home))
    before = loaded.generate(QUESTION, Sampling(4))
    broken = tmp_path / "broken"
    shutil.copytree(adapters[1], broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ProblemError, match="the copy was cut off"):
        loaded.swap(target(broken, home))
    assert loaded.target.adapter == adapters[0]
    assert loaded.generate(QUESTION, Sampling(4)).ids == before.ids


@pytest.mark.slow
def test_an_embedded_model_answers_and_stops(whole_smollm2: Path, home: Home) -> None:
    loaded = load(str(whole_smollm2), home=home, dtype="float32", device="cpu")
    reply = loaded.generate(QUESTION, Sampling(32))
    assert (reply.text, reply.finish) == ("The capital of France is Paris.", "stop")
    assert [each.text for each in loaded.batch([QUESTION], Sampling(32))] == [reply.text]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_still_talks(whole_smollm2: Path, home: Home, quantization: str) -> None:
    quantised = load(str(whole_smollm2), home=home, dtype="bfloat16", quantization=quantization, device="cpu")
    assert "capital of France" in quantised.generate(QUESTION, Sampling(8)).text


def test_lock_names_what_differs(tokenizer: Any, tmp_path: Path) -> None:
    ids = template_lock.render(tokenizer, [*QUESTION, {"role": "assistant", "content": "Paris."}], reply_follows=False)
    golden = {"messages": [*QUESTION, {"role": "assistant", "content": "Paris."}], "ids": ids}
    good = {"template_sha256": template_lock.hash_template(tokenizer), "eos_token_ids": [2], "golden": [golden]}
    template_lock.check(good, tokenizer, tmp_path)
    with pytest.raises(ProblemError, match="chat template is not the one"):
        template_lock.check(good | {"template_sha256": "0" * 64}, tokenizer, tmp_path)
    changed = {**golden, "ids": [*ids[:5], ids[5] + 1, *ids[6:]]}
    with pytest.raises(ProblemError, match=r"conversation 0 is tokenised differently: at 5 "):
        template_lock.check(good | {"golden": [changed]}, tokenizer, tmp_path)
    with pytest.raises(ProblemError, match="beyond the vocabulary of 49152"):
        template_lock.check(good | {"eos_token_ids": [50000]}, tokenizer, tmp_path)


def test_end_of_turn_is_read_from_the_template(tokenizer: Any) -> None:
    assert template_lock.find_end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.slow
def test_without_a_template_a_conversation_is_text_to_continue(
    smollm2: Path, adapters: list[Path], loaded: LoadedModel, home: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(adapters[0], folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, folder)
    loaded.swap(target(folder, home))
    assert not loaded.templated
    assert loaded.prompt([{"role": "user", "content": "The sea is"}]) == loaded.tokenizer("The sea is").input_ids


@pytest.mark.slow
def test_a_checkpoint_whose_template_was_changed_is_refused(
    smollm2: Path, adapters: list[Path], loaded: LoadedModel, home: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(adapters[0], folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2 / name, folder)
    from transformers import AutoTokenizer

    sha256 = template_lock.hash_template(AutoTokenizer.from_pretrained(smollm2))
    (folder / "lock.json").write_text(json.dumps({"template_sha256": sha256, "eos_token_ids": [2], "golden": []}))
    loaded.swap(target(folder, home))
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("\n{# edited #}")
    with pytest.raises(ProblemError, match="no longer matches its tokenizer"):
        loaded.swap(target(folder, home))


def test_code_that_lies_with_a_base_runs_when_it_is_trusted(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ProblemError, match="cannot be loaded"):
        load(str(folder), home=Home(tmp_path), device="cpu")
    loaded = load(str(folder), home=Home(tmp_path), device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel" and loaded.chat("w1", Sampling(2)).tokens > 0


def test_unknown_names_are_errors_of_the_user(tmp_path: Path) -> None:
    for wrong in ({"dtype": "int4"}, {"quantization": "q4"}, {"dtype": "nf4"}):
        with pytest.raises(ValueError, match="must be"):
            load("tiny", home=Home(tmp_path), **wrong)


def test_sampling_fields_are_keywords_of_every_method(loaded: LoadedModel) -> None:
    question = "Why is the sea blue?"
    same = Sampling(max_new_tokens=6, temperature=0.7, seed=3)
    expected = loaded.chat(question, same).ids
    assert loaded.chat(question, max_new_tokens=6, temperature=0.7, seed=3).ids == expected
    assert loaded.chat(question, replace(same, temperature=0.0), temperature=0.7).ids == expected
    assert loaded.generate([{"role": "user", "content": question}], same).ids == expected
    *_, last = loaded.stream([{"role": "user", "content": question}], max_new_tokens=6, temperature=0.7, seed=3)
    assert last.reply and last.reply.ids == expected
    turns = [[{"role": "user", "content": question}], [{"role": "user", "content": "Hi"}]]
    replies = loaded.batch(turns, max_new_tokens=2)
    assert [reply.tokens for reply in replies] == [2, 2]
    assert [len(each.ids) for each in loaded.batch(turns, [Sampling(4), Sampling(4)], max_new_tokens=1)] == [1, 1]
    for ask in (loaded.chat, loaded.generate, loaded.stream, loaded.batch):
        with pytest.raises(TypeError, match="did you mean max_new_tokens"):
            ask([question], max_tokens=6)  # type: ignore[arg-type,call-arg,operator]
