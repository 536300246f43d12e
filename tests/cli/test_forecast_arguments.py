"""What `cockpit forecast` and `fit` hand to the process that traces a step: the profile itself, not its place."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.verbs import tools
from engine.config.profile import load
from engine.protocol.home import Home
from engine.workers.forecast import _read_profile

TEXT = "name: mine\nmodel: {base: smollm2-135m-instruct}\ndata: {train: [{source: rows.jsonl}]}\n"


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The arguments that a worker gets."""
    found: list[dict[str, Any]] = []

    def run(worker: str, options: Any, action: str, *arguments: str) -> None:
        found.append({"action": action, **json.loads(arguments[0])})
        raise SystemExit(0)

    monkeypatch.setattr(tools, "_run_worker", run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    (tmp_path / "mine.yaml").write_text(TEXT)
    return found


@pytest.mark.parametrize("source", ["mine.yaml", "-"])
def test_a_forecast_is_of_the_profile_that_was_named(
    source: str, handed: list[dict[str, Any]], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    with pytest.raises(SystemExit):
        main(["--home", str(home.root), "forecast", source, "--set", "training.micro_batch=3"])
    (given,) = handed
    expected = load(tmp_path / "mine.yaml", ["training.micro_batch=3"], home)
    assert _read_profile(home, given).to_dict() == expected.to_dict()
    assert Path(given["directory"]) == tmp_path and given["action"] == "forecast"


def test_what_needs_a_file_says_so(
    handed: list[dict[str, Any]], home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, why in (
        (["fit", "-", "--apply", "fits.yaml"], "--apply copies the file of a profile"),
        (["launch-file", "-", "--for", "slurm"], "the file names the profile that it runs"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
        assert main(["--home", str(home.root), *arguments]) == 2
        assert why in capsys.readouterr().err
    assert not handed
