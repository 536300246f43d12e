"""Each stage by itself: what it keeps, what it drops, and that its counts add up."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.options.data import BalanceOptions, CleanOptions, DedupOptions, SourceOptions, SplitOptions
from engine.prep import chunks
from engine.prep.stages import fingerprints, row_files
from engine.prep.stages.balance import balance
from engine.prep.stages.clean import clean, clean_text
from engine.prep.stages.context import Context
from engine.prep.stages.dedup import dedup
from engine.prep.stages.split import PARTS, split
from engine.prep.stages.validate import CANONICAL, VERBATIM, SourceFile, find_format, reason_class, validate
from tests.prep.conftest import chat, write

WORDS = [f"{first}{second}{third}" for first in "bdgkmnprst" for second in "aeiou" for third in "lmnrst"]


class Stage:
    """A folder to work in, and rows brought into it."""

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self.folder, self.processes = folder, processes
        self.context = Context(folder / "work", processes, lambda *_: None)
        self.context.folder.mkdir(parents=True)
        self.out, self.rejects = folder / "out", folder / "rejects"

    def place(self, *rows: Any, name: str = "rows", work: str = VERBATIM, **options: Any) -> Path:
        """Rows through `validate`, as they stood. The context then knows them."""
        path = write(self.folder / f"{name}.jsonl", *rows)
        source = SourceOptions(source=path.name, **options)
        number = len(self.context.files)
        file = SourceFile(number, number, path, source, find_format(source, path))
        out = self.folder / f"{name}.placed"
        self.counts = validate([file], work, out, self.rejects, self.context)
        self.context = Context(
            self.context.folder,
            self.processes,
            self.context.progress,
            (*self.context.files, str(path)),
            (*self.context.formats, None if work == CANONICAL else file.format),
        )
        return out

    def rejected(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.rejects.read_text().splitlines()]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row.row() for row in row_files.read_file(path)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(params=[1, 2])
def small_spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The number of processes, over spans so small that there are several."""
    monkeypatch.setattr(chunks, "SIZE", 4096)
    yield request.param


def sentence(chance: random.Random, words: int = 60) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def asked(question: str, reply: str, **columns: Any) -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": reply, **columns}


# ── validate ───────────────────────────────────────────────────────────────────────────────────────────────────────

LINES = st.one_of(
    st.builds(lambda text: json.dumps(chat("q", text or "a")), st.text(max_size=20)),
    st.builds(json.dumps, st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)),
    st.builds(lambda value: json.dumps({"messages": value}), st.lists(st.dictionaries(st.text(max_size=9), st.text()))),
    st.text(alphabet=st.characters(exclude_characters="\r\n"), max_size=30),
    st.just(""),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(LINES, max_size=25), st.integers(20, 400))
def test_every_row_is_good_or_named_with_its_place(lines: list[str], span: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SIZE", span)
        stage = Stage(Path(folder))
        kept = stage.place(*lines, format="messages")
        content = (stage.folder / "rows.jsonl").read_bytes()
        counts, rejected = stage.counts, stage.rejected()
        records = [line for line in content.split(b"\n") if line.strip()]
        assert counts["read"] == len(records) == counts["good"] + counts["rejected"]
        assert counts["rejected"] == len(rejected) == sum(counts["reasons"].values())
        assert counts["good"] == counts["out"] == len(rows_of(kept))
        places = sorted(
            (each["line"], each["offset"])
            for each in [*rejected, *map(row_files.PlacedRow._asdict, row_files.read_file(kept))]
        )
        at, expected = 0, []
        for number, line in enumerate(content.split(b"\n"), 1):
            expected += [(number, at)] if line.strip() else []
            at += len(line) + 1
        assert places == expected
        for row in row_files.read_file(kept):
            assert content[row.offset :].startswith(row.raw)


def test_limits_count_good_rows_over_all_files_of_a_source(stage: Stage, small_spans: int) -> None:
    stage = Stage(stage.folder / "inner", small_spans)
    paths = [
        write(
            stage.folder / f"{name}.jsonl",
            *(line for at in range(100) for line in (f"{{bad {name}", chat(f"{name} {at}", "a" * 99))),
        )
        for name in ("a", "b")
    ]
    options = SourceOptions(source="both", max_rows=150)
    files = [SourceFile(at, 0, path, options, "messages") for at, path in enumerate(paths)]
    counts = validate(files, CANONICAL, stage.out, stage.rejects, stage.context)
    # A bad line stands before each good one: reading stops at the 150th good row.
    assert (counts["read"], counts["good"], counts["rejected"], counts["out"]) == (300, 150, 150, 150)
    assert [row.row()["messages"][0]["content"] for row in row_files.read_file(stage.out)][-1] == "b 49"
    assert stage.rejected()[-1]["line"] == 99


def test_other_kinds_of_files_keep_their_lines(stage: Stage) -> None:
    (stage.folder / "rows.csv").write_text("instruction,output\nq1,a1\nq2,a2,extra\nq3,\n")
    source = SourceOptions(source="rows.csv")
    path = stage.folder / "rows.csv"
    file = SourceFile(0, 0, path, source, find_format(source, path))
    counts = validate([file], VERBATIM, stage.out, stage.rejects, stage.context)
    assert (counts["read"], counts["good"]) == (3, 1)
    assert [(row.line, row.row()["output"]) for row in row_files.read_file(stage.out)] == [(2, "a1")]
    assert [each["line"] for each in stage.rejected()] == [3, 4]


def test_a_row_too_deep_to_walk_through_is_a_reject(stage: Stage) -> None:
    deep = '{"text": "t", "more": ' + "[" * 300 + "]" * 300 + "}"
    stage.place(deep, {"text": "t"})
    assert stage.counts["reasons"] == {"nested deeper than N levels": 1}


def test_reasons_are_counted_by_class() -> None:
    assert reason_class("turn 12 (assistant) is empty") == reason_class("turn 3 (assistant) is empty")
    assert reason_class("not JSON: at byte 7") == "not JSON"
    assert reason_class("turn 1 has the role 'bot', not one of user") == "turn N has the role '…', not one of user"


# ── clean ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("unicode", "schÃ¶n", "schön"),
        ("normalize", "scho\u0308n", "schön"),
        ("control_characters", "a\x00b\x07\r\nc\td\ufeff", "ab\nc\td"),
        ("blanks", "  a\n\n \n\t\n\nb  \n", "a\n\n\nb"),
    ],
)
def test_each_repair_is_named_and_can_be_switched_off(rule: str, before: str, after: str) -> None:
    assert clean_text(before, CleanOptions()) == (after, [rule])
    off = CleanOptions(**{rule: "none" if rule == "normalize" else False})
    assert clean_text(before, off) == (before, [])


@pytest.mark.parametrize(
    "text",
    ["“Don’t”—she said…", "ﬁne", "ＡＢＣ　全角", "a &amp; b", "多语言，数据。", "\x1b[31m"[1:], "emoji 🎉👩‍👩‍👧"],
)
def test_what_people_write_is_left_alone(text: str) -> None:
    assert clean_text(text, CleanOptions()) == (text, [])


def test_rows_keep_their_shape_and_every_rule_counts(stage: Stage) -> None:
    rows = [
        asked("q", "schÃ¶n ", category="Ã¼"),
        asked("question", "as it was"),
        asked("q", "\u0000"),
        asked(" \x07 ", "reply"),
        asked("q", "s"),
        asked("q", "long " * 20),
        asked("q", "I am sorry, as an AI I cannot"),
    ]
    path = stage.place(*rows)
    options = CleanOptions(min_chars=4, max_chars=60, boilerplate=["(?i)as an ai"])
    counts = clean(path, stage.out, stage.rejects, options, stage.context)
    assert rows_of(stage.out) == [asked("q", "schön", category="ü"), rows[1]]
    assert counts["rules"] == {
        "unicode": 1, "normalize": 0, "control_characters": 0, "blanks": 1,
        "empty": 2, "min_chars": 1, "max_chars": 1, "boilerplate": 1,
    }  # fmt: skip
    assert (counts["in"], counts["out"], counts["changed"], counts["rejected"]) == (7, 2, 1, 5)
    assert [each["line"] for each in stage.rejected()] == [3, 4, 5, 6, 7]
    # A row that nothing changed is written byte for byte.
    assert list(row_files.read_file(stage.out))[1].raw == (stage.folder / "rows.jsonl").read_bytes().splitlines()[1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text())
def test_cleaning_what_is_clean_changes_nothing(text: str) -> None:
    once, _ = clean_text(text, CleanOptions())
    assert clean_text(once, CleanOptions())[0] == once


# ── dedup ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def jaccard(one: str, two: str, size: int = 5) -> float:
    sets = [{text[at : at + size] for at in range(max(1, len(text) - size + 1))} for text in (one, two)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_estimate_the_jaccard_similarity() -> None:
    import numpy as np

    chance = random.Random(1)
    for share in (0.3, 0.6, 0.8, 0.95):
        base = [sentence(chance, 80) for _ in range(60)]
        other = [text[: int(len(text) * share)] + sentence(chance, 80)[int(len(text) * share) :] for text in base]
        table = [
            np.frombuffer(fingerprints._compute_signatures([(text, 0) for text in texts], 5), "<u2").reshape(-1, 128)
            for texts in (base, other)
        ]
        estimates = (table[0] == table[1]).mean(axis=1)
        truth = [jaccard(one, two) for one, two in zip(base, other, strict=True)]
        assert abs(np.mean(estimates - np.array(truth))) < 0.02
        assert np.abs(estimates - np.array(truth)).max() < 0.15


def test_shingles_are_of_characters_and_stay_within_their_text() -> None:
    hashes, offsets = fingerprints.hash_shingles(["多语言数据", "ab", "多语言数据集", "ab"], 3)
    assert offsets.tolist() == [0, 3, 4, 8, 9]
    assert hashes[:3].tolist() == hashes[4:7].tolist() and hashes[3] == hashes[8]


def duplicated(chance: random.Random) -> tuple[list[dict[str, Any]], set[int], set[int]]:
    """Rows, and the numbers of the exact and the near copies among them."""
    rows = [asked(sentence(chance, 10), sentence(chance)) for _ in range(150)]
    exact, near = set(), set()
    for at in range(40):
        rows.append(dict(rows[at]))
        exact.add(len(rows) - 1)
        rows.append(asked(rows[at]["instruction"], rows[at]["output"].replace(" ", "  ", 2) + "!"))
        near.add(len(rows) - 1)
    return rows, exact, near


def test_copies_go_the_first_stays_and_processes_do_not_show(tmp_path: Path, small_spans: int) -> None:
    rows, exact, near = duplicated(random.Random(2))
    stage = Stage(tmp_path / "stage", small_spans)
    path = stage.place(*rows)
    counts = dedup(path, stage.out, stage.rejects, DedupOptions(), stage.context.within("dedup"))
    assert (counts["in"], counts["out"], counts["exact"], counts["near"]) == (230, 150, 40, 40)
    assert rows_of(stage.out) == rows[:150]
    assert {each["line"] - 1 for each in stage.rejected()} == exact | near
    first = stage.rejected()[0]
    assert first["reason"] == "exact duplicate of rows.jsonl:1" and first["line"] == 151


def test_each_kind_can_be_switched_off(tmp_path: Path) -> None:
    rows, exact, _ = duplicated(random.Random(3))
    kept = {}
    for name, options in (
        ("exact", DedupOptions(near=False)),
        ("none", DedupOptions(near=False, exact=False)),
        ("high", DedupOptions(threshold=1.0)),
    ):
        stage = Stage(tmp_path / name)
        counts = dedup(stage.place(*rows), stage.out, stage.rejects, options, stage.context.within("dedup"))
        kept[name] = counts["out"]
    assert kept == {"exact": 230 - len(exact), "none": 230, "high": 230 - len(exact)}


def test_chinese_needs_no_blanks(stage: Stage) -> None:
    first = "人工智能正在改变我们的生活方式，许多企业开始使用机器学习来分析数据并作出决策。" * 2
    other = "昨天晚上下了一场大雨，今天早上的空气非常清新，公园里有很多老人在散步和锻炼身体。" * 2
    path = stage.place({"text": first}, {"text": other}, {"text": first[:-1] + "！"})
    counts = dedup(path, stage.out, stage.rejects, DedupOptions(), stage.context.within("dedup"))
    assert (counts["out"], counts["near"]) == (2, 1)


def test_held_out_rows_never_train_and_system_prompts_do_not_make_rows_alike(stage: Stage) -> None:
    chance = random.Random(4)
    system = sentence(chance, 300)
    rows = [chat(sentence(chance, 12), sentence(chance, 12), system=system) for _ in range(30)]
    held_out = stage.place(
        rows[0], chat(rows[1]["messages"][1]["content"] + " ?", rows[1]["messages"][2]["content"]), name="dev"
    )
    path = stage.place(*rows)
    counts = dedup(path, stage.out, stage.rejects, DedupOptions(), stage.context.within("dedup"), [held_out])
    assert (counts["in"], counts["out"], counts["held_out"]) == (30, 28, 2)
    assert rows_of(stage.out) == rows[2:]
    assert [each["reason"] for each in stage.rejected()] == [
        "held out: exact duplicate of dev.jsonl:1",
        "held out: near-duplicate of dev.jsonl:2",
    ]


def test_a_chain_of_likenesses_keeps_both_its_ends(stage: Stage) -> None:
    words = sentence(random.Random(5), 100).split()
    fresh = sentence(random.Random(6), 100).split()
    chain = [" ".join(fresh[:at] + words[at:]) for at in (0, 8, 16, 24, 32)]
    assert jaccard(chain[0], chain[1]) > 0.82 and jaccard(chain[0], chain[4]) < 0.6
    path = stage.place(*({"text": text} for text in chain))
    dedup(path, stage.out, stage.rejects, DedupOptions(), stage.context.within("dedup"))
    kept = [row["text"] for row in rows_of(stage.out)]
    assert kept[0] == chain[0] and chain[1] not in kept
    assert chain[3] in kept or chain[4] in kept, "neither is like the first"


def test_one_reply_judged_both_ways_is_two_rows(stage: Stage) -> None:
    text = sentence(random.Random(7))
    path = stage.place(*({"prompt": "q", "completion": text, "label": label} for label in (True, False, True)))
    counts = dedup(path, stage.out, stage.rejects, DedupOptions(), stage.context.within("dedup"))
    assert [row["label"] for row in rows_of(stage.out)] == [True, False] and counts["exact"] == 1


# ── split ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def split_of(stage: Stage, path: Path, **options: Any) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    out = {part: stage.folder / f"{part}.out" for part in PARTS}
    counts = split(path, out, SplitOptions(**options), DedupOptions(), stage.context.within("split"))
    return counts, {part: rows_of(file) for part, file in out.items()}


def test_shares_hold_in_each_stratum_and_nothing_near_crosses_the_border(tmp_path: Path, small_spans: int) -> None:
    chance = random.Random(8)
    rows = [asked(sentence(chance, 10), sentence(chance), category="abbccc"[at % 6]) for at in range(240)]
    rows += [asked(row["instruction"], row["output"] + " indeed", category=row["category"]) for row in rows[:60]]
    stage = Stage(tmp_path / "stage", small_spans)
    counts, parts = split_of(stage, stage.place(*rows), validation=0.2, test=0.1, stratify_by="category")
    assert (counts["train"], counts["validation"], counts["test"]) == (210, 60, 30)
    for value, total in (("a", 50), ("b", 100), ("c", 150)):
        held_out = Counter(part for part in PARTS for row in parts[part] if row["category"] == value)
        assert abs(held_out["validation"] - 0.2 * total) <= 1.5 and abs(held_out["test"] - 0.1 * total) <= 1.5
    sides = [{row["instruction"] for row in parts[part]} for part in PARTS]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_the_choice_depends_on_content_and_seed_alone(tmp_path: Path) -> None:
    chance = random.Random(9)
    rows = [asked(sentence(chance, 10), sentence(chance, 20)) for _ in range(100)]
    found = []
    for name, seed, order in (("a", 1, rows), ("b", 1, rows[::-1]), ("c", 2, rows)):
        stage = Stage(tmp_path / name)
        _, parts = split_of(stage, stage.place(*order), validation=0.2, seed=seed)
        found.append({row["instruction"] for row in parts["validation"]})
        assert [row for row in order if row["instruction"] in found[-1]] == parts["validation"], "the order stays"
    assert found[0] == found[1] != found[2] and len(found[0]) == 20


def test_a_column_that_nobody_has_is_an_error_that_names_what_there_is(stage: Stage) -> None:
    path = stage.place(asked("q", "a", topic="t"))
    with pytest.raises(ValueError, match=r"no row has the column category .* there are .*topic"):
        split_of(stage, path, validation=0.5, stratify_by="category")
    with pytest.raises(ValueError, match="none would be left to train on"):
        split_of(stage, path, validation=0.9)


# ── balance ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("to", "each"), [("smallest", 10), ("median", 20), ("largest", 45), (33, 33)])
def test_groups_come_out_even(stage: Stage, to: Any, each: int) -> None:
    rows = [
        asked(f"q{value}{at}", "a", category=value)
        for value, count in (("x", 10), ("y", 20), ("z", 45))
        for at in range(count)
    ]
    path = stage.place(*rows, asked("none", "a"))
    counts = balance(path, stage.out, BalanceOptions(by="category", to=to), stage.context)
    made = rows_of(stage.out)
    assert Counter(row.get("category") for row in made) == {"x": each, "y": each, "z": each, None: 1}
    assert counts["in"] - counts["dropped"] + counts["repeated"] == counts["out"] == len(made)
    times = Counter(row["instruction"] for row in made if row.get("category") == "x")
    assert len(times) == 10 and max(times.values()) - min(times.values()) <= 1
    order = [row["instruction"] for row in rows]
    assert [order.index(row["instruction"]) for row in made[:-1]] == sorted(
        order.index(row["instruction"]) for row in made[:-1]
    )
    with pytest.raises(ValueError, match="no row has the column task"):
        balance(path, stage.out, BalanceOptions(by="task"), stage.context)
