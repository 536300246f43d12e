"""An adapter is a difference from the weights that it was trained on: on others it is refused, wherever it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models import base_weights, targets
from engine.protocol.home import Home
from engine.protocol.journal import Checkpoint
from engine.protocol.messages import ProblemError
from engine.training import session
from tests.training import in_process

QUICK = ("training.max_steps=2", "checkpoint.every_steps=2", "checkpoint.keep=5", "evaluation.every_steps=1000")


@pytest.fixture
def own(prepared: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What was prepared, on a copy of the base."""
    base = tmp_path / "base"
    shutil.copytree(prepared["base"], base)
    lock = {key: prepared["lock"][key] for key in ("eos_token_ids",)}  # the rest is of another template than the base's
    return {**prepared, "base": str(base), "lock": lock}


def change(base: Path, tensor: int) -> None:
    """Replace one tensor by another training's."""
    path = base / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[tensor]
    weights[name] = weights[name] + torch.full_like(weights[name], 0.25)
    save_file(weights, path, {"format": "pt"})


def test_every_use_of_an_adapter_on_a_changed_base_is_refused(own: dict[str, Any], bare_home: Home) -> None:
    from engine.inference.loaded_model import load

    run = in_process.train(bare_home, "adapter", own, *QUICK)
    folder, base = run.checkpoint(2), Path(own["base"])
    assert json.loads((folder / "lock.json").read_text())["base_weights"] == base_weights.identify(base)
    load("adapter", home=bare_home)
    change(base, 3)
    uses = {
        "chat": lambda: load("adapter", home=bare_home),
        "export": lambda: targets.check(targets.resolve("adapter@2", bare_home, base)),
        "resume": lambda: in_process.train(bare_home, "adapter", own, *QUICK, "training.max_steps=4"),
    }
    for use, call in uses.items():
        with pytest.raises(ProblemError) as caught:
            call()
        assert caught.value.problem.code == "model.base_changed", use
        assert str(base) in caught.value.problem.title
    change(base, 3)  # and on: not a step back to what it was
    with pytest.raises(ProblemError):
        load("adapter", home=bare_home)


def test_a_full_run_goes_on_without_its_base(own: dict[str, Any], bare_home: Home) -> None:
    full = (*QUICK, "adapter.kind=none")
    in_process.train(bare_home, "full", own, *full)
    change(Path(own["base"]), 0)
    run = in_process.train(bare_home, "full", own, *full, "training.max_steps=4")
    assert in_process.entries(run, Checkpoint)[-1].step == 4


def test_methods_with_a_reference_need_the_base() -> None:
    from engine.config.profile import parse
    from tests.training.harness import PROFILE

    found = {}
    for kind in ("sft", "pretrain", "reward", "dpo", "kto", "orpo"):
        text = PROFILE.format(base="smollm2-135m-instruct")
        profile = parse(text, "test", Path("/"), (f"method={{kind: {kind}}}",), None)
        found[kind] = session.has_reference(profile)
    assert [kind for kind, needs in found.items() if needs] == ["dpo", "kto"]


def test_the_identity_is_of_the_tensors_and_not_of_the_files(own: dict[str, Any]) -> None:
    base = Path(own["base"])
    before = base_weights.identify(base)
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    (base / "model.safetensors").unlink()
    for number, half in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in half}, base / f"part-{number}.safetensors", {"more": "words"})
    assert before and base_weights.identify(base) == before

    seen = {before}
    for name in names:  # each tensor counts, its dtype and its shape too
        changed = dict(weights)
        for other in (weights[name] * 1.001 + 1e-3, weights[name].to(torch.float16), weights[name].unsqueeze(0)):
            changed[name] = other.contiguous()
            for path in base.glob("part-*"):
                path.unlink()
            save_file(changed, base / "part-0.safetensors")
            found = base_weights.identify(base)
            assert found not in seen, name
            seen.add(found)


def test_pickled_weights_have_one_too(tmp_path: Path) -> None:
    assert base_weights.identify(tmp_path) is None
    torch.save({"a": torch.arange(200_000.0)}, tmp_path / "pytorch_model.bin")
    first = base_weights.identify(tmp_path)
    torch.save({"a": torch.arange(200_000.0) + 1}, tmp_path / "pytorch_model.bin")
    assert first and base_weights.identify(tmp_path) not in (None, first)
    (tmp_path / "model.safetensors").write_bytes(b"damage")
    assert base_weights.identify(tmp_path) is None
