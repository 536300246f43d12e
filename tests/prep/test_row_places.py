"""Each prepared row knows the file and the line that it was made from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse
from engine.prep import row_places
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from tests.prep.conftest import chat, write


def quiet(*_: Any) -> None:
    pass


def _parts(folder: str) -> list[list[int]]:
    from datasets import load_from_disk

    parts = []
    for row in load_from_disk(folder):
        at = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            parts.append(row["input_ids"][at : at + length])
            at += length
    return parts


@pytest.mark.parametrize("kind", ["rows", "packed", "blocks", "staged"])
def test_every_part_is_found_in_its_line(kind: str, home: Home, tmp_path: Path, tokenizer: Any) -> None:
    """Each row holds words that no other has; where a part is said to come from, its words must stand."""
    texts = [
        [f"z{file}y{number} " * (23 if kind == "blocks" else 3 + number % 5) for number in range(30)]
        for file in range(2)
    ]
    if kind == "blocks":
        write(tmp_path / "a.jsonl", *({"text": text} for text in texts[0]))
    else:
        write(tmp_path / "a.jsonl", "{bad", *(chat(f"q {text}", f"a {text}") for text in texts[0]))
    with (tmp_path / "b.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        names = ("text",) if kind == "blocks" else ("instruction", "output")
        lines.writerows([names, *([text] * len(names) for text in texts[1])])
    data = {"train": [{"source": "a.jsonl"}, {"source": "b.csv", "weight": 2.0}], "max_rejected": 0.9}
    data |= {"max_length": 64 if kind == "blocks" else 160, "packing": kind == "packed"}
    if kind == "staged":
        data |= {"dedup": {"near": False}, "split": {"validation": 0.2}, "clean": {}}
    document = {"data": data, **({"method": {"kind": "pretrain"}} if kind == "blocks" else {})}
    prepared = prepare(parse(json.dumps(document), "test.json", tmp_path, (), home), home, quiet)
    places = row_places.read(Path(prepared["train"]).parent)
    parts = _parts(prepared["train"])
    assert len(places) == len(parts) > 40
    content = [Path(path).read_text().splitlines() for path in prepared["sources"]]
    marks = {f"z{file}y{number} " for file in range(2) for number in range(30)}
    seen = 0
    for (file, line), ids in zip(places.tolist(), parts, strict=True):
        text = tokenizer.decode(ids)
        found = {mark for mark in marks if mark in text}
        assert len(found) <= 1
        seen += len(found)
        assert all(mark in content[file][line - 1] for mark in found), (file, line, text)
    assert seen > 0.9 * len(parts)
