"""What is computed in bfloat16, on a CPU that does that well, learns as float32 does."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse
from engine.models import devices
from engine.protocol.home import Home
from engine.protocol.journal import Metrics, Start, read
from tests.training.harness import PROFILE
from tests.training.in_process import train


@pytest.mark.slow
def test_bfloat16_arithmetic_learns_as_float32(prepared, tmp_path, monkeypatch):
    """In this process, so that the choice of this machine's CPU can be overruled."""
    import torch

    from engine.protocol.worker_link import Link
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.reporter import Reporter

    losses = {}
    for compute in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(devices, "choose_cpu_dtype", lambda _, compute=compute: compute)
        run = Home(tmp_path).run(str(compute))
        run.path.mkdir(parents=True)
        run.prepared.write_text(json.dumps(prepared))
        changes = ("model.dtype=bfloat16", "model.quantization=nf4", "training.epochs=4")
        profile = parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), changes)
        link, inbox = Link(f"ipc://{tmp_path}/nobody", run.id, 1), Inbox()
        inbox.connect(link)
        with contextlib.closing(link), contextlib.closing(Reporter(run, 1, link, 0)) as reporter:
            assert session.train(run, 1, profile, tmp_path, None, reporter, inbox)[0] == "completed"
        entries = [entry for entry, _ in read(run.events)]
        assert next(e for e in entries if isinstance(e, Start)).facts["compute_dtype"] == str(compute)[6:]
        losses[compute] = [e.values["train/loss"] for e in entries if isinstance(e, Metrics)]
    narrow, wide = losses.values()
    assert narrow == pytest.approx(wide, rel=0.03)
    assert narrow != wide and narrow[-1] < 0.97 * narrow[0]


def train_all(folder: Path, prepared: Any, monkeypatch: pytest.MonkeyPatch, *changes: str) -> tuple[Any, Any]:
    """All weights trained for 12 steps in bfloat16; returns the weights before and after, as the checkpoints have them
    for resuming."""
    import torch
    from safetensors.torch import load_file

    monkeypatch.setattr(devices, "choose_cpu_dtype", lambda _: torch.bfloat16)
    base = folder / "base"
    if not base.exists():
        from transformers import AutoModelForCausalLM

        shutil.copytree(prepared["base"], base)
        AutoModelForCausalLM.from_pretrained(prepared["base"], dtype=torch.bfloat16).save_pretrained(base)
    run = train(
        Home(folder),
        "-".join(("run", *changes)),
        prepared | {"base": str(base)},
        "adapter={kind: none}",
        "model.dtype=bfloat16",
        "training.learning_rate=2e-5",
        "training.max_steps=12",
        *changes,
    )
    checkpoint = run.checkpoint(12)
    masters = checkpoint / "trainer" / "masters.pt"
    after = torch.load(masters) if masters.exists() else load_file(checkpoint / "model.safetensors")
    return load_file(base / "model.safetensors"), after


@pytest.mark.slow
def test_small_updates_reach_weights_of_16_bits_through_masters_in_float32(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = {}
    for masters in ("float32", "none"):
        before, after = train_all(tmp_path, prepared, monkeypatch, f"training.masters={masters}")
        assert {str(weight.dtype) for weight in after.values()} == {
            "torch.float32" if masters == "float32" else "torch.bfloat16"
        }
        matrices = [name for name in after if after[name].dim() == 2 and "embed" not in name]
        changed = sum(int((after[name].float() != before[name].float()).sum()) for name in matrices)
        moved[masters] = changed / sum(after[name].numel() for name in matrices)
    assert moved["float32"] > 0.99 and moved["none"] < 0.7, moved


def test_a_checkpoint_takes_one_copy_of_the_weights_on_the_host() -> None:
    import torch

    from engine.training.checkpoints import collect_weights
    from tests.models.small import build

    model = build("llama", tie_word_embeddings=True)
    found = collect_weights(model, "bfloat16")
    assert {(str(tensor.device), tensor.dtype) for tensor in found.values()} == {("cpu", torch.bfloat16)}
    assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()
    assert found.keys() == model.state_dict().keys()
