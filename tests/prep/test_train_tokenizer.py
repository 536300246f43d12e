"""Tokenizers of one's own: what they hold, that nothing gets lost in them, that they come out the same each time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.template_lock import find_end_of_turn
from engine.options.data import SourceOptions
from engine.prep import read_rows
from engine.prep.formats.canonical import all_text
from engine.prep.rows import Rejects
from engine.prep.tokenizer_training import CHATML, list_notes, measure_compression, train
from engine.prep.verbs import train_tokenizer
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.conftest import TOKENS
from tests.prep.conftest import chat, write

KINDS = ("bpe", "unigram")
SIZE = 700


@pytest.fixture(scope="module")
def texts() -> list[str]:
    source = SourceOptions(source="triples/train.jsonl")
    read = read_rows.read([source], Path.cwd(), Rejects(lambda _: None), 0, lambda _: None)
    chinese = ["意识是否可以被完全还原为大脑的物理过程？", "存在本身是否需要一个定义？"] * 20
    return [all_text(row.content) for row in read][:200] + chinese


@pytest.fixture(scope="module")
def trained(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Kind -> the tokenizer, saved and loaded as a user would."""
    from transformers import AutoTokenizer

    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        train(texts, kind=kind, size=SIZE).save_pretrained(folder)
        found[kind] = AutoTokenizer.from_pretrained(folder)
    return found


UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
LIKELY = st.text(st.sampled_from(" \n\t\r▁Ġ<>|_0xA1aéé한국🙂👩‍🚀\u0000\ufffd\u202e，。定义"), max_size=60)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back_as_it_was(trained: dict[str, Any], kind: str) -> None:
    tokenizer = trained[kind]

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(UNICODE | LIKELY)
    def goes_round(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text, "nothing is added"

    goes_round()


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_what_was_asked_for_and_no_id_is_free(trained: dict[str, Any], kind: str) -> None:
    tokenizer = trained[kind]
    assert len(tokenizer) == SIZE == len(set(tokenizer.get_vocab().values()))
    assert sorted(tokenizer.get_vocab().values()) == list(range(SIZE))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert list_notes(tokenizer, SIZE) == []


@pytest.mark.parametrize("kind", KINDS)
def test_chats_are_rendered_and_turns_end_with_one_token(trained: dict[str, Any], kind: str) -> None:
    tokenizer = trained[kind]
    messages = chat("Where?", "Here.", system="Be brief.")["messages"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\nHere.<|im_end|>\n"
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert find_end_of_turn(tokenizer) == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True).endswith(
        "<|im_start|>assistant\n"
    )


def test_it_learns_from_the_texts(trained: dict[str, Any], texts: list[str]) -> None:
    for kind in KINDS:
        table = measure_compression({kind: trained[kind]}, texts)[kind]
        assert table["bytes_per_token"] > 2.5 and table["exact"] == 1.0
        assert table["tokens_per_character"] == pytest.approx(
            sum(map(len, trained[kind](texts, add_special_tokens=False).input_ids)) / sum(map(len, texts))
        )


def test_special_tokens_and_templates_of_ones_own(texts: list[str]) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>{% endfor %}"
    tokenizer = train(texts, size=400, special=["<|end|>", "<|tool|>"], template=template)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|end|>", "<|tool|>"]
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer("a<|tool|>b", add_special_tokens=False).input_ids[1] == 2
    assert list_notes(tokenizer, 400) == []
    lame = train(texts, size=400, template=template)
    assert "ends no turn with a special token" in list_notes(lame, 400)[0]
    assert "writes <|end|> as ordinary text" in list_notes(lame, 400)[1]
    with pytest.raises(ValueError, match="the chat template cannot render"):
        train(texts, size=400, template="{{ nothing.there.at_all }}")
    with pytest.raises(ValueError, match=r"' <a>' is empty or begins or ends with a blank"):
        train(texts, size=400, special=[" <a>"])


@pytest.mark.parametrize("kind", KINDS)
def test_too_small_and_too_large_sizes_are_said(texts: list[str], kind: Any) -> None:
    with pytest.raises(ValueError, match="size 200 is too small: special tokens and the alphabet alone take 259"):
        train(texts, kind=kind, size=200)
    few = train(["one two, one two"], kind=kind, size=5000)
    assert 259 <= len(few) < 300
    assert list_notes(few, 5000) == [f"{len(few)} tokens, not 5000: the texts hold no more that repeat"]
    with pytest.raises(ValueError, match="no text to train on"):
        train([""], kind=kind, size=300)


@pytest.mark.parametrize("kind", KINDS)
def test_without_bytes_unknown_characters_are_unknown(texts: list[str], kind: Any) -> None:
    tokenizer = train(texts, kind=kind, size=300, byte_fallback=False)
    assert len(tokenizer) <= 300
    known = "Marek  Holt is based in Cairo.\n"
    assert tokenizer.decode(tokenizer(known).input_ids) == known
    assert tokenizer.decode(tokenizer("Holt 🙂 is").input_ids) == "Holt <unk> is"


def test_frequent_words_become_tokens(trained: dict[str, Any]) -> None:
    for kind in KINDS:
        assert {"person", "company"} <= trained[kind].get_vocab().keys(), kind


@pytest.mark.slow
def test_the_same_texts_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Each process has its own hash seeds and its own threads."""
    program = (
        "import sys\n"
        "from tests.prep.test_train_tokenizer import *\n"
        "source = SourceOptions(source='triples/train.jsonl')\n"
        "read = read_rows.read([source], Path.cwd(), Rejects(lambda _: None), 0, lambda _: None)\n"
        "texts = [all_text(row.content) for row in read]\n"
        "for kind in KINDS: train(texts, kind=kind, size=600).save_pretrained(Path(sys.argv[1], kind))"
    )
    for parallel in ("false", "true"):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel}
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", program, tmp_path / parallel], cwd=root, env=environment, check=True)
    for kind in KINDS:
        one, other = (
            {path.name: path.read_bytes() for path in (tmp_path / parallel / kind).iterdir()}
            for parallel in ("false", "true")
        )
        assert one == other and "tokenizer.json" in one, kind


# ── the verb ───────────────────────────────────────────────────────────────────────────────────────────────────────


def arguments(out: Path, *files: str | Path, **further: Any) -> argparse.Namespace:
    given: dict[str, Any] = {
        "files": [str(file) for file in files],
        "out": str(out),
        "kind": "bpe",
        "size": 600,
        "samples": 100_000,
        "special": [],
        "template": None,
        "no_byte_fallback": False,
        "compare": [],
        "seed": 42,
    }
    return argparse.Namespace(**{**given, **further})


def run(home: Home, given: argparse.Namespace) -> dict[str, Any]:
    return train_tokenizer.run(home, given, lambda *_: None)


def test_the_verb_mixes_files_holds_out_and_compares(home: Home, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = write(tmp_path / "plain.jsonl", *({"text": f"Plain text number {number}."} for number in range(100)), "bad")
    out = tmp_path / "mine"
    result = run(home, arguments(out, plain, "triples/train.jsonl", samples=300))
    assert (result["samples"], result["held_out"], result["rejected"]) == (300, 50, 1)
    assert result["directory"] == str(out) and result["size"] == 600 and result["kind"] == "bpe"
    own, other = result["compression"]["mine"], result["compression"]["smollm2-135m-instruct"]
    assert own["size"] == 600 and other["size"] == TOKENS
    assert own["exact"] == other["exact"] == 1.0 and 1 < own["bytes_per_token"] < other["bytes_per_token"] * 2
    loaded = AutoTokenizer.from_pretrained(out)
    assert len(loaded) == 600 and loaded.chat_template == CHATML
    before = (out / "tokenizer.json").read_bytes()
    again = run(home, arguments(out, plain, "triples/train.jsonl", samples=300, compare=[str(out)]))
    assert (out / "tokenizer.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert set(again["compression"]) == {"mine", "mine (compared)"}


def test_the_sample_is_seeded_and_held_out_rows_are_not_learnt() -> None:
    chosen, held = train_tokenizer.sample_rows(5000, 100, seed=1)
    assert len(chosen) == 100 and len(held) == 500 and not chosen & held
    assert (
        (chosen, held)
        == train_tokenizer.sample_rows(5000, 100, seed=1)
        != train_tokenizer.sample_rows(5000, 100, seed=2)
    )
    assert train_tokenizer.sample_rows(7, 100, seed=1) == (set(range(7)), set())


def test_few_rows_are_measured_on_themselves_and_said_so(bare_home: Home, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", {"text": "just this"})
    result = run(bare_home, arguments(tmp_path / "out", few))
    assert result["held_out"] == 0 and set(result["compression"]) == {"out"}
    assert any("measured on the training texts" in note for note in result["notes"])


def test_preference_pairs_and_tools_are_text_too() -> None:
    said = [{"role": "assistant", "content": "no"}]
    row = {
        "prompt": [{"role": "user", "content": "Really?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": said,
    }
    assert all_text(row) == "Really?\nyes\nno"
    assert all_text({"prompt": row["prompt"], "completion": said, "label": True}) == "Really?\nno"


def test_wrong_requests_are_told(bare_home: Home, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", {"text": "just this"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="name a new folder"):
        run(bare_home, arguments(tmp_path / "mine", few))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(ProblemError, match="nothing to learn from"):
        run(bare_home, arguments(tmp_path / "out", write(tmp_path / "bad.jsonl", {"text": ""}, {"text": " "})))
    with pytest.raises(ProblemError, match="There is no model 'nothing'"):
        run(bare_home, arguments(tmp_path / "out", few, compare=["nothing"]))
    with pytest.raises(ValueError, match="there is no chat template"):
        run(bare_home, arguments(tmp_path / "out", few, template=str(tmp_path / "none.jinja")))
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_swept(bare_home: Home, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", {"text": "just this"})
    left = tmp_path / ".out.draft.999999999"
    left.mkdir()
    (left / "tokenizer.json").write_text("{}")
    run(bare_home, arguments(tmp_path / "out", few))
    assert not left.exists()
    assert json.loads((tmp_path / "out" / "training.json").read_text())["samples"] == 1
