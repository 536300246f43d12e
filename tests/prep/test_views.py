"""Finding rows, leafing through the bad ones, and the batches that a run will see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.prep.browse import REJECTED, Browser
from engine.prep.chat_labels import Renderer
from engine.prep.prepare import prepare
from engine.prep.search import Measure, Query, parse
from engine.protocol.home import Home
from engine.training.batches import describe_batch
from tests.prep.conftest import ProfileOver, chat


def test_a_line_becomes_a_query() -> None:
    assert parse("") == Query() and parse("").empty
    assert parse('Marie "two Words" source:Wiki category=news chars>20 tokens<9') == Query(
        ("marie", "two words"),
        ("wiki",),
        (("category", "news"),),
        (Measure("chars", ">", 20), Measure("tokens", "<", 9)),
    )
    assert parse("a=b=c 1=2").columns == (("a", "b=c"),)
    with pytest.raises(ValueError, match="quote"):
        parse('"open')


ROWS: list[Any] = [
    {**chat("Where is Shanghai?", "On the Yangtze."), "category": "place"},
    {**chat("上海在哪里？", "长江入海口。"), "category": "place"},
    "{broken",
    {**chat("Name a prime.", "Seven. " * 40), "category": "number"},
    {"messages": [{"role": "user", "content": "no answer"}]},
]


@pytest.fixture
def browser(profile_over: ProfileOver, home: Home) -> Browser:
    return Browser(profile_over(ROWS, [chat("held out", "yes")]), home, lambda *_: None)


def narrowed(browser: Browser, line: str, part: str = "train") -> list[str]:
    count = browser.narrow(part, parse(line), lambda *_: None)
    found = browser.rows(part, 0, 99)
    assert found["total"] == count == len(found["rows"])
    return [row["messages"][0]["content"] if "messages" in row else row["reason"] for row in found["rows"]]


def test_rows_are_found_by_what_they_say_and_are(browser: Browser) -> None:
    first, second, third = "Where is Shanghai?", "上海在哪里？", "Name a prime."
    assert narrowed(browser, "SHANGHAI") == [first]
    assert narrowed(browser, "上海") == [second]
    assert narrowed(browser, "category=place") == [first, second]
    assert narrowed(browser, "category=place yangtze") == [first]
    assert narrowed(browser, "chars>100") == [third]
    assert narrowed(browser, "tokens<80") == [first, second]
    assert narrowed(browser, "source:rows.jsonl chars<20") == [second]
    assert narrowed(browser, "source:nowhere") == []
    with pytest.raises(ValueError, match="no row has the column topic; there are messages, category"):
        narrowed(browser, "topic=x")
    assert narrowed(browser, "") == [first, second, third]
    assert narrowed(browser, "held", "validation") == ["held out"]


def test_a_narrowed_part_numbers_its_rows_anew(browser: Browser) -> None:
    narrowed(browser, "prime")
    assert "Seven" in "".join(piece["text"] for piece in browser.tokens("train", 0)["pieces"])
    with pytest.raises(ValueError, match="no row 1 among the 1 of train"):
        browser.tokens("train", 1)


def test_text_escaped_to_ascii_is_found_too(profile_over: ProfileOver, home: Home) -> None:
    line = json.dumps(chat("上海在哪里？", "长江入海口。"))
    assert "上" not in line
    browser = Browser(profile_over([line]), home, lambda *_: None)
    assert browser.narrow("train", parse("上海"), lambda *_: None) == 1


def test_bad_rows_are_a_part_of_their_own(browser: Browser) -> None:
    assert browser.summary()["parts"] == {"train": 3, "validation": 1, "test": 0, REJECTED: 2}
    first, second = browser.rows(REJECTED, 0, 9)["rows"]
    assert first["line"] == 3 and first["raw"] == "{broken" and "not JSON" in first["reason"]
    assert second["line"] == 5 and "no assistant turn" in second["reason"]
    assert narrowed(browser, "assistant", REJECTED) == [second["reason"]]


def test_what_training_has_begins_as_what_chat_sends(browser: Browser) -> None:
    shown = browser.render("train", 0)
    assert shown["same"] and shown["training"].startswith(shown["chat"])
    assert shown["training"][len(shown["chat"]) :].startswith("On the Yangtze.<|im_end|>")
    assert shown["chat"].endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_is_what_the_run_will_see(profile_over: ProfileOver, home: Home, tokenizer: Any, packing: bool) -> None:
    rows = [chat(f"Say {'x' * number} 上.", f"{'yes ' * number}👩‍🚀.") for number in range(1, 13)]
    profile = profile_over(rows, None, "training.micro_batch=3", "training.accumulation=2", packing=packing)
    prepared = prepare(profile, home, lambda *_: None)
    texts = {each.sequences[0].text for each in Renderer(tokenizer, "assistant").render(rows)}
    seen: list[str] = []
    first = describe_batch(prepared, profile, tokenizer, 1)
    for step in range(1, first["steps"] + 1):
        told = describe_batch(prepared, profile, tokenizer, step)
        for part in told["parts"]:
            text = "".join(piece["text"] for piece in part["pieces"])
            assert text in texts
            trained = "".join(piece["text"] for piece in part["pieces"] if piece["trained"])
            assert trained.startswith("yes") and trained.endswith("👩‍🚀.<|im_end|>")
            seen.append(text)
        assert told["trained"] < told["tokens"]
    assert sorted(seen) == sorted(texts)
    assert (len({part["sequence"] for part in first["parts"]}) < len(first["parts"])) == packing
    with pytest.raises(ValueError, match="there is no step 99"):
        describe_batch(prepared, profile, tokenizer, 99)
