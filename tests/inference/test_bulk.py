"""Generating replies to a file: rows of any format, and the same output after any interruption."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from engine.inference.bulk import job, prompts
from engine.inference.bulk.progress import Record
from engine.inference.loaded_model import load
from engine.inference.request import read_sampling
from engine.protocol.home import Home
from engine.tasks import triples
from tests.training import warm
from tests.training.harness import make_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home")).create()
    make_model(home.models / "tiny")
    return home


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """70 prompts of different lengths."""
    lines = [" ".join(f"w{(7 * row + place) % 60}" for place in range(1 + row % 13)) for row in range(70)]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path / "in.txt"


def asked(source: Path, name: str, **more: Any) -> dict[str, Any]:
    given = {"target": "tiny", "directory": str(source.parent), "input": source.name, "output": name}
    return given | {"max_new_tokens": 30, "temperature": 1.0, "seed": 4, "batch_size": 8} | more


def done(home: Home, arguments: dict[str, Any]) -> dict[str, Any]:
    return job.generate(arguments, home, lambda *_: None, lambda: False)


def test_rows_keep_their_order_and_equal_those_alone(home: Home, source: Path) -> None:
    told: list[tuple[str, int, int]] = []
    arguments = asked(source, "out.jsonl")
    found = job.generate(arguments, home, lambda *each: told.append(each), lambda: False)
    rows = [json.loads(line) for line in (source.parent / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == source.read_text().split("\n")[:70]
    assert {name: found[name] for name in ("rows", "failed", "kept")} == {"rows": 70, "failed": 0, "kept": 0}
    assert found["tokens"] == sum(row["tokens"] for row in rows) and told[-1] == ("generating", 70, 70)
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.txt", "out.jsonl"]
    loaded = load("tiny", home=home, device="cpu")
    for number in (0, 33, 69):
        alone = loaded.chat(rows[number]["prompt"], read_sampling(arguments | {"seed": 4 + number}))
        assert (alone.text, alone.finish) == (rows[number]["reply"], rows[number]["finish"])


@pytest.mark.slow
def test_after_a_kill_the_file_is_the_same_byte_for_byte(home: Home, source: Path) -> None:
    done(home, asked(source, "whole.json"))
    arguments = asked(source, "killed.json")
    program = (
        "import json, sys, time\nfrom engine.inference.bulk import job\nfrom engine.protocol.home import Home\n"
        "job.generate(json.loads(sys.argv[2]), Home.locate(sys.argv[1]), lambda *_: time.sleep(0.02), lambda: False)"
    )
    partial = source.parent / "killed.json.partial" / "replies.jsonl"
    for lines in (5, 30):
        worker = ["tests.program", program, str(home.root), json.dumps(arguments)]
        process = warm.start(worker, 1, dict(os.environ), home.root / "killed.log")
        deadline = time.monotonic() + 100
        while not partial.is_file() or partial.read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with partial.open("ab") as file:
        file.write(b'{"row": 3, "outp')  # as a kill in the middle of a line would leave it
    with pytest.raises(ValueError, match="unfinished replies with other sampling: name another output, or add --again"):
        done(home, arguments | {"temperature": 0.5})
    found = done(home, arguments)
    assert found["kept"] >= 30 and found["rows"] == 70
    assert (source.parent / "killed.json").read_bytes() == (source.parent / "whole.json").read_bytes()
    assert len(json.loads((source.parent / "killed.json").read_text())) == 70


@pytest.mark.slow
def test_two_processes_generate_the_same_as_one(home: Home, source: Path) -> None:
    done(home, asked(source, "one.jsonl"))
    found = done(home, asked(source, "two.jsonl", devices=["cpu", "cpu"]))
    assert found["rows"] == 70
    assert (source.parent / "one.jsonl").read_bytes() == (source.parent / "two.jsonl").read_bytes()


def test_finished_rows_survive_a_cancellation(home: Home, source: Path) -> None:
    seen: list[int] = []
    arguments = asked(source, "out.jsonl", seed=None)

    def progress(stage: str, count: int, total: int) -> None:
        if stage == "generating":
            seen.append(count)

    found = job.generate(arguments, home, progress, lambda: bool(seen) and seen[-1] >= 10)
    assert 10 <= found["rows"] < 70 and not (source.parent / "out.jsonl").exists()
    kept = (source.parent / "out.jsonl.partial" / "replies.jsonl").read_text()
    found = done(home, arguments)
    assert found["kept"] >= 10 and found["rows"] == 70
    rows = [json.loads(line) for line in (source.parent / "out.jsonl").read_text().splitlines()]
    for line in kept.splitlines():
        entry = json.loads(line)
        assert rows[entry["row"]]["reply"] == entry["output"]["reply"], "the seed that was drawn goes on, too"


def test_prompts_that_do_not_fit_and_unparsable_replies_are_counted(home: Home, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("w1 w2\n" + "w3 " * 300 + "\nw4\n")
    found = done(home, asked(tmp_path / "in.txt", "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found["failed"] == 1 and found["rows"] == 3
    assert rows[1]["finish"] == "error" and "leaves no room in a context of 256" in rows[1]["error"]
    found = done(home, asked(tmp_path / "in.txt", "task.jsonl", task="triples", max_new_tokens=2))
    assert found["failed"] == 3
    assert json.loads((tmp_path / "task.jsonl").read_text().splitlines()[0])["parsed"] is None


@pytest.mark.parametrize(
    ("row", "expected", "reference"),
    [
        ({"text": "Ada"}, triples.messages("Ada"), None),
        ({"prompt": "Ada", "more": 1}, triples.messages("Ada"), None),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, [("user", "a")], "b"),
        ({"messages": [{"role": "user", "content": "a"}]}, [("user", "a")], None),
        ({"prompt": [{"role": "user", "content": "a"}]}, [("user", "a")], None),
        ({"instruction": "a", "input": "", "output": "b"}, [("user", "a")], "b"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [("user", "a")], "b"),
    ],
)
def test_prompts_are_read_from_rows_of_any_format(
    tmp_path: Path, row: dict[str, Any], expected: Any, reference: str | None
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = prompts.read(tmp_path / "in.jsonl", "triples", "be brief")
    said = [
        message if isinstance(message, dict) else dict(zip(("role", "content"), message, strict=True))
        for message in expected
    ]
    assert found.prompt == said and found.row.get("reference") == reference
    assert row.items() <= found.row.items()


def test_a_system_prompt_and_invalid_files(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\r\nb")
    found = prompts.read(tmp_path / "in.txt", None, "be brief")
    assert [[message["content"] for message in each.prompt] for each in found] == [["be brief", "a"], ["be brief", "b"]]
    for content, said in (("{\n", "in.jsonl:1: not JSON"), ('{"x": 1}\n', "no known format"), ("", "has no prompts")):
        (tmp_path / "in.jsonl").write_text(content)
        with pytest.raises(ValueError, match=said):
            prompts.read(tmp_path / "in.jsonl", None, None)
    arguments = {"target": "tiny", "directory": str(tmp_path), "input": "in.txt", "output": "out.txt"}
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        job.generate(arguments, Home(tmp_path), lambda *_: None, lambda: False)


def test_an_output_has_one_writer(tmp_path: Path) -> None:
    identity = {"sampling": {"seed": 1}}
    with Record(tmp_path / "out.jsonl", identity), pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.inference.bulk.progress._PATIENCE", 0.1)
        with pytest.raises(ValueError, match="another process is generating"):
            Record(tmp_path / "out.jsonl", identity)
