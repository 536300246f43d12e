"""The balance of experts: what is logged, and the auxiliary loss, against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.profile import ProfileError, parse
from engine.protocol.home import Home
from engine.protocol.journal import Metrics, Start
from engine.protocol.messages import ProblemError
from engine.training.ranks import Ranks
from engine.training.routers import Routers
from tests.models.small import build
from tests.models.test_experts import FAMILIES
from tests.training.harness import PROFILE, make_model, prepare
from tests.training.here import Here, at

IDS = torch.arange(3, 20)[None]
ALONE = Ranks()
WITHOUT = ("deepseek_v3", "glm4_moe")
"""Families without an auxiliary loss in their configuration."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_counted_and_its_loss_known_or_refused(name: str) -> None:
    model = build(name, **FAMILIES[name])
    if name in WITHOUT:
        with pytest.raises(ProblemError) as raised:
            Routers(model, 0.01)
        assert name in raised.value.problem.title and raised.value.problem.code == "training.no_aux_loss"
    routers = Routers(model, None)
    assert (routers.coefficient > 0) == (name not in WITHOUT)  # all weights are trained
    with routers.watch():
        loss = model(input_ids=IDS, labels=IDS).loss
    total = loss + routers.auxiliary_loss(1.0)
    total.backward()
    with torch.no_grad(), routers.watch():
        model(input_ids=IDS)  # is not counted
    found = routers.report(ALONE)
    assert set(found) == {"train/expert_load_max", "train/expert_load_entropy"}
    assert 1 <= found["train/expert_load_max"] <= 4 and 0 < found["train/expert_load_entropy"] <= 1
    assert routers.report(ALONE) == {}


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe", "mixtral", "gpt_oss"])
def test_the_loss_and_its_gradients_are_transformers_own(name: str) -> None:
    model = build(name, **FAMILIES[name])
    theirs = model(input_ids=IDS, labels=IDS, output_router_logits=True)
    theirs.loss.backward()
    gradients = {key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    routers = Routers(model, model.config.router_aux_loss_coef)
    with routers.watch():
        plain = model(input_ids=IDS, labels=IDS).loss
    own = plain + 0.25 * routers.auxiliary_loss(1.0) / 0.25
    own.backward()
    assert float(own) == pytest.approx(float(theirs.loss), rel=1e-6) and float(own) > float(plain)
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, dict(model.named_parameters())[key].grad, rtol=1e-4, atol=1e-7), key


def test_the_balance_is_that_of_the_chosen_experts() -> None:
    model = build("qwen3_moe", **FAMILIES["qwen3_moe"])
    chosen: list[Any] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, output: chosen.append(output[2]))
    routers = Routers(model, 0.0)
    for _ in range(2):
        with routers.watch():
            model(input_ids=IDS)
    shares = [torch.bincount(each.flatten(), minlength=4) / each.numel() for each in chosen[:4]]
    found = routers.report(ALONE)
    assert found["train/expert_load_max"] == pytest.approx(4 * sum(float(each.max()) for each in shares) / 4)
    entropies = [
        -float((each[each > 0] * each[each > 0].log()).sum()) / torch.log(torch.tensor(4.0)) for each in shares
    ]
    assert found["train/expert_load_entropy"] == pytest.approx(float(sum(entropies)) / 4, rel=1e-5)


def test_a_frozen_router_has_no_loss_unless_it_is_asked_for() -> None:
    from engine.training.adapters import lora

    adapted = lora.attach(build("mixtral", **FAMILIES["mixtral"]), lora.Options())
    assert Routers(adapted, None).coefficient == 0
    assert Routers(adapted, 0.5).coefficient == 0.5
    named = lora.attach(build("mixtral", **FAMILIES["mixtral"]), lora.Options(targets=["gate", "q_proj"]))
    assert Routers(named, None).coefficient > 0


def test_recomputed_layers_are_counted_once() -> None:
    found = []
    for recompute in (False, True):
        model = build("qwen3_moe", **FAMILIES["qwen3_moe"]).train()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        routers = Routers(model, 0.1)
        with routers.watch():
            loss = model(input_ids=IDS, labels=IDS).loss
        (loss + routers.auxiliary_loss(1.0)).backward()
        assert sum(int(each.sum()) for each in routers.state_dict().values()) == 4 * IDS.numel() * 2
        found.append([each.grad.clone() for each in model.parameters() if each.grad is not None])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_a_dense_model_has_nothing_to_report() -> None:
    routers = Routers(build("llama"), None)
    with routers.watch():
        pass
    assert routers.auxiliary_loss(1.0) == 0.0 and routers.report(ALONE) == {} and routers.state_dict() == {}
    with pytest.raises(ProblemError):
        Routers(build("llama"), 0.1)


def test_other_methods_are_refused(bare_home: Home) -> None:
    changes = ("training.router_aux_loss=0.1", "method={kind: dpo}")
    with pytest.raises(ProfileError) as raised:
        parse(PROFILE.format(base="a/b"), "test", Path("/"), changes, bare_home)
    assert "training.router_aux_loss" in [issue.key for issue in raised.value.issues]


def test_a_run_logs_the_balance_and_resumes_exactly(tmp_path: Path) -> None:
    base = tmp_path / "experts"
    build("qwen3_moe", **FAMILIES["qwen3_moe"]).save_pretrained(base)
    dense = make_model(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).write_bytes((dense / name).read_bytes())
    prepared = prepare(tmp_path / "rows", base)
    settings = ("adapter={kind: none}", "training.epochs=2", "training.micro_batch=9", "checkpoint.every_steps=100")
    settings = (*settings, "logging.every_steps=2")
    whole = Here(tmp_path, "whole", prepared, *settings)
    whole.train()
    broken = Here(tmp_path, "broken", prepared, *settings)
    broken.train(orders=at(2, "stop"))
    assert broken.train() == ("completed", 6)
    assert broken.entries(Start)[-1].resumed == "exact"
    for name in ("train/loss", "train/expert_load_max", "train/expert_load_entropy"):
        assert broken.series(name) == whole.series(name)
    assert len(whole.entries(Metrics)) == 3
    without = Here(tmp_path, "without", prepared, *settings, "training.router_aux_loss=0")
    without.train()
    assert all(without.series("train/loss")[step] < loss for step, loss in whole.series("train/loss").items())
