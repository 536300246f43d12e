"""Preference pairs and single judgements as tokens: prompt and reply together are the template's own text, whatever is
cut is counted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.bundled import find_bundled as bundled_folder
from engine.prep import detect_format
from engine.prep.prepare import prepare
from engine.prep.rows import Rejects
from engine.prep.token_rows import Counts
from engine.prep.tokenize import make_row_tokenizer
from engine.prep.tokenize_files import TokenizeResult, tokenize_rows
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.prep.conftest import ProfileOver, chat, write

Columns = dict[str, list[list[int]]]


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": role, "content": content} for role, content in zip(roles * len(contents), contents, strict=False)]


def pair(asked: list[dict[str, str]], chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    replies = (turns(reply, first="assistant") for reply in (chosen, rejected))
    return {"prompt": asked, **dict(zip(("chosen", "rejected"), replies, strict=True)), **more}


def judgement(question: str, reply: str, label: bool) -> dict[str, Any]:
    return {"prompt": turns(question), "completion": turns(reply, first="assistant"), "label": label}


PAIRS = [
    pair(turns("hi"), "hello", "no"),
    pair(turns("first", "one", "second"), "two 二 🎉", "\n\nblank lines, <|im_end|> inside"),
    pair([{"role": "system", "content": "Be brief."}, *turns("多语言")], "回答：你好。", "好"),
]


def run(
    tokenizer: Any, rows: list[Any], kind: str = "pairs", max_length: int = 512, max_prompt: int | None = None
) -> tuple[Columns, Counts, dict[int, str]]:
    counts = Counts()
    batch = make_row_tokenizer(kind, tokenizer, "assistant", max_length, max_prompt)(rows, counts)
    found: Columns = {}
    for name, (values, lengths) in batch.columns.items():
        values, at = list(map(int, values)), 0
        found[name] = []
        for length in lengths:
            found[name].append(values[at : at + length])
            at += length
    return found, counts, batch.refused


def whole(tokenizer: Any, *parts: list[dict[str, str]]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template([turn for part in parts for turn in part], return_dict=False)
    return ids


def test_prompt_and_reply_together_are_what_the_template_makes_of_the_whole(tokenizer: Any) -> None:
    found, counts, refused = run(tokenizer, PAIRS)
    assert refused == {}
    for at, row in enumerate(PAIRS):
        prompt, chosen, rejected = (found[name][at] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        assert prompt + chosen == whole(tokenizer, row["prompt"], row["chosen"])
        assert prompt + rejected == whole(tokenizer, row["prompt"], row["rejected"])
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert prompt == asked[: len(prompt)]
    assert found["prompt_ids"][0] == tokenizer.apply_chat_template(
        PAIRS[0]["prompt"], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(found["chosen_ids"][0]) == "hello<|im_end|>\n"
    assert (counts.rows, counts.ended, counts.masked, counts.truncated) == (3, 3, 0, 0)
    assert counts.trained_tokens == sum(map(len, found["chosen_ids"] + found["rejected_ids"]))
    assert counts.tokens == counts.trained_tokens + 2 * sum(map(len, found["prompt_ids"]))
    longest = [
        len(p) + max(len(c), len(r))
        for p, c, r in zip(found["prompt_ids"], found["chosen_ids"], found["rejected_ids"], strict=True)
    ]
    assert sorted(counts.lengths.elements()) == sorted(longest)


def test_rows_are_cut_as_trl_cuts_them(tokenizer: Any) -> None:
    """The tokens are those of trl's own preparation; read from its source by the same steps, with its own helper."""
    from trl.data_utils import common_prefix_length

    found, _, _ = run(tokenizer, PAIRS)
    for at, row in enumerate(PAIRS):
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        both = [whole(tokenizer, row["prompt"], row[name]) for name in ("chosen", "rejected")]
        border = min(common_prefix_length(asked, ids) for ids in both)
        assert found["prompt_ids"][at] == asked[:border]
        assert [found["chosen_ids"][at], found["rejected_ids"][at]] == [ids[border:] for ids in both]


def test_judgements_have_a_label(tokenizer: Any) -> None:
    rows = [judgement("q", "good", True), judgement("q", "bad", False)]
    found, counts, _ = run(tokenizer, rows, "judged")
    assert found["label"] == [[1], [0]]
    for at, row in enumerate(rows):
        assert found["prompt_ids"][at] + found["completion_ids"][at] == whole(
            tokenizer, row["prompt"], row["completion"]
        )
    assert (counts.rows, counts.ended) == (2, 2)


def test_replies_are_cut_at_their_end_and_prompts_at_their_beginning_if_asked(tokenizer: Any) -> None:
    short = [{"role": "system", "content": "s"}]  # without one the template writes its own
    rows = [pair(short + turns("word " * 40), "yes", "no " * 30), pair(short + turns("q"), "a " * 60, "b")]
    found, counts, _ = run(tokenizer, rows, max_length=30)
    assert (counts.rows, counts.masked, counts.truncated, counts.ended) == (1, 1, 2, 0)
    prompt, chosen = found["prompt_ids"][0], found["chosen_ids"][0]
    assert (
        len(prompt + chosen) == 30 and (prompt + chosen) == whole(tokenizer, rows[1]["prompt"], rows[1]["chosen"])[:30]
    )
    assert tokenizer.decode(found["rejected_ids"][0]) == "b<|im_end|>\n"

    found, counts, _ = run(tokenizer, rows, max_length=30, max_prompt=10)
    asked = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)
    assert found["prompt_ids"][0] == asked[-10:]
    assert tokenizer.decode(found["chosen_ids"][0]) == "yes<|im_end|>\n" and len(found["rejected_ids"][0]) == 20
    assert (counts.rows, counts.masked, counts.truncated, counts.ended) == (2, 0, 2, 1)


def test_rows_of_another_kind_are_named_with_what_they_train(tokenizer: Any) -> None:
    rows = [PAIRS[0], chat("q", "a"), judgement("q", "a", True), {"text": "t"}]
    _, counts, refused = run(tokenizer, rows)
    assert refused == {
        1: "these are conversations: they train with method.kind sft",
        2: "these are single judgements: they train with method.kind kto",
        3: "these are plain text: they train with method.kind sft",
    }
    assert counts.misfits == {"tokens": 2, "judged": 1}
    _, counts, refused = run(tokenizer, rows, "tokens")
    assert refused[0] == "these are preference pairs: they train with method.kind dpo, orpo or reward"
    assert counts.misfits == {"pairs": 1, "judged": 1}


def test_tools_and_turns_that_are_not_trained(tokenizer: Any) -> None:
    weighted = copy.deepcopy(PAIRS[1])
    weighted["prompt"][1]["weight"] = 0
    plain, _, _ = run(tokenizer, [PAIRS[1]])
    found, _, _ = run(tokenizer, [weighted])
    assert found == plain
    silent = copy.deepcopy(PAIRS[0])
    silent["rejected"][0]["weight"] = 0
    _, _, refused = run(tokenizer, [silent])
    assert refused == {0: "rejected has the weight 0: nothing of it would be trained"}
    _, counts, _ = run(tokenizer, [pair(turns("q"), "a", "b", tools=[{"type": "function", "function": {"name": "f"}}])])
    assert counts.unwritten == {"tools": 1}


def test_a_template_that_refuses_one_reply_refuses_the_row(tokenizer: Any) -> None:
    strict = copy.copy(tokenizer)
    strict.chat_template = (
        "{% if messages[-1].content == 'no' %}{{ raise_exception('not so') }}{% endif %}" + tokenizer.chat_template
    )
    found, counts, refused = run(strict, PAIRS)
    assert refused == {0: "rejected: the chat template refuses it: not so"}
    assert len(found["prompt_ids"]) == counts.rows == 2


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def tokenised(path: Path, into: Path, tokenizer: Any, processes: int) -> TokenizeResult:
    return tokenize_rows(
        [path], into, tokenizer, "assistant", 60, Rejects(lambda _: None), into.with_name("work"), processes,
        lambda *_: None, kind="pairs",
    )  # fmt: skip


def test_sets_on_disk_do_not_hang_on_the_number_of_processes(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_from_disk

    from engine.prep.batching import token_counts

    rows = [
        pair(turns(f"question {at} " + "word " * (at % 50)), f"yes {at}", "no " * (at % 9 + 1)) for at in range(1500)
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    monkeypatch.setattr("engine.prep.tokenize_files.SIZE", 2**16)
    made = {}
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        made[name] = tokenised(path, tmp_path / name / "set", tokenizer, processes)
    assert made["one"] == made["two"] and made["one"].counts.masked > 0
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "set").iterdir()} for name in ("one", "two")
    ]
    assert contents[0] == contents[1] and len(contents[0]) > 4
    assert made["one"].golden == [row["prompt"] + row["chosen"] for row in rows[:3]]
    loaded = load_from_disk(str(tmp_path / "one" / "set"))
    assert loaded.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    counted = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in loaded]
    assert token_counts(loaded) == counted and sum(counted) == made["one"].counts.tokens


def find_bundled(name: str) -> list[dict[str, Any]]:
    path = bundled_folder("data") / "samples" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("kind", "sample", "columns"), [
    ("dpo", "preference", ["prompt_ids", "chosen_ids", "rejected_ids"]),
    ("kto", "kto", ["prompt_ids", "completion_ids", "label"]),
])  # fmt: skip
def test_a_profile_of_preferences(
    home: Home, profile_over: ProfileOver, kind: str, sample: str, columns: list[str]
) -> None:
    from datasets import load_from_disk

    rows = find_bundled(sample)
    prepared = prepare(profile_over(rows, rows[:2], f"method.kind={kind}"), home, lambda *_: None)
    train = load_from_disk(prepared["train"])
    assert train.column_names == columns and len(train) == prepared["rows"] == len(rows)
    assert prepared["rejected"] == 0 and len(load_from_disk(prepared["validation"])) == 2
    first = detect_format.convert(sample, rows[0])[0]
    assert prepared["lock"]["golden"][0]["messages"] == first["prompt"] + first[columns[1].removesuffix("_ids")]
    assert prepared["lock"]["golden"][0]["ids"] == train[0][columns[0]] + train[0][columns[1]]


def test_rows_that_do_not_fit_the_method_are_refused_with_a_mend(home: Home, profile_over: ProfileOver) -> None:
    with pytest.raises(ProblemError) as error:
        prepare(profile_over(find_bundled("preference")), home, lambda *_: None)
    assert error.value.problem.title == "data.train does not hold what method.kind sft trains on"
    assert error.value.problem.hint == "set method.kind to dpo, orpo or reward, or name other rows in data.train"
    with pytest.raises(ProblemError) as error:
        prepare(profile_over([chat("q", "a")], None, "method.kind=dpo"), home, lambda *_: None)
    assert error.value.problem.hint == "set method.kind to sft, or name other rows in data.train"
    mixed = prepare(
        profile_over(
            [*find_bundled("preference"), {"prompt": "q", "chosen": "a"}], None, "method.kind=dpo", max_rejected=0.2
        ),
        home,
        lambda *_: None,
    )
    assert mixed["rejected"] == 1


def test_nothing_trained_and_no_end_are_refused(home: Home, profile_over: ProfileOver) -> None:
    long = [{"prompt": "word " * 50, "chosen": "a", "rejected": "b"}]
    with pytest.raises(ProblemError, match="No token would be trained"):
        prepare(profile_over(long, None, "method.kind=dpo", max_length=20), home, lambda *_: None)
    cut = [{"prompt": "q", "chosen": "a " * 50, "rejected": "b"}]
    with pytest.raises(ProblemError, match="end of a turn is never trained"):
        prepare(profile_over(cut, None, "method.kind=orpo", max_length=40), home, lambda *_: None)
    assert prepare(profile_over(cut, None, "method.kind=reward", max_length=40), home, lambda *_: None)["rows"] == 1
