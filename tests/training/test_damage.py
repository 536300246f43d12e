"""Damaged journals, checkpoints and disks: nothing that was written is lost, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.models import folders
from engine.protocol.codes import CODES
from engine.protocol.home import write_private
from engine.protocol.journal import Checkpoint, End, Ledger, Start, Warn
from engine.protocol.messages import ProblemError
from engine.storage import atomic, manifest
from engine.training import checkpoints, lineage, resume_point
from tests.training.here import Here, at

QUICK = ("training.rehearsal=false", "training.max_steps=6", "checkpoint.every_steps=2", "checkpoint.keep=5")


@pytest.fixture(scope="module")
def kept(prepared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 2, 4 and 6."""
    run = Here(tmp_path_factory.mktemp("kept"), "run", prepared, *QUICK)
    assert run.train() == ("completed", 6)
    return run.run.path


@pytest.fixture
def run(kept: Path, prepared: dict[str, Any], tmp_path: Path) -> Here:
    """A copy of that run, about to be resumed for two more steps."""
    copy = Here(tmp_path, "run", prepared, *QUICK, "training.max_steps=8", "checkpoint.keep=1")
    shutil.copytree(kept, copy.run.path, dirs_exist_ok=True)
    copy.attempts = 1
    return copy


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ── the journal ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content", [None, b"", b"\x00\xff garbage\n" * 40, b'{"kind":' + b"[" * 100_000 + b"\n", b'{"kind":"start"}\n']
)
def test_a_journal_that_leads_to_no_checkpoint_is_refused_and_nothing_is_removed(
    run: Here, content: bytes | None
) -> None:
    before = _content(run.run.checkpoints)
    run.run.events.unlink()
    if content is not None:
        run.run.events.write_bytes(content)
    with pytest.raises(ProblemError) as raised:
        run.train()
    problem = raised.value.problem
    assert problem.code == "checkpoint.off_journal"
    assert f"{run.run.id}@6" in problem.hint
    assert _content(run.run.checkpoints) == before

    assert run.train(from_step=6) == ("completed", 8)
    assert run.run.checkpoint_steps() == [2, 4, 6, 8], "the journal knows 8 alone: with keep=1 it may prune no other"
    assert run.entries(Start)[-1].step == 6


def test_a_checkpoint_that_the_killed_worker_could_not_journal_is_resumed(run: Here) -> None:
    lines = run.run.events.read_bytes().splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if b'"checkpoint"' in line[:200])
    run.run.events.write_bytes(b"".join(lines[:last]))
    assert lineage.trace(run.run).newest(run.run.checkpoint_steps()) == 6
    # One of another attempt, or of before this attempt's start, is not on the way.
    facts = run.run.checkpoint(6) / manifest.FILE
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"attempt": 7}))
    assert lineage.trace(run.run).newest(run.run.checkpoint_steps()) == 4


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing", "folder"])
def test_every_damaged_file_of_a_checkpoint_is_named(kept: Path, tmp_path: Path, how: str) -> None:
    whole = kept / "checkpoints" / "step-00000006"
    names = sorted(_content(whole))
    assert len(names) >= 10
    for name in names:
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, copy)
        _damage(copy / name, how)
        found = resume_point.find_damage(copy)
        if name == manifest.FILE and how == "missing":
            continue  # as one of an older version
        assert name in found, (name, how, found)
        if "/" not in name:
            assert any(name in each for each in folders.find_problems(copy)), "whatever loads it says so too"


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "folder"])
def test_damage_to_a_checkpoint_without_manifest_is_found_where_a_format_shows_it(
    kept: Path, tmp_path: Path, how: str
) -> None:
    whole = kept / "checkpoints" / "step-00000006"
    names = [name for name in _content(whole) if name.endswith(".pt") or name == "adapter_model.safetensors"]
    for name in names:
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, copy)
        (copy / manifest.FILE).unlink()
        assert resume_point.find_damage(copy) == ""
        if how == "flipped" and name.endswith(".safetensors"):
            continue  # the format has no checksum
        if how == "flipped":
            with zipfile.ZipFile(copy / name) as archive:
                member = archive.infolist()[0]
            content = bytearray((copy / name).read_bytes())
            content[member.header_offset + 30 + len(member.filename) + 70] ^= 1
            (copy / name).write_bytes(content)
        else:
            _damage(copy / name, how)
        assert name.rpartition("/")[2] in resume_point.find_damage(copy), (name, how)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_resumed(run: Here) -> None:
    _damage(run.run.checkpoint(6) / "trainer" / "optimizer.pt", "truncated")
    _damage(run.run.checkpoint(4) / "adapter_model.safetensors", "flipped")
    assert run.train() == ("completed", 8)
    assert run.entries(Start)[-1].step == 2
    warned = {entry.message for entry in run.entries(Warn) if entry.code == "checkpoint.damaged"}
    assert len(warned) == 2
    assert any("step 6" in each and "trainer/optimizer.pt" in each for each in warned)
    assert any("step 4" in each and "adapter_model.safetensors" in each for each in warned)
    assert (entry := run.entries(Ledger)[-1]).name == lineage.REWIND and (entry.old, entry.new) == (6, 2)


def test_a_damaged_checkpoint_that_was_asked_for_is_refused_with_the_whole_ones(run: Here) -> None:
    _damage(run.run.checkpoint(4) / "trainer" / "ranks.pt", "flipped")
    with pytest.raises(ProblemError) as raised:
        run.train(from_step=4)
    problem = raised.value.problem
    assert problem.code == "checkpoint.damaged" and "trainer/ranks.pt" in problem.cause
    assert f"{run.run.id}@6" in problem.hint and f"{run.run.id}@2" in problem.hint
    for step in (2, 6):
        _damage(run.run.checkpoint(step) / "lock.json", "empty")
    with pytest.raises(ProblemError, match="is whole"):
        run.train()


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["RAN"],)


def test_no_pickle_of_a_checkpoint_runs_code(run: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    folder = run.run.checkpoint(6)
    (folder / manifest.FILE).unlink()  # as a foreign checkpoint comes
    for path in folder.rglob("*.pt"):
        kept = path.read_bytes()
        for foreign in ("zip", "bare"):
            if foreign == "zip":
                torch.save(_Runs(), path)
            else:
                path.write_bytes(pickle.dumps(_Runs()))
            with pytest.raises(Exception) as raised:
                run.train(from_step=6)
            assert not isinstance(raised.value, ProblemError) or raised.value.problem.code in CODES
            assert not (tmp_path / "ran").exists(), (path.name, foreign)
        path.write_bytes(kept)


# ── a full disk ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: what the kernel says of a full disk, at a chosen byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_short_write_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    write_private(path, b"old")
    for size in (0, 1, 4096, 8191):
        with _limit(size), pytest.raises(OSError):
            write_private(path, b"n" * 8192)
        assert path.read_bytes() == b"old"
        assert [each.name for each in tmp_path.iterdir()] == ["profile.yaml"]


def test_a_write_that_fails_at_any_byte_of_any_file_pauses_and_the_checkpoint_is_then_whole(
    prepared: dict[str, Any], tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit falls upon one file of the checkpoint after the other, and stays until the run has paused."""
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    names = [name for name in _content(kept / "checkpoints" / "step-00000006") if name != manifest.FILE]
    sizes = {name: len(content) for name, content in _content(kept / "checkpoints" / "step-00000006").items()}
    cases = [(name, at) for name in sorted(names) for at in (0, sizes[name] // 2)]
    run = Here(tmp_path, "run", prepared, *QUICK, f"training.max_steps={len(cases)}", "checkpoint.every_steps=1")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    waiting = list(cases)
    paused: list[tuple[str, int]] = []
    fill = atomic._fill

    def limited(folder: Path, write: Any, attempts: int) -> None:
        """Fill the folder under a limit that begins when the chosen file is about to be written."""
        name, at = waiting[0]
        begin = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (at, unlimited[1]))  # noqa: E731
        with monkeypatch.context() as patched:
            for owner, function in (
                (torch, "save"),
                (PeftModel, "save_pretrained"),
                (PreTrainedTokenizerBase, "save_pretrained"),
                (Path, "write_text"),
            ):
                original = getattr(owner, function)

                def call(*arguments: Any, original: Any = original, **options: Any) -> Any:
                    if name in _targets(original, arguments):
                        begin()
                    return original(*arguments, **options)

                patched.setattr(owner, function, call)
            fill(folder, write, attempts)

    def _targets(original: Any, arguments: tuple[Any, ...]) -> set[str]:
        if original.__qualname__.startswith("PeftModel"):
            return {"adapter_model.safetensors", "adapter_config.json"}
        if original.__name__ == "save_pretrained":
            return {name for name in names if "token" in name or "template" in name}
        path = str(arguments[0] if original.__name__ == "write_text" else arguments[1])
        return {path.rpartition("/")[2], "trainer/" + path.rpartition("/")[2]}

    monkeypatch.setattr(atomic, "_fill", limited)

    def lift(here: Here) -> list[tuple[str, dict[str, Any]]]:
        if resource.getrlimit(resource.RLIMIT_FSIZE) == unlimited:
            return []
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        paused.append(waiting.pop(0))
        monkeypatch.setattr(atomic, "_fill", fill)
        return [("continue", {})]

    def orders(here: Here) -> list[tuple[str, dict[str, Any]]]:
        found = lift(here)
        if not found and waiting and here.step():
            monkeypatch.setattr(atomic, "_fill", limited)
        return found

    try:
        outcome = run.train(orders=orders)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert outcome == ("completed", len(cases))
    assert len(paused) >= len(cases) - 3, set(cases) - set(paused)
    reasons = [entry.new for entry in run.entries(Ledger) if entry.name == "pause"]
    assert len(reasons) == len(paused) and all("cannot be written" in reason for reason in reasons)
    assert all(not resume_point.find_damage(run.run.checkpoint(step)) for step in run.run.checkpoint_steps())
    assert not list(run.run.checkpoints.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=400", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_disk_that_is_really_full_pauses_wherever_it_fills(
    prepared: dict[str, Any], kept: Path, small_disk: Path, what: str
) -> None:
    """Room for ever more of a checkpoint, until one fits."""
    run = Here(small_disk, "run", prepared, *QUICK, "training.max_steps=3", "checkpoint.every_steps=2")
    size = sum(map(len, _content(kept / "checkpoints" / "step-00000006").values()))
    balloon = small_disk / "balloon"
    balloon.mkdir()
    rooms = [size * part // 24 for part in range(26)] if what == "bytes" else list(range(1, 24))
    tried: list[int] = []

    def inflate(room: int) -> None:
        shutil.rmtree(balloon, ignore_errors=True)
        balloon.mkdir()
        state = os.statvfs(small_disk)
        if what == "bytes":
            (balloon / "air").write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - room)))
        else:
            for index in range(max(0, state.f_favail - room)):
                (balloon / str(index)).touch()

    def orders(here: Here) -> list[tuple[str, dict[str, Any]]]:
        pauses = sum(entry.name == "pause" for entry in here.entries(Ledger))
        if here.step() >= 1 and len(tried) <= pauses and rooms:
            tried.append(rooms.pop(0))
            inflate(tried[-1])
            return [("continue", {})] if pauses else []
        if not rooms and balloon.exists():
            shutil.rmtree(balloon)
            return [("continue", {})]
        return []

    assert run.train(orders=orders) == ("completed", 3)
    reasons = [entry.new for entry in run.entries(Ledger) if entry.name == "pause"]
    assert len(reasons) >= 5 and all("disk low" in reason for reason in reasons), reasons
    assert run.run.checkpoint_steps() == [2, 3]
    assert not run.entries(End)


def test_an_error_that_is_not_the_disks_is_raised(tmp_path: Path) -> None:
    calls = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        raise RuntimeError("a write of ours that is wrong")

    with pytest.raises(RuntimeError, match="of ours"):
        atomic.write_folder(tmp_path / "folder", fill, {})
    assert len(calls) == 2 and list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_a_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_folder(tmp_path / "folder", lambda place: (place / "a").write_text("old"), {})
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(".folder.") and self.name != ".folder.replaced":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError):
        atomic.write_folder(tmp_path / "folder", lambda place: (place / "a").write_text("new"), {})
    assert (tmp_path / "folder" / "a").read_text() == "old"


def test_a_published_checkpoint_may_be_edited(run: Here, tmp_path: Path) -> None:
    """Its manifest stays behind: the copy is the user's."""
    checkpoints.publish(run.run.checkpoint(6), tmp_path / "out")
    (tmp_path / "out" / "tokenizer_config.json").write_text("{}")
    assert not (tmp_path / "out" / manifest.FILE).exists()
    assert at(1, "stop") and run.entries(Checkpoint)
