"""A profile's data from files to tokens on disk, and everything that is refused on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, find, load
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.prep.conftest import ProfileOver, chat

GOOD = [chat(f"question {number}", f"answer {number}") for number in range(10)]


def quiet(*_: Any) -> None:
    pass


def rows_of(folder: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(folder)


def test_the_demos_data(bare_home: Home, smollm2: Path) -> None:
    home, told = bare_home, []
    (home.models / smollm2.name).symlink_to(smollm2)  # the whole tokenizer
    prepared = prepare(load(find("triples-qlora"), home=home), home, lambda *each: told.append(each))
    assert {phase for phase, _, _ in told} == {"reading", "validating", "tokenising"}
    assert all(done <= total for _, done, total in told) and told[-1][1] == told[-1][2]
    train, validation = rows_of(prepared["train"]), rows_of(prepared["validation"])
    assert (len(train), len(validation), prepared["rows"], prepared["rejected"]) == (400, 32, 400, 0)
    assert prepared["tokens"] == sum(map(len, train["input_ids"])) <= 400 * 200
    assert prepared["trained_tokens"] == sum(label != -100 for labels in train["labels"] for label in labels)
    assert prepared["base"] == str(home.models / smollm2.name)
    assert prepared["lock"]["eos_token_ids"] == [2]
    assert [each["ids"] for each in prepared["lock"]["golden"]] == train["input_ids"][:3]
    held_out = [json.loads(line) for line in Path(prepared["validation_rows"]).read_text().splitlines()]
    assert len(held_out) == 32 and held_out[0]["messages"][0]["role"] == "system"
    assert prepared["stats"]["train"]["max"] < 200 and prepared["stats"]["train"]["truncated"] == 0


def test_a_hit_changes_nothing_loads_nothing_and_costs_next_to_nothing(home: Home, profile_over: ProfileOver) -> None:
    profile = profile_over(GOOD)
    first = prepare(profile, home, quiet)
    before = {path: path.stat().st_mtime_ns for path in home.cache.rglob("*")}
    (profile.directory / "profile.yaml").write_text(profile.to_yaml())
    script = (
        "import sys; from pathlib import Path; from engine.protocol.home import Home; "
        "from engine.config.profile import load;"
        "from engine.prep.prepare import prepare; import time, json; home = Home(Path(sys.argv[1]));"
        "profile = load(Path(sys.argv[2]), home=home); began = time.perf_counter();"
        "prepared = prepare(profile, home, lambda *_: None);"
        "print(json.dumps([prepared, time.perf_counter() - began, "
        "[name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]]))"
    )
    output = subprocess.run(
        [sys.executable, "-P", "-c", script, str(home.root), str(profile.directory / "profile.yaml")],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    again, seconds, loaded = json.loads(output)
    assert again == first and loaded == [] and seconds < 0.3
    assert {path: path.stat().st_mtime_ns for path in home.cache.rglob("*")} == before


def test_the_key_is_of_content_not_of_names(home: Home, profile_over: ProfileOver) -> None:
    first = prepare(profile_over(GOOD), home, quiet)
    assert prepare(profile_over(GOOD, file="renamed.jsonl"), home, quiet)["hash"] == first["hash"]
    others = [
        profile_over(GOOD[:-1], file="fewer.jsonl"),
        profile_over(GOOD, max_length=64),
        profile_over(GOOD, None, "method.loss_on=all"),
    ]
    assert len({first["hash"], *(prepare(each, home, quiet)["hash"] for each in others)}) == 4


def test_bad_rows_are_named_and_the_good_ones_go_on(home: Home, profile_over: ProfileOver) -> None:
    prepared = prepare(profile_over([*GOOD, "{oops", {"messages": []}], max_rejected=0.2), home, quiet)
    assert (prepared["rows"], prepared["rejected"]) == (10, 2)
    rejects = [json.loads(line) for line in Path(prepared["rejects"]).read_text().splitlines()]
    assert [(each["line"], each["reason"].split(":")[0]) for each in rejects] == [
        (11, "not JSON"),
        (12, "no assistant turn"),
    ]
    content = Path(rejects[0]["file"]).read_bytes()
    assert content[rejects[0]["offset"] :].startswith(b"{oops")


def test_weights_and_limits(home: Home, profile_over: ProfileOver) -> None:
    def rows(**source: Any) -> int:
        profile = profile_over(GOOD * 10, train=[{"source": "rows.jsonl", **source}])
        return int(prepare(profile, home, quiet)["rows"])

    assert (rows(weight=2.0), rows(max_rows=7), rows(max_rows=7, weight=3.0)) == (200, 7, 21)
    assert 30 < rows(weight=0.5) < 70
    assert prepare(profile_over(GOOD, max_rows=4), home, quiet)["rows"] == 4


def test_packing_keeps_every_token_and_marks_the_borders(home: Home, profile_over: ProfileOver) -> None:
    rows = [chat("q " * (3 * number), "a " * number) for number in range(1, 15)]
    profile = profile_over(rows)
    packing = replace(profile, data=profile.data.model_copy(update={"packing": True}))
    plain, packed = (prepare(each, home, quiet) for each in (profile, packing))
    assert plain["trained_tokens"] == packed["trained_tokens"] and plain["tokens"] == packed["tokens"]
    together = rows_of(packed["train"])
    assert len(together) == packed["stats"]["train"]["sequences"] < 14
    split = []
    for sequence in together:
        assert sum(sequence["seq_lengths"]) == len(sequence["input_ids"]) == len(sequence["position_ids"]) <= 128
        at = 0
        for length in sequence["seq_lengths"]:
            assert sequence["position_ids"][at : at + length] == list(range(length))
            assert sequence["labels"][at] == -100
            split.append((sequence["input_ids"][at : at + length], sequence["labels"][at : at + length]))
            at += length
    alone = rows_of(plain["train"])
    assert sorted(split) == sorted(zip(alone["input_ids"], alone["labels"], strict=True))


def test_a_template_of_ones_own_is_used_and_passed_on(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}"
        "[assistant]{% endif %}"
    )
    (tmp_path / "own.jinja").write_text(template)
    prepared = prepare(profile_over(GOOD, template="own.jinja"), home, quiet)
    assert prepared["template"] == template
    assert prepared["hash"] != prepare(profile_over(GOOD), home, quiet)["hash"]


REFUSED = {
    "rows beyond the limit": (
        ([*GOOD, "{oops"], None),
        {},
        "1 of 11 rows of data.train are bad",
        "rows.jsonl:11: not JSON",
    ),
    "bad validation": ((GOOD, ["{oops"]), {}, "1 of 1 rows of data.validation are bad", "held-rows.jsonl:1"),
    "no rows": (([""], None), {}, "The training set is empty", "no rows"),
    "no validation rows": ((GOOD, [""]), {}, "The validation set is empty", ""),
    "all masked": (([chat("word " * 200, "a")], None), {}, "No token would be trained", "cut at 128 tokens"),
    "never ends": (([chat("q", "word " * 200)], None), {}, "The end of a turn is never trained", "cut at 128 tokens"),
    "unknown columns": (([{"foo": 1}], None), {}, "data.train cannot be read", "columns foo"),
    "text without loss_on all": (
        ([{"text": "t"}], None),
        {},
        "1 of 1 rows of data.train are bad",
        "method.loss_on: all",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_and_why_and_leave_nothing(home: Home, profile_over: ProfileOver, case: str) -> None:
    (rows, validation), data, title, cause = REFUSED[case]
    with pytest.raises(ProblemError) as caught:
        prepare(profile_over(rows, validation, **data), home, quiet)
    assert title in caught.value.problem.title and cause in caught.value.problem.cause
    assert list(home.cache.iterdir()) == []


def test_a_template_without_an_end_of_turn_is_refused(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}"
        "assistant: {% endif %}"
    )
    with pytest.raises(ProblemError, match="would not learn to stop"):
        prepare(profile_over(GOOD, template="own.jinja"), home, quiet)


def test_a_base_without_template_or_tokenizer_is_refused(home: Home, smollm2: Path, profile_over: ProfileOver) -> None:
    base = home.root / "base"
    base.mkdir()
    for file in smollm2.iterdir():
        (base / file.name).symlink_to(file)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ProblemError, match="no chat template"):
        prepare(profile_over(GOOD, None, f"model.base={base}"), home, quiet)
    profile = profile_over(GOOD, None, f"model.base={base}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(ProblemError, match="no tokenizer"):
        prepare(profile, home, quiet)
    with pytest.raises(ProfileError, match=r"model\.base"):
        profile_over(GOOD, None, f"model.base={base}")


def test_what_a_killed_process_left_is_swept(home: Home, profile_over: ProfileOver) -> None:
    from engine.protocol.home import host_name

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, others = (home.cache / f".abc.{host}.{gone.pid}" for host in (host_name(), "another-host"))
    living = home.cache / f".abc.{host_name()}.{os.getpid()}"
    for folder in (left, others, living):
        folder.mkdir()
    prepare(profile_over(GOOD), home, quiet)
    assert not left.exists() and others.exists() and living.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [{"source": "rows.jsonl", "format": "alpacca"}]}, "did you mean alpaca"),
        ({"train": [{"source": "empty.jsonl"}]}, "empty.jsonl is empty"),
        ({"train": [{"source": "notes.doc"}]}, "cannot read .doc"),
        ({"split": {"validation": 0.1}, "validation": [{"source": "rows.jsonl"}]}, "there is data.validation already"),
        ({"split": {"seed": 1}}, "holds out nothing"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "leaves nothing to train on"),
        ({"clean": {"boilerplate": ["("]}}, "is not a valid regular expression"),
        ({"catalog": "gone.json"}, "there is no gone.json"),
        ({"catalog": "gone.json", "train": [{"source": "by name"}]}, "gone.json"),
        ({"template": "gone.jinja"}, "there is no gone.jinja"),
    ],
)
def test_what_can_be_seen_from_outside_is_refused_before_anything_starts(
    profile_over: ProfileOver, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(ProfileError, match=message):
        profile_over(GOOD, **data)


def test_held_out_rows_have_no_weight(profile_over: ProfileOver) -> None:
    with pytest.raises(ProfileError, match="held-out rows are read once"):
        profile_over(GOOD, GOOD, "data.validation.0.weight=2.0")
