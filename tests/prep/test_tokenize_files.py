"""Tokenising files of rows: the tokens of one process and of many, of a killed run and of a whole one, on disk."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.prep import tokenize_files
from engine.prep.rows import Rejects
from engine.prep.tokenize_files import TokenizeResult, tokenize_rows
from engine.protocol.messages import ProblemError
from tests.prep.conftest import chat, write
from tests.scripted.bench import wait_for
from tests.training import warm

ROWS = [chat(f"question {number} " + "word " * (number % 50), f"answer {number}。") for number in range(300)]


def run(
    path: Path, into: Path, tokenizer: Any, processes: int = 1, **more: Any
) -> tuple[TokenizeResult, list[dict[str, Any]]]:
    written: list[str] = []
    rejects = Rejects(written.append)
    made = tokenize_rows(
        [path], into, tokenizer, more.pop("loss_on", "assistant"), more.pop("max_length", 40), rejects,
        into.with_name("work"), processes, lambda *_: None, **more,
    )  # fmt: skip
    return made, [json.loads(line) for line in written]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_set_on_disk_holds_what_apply_chat_template_gives(tokenizer: Any, tmp_path: Path) -> None:
    from datasets import load_from_disk

    made, _ = run(write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "set", tokenizer, max_length=2000)
    rows = load_from_disk(str(tmp_path / "set"))
    expected = [tokenizer.apply_chat_template(row["messages"], return_dict=False) for row in ROWS]
    assert rows["input_ids"][:] == expected
    assert made.golden == [row["messages"] for row in ROWS[:3]]
    trained = [[label for label in labels if label != -100] for labels in rows["labels"]]
    assert [tokenizer.decode(each) for each in trained] == [
        row["messages"][-1]["content"] + "<|im_end|>" for row in ROWS
    ]
    assert made.counts.rows == made.counts.ended == len(ROWS)
    assert made.counts.tokens == sum(map(len, expected))
    assert made.counts.trained_tokens == sum(map(len, trained))


def test_bad_rows_are_named_with_their_place(tokenizer: Any, tmp_path: Path) -> None:
    lines = [*ROWS[:3], "{oops", "", {"text": "t"}, {"instruction": "q", "output": ""}]
    path = write(tmp_path / "rows.jsonl", *lines)
    _, rejects = run(path, tmp_path / "set", tokenizer, formats=["messages"])
    assert [(each["line"], each["file"]) for each in rejects] == [(4, str(path)), (6, str(path)), (7, str(path))]
    assert path.read_bytes()[rejects[0]["offset"] :].startswith(b"{oops")


def test_placed_rows_are_named_by_the_place_they_come_from(tokenizer: Any, tmp_path: Path) -> None:
    lines = [[1, 7, 99, {"text": "t"}], [0, 1, 0, ROWS[0]]]
    made, rejects = run(write(tmp_path / "rows", *lines), tmp_path / "set", tokenizer, files=["a.csv", "b.csv"])
    assert [(each["file"], each["line"], each["offset"]) for each in rejects] == [("b.csv", 7, 99)]
    assert made.counts.rows == 1


def test_rows_that_are_kept_are_written_down(tokenizer: Any, tmp_path: Path) -> None:
    rows = [ROWS[0], chat("word " * 100, "lost"), ROWS[1]]
    made, _ = run(write(tmp_path / "rows", *rows), tmp_path / "set", tokenizer, kept={"rows.jsonl": tmp_path / "kept"})
    assert [json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()] == [ROWS[0], ROWS[1]]
    assert (made.counts.rows, made.counts.masked) == (2, 1)


def test_no_rows_are_an_empty_set(tokenizer: Any, tmp_path: Path) -> None:
    from datasets import load_from_disk

    run(write(tmp_path / "rows"), tmp_path / "set", tokenizer)
    assert len(load_from_disk(str(tmp_path / "set"))) == 0


def test_a_conversation_without_a_template_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    plain = copy.copy(tokenizer)
    plain.chat_template = None
    path = write(tmp_path / "rows.jsonl", {"text": "fine"}, ROWS[0])
    with pytest.raises(ProblemError, match=r"rows\.jsonl:2 is a conversation"):
        run(path, tmp_path / "set", plain, loss_on="all")


@pytest.mark.slow
def test_processes_and_kills_leave_no_trace(
    tokenizer: Any, light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl", *ROWS * 40)
    monkeypatch.setattr("engine.prep.tokenize_files.SIZE", 2**19)
    made = {}
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        made[name] = run(path, tmp_path / name / "set", tokenizer, processes)[0]
    assert made["one"] == made["two"]
    assert content(tmp_path / "one" / "set") == content(tmp_path / "two" / "set")

    program = (
        "import sys; from pathlib import Path; from engine.prep import tokenize_files; tokenize_files.SIZE = 2**19\n"
        "from transformers import AutoTokenizer; from engine.prep.rows import Rejects; "
        "from engine.prep.tokenize_files import tokenize_rows\n"
        "path, into = map(Path, sys.argv[2:]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print('go', flush=True)\n"
        "told = lambda *at: print(*at, flush=True)\n"
        "tokenize_rows([path], into, tokenizer, 'assistant', 40, Rejects(lambda _: None), "
        "into.with_name('work'), 1, told)\n"
    )
    into = tmp_path / "three" / "set"
    into.parent.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for spans in (1, 3):
        log = tmp_path / f"log-{spans}"
        child = warm.start(["tests.program", program, str(light), str(path), str(into)], 1, environment, log)
        wait_for(lambda log=log, spans=spans: log.read_bytes().count(b"\n") > spans, 60)
        child.kill()
        assert child.wait() == -signal.SIGKILL, log.read_text()
    assert (
        not (into / "state.json").exists()
        and len(list(into.with_name("work").glob(f"{tokenize_files.SPANS}/[0-9]*"))) >= 3
    )
    run(path, into, tokenizer)
    assert content(into) == content(tmp_path / "one" / "set")
