"""Killed at any moment, run again: byte for byte what an uninterrupted run leaves. Every stage, as a verb and in a
profile."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from tests.prep.conftest import ProfileOver, write
from tests.prep.test_stages import asked, sentence
from tests.scripted.bench import wait_for
from tests.training import warm

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

START = "from engine.prep import chunks; chunks.SIZE = 20_000; import sys, json, argparse; from pathlib import Path\n"
VERB = (
    START
    + """
import importlib, os
from engine.protocol.home import Home
import engine.prep.stages.fingerprints, numpy, rensa, ftfy
run = importlib.import_module(f"engine.prep.verbs.{sys.argv[2]}").run
arguments = argparse.Namespace(**json.loads(sys.argv[3]))
os.chdir(Path(arguments.file).parent)
print("begins", flush=True)
run(Home(Path(sys.argv[1])), arguments, lambda *_: None)
"""
)
PROFILE = (
    START
    + """
from engine.protocol.home import Home
from engine.config.profile import load
import engine.prep.prepare, transformers, datasets, numpy, rensa, ftfy
from engine.prep.prepare import prepare
from transformers import AutoTokenizer
home = Home(Path(sys.argv[1]))
profile = load(Path(sys.argv[2]), home=home)
print("begins", flush=True)
prepare(profile, home, lambda *_: None)
"""
)


def start(folder: Path, program: str, *arguments: str) -> Any:
    """The program, at the moment when it begins its work."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    child = warm.start(["tests.program", program, *arguments], 1, environment, log)
    wait_for(lambda: b"begins\n" in log.read_bytes() or child.poll() is not None, 60)
    assert child.poll() is None, log.read_text()
    return child


def uninterrupted(folder: Path, program: str, *arguments: str) -> float:
    """Seconds that it takes."""
    child = start(folder, program, *arguments)
    began = time.monotonic()
    assert child.wait() == 0
    return time.monotonic() - began


def killed(seconds: float, folder: Path, program: str, *arguments: str) -> bool:
    child = start(folder, program, *arguments)
    end = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    child.kill()
    return bool(child.wait() == -signal.SIGKILL)


def content(folder: Path) -> dict[str, bytes]:
    """All files but the stamps of checks, which tell of times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".checked")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(count: int) -> list[Any]:
    chance = random.Random(12)
    made: list[Any] = [
        asked(sentence(chance, 10), sentence(chance, 40) + " Ã¼", category=chance.choice("abc")) for _ in range(count)
    ]
    return [*made, *made[: count // 5], "{oops", *made[: count // 10]]


SHARED: dict[str, Any] = {"format": "auto", "processes": 1, "overrides": [], "seed": 1}
VERBS: dict[str, dict[str, Any]] = {
    "validate": {},
    "clean": {"overrides": ["clean.min_chars=3"]},
    "dedup": {"against": ["dev.jsonl"]},
    "split": {"validation": 0.2, "test": 0.1, "stratify_by": "category"},
    "balance": {"by": "category", "to": "largest"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_goes_on(bare_home: Home, tmp_path: Path, verb: str) -> None:
    source = write(tmp_path / "rows.jsonl", *rows(1500))
    write(tmp_path / "dev.jsonl", *rows(30)[10:20])
    out = tmp_path / "out"
    options = json.dumps({**SHARED, **VERBS[verb], "file": str(source), "out": str(out)})
    command = (tmp_path, VERB, str(bare_home.root), verb, options)
    seconds = uninterrupted(*command)
    expected = content(out)
    assert not list(bare_home.cache.iterdir())
    shutil.rmtree(out)
    chance, kills = random.Random(verb), 0
    for _ in range(3):
        kills += killed(chance.uniform(0.1, 0.9) * seconds, *command)
    assert kills
    uninterrupted(*command)
    assert content(out) == expected
    assert not list(bare_home.cache.iterdir())


def test_a_killed_prepare_goes_on(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    profile = profile_over(
        rows(800),
        clean={},
        dedup={},
        split={"validation": 0.1, "stratify_by": "category"},
        balance={"by": "category"},
        packing=True,
        processes=1,
    )
    path = profile.directory / "profile.yaml"
    path.write_text(profile.to_yaml())
    command = (tmp_path, PROFILE, str(home.root), str(path))
    seconds = uninterrupted(*command)
    expected = content(home.cache)
    shutil.rmtree(home.cache)
    chance, kills, went_on = random.Random(1), 0, False
    for moment in (0.1, 0.3, 0.5):
        kills += killed((moment + chance.uniform(0, 0.2)) * seconds, *command)
        went_on |= any(home.cache.glob("work-*/*")) or any(home.cache.glob("data-*"))
    assert kills and went_on
    uninterrupted(*command)
    assert content(home.cache) == expected
