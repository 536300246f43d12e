"""Rows that share a long text: what most rows share makes no two of them alike, and a split holds out its share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engine.options.data import DedupOptions
from engine.prep import chunks
from engine.prep.stages import fingerprints, row_files
from engine.prep.stages.dedup import dedup
from engine.prep.stages.split import PARTS
from tests.prep.test_stages import Stage, asked, rows_of, sentence, split_of

ASKED = "Classify the sentiment of the following film review. Answer with one word, and with nothing else at all."
WORDS = ["good", "bad", "film", "plot", "actor", "scene", "music", "weak", "strong", "dull", "bright", "tale"]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def sums(count: int, instruction: str = "Add the two numbers and answer with the sum only, without any words.") -> Any:
    chance = random.Random(1)
    pairs = [(chance.randint(10, 99), chance.randint(10, 99)) for _ in range(3 * count)]
    return [asked(f"{instruction}\n{one} + {two}", str(one + two)) for one, two in dict.fromkeys(pairs)][:count]


def reviews(count: int) -> list[dict[str, Any]]:
    chance = random.Random(2)
    texts = {
        " ".join(chance.choice(WORDS) for _ in range(6)): chance.choice(["positive", "negative"]) for _ in range(count)
    }
    return [asked(f"{ASKED}\n{text}", reply) for text, reply in texts.items()]


def near(stage: Stage, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return dedup(stage.place(*rows), stage.out, stage.rejects, DedupOptions(), stage.context.within("dedup"))


@pytest.mark.parametrize("rows", [sums(400), reviews(400), sums(40), reviews(40)])
def test_a_shared_instruction_makes_no_duplicates(rows: list[dict[str, Any]], stage: Stage) -> None:
    assert near(stage, rows)["near"] <= 0.02 * len(rows)


def test_several_shared_instructions_make_none_either(stage: Stage) -> None:
    chance = random.Random(3)
    rows = [row for _ in range(4) for row in sums(100, sentence(chance, 30))] + reviews(100)
    assert near(stage, rows)["near"] <= 0.02 * len(rows)


def test_copies_are_found_under_a_shared_instruction(stage: Stage) -> None:
    chance = random.Random(4)
    rows = [asked(f"{ASKED}\n{sentence(chance, 40)}", "positive") for _ in range(100)]
    copies = [asked(row["instruction"] + " !", row["output"]) for row in rows[:30]]
    counts = near(stage, [*rows, *copies])
    assert counts["near"] == 30 and rows_of(stage.out) == rows


def test_processes_and_spans_do_not_change_what_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found = reviews(300), []
    for name, processes, order, size in (("a", 2, rows, 4096), ("b", 1, rows[::-1], 2**20)):
        monkeypatch.setattr(chunks, "SIZE", size)
        each = Stage(tmp_path / name, processes)
        prints = fingerprints.take_fingerprints([each.place(*order)], 5, True, each.context.within("prints"), "x")
        signed = prints.signatures.read_bytes()
        texts = [row["instruction"] for row in order]
        found.append(dict(zip(texts, [signed[at : at + 256] for at in range(0, len(signed), 256)], strict=True)))
    assert found[0] == found[1]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["sums", "reviews", "near copies", "copies of few", "few rows"])
def test_a_split_holds_out_its_share(kind: str, share: float, stage: Stage) -> None:
    chance = random.Random(5)
    text = sentence(chance, 60)
    rows = {
        "sums": sums(200),
        "reviews": reviews(200),
        "near copies": [{"text": f"{text} {number}"} for number in range(9)],
        "copies of few": [{"text": f"{sentence(random.Random(number % 20), 9)}"} for number in range(100)],
        "few rows": [{"text": sentence(chance)} for _ in range(4)],
    }[kind]
    counts, parts = split_of(stage, stage.place(*rows), validation=share)
    wanted = max(1, share * len(rows))
    copies = 5 if kind == "copies of few" else 1
    assert abs(counts["validation"] - wanted) <= max(1, 0.1 * wanted, copies - 1), counts
    assert counts["train"] and counts["train"] + counts["validation"] == len(rows)
    texts = [{row_files.encode(row) for row in parts[part]} for part in PARTS]
    assert not texts[0] & texts[1], "copies of a row stay together"
    assert bool(counts["cut"]) == (kind == "near copies")
