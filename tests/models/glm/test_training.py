"""The GLM family learns: adapters, quantised bases, all weights; what is saved loads equal and merges."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models import base
from engine.models.devices import Device
from engine.models.loading import load_model
from engine.models.loss import PickedHead, token_losses
from engine.models.segments import Segments, can_use_segments
from engine.options.model import ModelOptions
from engine.prep.batching import collate_flat, collate_padded
from engine.protocol.messages import ProblemError
from engine.training import checkpoints
from engine.training.adapters import lora
from tests.models.glm.layouts import FIRST, THIRD

CPU = Device("cpu", torch.float32, "")
SOURCES = {"first": FIRST, "third": THIRD}


def rows(count: int = 6) -> list[dict[str, list[int]]]:
    """Rows of several lengths as the first generation's are, which a causal model can learn as well: ctx [gMASK] sop
    answer eop."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        asked = torch.randint(10, 400, (3 + number,), generator=generator).tolist()
        ids = [*asked, 501, 504, *asked, 505]
        made.append({"input_ids": ids, "labels": [-100] * (len(asked) + 2) + ids[len(asked) + 2 :]})
    return made


def loaded(source: Path, quantization: str = "none", dtype: str = "float32") -> Any:
    options = ModelOptions(base=str(source), dtype=dtype, quantization=quantization)
    model = base.load(str(source), options, CPU, lambda *_: None)
    model.name_or_path = str(source)
    return model


def trained(model: Any, steps: int = 12) -> list[float]:
    """Losses of some steps as a session takes them: the picked head, rows end to end where the model can."""
    segments = Segments()
    if flat := can_use_segments(model):
        segments.install(model)
    head, batch = PickedHead(model, segments), (collate_flat if flat else collate_padded)(rows())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = token_losses(head.logits(model.train(), batch), batch["targets"]).sum() / len(batch["targets"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    segments.lengths = None
    return losses


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        pass


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_adapters_learn_reload_equal_merge_and_hold_no_embedding(tmp_path: Path, source, quantization):
    from peft import PeftModel
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = lora.attach(loaded(source, quantization), lora.Options(rank=4, alpha=8))
    losses = trained(model)
    assert losses[-1] < losses[0] * 0.9
    adapter = tmp_path / "adapter"
    checkpoints.save_weights(model, NoTokenizer(), adapter, "float32")
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert names and all(".lora_" in name for name in names)
    assert not any("embed" in name or "lm_head" in name for name in names)
    checkpoints.read_back(adapter, model, "float32")

    ids = torch.tensor([rows()[-1]["input_ids"]])
    with torch.no_grad():
        own = model.eval()(ids).logits
        again = PeftModel.from_pretrained(loaded(source, quantization), adapter).eval()
        assert again(ids).logits.equal(own)
    if quantization == "none":
        merged = again.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        with torch.no_grad():
            found = load_model(str(tmp_path / "merged"), dtype=torch.float32)(ids).logits
        assert (found - own).abs().max() < 1e-4
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        assert config["model_type"] == ("chatglm" if source is FIRST else "glm")


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_an_adapter_of_a_4_bit_base_merges_into_the_base_in_full(tmp_path: Path, source):
    """The merged model in float32 is the one with the adapter beside it, on the base that is merged into."""
    from peft import PeftModel

    torch.manual_seed(0)
    model = lora.attach(loaded(source, "nf4"), lora.Options(rank=4))
    trained(model, 4)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    ids = torch.tensor([rows()[-1]["input_ids"]])
    with torch.no_grad():
        beside = PeftModel.from_pretrained(loaded(source), tmp_path).eval()
        apart = beside(ids).logits
        assert (beside.merge_and_unload()(ids).logits - apart).abs().max() < 1e-4


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_full_training_saves_what_loads_equal(tmp_path: Path, source):
    model = loaded(source)
    losses = trained(model)
    assert losses[-1] < losses[0] * 0.9
    checkpoints.save_weights(model, NoTokenizer(), tmp_path, "float32")
    checkpoints.read_back(tmp_path, model, "float32")
    ids = torch.tensor([rows()[-1]["input_ids"]])
    with torch.no_grad():
        assert load_model(str(tmp_path), dtype=torch.float32)(ids).logits.allclose(model.eval()(ids).logits, atol=1e-5)


def test_rows_end_to_end_are_rows_apart_in_the_later_generations():
    model, plain, segments = loaded(THIRD).eval(), loaded(THIRD).eval(), Segments()
    assert can_use_segments(model) and not can_use_segments(loaded(FIRST))
    segments.install(model)
    head, padded = PickedHead(model, segments), PickedHead(plain, Segments())
    two = rows(2)
    packed = {key: [*two[0][key], *two[1][key]] for key in two[0]}
    packed["seq_lengths"] = [len(row["input_ids"]) for row in two]
    with torch.no_grad():
        flat = head.logits(model, collate_flat(rows()))
        assert flat.allclose(padded.logits(plain, collate_padded(rows())), atol=1e-5)
        assert head.logits(model, collate_flat([packed])).allclose(flat[: len(collate_flat(two)["targets"])], atol=1e-5)


def test_rows_padded_together_are_rows_apart_in_the_first_generation():
    model = loaded(FIRST).eval()
    head = PickedHead(model, Segments())
    with torch.no_grad():
        together = head.logits(model, collate_padded(rows()))
        apart = torch.cat([head.logits(model, collate_padded([row])) for row in rows()])
        assert together.allclose(apart, atol=1e-5)
        assert head.logits(model, collate_padded([])).shape == (0, 512), "a rank without a row"


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_gradient_checkpointing_changes_memory_not_gradients(source):
    def gradients(checkpointing: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        model = lora.attach(loaded(source), lora.Options(rank=4))
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        batch = collate_padded(rows())
        logits = PickedHead(model, Segments()).logits(model.train(), batch)
        token_losses(logits, batch["targets"]).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, saving = gradients(False), gradients(True)
    assert plain.keys() == saving.keys() and len(plain) > 8
    assert all(plain[name].allclose(saving[name], atol=1e-6) for name in plain)


def test_the_adapter_sits_on_every_linear_layer_but_the_head():
    expected = {
        FIRST: {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
        THIRD: {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"},
    }
    for source, names in expected.items():
        model = lora.attach(loaded(source), lora.Options(rank=2))
        found = {name.split(".lora_A")[0].rsplit(".", 1)[1] for name, _ in model.named_modules() if ".lora_A" in name}
        assert found == names


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_are_refused_where_positions_follow_from_the_tokens(kind):
    adapter = importlib.import_module(f"engine.training.adapters.{kind}")
    with pytest.raises(ProblemError, match=f"adapter.kind {kind} does not work"):
        adapter.attach(loaded(FIRST), adapter.Options())
    assert adapter.attach(loaded(THIRD), adapter.Options()).active_peft_config.is_prompt_learning


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_an_original_folder_is_refused_as_a_reward_model_and_runs_no_code(source):
    options = ModelOptions(base=str(source), dtype="float32", trust_remote_code=True)
    with pytest.raises(ProblemError, match="cannot become a reward model"):
        base.load(str(source), options, CPU, lambda *_: None, scores=True)
