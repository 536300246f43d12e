"""Every adapter on every base that is offered: its own weights move, nothing else does, and what it leaves is used
everywhere."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.options.tables import ADAPTERS
from engine.protocol.home import Home
from engine.training import combinations
from tests.training import preferences
from tests.training.harness import PROFILE, make_model, prepare
from tests.training.in_process import series, train

KINDS = {
    "none": ("weight",),
    "lora": ("lora_A", "lora_B"),
    "rslora": ("lora_A", "lora_B"),
    "dora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "ia3": ("ia3_l",),
    "oft": ("oft_R",),
    "prefix": ("prompt_encoder",),
    "prompt": ("prompt_encoder",),
}
"""Parts of the names of the weights that an adapter trains."""
COMBINATIONS = [(kind, base) for kind, bases in combinations.QUANTIZATIONS.items() for base in bases]
STEPS = ("training.max_steps=2", "training.warmup=0", "training.scheduler=constant")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from engine.models.template_lock import hash_template

    folder = tmp_path_factory.mktemp("small")
    prepared = prepare(folder, make_model(folder / "model", hidden=32), rows=8, held_out=3)
    prepared["lock"]["template_sha256"] = hash_template(AutoTokenizer.from_pretrained(prepared["base"]))
    return prepared


class Watch:
    """Stands in front of `model.build`: the model, its weights before training, and whose gradients were ever not
    zero."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from engine.training import model as models

        build = models.build
        self.moved: set[str] = set()
        self.before: dict[str, Any] = {}

        def watched(*arguments: Any) -> Any:
            self.model = build(*arguments)
            for name, parameter in self.model.named_parameters():
                self.before[name] = parameter.detach().clone()
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._see(name, p.grad))
            return self.model

        monkeypatch.setattr(models, "build", watched)

    def _see(self, name: str, gradient: Any) -> None:
        if gradient.abs().max() > 0:
            self.moved.add(name)


def adapter(kind: str) -> str:
    more = {"oft": ", block_size: 8", "prefix": ", virtual_tokens: 3", "prompt": ", virtual_tokens: 3"}
    return f"adapter={{kind: {kind}{more.get(kind, '')}}}"


def test_every_adapter_has_a_row_in_the_table() -> None:
    assert set(KINDS) == set(ADAPTERS) == set(combinations.QUANTIZATIONS)


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize(("kind", "base"), COMBINATIONS)
def test_two_steps_move_the_adapter_and_nothing_else(
    kind: str, base: str, packed: bool, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if packed and base != "nf4":
        pytest.skip("only NF4 has two ways on a CPU")
    watch = Watch(monkeypatch)
    changes = [*STEPS, adapter(kind), f"model.quantization={base}", f"training.optimizations={str(not packed).lower()}"]
    run = train(Home(tmp_path), "run", small, *changes)
    trained = {name for name, p in watch.model.named_parameters() if p.requires_grad}
    expected = {name for name in watch.before if any(part in name for part in KINDS[kind])}
    assert trained == expected == watch.moved
    for name, parameter in watch.model.named_parameters():
        assert parameter.equal(watch.before[name]) is (name not in expected), name
        assert parameter.grad is None or name in expected, name
    losses = series(run, "train/loss")
    assert list(losses) == [1, 2] and all(torch.isfinite(torch.tensor(list(losses.values()))))


PREFERENCE = [
    (method, rows, kind, base)
    for method, rows in (("dpo", "pairs"), ("orpo", "pairs"), ("reward", "pairs"), ("kto", "judged"))
    for kind, base in COMBINATIONS
    if combinations.is_supported(kind, base, rows)
    and (base == "none" or (method, kind) in {("reward", "lora"), ("dpo", "oft")})
]
"""Every method with every adapter; with quantised bases those in which most differs, a head of its own and a weight
that is turned."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rows", "kind", "base"), PREFERENCE)
def test_methods_on_preferences_move_the_adapter_and_nothing_else(
    method: str, rows: str, kind: str, base: str, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preferences.prepare(tmp_path / "rows", Path(small["base"]), rows, 8, 3)
    watch = Watch(monkeypatch)
    changes = [*STEPS, f"method.kind={method}", adapter(kind), f"model.quantization={base}"]
    run = train(Home(tmp_path), "run", prepared, *changes)
    parts = (*KINDS[kind], "modules_to_save", "score.weight") if method == "reward" else KINDS[kind]
    expected = {name for name in watch.before if any(part in name for part in parts) and "original_module" not in name}
    assert {name for name, p in watch.model.named_parameters() if p.requires_grad} == expected == watch.moved
    for name, parameter in watch.model.named_parameters():
        assert parameter.equal(watch.before[name]) is (name not in expected), name
    assert list(series(run, "train/loss")) == [1, 2]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"none"}))
def test_a_checkpoint_loads_in_plain_peft_and_answers_in_chat(
    kind: str, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain peft, our chat and our evaluation say the same, token by token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from engine.inference.generate import generate_batch
    from engine.inference.loaded_model import load
    from engine.inference.sampling import Sampling

    watch = Watch(monkeypatch)
    more = ("training.learning_rate=0.5", "data.validation=[{source: triples/dev.jsonl}]")
    folder = train(Home(tmp_path), "run", small, *STEPS, *more, adapter(kind)).checkpoint(2)
    bare = AutoModelForCausalLM.from_pretrained(small["base"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small["base"]), folder).eval()
    ids = torch.tensor([[2, 9, 8, 7, 1, 3]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, -6:]
        trained = watch.model.eval()(input_ids=ids).logits[:, -6:]
        assert torch.allclose(logits, trained, atol=1e-5)
        assert not torch.allclose(logits, bare(ids).logits, atol=1e-3)
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**asked, max_new_tokens=6, do_sample=False, eos_token_id=None)[0].tolist()[-6:]

    loaded = load(str(folder), home=Home(tmp_path), device="cpu")
    loaded.stop_ids = []
    monkeypatch.setattr(loaded, "prompt", lambda _: ids[0].tolist())
    assert loaded.generate([], Sampling(max_new_tokens=6)).ids == expected
    rows = [ids[0].tolist(), [2, 9, 30, 1, 3], ids[0].tolist()]
    replies = generate_batch(loaded.model, loaded.tokenizer, rows, 6, [])
    assert replies[0] == replies[2] == expected
    alone = generate_batch(loaded.model, loaded.tokenizer, rows[1:2], 6, [])
    assert replies[1] == alone[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "ia3", "oft", "prefix", "prompt"])
def test_a_resumed_run_goes_on_bit_for_bit(kind: str, small: dict[str, Any], tmp_path: Path) -> None:
    changes = ("training.max_steps=3", "checkpoint.every_steps=1", adapter(kind))
    whole = train(Home(tmp_path), "whole", small, *changes)
    broken = train(Home(tmp_path), "broken", small, *changes)
    last = series(whole, "train/loss")[3]
    train(Home(tmp_path), "broken", small, *changes, from_step=2)
    assert series(broken, "train/loss")[3] == last
    names = ["adapter_model.safetensors", "trainer/optimizer.pt"]
    assert [(whole.checkpoint(3) / name).read_bytes() for name in names[:1]] == [
        (broken.checkpoint(3) / name).read_bytes() for name in names[:1]
    ]


@pytest.mark.slow
def test_chat_changes_between_adapters_of_any_two_kinds(small: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from engine.inference.loaded_model import load
    from engine.models import targets

    home = Home(tmp_path)
    kinds = ("lora", "prompt", "ia3", "prefix", "lora")
    folders = {
        kind: train(home, kind, small, *STEPS, "training.learning_rate=0.5", adapter(kind)).checkpoint(2)
        for kind in set(kinds)
    }
    ids = torch.tensor([[2, 9, 8, 7, 1, 3]])
    loaded = load(small["base"], home=home, device="cpu")
    for kind in kinds:
        loaded.swap(targets.resolve(str(folders[kind]), home, tmp_path))
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small["base"]), folders[kind]).eval()
        with torch.no_grad():
            assert torch.allclose(loaded.model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5), kind
    loaded.swap(targets.resolve(small["base"], home, tmp_path))
    with torch.no_grad():
        bare = AutoModelForCausalLM.from_pretrained(small["base"])(ids).logits
        assert torch.allclose(loaded.model(ids).logits, bare, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        (("adapter={kind: none}", "model.quantization=nf4"), "model.quantization", "cannot be trained in full"),
        (("adapter={kind: none}", "model.quantization=int8"), "model.quantization", "cannot be trained in full"),
        (("adapter={kind: dora}", "model.quantization=int8"), "model.quantization", "dora"),
        (("adapter={kind: prompt}", "data.packing=true"), "data.packing", "prompt"),
        (("adapter={kind: prefix}", "data.packing=true"), "data.packing", "prefix"),
        (
            ("adapter={kind: prefix}", "training.gradient_checkpointing=true"),
            "training.gradient_checkpointing",
            "prefix",
        ),
        (("adapter={kind: prefix}", "method={kind: pretrain}"), "method.sequences", "prefix"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    changes: tuple[str, ...], key: str, words: str, small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ProfileError) as refused:
        parse(PROFILE.format(base=small["base"]), "test", Path("/"), changes, Home(tmp_path))
    assert [issue.key for issue in refused.value.issues] == [key]
    assert words in refused.value.issues[0].message


def test_layers_that_are_not_there_are_refused_by_name(small: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    from engine.protocol.messages import ProblemError

    for kind in ("lora", "oft", "ia3"):
        module = importlib.import_module(f"engine.training.adapters.{kind}")
        model = AutoModelForCausalLM.from_pretrained(small["base"])
        with pytest.raises(ProblemError, match=kind) as refused:
            module.attach(model, module.Options(targets=["nothing"]))
        assert "adapter.targets" in refused.value.problem.hint


def test_virtual_tokens_are_refused_by_methods_whose_loss_knows_nothing_of_them() -> None:
    found = list(combinations.find_unsupported("prefix", "none", "dpo", "pairs"))
    assert [key for key, _ in found] == ["adapter.kind"] and "dpo" in found[0][1]
    assert not list(combinations.find_unsupported("oft", "int8", "dpo", "pairs"))
    assert [key for key, _ in combinations.find_unsupported("oft", "none", "grpo", "prompts")] == ["adapter.kind"]


def test_the_documented_table_is_the_one_in_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert combinations.render_tables() in text


def test_a_lock_is_written_with_every_adapter(small: dict[str, Any], tmp_path: Path) -> None:
    folder = train(Home(tmp_path), "run", small, *STEPS, adapter("ia3")).checkpoint(2)
    assert json.loads((folder / "lock.json").read_text())["base"] == small["base"]
