"""Every dtype and quantisation trains, saves what loads in the plain libraries, and evaluates without harm."""

from __future__ import annotations

import itertools
import json

import pytest

from engine.protocol.journal import End, Evaluation, Sample, Start
from tests.training.conftest import REPLY


def _tensors(folder):
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_learns_after_an_evaluation_with_generation(start_run, asked, quantization):
    """bitsandbytes may lose its backward pass when a 4-bit layer is evaluated: the first layer's adapter tells."""
    run = start_run(
        quantization,
        "model.dtype=bfloat16",
        f"model.quantization={quantization}",
        "training.max_steps=4",
        "evaluation.every_steps=1",
        "evaluation.task=triples",
        "evaluation.at_start=true",
        "data.validation=[{source: triples/dev.jsonl}]",
        "generation.max_new_tokens=4",
        "checkpoint.every_steps=1",
        "checkpoint.keep=9",
        prepared=asked,
    )
    run.train()
    evaluations = run.entries(Evaluation)
    assert [entry.step for entry in evaluations] == [0, 1, 2, 3, 4]
    assert evaluations[-1].values["eval/loss"] < evaluations[0].values["eval/loss"]
    assert evaluations[0].values["eval/triples_f1"] == 0
    assert run.entries(Sample)[0].reference == REPLY
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    states = [_tensors(run.run.checkpoint(step))[first] for step in (1, 2, 3, 4)]
    for before, after in itertools.pairwise(states):
        assert not before.equal(after)
    start = run.entries(Start)[0]
    assert 0 < start.trainable_parameters < start.parameters / 2
    lock = json.loads((run.run.checkpoint(4) / "lock.json").read_text())
    assert lock["quantization"] == quantization


@pytest.mark.slow
def test_nf4_without_memory_for_unpacked_weights_keeps_its_backward(tiny, monkeypatch):
    import bitsandbytes as bnb
    import psutil
    import torch

    from engine.models import base, devices
    from engine.options.model import ModelOptions
    from engine.training.adapters import lora

    device = devices.Device("cpu", torch.float32, "")
    options = ModelOptions(base="tiny", dtype="bfloat16", quantization="nf4")
    unpacked = base.load(str(tiny), options, device, lambda *_: None).eval()
    assert not any(isinstance(layer, bnb.nn.Linear4bit) for layer in unpacked.modules())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    packed = base.load(str(tiny), options, device, lambda *_: None).eval()
    assert any(isinstance(layer, bnb.nn.Linear4bit) for layer in packed.modules())
    ids = torch.tensor([[2, 9, 8, 7, 1]])
    with torch.no_grad():
        assert torch.allclose(packed(ids).logits, unpacked(ids).logits, atol=1e-5)
    adapted = lora.attach(packed, lora.Options(rank=2)).train()
    adapted(ids).logits.sum().backward()
    gradient = next(p.grad for n, p in adapted.named_parameters() if "layers.0" in n and "lora_B" in n)
    assert gradient is not None and gradient.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_full_training_saves_the_dtype_resumes_exactly_and_publishes(start_run, tmp_path, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    changes = ("adapter={kind: none}", f"model.dtype={dtype}", "training.learning_rate=0.001", "training.max_steps=4")
    whole = start_run("whole", *changes, f"checkpoint.output={tmp_path / 'published'}", "logging.tensorboard=true")
    whole.train()
    halved = start_run("halved", *changes, "checkpoint.every_steps=2")
    halved.train()
    halved.train("--from-step", "2")
    assert halved.entries(Start)[-1].step == 2
    assert halved.series("train/loss") == whole.series("train/loss")
    assert whole.entries(End)[-1].status == "completed"
    published = tmp_path / "published"
    assert not (published / "trainer").exists()
    model = AutoModelForCausalLM.from_pretrained(published)
    assert model.dtype == getattr(torch, dtype)
    ours, again = _tensors(published), _tensors(halved.run.checkpoint(4))
    assert ours.keys() == again.keys() and all(ours[name].equal(again[name]) for name in ours)
    report = json.loads(whole.run.report.read_text())
    assert report["status"] == "completed" and report["settings"]["model"]["dtype"] == dtype
    assert list(whole.run.tensorboard.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_gradient_checkpointing_changes_memory_not_losses(start_run):
    plain = start_run("plain", "training.max_steps=3")
    plain.train()
    saving = start_run("saving", "training.max_steps=3", "training.gradient_checkpointing=true")
    saving.train()
    assert saving.series("train/loss") == pytest.approx(plain.series("train/loss"), rel=1e-5)
