"""Wrong answers that were planted in the demo's data are the first rows of `cockpit data worst`."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from engine.config.profile import Profile
from engine.prep.prepare import prepare
from engine.prep.token_parts import TokenParts
from engine.prep.token_rows import PLAIN
from engine.prep.token_store import arrow_writer, link_streams
from engine.prep.verbs import worst
from engine.prep.worst_rows import compare, find_alike
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.training.planted import ask, plant, quiet, train_on

PROFILE = """
model: {{base: {base}, dtype: bfloat16}}
adapter: {{kind: lora, rank: 16, alpha: 32}}
data: {{train: [{{source: rows.jsonl}}], max_length: 256}}
method: {{kind: sft}}
training: {{epochs: 1, micro_batch: 8, learning_rate: 1.0e-3, warmup: 2, threads: 1, rehearsal: false}}
checkpoint: {{every_steps: 1000}}
evaluation: {{at_start: false}}
logging: {{tensorboard: false, plots: false, every_steps: 10}}
limits: {{disk_free_gb: 0}}
"""


def train(home: Home, folder: Path, base: str, *changes: str) -> Profile:
    return train_on(home, folder, PROFILE.format(base=base), *changes)


TABLE = {key: " ".join(f"w{(7 * key + 11 * at) % 60}" for at in range(4)) for key in range(20)}
"""What a tiny model can learn: the answer to each key."""
TINY = (
    "model.dtype=float32",
    "adapter={kind: none}",
    "training={epochs: 4, micro_batch: 8, learning_rate: 3.0e-3, warmup: 2, threads: 1, rehearsal: false}",
)


def make_table_rows(count: int) -> list[Any]:
    generator = random.Random(0)
    rows = []
    for _ in range(count):
        key, noise = generator.randrange(len(TABLE)), [generator.randrange(20, 60) for _ in range(4)]
        question = f"w{key} " + " ".join(f"w{each}" for each in noise)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": TABLE[key]}]
        rows.append({"messages": messages})
    return rows


@pytest.fixture
def tiny_run(bare_home: Home, tiny: Path, tmp_path: Path) -> tuple[Home, Any, set[int]]:
    planted = plant(make_table_rows(400), tmp_path / "rows.jsonl", 1)
    return bare_home, train(bare_home, tmp_path, str(tiny), *TINY), planted


def test_planted_errors_come_first_and_are_dropped(tiny_run: tuple[Home, Any, set[int]], tmp_path: Path) -> None:
    home, profile, planted = tiny_run
    source, chosen = tmp_path / "rows.jsonl", tmp_path / "list.jsonl"
    report = ask(home, len(planted), drop=str(chosen))
    assert {row["file"] for row in report["worst"]} == {str(source)}
    found = {row["line"] for row in report["worst"]}
    assert len(found & planted) >= 0.8 * len(planted), (sorted(found), sorted(planted))
    assert (report["rows"], report["epochs"], report["listed"]) == (400, 4, len(planted))
    lines = source.read_text().splitlines(keepends=True)
    first = report["worst"][0]
    assert first["answer"].split()[:4] == json.loads(lines[first["line"] - 1])["messages"][-1]["content"].split()
    assert f"{source}:{first['line']}" in worst.describe(report)
    for by in ("loss", "rise", "never-learnt"):
        scores = [row["score"] for row in ask(home, 9, by=by)["worst"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 9
    # Down-weighting some of them replaces their weights in the list.
    assert ask(home, len(planted), drop=str(chosen), only="1,3-4", weight=0.5)["listed"] == len(planted)

    # What is dropped is not prepared again, wherever the rows stand by then; nor can a changed file be listed by line.
    source.write_text("".join(reversed(lines)))
    data = profile.data.model_copy(update={"exclude": "list.jsonl"})
    prepared = prepare(replace(profile, data=data), home, quiet)
    stage = next(stage for stage in prepared["stages"] if stage["name"] == "exclude")
    assert (stage["in"], stage["listed"]) == (400, len(planted))
    assert len(planted) - 3 <= stage["dropped"] <= len(planted) and prepared["rows"] == 400 - stage["dropped"]
    with pytest.raises(ValueError, match="has changed since"):
        ask(home, 3, drop=str(chosen))
    chosen.write_text('{"digest": "a", "weight": 7}\n')
    with pytest.raises(ProblemError, match=r"data\.exclude"):
        prepare(replace(profile, data=data), home, quiet)


def test_the_first_rows_of_a_run_are_no_errors() -> None:
    """Losses that fall by half in some twenty rows, with 8 rows that stay higher than their time."""
    planted = [25, 58, 64, 67, 83, 113, 144, 155]
    found = 0
    for seed in range(20):
        generator = numpy.random.default_rng(seed)
        losses = 2.5 * 0.5 ** (numpy.arange(160) / 20) * generator.lognormal(0, 0.2, 160) + 0.1 * generator.random(160)
        losses[planted] += 1.0
        found += len({*numpy.argsort(-compare(losses))[:8].tolist()} & {*planted})
    assert found >= 0.9 * 20 * len(planted), found


def test_near_duplicates_with_other_answers_are_named(tmp_path: Path) -> None:
    """Against Jaccard similarity as it is defined, of every pair of rows."""
    generator = random.Random(3)
    rows = []
    for _ in range(120):
        prompt = [generator.randrange(9) for _ in range(generator.randrange(4, 9))]
        answer = [100 + generator.randrange(3)]
        rows.append((prompt, answer))
    rows += [(prompt[:-1], [generator.choice([100, 200])]) for prompt, _ in rows[:40]]
    with arrow_writer(tmp_path / "stream", PLAIN) as write:
        sizes = [len(prompt) + 1 for prompt, _ in rows]
        write(
            {
                "input_ids": ([token for prompt, answer in rows for token in prompt + answer], sizes),
                "labels": ([label for prompt, answer in rows for label in [-100] * len(prompt) + answer], sizes),
            }
        )
    with link_streams(tmp_path / "set", PLAIN) as link:
        link(tmp_path / "stream")
    tokens = TokenParts(tmp_path / "set")
    pairs = [{*itertools.pairwise(prompt)} for prompt, _ in rows]
    spread = Counter(pair for own in pairs for pair in own)
    chosen = list(range(0, len(rows), 3))
    listed = {pair for at in chosen for pair in pairs[at] if spread[pair] > 0.1 * len(rows)}
    pairs = [own - listed for own in pairs]
    found = find_alike(tokens, chosen, most=200)
    for at in chosen:
        similar = {
            other: len(pairs[at] & pairs[other]) / max(1, len(pairs[at] | pairs[other]))
            for other in range(len(rows))
            if other != at and rows[other][1] != rows[at][1]
        }
        assert dict(found[at]) == pytest.approx({other: value for other, value in similar.items() if value >= 0.5})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif("COCKPIT_LONG_TESTS" not in os.environ, reason="takes minutes: set COCKPIT_LONG_TESTS=1")
def test_the_demo_with_planted_errors(bare_home: Home, whole_smollm2: Path, tmp_path: Path) -> None:
    """The whole embedded model, after one epoch over a part of the demo's data."""
    source = Path(__file__).parents[2] / "data" / "triples" / "train.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:160]]
    planted = plant(rows, tmp_path / "rows.jsonl", 1)
    train(bare_home, tmp_path, str(whole_smollm2))
    found = {row["line"] for row in ask(bare_home, len(planted))["worst"]}
    assert len(found & planted) >= 0.8 * len(planted), (sorted(found), sorted(planted))
