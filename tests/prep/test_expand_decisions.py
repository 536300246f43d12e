"""Accepting and dropping expanded rows: what is kept, and that a dropped row stays dropped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.options.data import ExpandOptions, SourceOptions
from engine.prep import read_rows
from engine.prep.expand import decisions
from engine.prep.expand.expand import expand
from tests.prep.service import LoopbackService, completion

SEEDS = SourceOptions(source="triples/train.jsonl")


def run(service: LoopbackService, out: Path, **further: Any) -> dict[str, Any]:
    options = ExpandOptions(base_url=service.url, **{"samples": 10, **further})
    return expand(read_rows.locate(SEEDS, Path.cwd()), SEEDS, options, out, lambda *_: None)


def digests(out: Path) -> list[str]:
    return [decisions.digest(line) for line in (out / "made.jsonl").read_bytes().splitlines()]


def test_a_dropped_row_stays_dropped_when_rows_are_published_again(tmp_path: Path) -> None:
    with LoopbackService() as service:
        assert run(service, tmp_path)["rows"] == 10
        made = (tmp_path / "made.jsonl").read_bytes()
        assert (tmp_path / "rows.jsonl").read_bytes() == made, "what nobody decided about is kept"
        ids = digests(tmp_path)
        assert decisions.decide(tmp_path, ids[3], "dropped") == (9, 1)
        decisions.decide(tmp_path, ids[4], "dropped")
        decisions.decide(tmp_path, ids[5], "accepted")
        assert decisions.decide(tmp_path, ids[4], "undecided") == (9, 1)
        left = [line for number, line in enumerate(made.splitlines(keepends=True)) if number != 3]
        assert (tmp_path / "rows.jsonl").read_bytes() == b"".join(left)
        assert list(decisions.read_kept(tmp_path)) == [json.loads(line) for line in left]
        asked = len(service.prompts)
        again = run(service, tmp_path)
        assert (again["rows"], again["dropped"], again["requests"]) == (9, 1, 2) and len(service.prompts) == asked
        assert (tmp_path / "made.jsonl").read_bytes() == made
        assert (tmp_path / "rows.jsonl").read_bytes() == b"".join(left)
        more = run(service, tmp_path, samples=20)
        assert (more["rows"], more["dropped"]) == (19, 1), "with more rows wanted it goes on, and the row stays away"
    assert made.splitlines()[3] not in (tmp_path / "rows.jsonl").read_bytes().splitlines()
    assert decisions.read_decisions(tmp_path) == {ids[3]: "dropped", ids[4]: "undecided", ids[5]: "accepted"}


def test_what_a_dropped_row_says_is_still_refused_as_a_duplicate(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(service, tmp_path / "first", samples=5)
    reply = json.loads((tmp_path / "first" / "answers.jsonl").read_text().splitlines()[0])["reply"]
    with LoopbackService(lambda _number, _body: completion(reply)) as service:
        run(service, tmp_path / "out", samples=5)
        decisions.decide(tmp_path / "out", digests(tmp_path / "out")[0], "dropped")
        again = run(service, tmp_path / "out", samples=6)
    assert (again["rows"], again["dropped"]) == (4, 1) and again["reasons"] == {"duplicate": 50}


def test_a_row_tells_where_it_came_from(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(service, tmp_path, samples=7)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(each["request"], each["items"]) for each in answers] == [(0, [1, 2, 3, 4, 5]), (1, [1, 2])]
    seeds = Path("data/triples/train.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(len(each["seeds"]) == 3 and json.dumps(each["seeds"][0]) for each in answers)
    known = [json.loads(line) for line in seeds]
    assert all(seed in known for each in answers for seed in each["seeds"])


def test_a_torn_decision_is_overwritten_and_a_foreign_line_named(tmp_path: Path) -> None:
    (tmp_path / "made.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    first, second = digests(tmp_path)
    decisions.decide(tmp_path, first, "dropped")
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write('{"row": "')
    assert decisions.read_decisions(tmp_path) == {first: "dropped"}
    decisions.decide(tmp_path, second, "accepted")
    assert decisions.read_decisions(tmp_path) == {first: "dropped", second: "accepted"}
    assert (tmp_path / "rows.jsonl").read_text() == '{"text": "b"}\n'
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"decisions\.jsonl:3 is not a decision about a row"):
        decisions.read_decisions(tmp_path)


def test_the_folder_is_a_source_of_the_rows_that_are_kept(tmp_path: Path) -> None:
    for name in ("made.jsonl", "answers.jsonl", "rejects.jsonl", "requests.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    decisions.decide(tmp_path, digests(tmp_path)[0], "accepted")
    assert read_rows.locate(SourceOptions(source=str(tmp_path)), tmp_path) == [tmp_path / "rows.jsonl"]


@pytest.mark.slow
def test_two_that_decide_at_once_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "made.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(60)))
    script = (
        "import sys, pathlib; from engine.prep.expand import decisions\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for line in (folder / 'made.jsonl').read_bytes().splitlines()[int(sys.argv[2])::2]:\n"
        "    decisions.decide(folder, decisions.digest(line), 'dropped')\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), half]) for half in "01"]
    assert [child.wait(60) for child in children] == [0, 0]
    assert len(decisions.read_decisions(tmp_path)) == 60 and (tmp_path / "rows.jsonl").read_bytes() == b""
