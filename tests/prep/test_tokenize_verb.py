"""`cockpit data tokenize`, from the file to the folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from engine.prep import token_file
from engine.prep.verbs.tokenize import run
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.prep.conftest import chat, write

CHATS = [chat(f"question {number}", f"answer {number} " * (number % 7 + 1)) for number in range(60)]
ALPACA = [{"instruction": f"ask {number}", "input": "", "output": "word " * number + "end"} for number in range(40)]
TEXTS = [{"text": f"document {number} " + "text " * number} for number in range(30)]


def tokenize(home: Home, file: Path, out: Path, **options: Any) -> dict[str, Any]:
    defaults = {"format": "auto", "model": "smollm2-135m-instruct", "max_length": 64, "loss_on": "auto",
                "packing": False, "blocks": False, "processes": 1}  # fmt: skip
    return run(home, argparse.Namespace(file=str(file), out=str(out), **(defaults | options)), lambda *_: None)


def load(folder: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(folder))


def test_the_folder_holds_what_the_numbers_say(home: Home, tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", *CHATS, "{oops", {"messages": []})
    told = tokenize(home, file, tmp_path / "out", max_length=200)
    rows = load(tmp_path / "out")
    assert rows["input_ids"][:] == [tokenizer.apply_chat_template(row["messages"], return_dict=False) for row in CHATS]
    assert (told["rows"], told["tokens"], told["rejected"]) == (60, sum(map(len, rows["input_ids"])), 2)
    assert told["trained_tokens"] == sum(label != -100 for labels in rows["labels"] for label in labels)
    assert told["directory"] == str(tmp_path / "out") and 0 < told["seconds"] < 60
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [each["line"] for each in rejects] == [61, 62]
    assert not list(home.cache.glob("work-*")) and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("kind", ["json", "csv", "folder"])
def test_every_kind_of_file_gives_the_same_tokens(home: Home, tmp_path: Path, kind: str) -> None:
    tokenize(home, write(tmp_path / "rows.jsonl", *ALPACA), tmp_path / "expected")
    match kind:
        case "json":
            file = tmp_path / "rows.json"
            file.write_text(json.dumps([*ALPACA, {"instruction": "no answer", "output": 3}]))
        case "csv":
            file = tmp_path / "rows.csv"
            lines = [f'{row["instruction"]},"{row["output"]}"' for row in ALPACA] + ["no answer,"]
            file.write_text("\n".join(["instruction,output", *lines]) + "\n")
        case _:
            file = tmp_path / "both"
            file.mkdir()
            write(file / "a.jsonl", *ALPACA[:11])
            write(file / "b.jsonl", *ALPACA[11:], {"instruction": "no answer", "output": 3})
    told = tokenize(home, file, tmp_path / "out")
    assert load(tmp_path / "out")[:] == load(tmp_path / "expected")[:]
    assert told["rejected"] == 1
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert Path(reject["file"]).name == {"folder": "b.jsonl"}.get(kind, f"rows.{kind}")


def test_done_once_is_done_and_what_others_made_is_left_alone(home: Home, tmp_path: Path) -> None:
    file, out = write(tmp_path / "rows.jsonl", *CHATS), tmp_path / "out"
    first = tokenize(home, file, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert tokenize(home, file, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert tokenize(home, file, out, max_length=48)["truncated"] > 0
    assert max(map(len, load(out)["input_ids"])) == 48
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="was not made by this command"):
        tokenize(home, file, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_packing_loses_nothing(home: Home, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", *CHATS)
    plain, packed = (
        tokenize(home, file, tmp_path / name, packing=name == "packed", max_length=200) for name in ("plain", "packed")
    )
    assert (plain["tokens"], plain["trained_tokens"]) == (packed["tokens"], packed["trained_tokens"])
    rows = load(tmp_path / "packed")
    assert len(rows) == packed["sequences"] < 60 and sum(map(len, rows["seq_lengths"])) == packed["rows"] == 60


def test_blocks_are_documents_end_to_end_with_their_end_between(home: Home, tmp_path: Path, tokenizer: Any) -> None:
    told = tokenize(home, write(tmp_path / "rows.jsonl", *TEXTS), tmp_path / "out", blocks=True)
    rows = load(tmp_path / "out")
    expected = tokenizer("".join(row["text"] + "<|im_end|>" for row in TEXTS)).input_ids
    assert [token for block in rows["input_ids"] for token in block] == expected
    assert {len(block) for block in rows["input_ids"][:-1]} == {64} and len(rows) == told["sequences"]
    assert told["trained_tokens"] == sum(label != -100 for labels in rows["labels"] for label in labels)
    found = token_file.read(tmp_path / "out")
    assert found.tokens.tolist() == expected
    assert tokenizer.decode(found.document(2)) == TEXTS[2]["text"] + "<|im_end|>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True, "blocks": True}, "choose one"),
        ({"max_length": 2}, "at least 8"),
        ({"format": "alpacca"}, "alpaca"),
        ({"max_length": 8}, "raise --max-length"),
        ({"format": "text"}, "no row can be tokenised"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(home: Home, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    rows = [chat("question " * 9, "answer")]
    with pytest.raises(ValueError, match=message):
        tokenize(home, write(tmp_path / "rows.jsonl", *rows), tmp_path / "out", **options)
    assert not list(tmp_path.glob("*out*")) and not list(home.cache.glob("work-*"))


def test_a_model_that_is_nowhere_is_told(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="no model"):
        tokenize(home, write(tmp_path / "rows.jsonl", *CHATS), tmp_path / "out", model="smollm3")


def test_preference_rows_become_sets_that_dpo_trains_on_as_they_are(home: Home, tmp_path: Path) -> None:
    from engine.config.profile import parse
    from engine.prep.prepare import prepare

    rows = [{"prompt": f"question {at}", "chosen": f"yes {at}", "rejected": "no"} for at in range(8)]
    told = tokenize(home, write(tmp_path / "pairs.jsonl", *rows), tmp_path / "out")
    made = load(tmp_path / "out")
    assert made.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"] and len(made) == told["rows"] == 8
    assert told["tokens"] == sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in made
    )
    section = json.dumps({"data": {"train": [{"source": "out"}], "max_length": 64}})
    prepared = prepare(parse(section, "test.json", tmp_path, ["method.kind=dpo"], home), home, lambda *_: None)
    assert (prepared["train"], prepared["rows"], prepared["tokens"]) == (str(tmp_path / "out"), 8, told["tokens"])
    with pytest.raises(ProblemError, match=r"has no input_ids, labels, which method\.kind sft trains on"):
        prepare(parse(section, "test.json", tmp_path, [], home), home, lambda *_: None)
    judged = [{"prompt": "q", "completion": "a", "label": at % 2 == 0} for at in range(4)]
    tokenize(home, write(tmp_path / "judged.jsonl", *judged), tmp_path / "judged")
    assert load(tmp_path / "judged")["label"][:] == [[1], [0], [1], [0]]
    with pytest.raises(ValueError, match="preference rows cannot be joined"):
        tokenize(home, tmp_path / "judged.jsonl", tmp_path / "packed", packing=True)
