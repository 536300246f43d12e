"""All stages of a profile: what reaches the tokens, what is told about it, what is kept."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.journal import End
from engine.protocol.messages import ProblemError
from engine.workers.prepare import list_warnings
from tests.prep.conftest import ProfileOver, write
from tests.prep.test_prepare import quiet, rows_of
from tests.prep.test_stages import asked, sentence
from tests.training.harness import PROFILE, Supervised, make_model

CHANCE = random.Random(11)
ROWS = [asked(sentence(CHANCE, 6), sentence(CHANCE, 12), category="abb"[at % 3]) for at in range(60)]
ALL = {
    "clean": {"min_chars": 3},
    "dedup": {},
    "split": {"validation": 0.2, "test": 0.1, "stratify_by": "category"},
    "balance": {"by": "category", "to": "largest"},
}


def stages_of(prepared: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {f"{stage['name']}.{stage['part']}": (stage["in"], stage["out"]) for stage in prepared["stages"]}


def test_all_stages_count_and_reach_the_tokens(home: Home, profile_over: ProfileOver) -> None:
    rows = [*ROWS, *ROWS[:5], {"instruction": "q", "output": ""}, asked("ü" * 30, "schÃ¶n " + "e" * 20, category="a")]
    told: list[tuple[str, int, int]] = []
    prepared = prepare(profile_over(rows, **ALL), home, lambda *each: told.append(each))
    # The empty reply is bad, but not beyond max_rejected: cleaning was asked to drop such rows.
    assert stages_of(prepared)["validate.train"] == (67, 66)
    assert stages_of(prepared)["clean.train"] == (66, 66)
    assert stages_of(prepared)["dedup.train"] == (66, 61)
    split = next(stage for stage in prepared["stages"] if stage["name"] == "split")
    assert (split["in"], split["train"], split["validation"], split["test"]) == (61, 43, 12, 6)
    balance = next(stage for stage in prepared["stages"] if stage["name"] == "balance")
    (before_a, a), (before_b, b) = balance["groups"]["a"], balance["groups"]["b"]
    assert before_a < before_b == a == b
    assert len(rows_of(prepared["train"])) == prepared["rows"] == 2 * b
    assert len(rows_of(prepared["validation"])) == 12
    kept = [json.loads(line) for line in Path(prepared["validation_rows"]).read_text().splitlines()]
    test = [json.loads(line) for line in Path(prepared["test_rows"]).read_text().splitlines()]
    assert len(kept) == 12 and len(test) == 6 and "columns" in test[0] and "messages" in test[0]
    assert prepared["rejected"] == 1
    rejects = [json.loads(line) for line in Path(prepared["rejects"]).read_text().splitlines()]
    assert [each["stage"] for each in rejects] == ["validate", *["dedup"] * 5]
    phases = [phase for phase, _, _ in told]
    order = [
        "reading",
        "validating",
        "cleaning",
        "fingerprints",
        "removing duplicates",
        "splitting",
        "balancing",
        "tokenising",
    ]
    assert list(dict.fromkeys(phases)) == order
    assert all(done <= total for _, done, total in told)


def test_rows_are_kept_for_another_tokenisation(home: Home, profile_over: ProfileOver) -> None:
    first = prepare(profile_over(ROWS, **ALL), home, quiet)
    told: list[str] = []
    second = prepare(profile_over(ROWS, **{**ALL, "max_length": 64}), home, lambda phase, *_: told.append(phase))
    assert first["hash"] != second["hash"] and first["stages"] == second["stages"]
    assert set(told) == {"reading", "tokenising"}
    assert not list(home.cache.glob("work-*"))


def test_the_number_of_processes_does_not_show(
    home: Home, profile_over: ProfileOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.prep import chunks

    made = []
    monkeypatch.setattr(chunks, "SIZE", 2048)
    for processes in (1, 2):
        prepared = prepare(profile_over(ROWS, **ALL, processes=processes), home, quiet)
        files = [path for path in home.cache.rglob("*") if path.is_file() and not path.name.startswith(".checked")]
        made.append({path.relative_to(home.cache): path.read_bytes() for path in files})
        for path in sorted(home.cache.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    assert made[0] == made[1] and prepared["rows"]


def test_max_rows_is_a_seeded_sample_over_all_sources(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    write(tmp_path / "more.jsonl", *(asked(f"more {at}", "a") for at in range(60)))
    sources = [{"source": "rows.jsonl"}, {"source": "more.jsonl", "weight": 2.0}]
    found = {}
    for seed in (1, 1, 2):
        profile = profile_over(ROWS, None, f"training.seed={seed}", train=sources, max_rows=40)
        prepared = prepare(profile, home, quiet)
        assert stages_of(prepared)["weigh.train"] == (120, 40)
        ids = rows_of(prepared["train"])["input_ids"]
        assert found.setdefault(seed, ids) == ids
        long = sum(len(each) > 45 for each in ids)
        assert 4 < long < 25, "a third of what is drawn from"
    assert found[1] != found[2]


def test_what_stages_dropped_is_said(home: Home, profile_over: ProfileOver) -> None:
    prepared = prepare(profile_over(ROWS * 2, clean={"boilerplate": ["bal"]}, dedup={}), home, quiet)
    messages = [remark.message for remark in list_warnings(prepared)]
    dropped = next(stage["rejected"] for stage in prepared["stages"] if stage["name"] == "clean")
    assert any(message.startswith("dedup left out") and "exact" in message for message in messages)
    assert 0 < dropped < 120 and any(f"clean left out {dropped} of 120 rows of train" in each for each in messages)


def test_nothing_left_says_which_stage_took_it(home: Home, profile_over: ProfileOver) -> None:
    with pytest.raises(ProblemError) as caught:
        prepare(profile_over(ROWS, clean={"max_chars": 3}), home, quiet)
    assert caught.value.problem.title == "The training set is empty"
    assert "clean leaves 0 of 60" in caught.value.problem.cause
    with pytest.raises(ProblemError, match="no row has the column topic"):
        prepare(profile_over(ROWS, balance={"by": "topic"}), home, quiet)
    assert not list(home.cache.glob("work-*"))


def test_a_catalogue_names_sources(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", *({"question": "q", "reply": f"a{at}"} for at in range(5)))
    entry = {"file_name": "own.jsonl", "columns": {"prompt": "question", "response": "reply"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    profile = profile_over(ROWS, catalog="dataset_info.json", train=[{"source": "mine", "max_rows": 3}])
    assert prepare(profile, home, quiet)["rows"] == 3


def test_what_is_tokenised_already_is_trained_on_as_it_is(home: Home, profile_over: ProfileOver) -> None:
    made = prepare(profile_over(ROWS), home, quiet)
    again = prepare(profile_over(ROWS, train=[{"source": made["train"]}]), home, quiet)
    assert again["train"] == made["train"] and again["validation"] is None
    assert all(again[key] == made[key] for key in ("rows", "tokens", "trained_tokens", "base"))
    assert again["stats"]["train"]["max"] == made["stats"]["train"]["max"]
    assert list(list_warnings(again)) == []
    for more, message in (({"dedup": {}}, "works on rows"), ({"max_length": 16}, "more than data.max_length")):
        with pytest.raises(ProblemError, match=message):
            prepare(profile_over(ROWS, **{"train": [{"source": made["train"]}], **more}), home, quiet)
    with pytest.raises(ProblemError, match="both be tokenised"):
        prepare(profile_over(ROWS, ROWS, train=[{"source": made["train"]}]), home, quiet)


@pytest.mark.slow
def test_a_packed_run_trains_as_an_unpacked_one(bare_home: Home, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    write(tmp_path / "rows.jsonl", *(asked(f"w{at} w{at + 1}", f"w{at + 1} w{at}") for at in range(30)))
    losses = {}
    for packing in (False, True):
        changes = [
            f"data.train=[{{source: {tmp_path / 'rows.jsonl'}}}]",
            f"data.packing={str(packing).lower()}",
            "training.micro_batch=30",
            "training.max_steps=3",
        ]
        from engine.config.profile import parse

        profile = parse(PROFILE.format(base=base), "test", Path("/"), changes, bare_home)
        prepared = prepare(profile, bare_home, quiet)
        assert len(rows_of(prepared["train"])) == (30 if not packing else prepared["stats"]["train"]["sequences"])
        run = Supervised.create(bare_home, f"packed-{packing}", prepared, *changes)
        try:
            run.train()
            assert run.entries(End)[-1].status == "completed"
            losses[packing] = run.series("train/loss")
        finally:
            run.close()
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert losses[True][3] < losses[True][1]


def test_killed_while_it_tidies_up(home: Home, profile_over: ProfileOver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process leaves that dies between two results, or in the middle of a removal, is neither used nor kept."""
    from engine.storage import cache

    def files() -> dict[str, bytes]:
        found = [path for path in home.cache.rglob("*") if path.is_file() and not path.name.startswith(".checked")]
        return {str(path.relative_to(home.cache)): path.read_bytes() for path in found}

    profile = profile_over(ROWS, **ALL, processes=1)
    prepare(profile, home, quiet)
    expected, remove = files(), cache.shutil.rmtree
    for half, survived in itertools.product((False, True), range(2)):
        remove(home.cache)
        left = [survived]

        def die(folder: Path, half: bool = half, left: list[int] = left, **options: Any) -> None:
            if not (Path(folder).parent == home.cache and Path(folder).exists()):
                return remove(folder, **options)
            left[0] -= 1
            if left[0] >= 0:
                return remove(folder, **options)
            if half:
                for path in [path for path in sorted(Path(folder).rglob("*")) if path.is_file()][::2]:
                    path.unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(cache.shutil, "rmtree", die)
            with pytest.raises(KeyboardInterrupt):
                prepare(profile, home, quiet)
        with monkeypatch.context() as patch:
            patch.setattr(cache.psutil, "pid_exists", lambda _: False)
            prepare(profile, home, quiet)
        assert files() == expected, (half, survived)
