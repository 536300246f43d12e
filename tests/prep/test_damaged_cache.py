"""A damaged entry of the cache is found by its hash and made again, and found again only when it was touched."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.storage import cache, manifest
from tests.prep.conftest import ProfileOver, chat

ROWS = [chat(f"question {number}", f"answer {number}") for number in range(40)]


def _prepare(profile_over: ProfileOver, home: Home, **data: Any) -> dict[str, Any]:
    return prepare(profile_over(ROWS, **data), home, lambda *_: None)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _flip(path: Path) -> None:
    """One bit, with size and modification time as before."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("data", [{}, {"clean": {}, "split": {"validation": 0.2}}])
def test_a_flipped_bit_of_any_file_is_never_used(home: Home, profile_over: ProfileOver, data: dict[str, Any]) -> None:
    first = _prepare(profile_over, home, **data)
    entries = {entry for entry in home.cache.iterdir() if entry.is_dir()}
    made = {entry: _content(entry) for entry in entries}
    main = Path(first["train"]).parent
    assert main in made and len(made) == 1 + bool(data)
    for entry, files in made.items():
        for name in [name for name, content in files.items() if content and name != manifest.FILE]:
            for damage in (_flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
                damage(entry / name)
                if entry != main:  # read only when the tokens are made again
                    _flip(main / "prepared.json")
                again = _prepare(profile_over, home, **data)
                assert _content(entry).keys() == files.keys()
                assert (entry / name).read_bytes() == files[name], (entry.name, name)
                assert again["damaged"] and again["train"] == first["train"]


def test_a_whole_entry_is_hashed_once(home: Home, profile_over: ProfileOver, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(manifest, "_hash", lambda path, hash=manifest._hash: (hashed.append(path), hash(path))[1])
    entry = Path(_prepare(profile_over, home)["train"]).parent
    hashed.clear()
    for _ in range(3):
        assert _prepare(profile_over, home)["damaged"] == []
        assert cache.find_damage(entry) == ""
    assert hashed == []
    (entry / "rejects.jsonl").touch()
    assert cache.find_damage(entry) == "" and hashed == [entry / "rejects.jsonl"]
    hashed.clear()
    assert cache.find_damage(entry) == "" and hashed == []


def test_a_damaged_manifest_or_stamp_costs_no_more_than_the_entry(home: Home, profile_over: ProfileOver) -> None:
    entry = Path(_prepare(profile_over, home)["train"]).parent
    for stamps in home.cache.glob(".checked-*"):
        for content in (b"", b"garbage", b"[" * 100_000, b'{"prepared.json": 3}'):
            stamps.write_bytes(content)
            assert cache.find_damage(entry) == ""
    for content in (b"", b"garbage", b"[" * 100_000, b"{}", b'{"files": {"prepared.json": null}}', b'{"files": []}'):
        (entry / manifest.FILE).write_bytes(content)
        assert cache.find_damage(entry), content
        assert _prepare(profile_over, home)["damaged"]
        assert cache.find_damage(entry) == "" and json.loads((entry / manifest.FILE).read_text())["files"]
