"""ChatGLM by the command line alone: an original folder is recognised, trained by its profile, resumed, and talked
to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.protocol.home import Home
from tests.cli.conftest import Cockpit
from tests.models.glm.folders import original
from tests.models.glm.layouts import fill

SHORT = (
    "training.max_steps=3",
    "training.accumulation=1",
    "training.rehearsal=false",
    "training.threads=1",
    "launch.processes=1",
    "model.dtype=float32",
    "data.max_rows=12",
    "data.validation.0.max_rows=2",
    "logging={plots: false, tensorboard: false}",
    "limits={disk_free_gb: 0}",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "generation", "name"),
    [("chatglm3-6b-qlora-8gpu", 3, "ChatGLM3"), ("chatglm-6b-qlora-20gb", 1, "ChatGLM-6B")],
)
def test_an_original_folder_is_trained_and_talked_to(
    cockpit: Cockpit, bare_home: Home, tmp_path: Path, profile: str, generation: int, name: str
) -> None:
    """As the profile says but for its base, its length in steps, its dtype and the cards that this machine has not."""
    base = fill(original(tmp_path / "base", generation), shards=2, binary=True, dtype="float16")
    config = json.loads((base / "config.json").read_text())
    longest = {"max_sequence_length": 2048} if generation == 1 else {"seq_length": 2048}
    (base / "config.json").write_text(
        json.dumps(config | longest)
    )  # the tiny vocabulary spells English letter by letter
    verified = cockpit("model", "verify", str(base))
    assert verified.returncode == 0 and name in verified.stdout + verified.stderr
    settings = [part for change in (f"model.base={base}", *SHORT) for part in ("--set", change)]
    trained = json.loads(cockpit("train", profile, "--json", *settings, seconds=240).stdout.splitlines()[-1])
    assert (trained["state"], trained["step"]) == ("completed", 3)
    resumed = json.loads(
        cockpit("resume", "last", "--set", "training.max_steps=4", "--json", seconds=240).stdout.splitlines()[-1]
    )
    assert (resumed["state"], resumed["step"], resumed["run"]) == ("completed", 4, trained["run"])
    told = cockpit("chat", "last", "--prompt", "你好", "--max-new-tokens", "8", "--json")
    assert told.returncode == 0, told.stderr
    assert 0 < json.loads(told.stdout)["tokens"] <= 8
