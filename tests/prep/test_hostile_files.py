"""Data files that were made to keep a reader busy: refused soon, with little memory, and with their place."""

from __future__ import annotations

import gzip
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import yaml_text
from engine.config.profile import ProfileError, load
from engine.prep import readers, sources
from engine.protocol.home import Home

if sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

MEMORY = 200 << 20
SECONDS = 20.0
BLOCK = 1 << 20


def bomb(path: Path, start: bytes, repeated: bytes, gigabytes: int = 20) -> Path:
    """A compressed file of so many gigabytes, which takes about a megabyte."""
    pack: Callable[[bytes], bytes] = gzip.compress if path.suffix == ".gz" else zstd.compress
    block = pack(repeated * (BLOCK // len(repeated)))
    path.write_bytes(pack(start) + block * (gigabytes * 1024))
    return path


def read_all(path: Path) -> tuple[list[str], str]:
    """The reasons of the rows that cannot be read, and that of the file, within bounds."""
    reasons: list[str] = []
    failure = ""
    began = time.monotonic()
    tracemalloc.start()
    try:
        for record in readers.read(path):
            reasons += [record.reason] if record.reason and len(reasons) < 10 else []
    except ValueError as error:
        failure = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - began < SECONDS and peak < MEMORY, (time.monotonic() - began, peak)
    return reasons, failure


@pytest.mark.parametrize("packing", [".zst", ".gz"])
def test_brackets_have_a_depth(packing: str, tmp_path: Path) -> None:
    for start, repeated in ((b"", b"["), (b"[", b'{"a":'), (b'{"a":', b"[[")):
        _, failure = read_all(bomb(tmp_path / f"rows.json{packing}", start, repeated, gigabytes=5))
        assert "rows.json" in failure and ":1:" in failure and "200,000 deep" in failure, failure


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt"])
@pytest.mark.parametrize("start", [b'{"a": "', b"", b'[{"a": "'])
def test_what_unpacks_to_gigabytes_is_refused(
    kind: str, start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.prep.files import packed

    monkeypatch.setattr(packed, "_STREAMED", 64 << 20)
    monkeypatch.setattr(packed, "_STREAMED_TIMES", 20)
    _, failure = read_all(bomb(tmp_path / f"rows.{kind}.zst", start, b"a"))
    assert f"rows.{kind}" in failure, failure


def test_text_that_is_merely_long_is_read(tmp_path: Path) -> None:
    rows = b"".join(b'{"text": "the same %d"}\n' % (index % 7) for index in range(200_000))
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstd.compress(rows, level=19))
    assert rows.count(b"\n") == sum(1 for record in readers.read(path) if record.value)
    deep = tmp_path / "rows.json"
    deep.write_text('[{"a": ' + "[" * 900 + "]" * 900 + "}]")
    assert len(list(readers.read(deep))) == 1


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name, kind in (("rows.jsonl", "a pipe"), ("zero.jsonl", "a device")):
        with pytest.raises(ValueError, match=f"is {kind}, not a file"):
            sources.list_files(name, tmp_path)
        profile = tmp_path / "p.yaml"
        profile.write_text(f"model: {{base: smollm2-135m-instruct}}\ndata:\n  train:\n    - source: {name}\n")
        with pytest.raises(ProfileError) as caught:
            load(profile, home=Home(tmp_path / "home"))
        issue = caught.value.issues[0]
        assert (issue.code, issue.line) == ("profile.conflict", 4) and kind in issue.message
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "rows.jsonl")
    with pytest.raises(ValueError, match="without a file that can be read"):
        sources.list_files("folder", tmp_path)


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MAPPINGS = "y0: &y0 {a: 1}\n" + "".join(f"y{i}: &y{i} {{p: *y{i - 1}, q: *y{i - 1}}}\n" for i in range(1, 40))
PROFILES = {
    "aliases": (ALIASES, 5, "stands for more than 100,000 settings"),
    "mappings": (MAPPINGS, 16, "stands for more than 100,000 settings"),
    "circle": ("data: &a\n  train: [*a]\n", 1, "an alias stands for something that it is in"),
    "brackets": ("data: " + "[" * 100_000, 1, "brackets are open"),
    "braces": ("{a: " * 2_000, 1, "brackets are open"),
    "closed": ("data: " + "[" * 300 + "]" * 300, 1, "inside each other"),
    "long": ("a: " + "x" * (5 << 20), 1, "larger than 4 MiB"),
    "anchored": ("data: &x {train: *x}", 1, "an alias stands for something that it is in"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROFILES)
def test_no_profile_is_a_bomb(name: str, tmp_path: Path) -> None:
    text, line, message = PROFILES[name]
    path = tmp_path / "p.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(ProfileError) as caught:
        load(path)
    issue = caught.value.issues[0]
    assert message in issue.message and issue.code == "profile.syntax" and issue.line == line, issue
    with pytest.raises(ProfileError) as caught:
        load(yaml_file(tmp_path), [f"data.train={text}" if name != "long" else "data=" + text])
    assert time.monotonic() - began < 10


def yaml_file(folder: Path) -> Path:
    path = folder / "good.yaml"
    path.write_text("model: {base: smollm2-135m-instruct}\n")
    return path


def test_profiles_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ProfileError, match="not UTF-8"):
        load(tmp_path / "bytes.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(OSError, match="not a file"):
        load(tmp_path / "pipe.yaml")


def test_a_few_aliases_are_fine() -> None:
    yaml_text.check("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n")


def test_the_app_lists_no_pipe_and_edits_no_bomb(tmp_path: Path) -> None:
    from cockpit.profiles.files import list_profiles
    from cockpit.profiles.yaml_edit import read_yaml, set_value

    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "own.yaml").write_text("data: {}\nmodel: {}\n")
    assert [each.name for each in list_profiles(Home(tmp_path / "home"), tmp_path) if each.place == "here"] == ["own"]
    for text, _, _ in PROFILES.values():
        assert read_yaml(text) == {}
        with pytest.raises(ValueError):
            set_value(text, "model.base", "x")
