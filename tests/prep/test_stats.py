"""Figures of a set: each against what counting by hand gives."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prep import stats
from engine.prep.token_rows import percentile
from engine.prep.verbs.stats import run
from engine.protocol.home import Home
from tests.prep.conftest import write

ENGLISH, CHINESE = "The river was wide and slow, and nobody crossed it.", "他们沿着河边慢慢地走着，谁也没有说话。"
ROWS = [
    {"instruction": f"question {number}",
     "output": (CHINESE if number % 4 == 0 else ENGLISH) * (number % 9 + 1) + str(number),
     "category": "河" if number % 4 == 0 else "prose"}
    for number in range(80)
]  # fmt: skip


def figures(home: Home, file: Path, **options: Any) -> dict[str, Any]:
    defaults = {"format": "auto", "model": "smollm2-135m-instruct", "max_length": 100, "loss_on": "auto",
                "by": None, "plot": None, "processes": 1}  # fmt: skip
    return run(home, argparse.Namespace(file=str(file), **(defaults | options)), lambda *_: None)


def counted(tokenizer: Any, rows: list[dict[str, Any]]) -> list[int]:
    chats = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    return [len(ids) for ids in tokenizer.apply_chat_template(chats, return_dict=False)]


def test_the_figures_of_a_set(home: Home, tmp_path: Path, tokenizer: Any) -> None:
    rows = [*ROWS, ROWS[3], ROWS[3], {"instruction": "no output"}]
    told = figures(home, write(tmp_path / "rows.jsonl", *rows), by="category", plot=str(tmp_path / "lengths.png"))
    lengths = counted(tokenizer, rows[:-1])
    assert (told["rows"], told["tokens"], told["rejected"]) == (82, sum(lengths), 1)
    assert 0 < told["trained_share"] == told["trained_tokens"] / told["tokens"] < 1
    ordered = sorted(lengths)
    for name, share in (("p5", 5), ("p50", 50), ("p95", 95), ("p99", 99)):
        assert told["length"][name] == ordered[82 * share // 100]
    assert told["length"]["max"] == ordered[-1] and told["length"]["mean"] == pytest.approx(sum(lengths) / 82)
    assert sum(told["histogram"]["rows"]) == 82 and told["histogram"]["edges"][-1] > ordered[-1]
    assert told["duplicates"]["exact"] == 2
    cut = told["truncation"]["100"]
    assert cut["cut"] == sum(length > 100 for length in lengths)
    assert cut["tokens"] == sum(max(0, length - 100) for length in lengths)
    assert told["languages"]["sampled"] == 82
    assert {name: round(share * 82) for name, share in told["languages"]["shares"].items()} == {"en": 62, "zh": 20}
    groups = told["by"]["category"]
    assert [(name, group["rows"]) for name, group in groups.items()] == [("prose", 62), ("河", 20)]
    assert sum(group["tokens"] for group in groups.values()) == told["tokens"]
    assert sum(group["trained_tokens"] for group in groups.values()) == told["trained_tokens"]
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert told["plot"] == str(tmp_path / "lengths.png")
    json.dumps(told)


def test_rows_that_truncation_leaves_nothing_of_are_counted(home: Home, tmp_path: Path) -> None:
    rows = [{"instruction": "long " * 200, "output": "lost"}, {"instruction": "short", "output": "kept"}]
    told = figures(home, write(tmp_path / "rows.jsonl", *rows))
    assert told["truncation"]["100"] == {"cut": 1, "lost": 1, "tokens": told["length"]["max"] - 100}


def test_plain_text_is_trained_whole(home: Home, tmp_path: Path) -> None:
    told = figures(home, write(tmp_path / "rows.jsonl", *({"text": f"{ENGLISH} {number}"} for number in range(5))))
    assert told["trained_tokens"] == told["tokens"] - 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "kind"}, "no row has a column 'kind'; there are category"),
        ({"plot": "lengths.jpg"}, "ends in .png"),
        ({"format": "text"}, "no row"),
    ],
)
def test_mistakes_are_told(home: Home, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures(home, write(tmp_path / "rows.jsonl", *ROWS[:5]), **options)


def test_preference_rows_are_told_by_both_replies(home: Home, tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": f"question {at}", "chosen": f"{ENGLISH} {at}", "rejected": "no " * (at + 1), "kind": "ab"[at % 2]}
        for at in range(10)
    ]
    told = figures(home, write(tmp_path / "rows.jsonl", *rows), by="kind", max_length=44)

    def whole(row: dict[str, Any], name: str) -> int:
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
        return len(tokenizer.apply_chat_template(chat, return_dict=False))

    asked = [
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
            )
        )
        for row in rows
    ]
    both = {name: [whole(row, name) for row in rows] for name in ("chosen", "rejected")}
    assert (told["rows"], told["rejected"], told["tokens"]) == (10, 0, sum(map(sum, both.values())))
    assert told["trained_tokens"] == told["tokens"] - 2 * sum(asked)
    for name, lengths in both.items():
        replies = sorted(length - prompt for length, prompt in zip(lengths, asked, strict=True))
        assert tuple(told["parts"][name][figure] for figure in ("max", "p50", "mean")) == (
            replies[-1],
            replies[5],
            pytest.approx(sum(replies) / 10),
        )
    assert told["parts"]["prompt"]["max"] == max(asked)
    assert told["length"]["max"] == max(map(max, both.values()))
    cut = [max(0, length - 44) for lengths in both.values() for length in lengths]
    rows_cut = sum(max(pair) > 44 for pair in zip(*both.values(), strict=True))
    assert told["truncation"]["44"] == {"cut": rows_cut, "lost": 0, "tokens": sum(cut)} and rows_cut
    assert sum(group["tokens"] for group in told["by"]["kind"].values()) == told["tokens"]
    assert sum(group["trained_tokens"] for group in told["by"]["kind"].values()) == told["trained_tokens"]
    json.dumps(told)


def test_judgements_are_counted_by_their_label(home: Home, tmp_path: Path) -> None:
    rows = [{"prompt": f"q {at}", "completion": "a", "label": at % 3 == 0} for at in range(9)]
    told = figures(home, write(tmp_path / "rows.jsonl", *rows))
    assert told["judged"] == {"good": 3, "bad": 6} and told["parts"]["completion"]["max"] > 0


@pytest.mark.slow
def test_processes_change_nothing(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.prep.chunks.cut.__defaults__", (2**16,))
    monkeypatch.setattr("engine.prep.stats.SAMPLED", 20)
    rows = [{**row, "instruction": f"{row['instruction']} {turn}"} for turn in range(10) for row in ROWS]
    file = write(tmp_path / "rows.jsonl", *rows)
    assert figures(home, file, processes=1) == figures(home, file, processes=2)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60), st.integers(1, 40))
def test_a_histogram_holds_every_row_in_its_bin(lengths: list[int], bins: int) -> None:
    made = stats.histogram(Counter(lengths), bins)
    assert made["rows"] == numpy.histogram(lengths, made["edges"])[0].tolist()
    assert percentile(Counter(lengths), 100) == max(lengths)
    assert percentile(Counter(lengths), 50) == sorted(lengths)[min(len(lengths) - 1, len(lengths) // 2)]


def test_padding_is_what_is_left_of_a_batch() -> None:
    equal = stats.padding(numpy.full(20, 10, dtype=numpy.int32), 20)
    assert equal["padded"] == pytest.approx(0) and equal["packed"] == pytest.approx(0) and equal["sequences"] == 10
    mixed = stats.padding(numpy.array([10, 10, 10, 10, 10, 10, 10, 30], dtype=numpy.int32), 40)
    assert mixed["padded"] == pytest.approx(1 - 100 / 240) and mixed["packed"] == pytest.approx(1 - 100 / 120)
