"""Exports load in plain transformers, answer like their checkpoint, and appear complete or not at all."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, OFTConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from engine.export import gguf_converter
from engine.export.request import ExportRequest, ExportResult
from engine.export.run import export
from engine.models import merge, targets, template_lock, tokenizers
from engine.models.loading import load_model
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests import plain
from tests.inference.test_merge import run_of
from tests.models.glm.folders import original
from tests.models.glm.layouts import fill
from tests.training import warm
from tests.training.harness import make_model
from tests.training.test_profiles import LLAMA, family

KINDS = {
    "lora": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "rslora": LoraConfig(r=4, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "oft": OFTConfig(target_modules="all-linear", oft_block_size=8, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}
CHATS = [
    [{"role": "user", "content": f"w{row} w{row + 1}"}, {"role": "assistant", "content": f"w{row + 2} w{row + 3} w4"}]
    for row in range(8)
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def base(home: Home) -> Path:
    """A model in bfloat16, as bases usually are stored, with a licence."""
    folder = make_model(home.models / "tiny")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "LICENSE").write_text("free")
    return folder


def trained(home: Home, base: Path, kind: str, quantization: str, dtype: str = "bfloat16") -> Path:
    """A run whose checkpoint is an adapter of this kind, with a lock and held-out rows."""
    torch.manual_seed(3)
    inner = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(inner, copy.deepcopy(KINDS[kind]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and (name.endswith("lora_B.default.weight") or "lora_" not in name):
                weight += torch.randn_like(weight) * 0.05
    checkpoint = run_of(home, "run", 5)
    model.save_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(checkpoint)
    golden = [
        {"messages": chat, "ids": template_lock.render(tokenizer, chat, reply_follows=False)} for chat in CHATS[:3]
    ]
    written = {
        "base": str(base),
        "dtype": dtype,
        "quantization": quantization,
        "template_sha256": template_lock.hash_template(tokenizer),
        "eos_token_ids": [1],
        "golden": golden,
    }
    (checkpoint / "lock.json").write_text(json.dumps(written))
    rows = home.root / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    home.run("run").prepared.write_text(json.dumps({"test_rows": str(rows)}))
    return checkpoint


def made(home: Home, name: str | Path = "run", **wanted: Any) -> ExportResult:
    told: list[str] = []
    done = export(
        targets.resolve(str(name), home, home.root),
        home.root / "out",
        ExportRequest(**wanted),
        home,
        lambda stage, *_: told.append(stage),
    )
    assert told and [path.name for path in home.root.glob(".*")] == []
    assert [path.name for path in done.directory.glob(".*")] == [] and (done.directory / "README.md").is_file()
    return done


@pytest.mark.parametrize(
    ("kind", "quantization"),
    [("lora", "none"), ("lora", "nf4"), ("rslora", "nf4"), ("dora", "nf4"), ("ia3", "nf4"), ("oft", "nf4")],
)
def test_adapters_of_every_kind_that_merges(home: Home, base: Path, kind: str, quantization: str) -> None:
    trained(home, base, kind, quantization, "float32")
    done = made(home)
    agreed = done.agreement
    assert done.kind == "merged" and agreed["prompts"] == "8 held-out rows of the run" and agreed["positions"] > 20
    assert agreed["kl"] < 1e-4 and agreed["top1"] > 0.9 and agreed["golden_equal"] == agreed["golden"] == 3
    model = AutoModelForCausalLM.from_pretrained(done.directory)
    assert model.dtype == torch.float32 and model.generation_config.eos_token_id == [1]
    assert not hasattr(model.config, "quantization_config") and (done.directory / "LICENSE").is_file()
    assert AutoTokenizer.from_pretrained(done.directory).chat_template
    if quantization == "nf4":
        assert agreed["base"] == "dequantised"
        assert agreed["candidates"]["pristine"]["kl"] > 20 * agreed["candidates"]["dequantised"]["kl"]
        return
    # What was exported is a target like any other, and nothing of its own is lost when it is exported again.
    again = export(targets.resolve(str(done.directory), home, home.root), home.root / "again", ExportRequest(), home)
    assert (again.kind, again.agreement["kl"]) == ("model", 0.0) and again.agreement["golden_equal"] == 3
    assert "1 of" not in (again.directory / "README.md").read_text()


def test_int8_and_the_dtype_of_training(home: Home, base: Path) -> None:
    trained(home, base, "lora", "int8")
    done = made(home)
    assert set(done.agreement["candidates"]) == {"pristine", "dequantised"}
    chosen, other = done.agreement["base"], {"pristine": "dequantised", "dequantised": "pristine"}
    figures = done.agreement["candidates"]
    assert figures[chosen]["kl"] == done.agreement["kl"] <= figures[other[chosen]]["kl"]
    assert AutoModelForCausalLM.from_pretrained(done.directory).dtype == torch.bfloat16
    recorded = json.loads((done.directory / "lock.json").read_text())
    assert (recorded["dtype"], recorded["quantization"]) == ("bfloat16", "none") and "base" not in recorded


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_cannot_be_merged_but_exported_alone(home: Home, base: Path, kind: str) -> None:
    trained(home, base, kind, "none", "float32")
    with pytest.raises(ProblemError, match=r"(prefix|prompt) tuning adds positions(.|\n)*--adapter-only"):
        made(home)
    done = made(home, adapter_only=True)
    assert done.kind == "adapter" and done.agreement["kl"] == 0 and done.agreement["golden_equal"] == 3
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), done.directory)
    assert "for tiny" in (done.directory / "README.md").read_text()


def test_an_adapter_alone_in_another_dtype(home: Home, base: Path) -> None:
    from safetensors.torch import load_file

    trained(home, base, "lora", "nf4")
    done = made(home, adapter_only=True, dtype="float16")
    weights = load_file(done.directory / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert done.agreement["kl"] < 1e-3 and "base" not in done.agreement
    assert targets.resolve(str(done.directory), home, home.root).quantization == "nf4"


def test_whole_weights_in_shards(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "SHARD", "100KB")
    done = made(home, base, dtype="float16")
    assert done.kind == "model" and len(list(done.directory.glob("*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(done.directory).dtype == torch.float16
    assert done.agreement["prompts"] == "4 plain sentences" and done.agreement["kl"] < 1e-3


def test_a_reward_model_keeps_its_scores(home: Home, base: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    drawn = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model = get_peft_model(drawn, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight += torch.randn_like(weight)
    checkpoint = run_of(home, "run", 5)
    model.save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(base).save_pretrained(checkpoint)
    (checkpoint / "lock.json").write_text(json.dumps({"base": str(base), "dtype": "float32", "quantization": "none"}))
    rows = home.root / "pairs.jsonl"
    pair = {"prompt": CHATS[0][:1], "chosen": CHATS[0][1:], "rejected": CHATS[3][1:]}
    rows.write_text(json.dumps(pair) + "\n")
    home.run("run").prepared.write_text(json.dumps({"validation_rows": str(rows)}))
    done = made(home)
    assert done.kind == "reward" and done.agreement["prompts"] == "2 held-out replies of the run"
    assert done.agreement["score_difference"] < 1e-4 and done.agreement["order_kept"] == 1
    loaded = AutoModelForSequenceClassification.from_pretrained(done.directory)
    assert loaded.config.pad_token_id == 0 and loaded.score.weight.shape[0] == 1
    with pytest.raises(ProblemError, match="GGUF is for whole language models"):
        made(home, gguf="auto", replacing=True)


@pytest.mark.slow
@pytest.mark.parametrize("generation", [1, 2, 3])
def test_glm_folders_in_their_original_layout(home: Home, generation: int) -> None:
    folder = fill(original(home.models / f"glm{generation}", generation), shards=2, dtype="float16")
    torch.manual_seed(0)
    named = ["query_key_value", "dense"] if generation == 1 else "all-linear"
    model = get_peft_model(load_model(str(folder), dtype=torch.float32), LoraConfig(r=4, target_modules=named))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += torch.randn_like(weight) * 0.05
    checkpoint = run_of(home, "run", 5)
    model.save_pretrained(checkpoint, save_embedding_layers=False)
    tokenizer = tokenizers.load(folder)
    tokenizer.save_pretrained(checkpoint)
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    golden = [{"messages": chat, "ids": template_lock.render(tokenizer, chat, reply_follows=False)}]
    written = {"base": str(folder), "dtype": "float32", "quantization": "none", "golden": golden}
    (checkpoint / "lock.json").write_text(json.dumps(written))
    done = made(home)
    assert done.agreement["kl"] < 1e-4 and done.agreement["golden_equal"] == 1
    code = "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
    code += "import engine.models.glm.tokenizer_first\n" if generation == 1 else ""
    code += "model, tokenizer = M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1])\n"
    code += (
        "ids = tokenizer.apply_chat_template([{'role': 'user', 'content': 'hello'}], add_generation_prompt=True, "
        "return_dict=False)\n"
    )
    code += "print(type(model).__name__, ids)"
    if generation == 1:
        alone = [sys.executable, "-c", code, done.directory]
        told = subprocess.run(alone, capture_output=True, text=True, check=True).stdout
    else:
        told = plain.run(code, done.directory)
    name, _, ids = told.strip().splitlines()[-1].partition(" ")
    assert name == ("ChatGLMForConditionalGeneration" if generation == 1 else "GlmForCausalLM")
    assert json.loads(ids) == template_lock.render(tokenizer, chat[:1], reply_follows=True)
    assert ("import engine.models.glm.tokenizer_first" in (done.directory / "README.md").read_text()) == (
        generation == 1
    )
    # The original folder itself, whose tokenizer is built.
    whole = export(targets.resolve(str(folder), home, home.root), home.root / "whole", ExportRequest(), home)
    assert whole.kind == "model" and whole.agreement["kl"] < 1e-4
    assert (whole.directory / ("ice_text.model" if generation == 1 else "tokenizer.json")).is_file()


def test_impossible_exports_are_refused_before_anything_is_loaded(home: Home, base: Path) -> None:
    checkpoint = trained(home, base, "lora", "none")
    (home.root / "out").mkdir()
    (home.root / "out" / "mine").touch()
    with pytest.raises(ProblemError, match="out is not empty"):
        made(home)
    (home.root / "out" / "mine").unlink()
    with pytest.raises(ProblemError, match="has no adapter"):
        made(home, base, adapter_only=True)
    with pytest.raises(ProblemError, match=r"There is no convert_hf_to_gguf\.py in /nowhere"):
        made(home, gguf="f16", converter="/nowhere")
    template = checkpoint / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ProblemError, match="no longer matches its tokenizer"):
        made(home)
    template.write_text(template.read_text()[:-1])
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ProblemError, match=r"stored quantised(.|\n)*--adapter-only"):
        made(home)
    assert list((home.root / "out").iterdir()) == []


@pytest.mark.slow
def test_a_cancelled_or_killed_export_leaves_nothing_under_its_name(home: Home, base: Path) -> None:
    trained(home, base, "lora", "nf4")
    target = targets.resolve("run", home, home.root)

    class GivenUp(Exception):
        pass

    asked: list[None] = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 20:
            raise GivenUp

    with pytest.raises(GivenUp):
        export(target, home.root / "out", ExportRequest(), home, check=check)
    assert [path.name for path in home.root.iterdir() if "out" in path.name] == []
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from engine.export.request import ExportRequest\nfrom engine.export.run import export\n"
        "from engine.models import targets; from engine.protocol import attempt_fence\n"
        "from engine.protocol.home import Home\n"
        "home = Home(Path(sys.argv[1]))\n"
        "attempt_fence.hold(home.run('run').path, 1)  # as the stage of a run does: its drafts name the attempt, too\n"
        "def tell(stage, done, total):\n"
        "    if stage == 'asking the export': os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(targets.resolve('run', home, home.root), home.root / 'out', ExportRequest(), home, tell)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = warm.start(["tests.program", code, str(home.root)], 1, environment, home.root / "log.txt")
    assert killed.wait() == -signal.SIGKILL, (home.root / "log.txt").read_text()
    assert not (home.root / "out").exists() and len(list(home.root.glob(".out.*"))) == 1
    assert made(home).kind == "merged"
    assert not list(home.root.glob(".out.*"))


@pytest.mark.slow
def test_gguf_by_llama_cpps_converter(home: Home, smollm2: Path) -> None:
    try:
        gguf_converter.find_converter(None)
    except ProblemError as error:
        pytest.skip(f"{error.problem.title}: `make test` could not install it")
    folder = home.models / "llama"
    folder.mkdir()
    family(folder, LLAMA, smollm2)
    done = made(home, folder, gguf="f16")
    assert done.gguf and done.gguf["file"] == "out-f16.gguf" and (done.directory / "out-f16.gguf").is_file()
    assert done.gguf["kl"] < 1e-4 and done.gguf["top1"] > 0.99 and done.gguf["same_tokens"] == 1
    assert "`out-f16.gguf`" in (done.directory / "README.md").read_text()
    # A family that the converter does not know is refused in its own words, and nothing is left.
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "UnheardOfForCausalLM"))
    with pytest.raises(ProblemError, match=r"converter does not support this model(.|\n)*not supported"):
        gguf_converter.convert(folder, "x", "f16", gguf_converter.find_converter(None))


@pytest.mark.parametrize(
    ("targets_", "safetensors"),
    [
        (["lm_head"], True),
        (["lm_head"], False),
        (["embed_tokens"], True),
        (["lm_head", "q_proj"], True),
        (["q_proj"], True),
    ],
)
def test_an_adapter_on_tied_embeddings(home: Home, targets_: list[str], safetensors: bool) -> None:
    """While training, the adapter changes one of two layers that share their weights; merged, it must not change
    both."""
    folder = make_model(home.models / "tied")
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tied = AutoModelForCausalLM.from_pretrained(folder)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    own = KINDS | {"tied": LoraConfig(r=4, target_modules=targets_, task_type="CAUSAL_LM")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "tied", own["tied"])
        checkpoint = trained(home, folder, "tied", "none", "float32")
    _enlarge(checkpoint, safetensors)
    ids = torch.tensor([[2, 7, 8, 1, 3, 9]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(tied, checkpoint)(ids).logits
        untouched = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert (expected - untouched).abs().max() > 0.05
    done = made(home)
    assert done.agreement["kl"] < 1e-4 and done.agreement["golden_equal"] == 3
    exported = AutoModelForCausalLM.from_pretrained(done.directory)
    assert exported.config.tie_word_embeddings is (targets_ == ["q_proj"])
    with torch.no_grad():
        assert torch.allclose(exported(ids).logits, expected, atol=1e-4)
    merged = home.root / "merged"  # what `model.base: RUN` starts from
    merged.mkdir()
    merge.merge(targets.resolve("run", home, home.root), merged, False, lambda *_: None)
    with torch.no_grad():
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, expected, atol=1e-4)


def _enlarge(checkpoint: Path, safetensors: bool) -> None:
    """Make the adapter matter, and store it as one of both kinds of file."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "adapter_model.safetensors"
    weights = {
        name: torch.randn_like(each) * 0.5 if "lora_" in name else each for name, each in load_file(path).items()
    }
    if safetensors:
        save_file(weights, path, {"format": "pt"})
    else:
        path.unlink()
        torch.save(weights, checkpoint / "adapter_model.bin")


@pytest.mark.parametrize("how", ["scrambled", "not a number"])
def test_an_export_that_answers_otherwise_is_refused(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    trained(home, base, "lora", "none", "float32")
    write = merge.write_model

    def spoil(model: Any, target: Any, folder: Path) -> None:
        with torch.no_grad():
            weight = model.get_output_embeddings().weight
            weight.copy_(torch.full_like(weight, torch.nan) if how == "not a number" else weight.flip(0) * 50)
        write(model, target, folder)

    monkeypatch.setattr(merge, "write_model", spoil)
    with pytest.raises(ProblemError) as caught:
        made(home)
    assert caught.value.problem.code == "export.disagrees"
    assert not (home.root / "out").exists() and not list(home.root.glob(".out*"))
