"""What is computed in bfloat16, on a CPU that does that well, learns as float32 does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config.profile import parse
from engine.protocol.home import Home
from engine.protocol.journal import Metrics, Start, read
from tests.training.harness import PROFILE


@pytest.mark.slow
def test_bfloat16_arithmetic_learns_as_float32(prepared, tmp_path, monkeypatch):
    """In this process, so that the choice of this machine's CPU can be overruled."""
    import torch

    from engine.models import devices
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
        try:
            assert session.train(run, 1, profile, tmp_path, None, Reporter(run, 1, link, 0), inbox)[0] == "completed"
        finally:
            link.close()
        entries = [entry for entry, _ in read(run.events)]
        assert next(e for e in entries if isinstance(e, Start)).facts["compute_dtype"] == str(compute)[6:]
        losses[compute] = [e.values["train/loss"] for e in entries if isinstance(e, Metrics)]
    narrow, wide = losses.values()
    assert narrow == pytest.approx(wide, rel=0.03)
    assert narrow != wide and narrow[-1] < 0.97 * narrow[0]
