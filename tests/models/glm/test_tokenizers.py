"""Token ids of the ChatGLM generations: identical to those of the original tokenizers, sentencepiece's own, and after a
reload."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models import tokenizers
from engine.models.folders import has_tokenizer
from engine.protocol.messages import ProblemError
from tests import plain
from tests.models.glm.folders import GOLDENS, golden, original

GENERATIONS = (1, 2, 3)
REAL = {1: "COCKPIT_CHATGLM", 2: "COCKPIT_CHATGLM2", 3: "COCKPIT_CHATGLM3"}
"""Environment variables that name a folder with the published files."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {number: original(tmp_path_factory.mktemp("glm") / str(number), number) for number in (*GENERATIONS, 4)}


@pytest.fixture(scope="module")
def loaded(folders: dict[int, Path]) -> dict[int, Any]:
    return {number: tokenizers.load(folders[number]) for number in GENERATIONS}


def same_as_golden(tokenizer: Any, told: dict[str, Any], generation: int) -> None:
    """Every case of a golden file. The second generation shares the third's, which has the roles besides."""
    assert len(told["encode"]) == 43
    for case in told["encode"]:
        plain = tokenizer(case["text"], add_special_tokens=False, split_special_tokens=True).input_ids
        assert plain == case["ids"], case["text"]
        assert tokenizer(case["text"], split_special_tokens=True).input_ids == case["ids_with_special"], case["text"]
        # The first generation's were decoded when transformers still took out blanks before punctuation.
        assert tokenizer.decode(case["ids"], clean_up_tokenization_spaces=generation == 1) == case["decoded"]
    for name, number in told["special"].items():
        written = name if generation == 1 else {"<bos>": "<s>", "<eos>": "</s>", "<pad>": "<unk>"}.get(name, name)
        if generation != 2 or not name.startswith("<|"):
            assert tokenizer.convert_tokens_to_ids(written) == number, name
    for case in told.get("pair", ()):
        assert tokenizer(case["prompt"], case["answer"]).input_ids == case["ids"]
    if "padded_batch" in told:
        case = told["padded_batch"]
        assert tokenizer(case["texts"], padding=True).input_ids == case["input_ids"]
    assert len(tokenizer) == told["vocab_size"] - (4 if generation == 2 else 0)


def same_chats(tokenizer: Any, told: dict[str, Any], generation: int) -> None:
    for case in told["chat"]:
        if generation == 1:
            chat = [
                {"role": role, "content": text}
                for turns in case["history"]
                for role, text in zip(("user", "assistant"), turns, strict=True)
            ]
            chat.append({"role": "user", "content": case["query"]})
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            assert text == case["prompt"] + "[gMASK]<sop>"
        else:
            chat = [*case["history"], {"role": case["role"], "content": case["query"]}]
        found = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert found == case["ids"], case


@pytest.mark.parametrize("generation", GENERATIONS)
def test_ids_are_those_of_the_original_code(loaded: dict[int, Any], generation: int) -> None:
    same_as_golden(loaded[generation], golden(generation), generation)
    if generation != 2:  # no golden tells how the second was asked; test_templates has its text
        same_chats(loaded[generation], golden(generation), generation)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_ids_of_the_published_files(generation: int) -> None:
    folder = os.environ.get(REAL[generation])
    if not folder:
        pytest.skip(f"{REAL[generation]} names no folder with the published files")
    told = golden(generation, "tokenizer_golden.json")
    tokenizer = tokenizers.load(folder)
    same_as_golden(tokenizer, told, generation)
    if generation != 2:
        same_chats(tokenizer, told, generation)


ANY = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\n\t  <n>|_123你好世界ｶﾞ\u0301\u0338\u1100\u1161…½\r\u200b\u3000"),
    ),
    max_size=40,
)
PARTS = st.lists(
    st.sampled_from(
        ["  ", "\n", "<n>", "<|tab|>", "<|blank_3|>", "people", "eop", "[gMASK]", " ", "的", "xx", "\ufdd0"]
    ),
    max_size=12,
).map("".join)


def _spaced(text: str) -> str:
    """The original's own words: what stands for line ends, tabs and runs of blanks, the longest first."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for length in range(80, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    return text


@settings(max_examples=400, deadline=None)
@given(st.one_of(ANY, PARTS))
def test_any_text_has_the_ids_of_sentencepiece(text: str) -> None:
    if "\ufdd0\ufdd1" in text or "\ufdd0\ufdd2" in text:
        return  # the templates' own marks
    for generation, tokenizer in _both().items():
        expected = _model(generation).encode(_spaced(text) if generation == 1 else text)
        assert tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids == expected


_made: dict[int, Any] = {}


def _both() -> dict[int, Any]:
    if not _made:
        from engine.models.glm.tokenizer_first import ChatGLM1Tokenizer

        _made[1] = ChatGLM1Tokenizer(str(GOLDENS / "chatglm" / "tiny_ice_text.model"))
        _made[3] = _second()
    return _made


def _second() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return tokenizers.load(original(Path(place), 3))


def _model(generation: int) -> Any:
    name = {1: "chatglm/tiny_ice_text.model", 3: "chatglm3/tiny_tokenizer.model"}[generation]
    return sentencepiece.SentencePieceProcessor(model_file=str(GOLDENS / name))


def test_merges_are_as_urgent_as_in_a_model_with_many_joined_pieces(tmp_path: Path) -> None:
    """The tiny golden model joins little; one trained on repeated syllables has pieces that can be cut in many ways."""
    lines = [
        ("ab" * (number % 7 + 1) + " " + "aab" * (number % 5 + 1) + " baab" * (number % 3)) for number in range(400)
    ]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    place = original(tmp_path / "folder", 3)
    (tmp_path / "tokenizer.model").replace(place / "tokenizer.model")
    tokenizer = tokenizers.load(place)
    model = sentencepiece.SentencePieceProcessor(model_file=str(place / "tokenizer.model"))
    import random

    chosen = random.Random(7)
    for _ in range(500):
        text = "".join(chosen.choice(("a", "b", "ab", "aab", " ", "baab")) for _ in range(chosen.randrange(1, 30)))
        assert tokenizer(text, add_special_tokens=False).input_ids == model.encode(text), text


@pytest.mark.parametrize("generation", (2, 3))
def test_what_is_saved_loads_without_our_code(loaded: dict[int, Any], tmp_path: Path, generation: int) -> None:
    tokenizer, chat = loaded[generation], [{"role": "user", "content": "你好 <|user|> people"}]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "glm"}')
    script = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "chat = json.loads(sys.argv[2]);"
        "print(json.dumps([t.apply_chat_template(chat, add_generation_prompt=True, return_dict=False), "
        "t.eos_token_id, t.pad_token_id]))"
    )
    told = plain.run(script, tmp_path, json.dumps(chat))
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert json.loads(told) == [expected, 2, 0]
    same_as_golden(tokenizers.load(tmp_path), golden(generation), generation)


def test_the_first_generation_loads_after_one_import(loaded: dict[int, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    import engine.models.glm.tokenizer_first  # noqa: F401

    loaded[1].chat_template = loaded[1].chat_template + "{# kept #}"
    loaded[1].save_pretrained(tmp_path)
    loaded[1].chat_template = loaded[1].chat_template.removesuffix("{# kept #}")
    for found in (AutoTokenizer.from_pretrained(tmp_path), tokenizers.load(tmp_path)):
        same_as_golden(found, golden(1), 1)
        same_chats(found, golden(1), 1)
        assert found.chat_template.endswith("{# kept #}")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_file_that_is_cut_short_is_one_clear_problem(tmp_path: Path, generation: int) -> None:
    folder = original(tmp_path / "cut", generation)
    path = folder / ("ice_text.model" if generation == 1 else "tokenizer.model")
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ProblemError) as refused:
            tokenizers.load(folder)
        assert path.name in refused.value.problem.title and "copy" in refused.value.problem.hint
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ProblemError, match="cannot be used") as refused:
        tokenizers.load(folder)
    assert "git-lfs" in refused.value.problem.cause
    path.unlink()
    assert not has_tokenizer(folder)
    with pytest.raises(ProblemError):
        tokenizers.load(folder)


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    folder = original(tmp_path / "other", 3)
    (folder / "tokenizer.model").write_bytes((GOLDENS / "chatglm" / "tiny_ice_text.model").read_bytes())
    with pytest.raises(ProblemError) as refused:
        tokenizers.load(folder)
    assert "BPE" in refused.value.problem.cause


def test_shifted_ids_of_the_first_files_are_refused(tmp_path: Path) -> None:
    folder = original(tmp_path / "shifted", 1)
    (folder / "tokenizer_config.json").write_text('{"num_image_tokens": 20000}')
    with pytest.raises(ProblemError) as refused:
        tokenizers.load(folder)
    assert "num_image_tokens" in refused.value.problem.cause


def test_glm_4_wants_a_tokenizer_json(folders: dict[int, Path], loaded: dict[int, Any], tmp_path: Path) -> None:
    with pytest.raises(ProblemError) as refused:
        tokenizers.load(folders[4])
    assert "GLM-4" in refused.value.problem.title and "tokenizer.json" in refused.value.problem.hint
    assert not has_tokenizer(folders[4])
    folder = original(tmp_path / "four", 4)
    loaded[3].save_pretrained(folder)
    assert tokenizers.load(folder)("你好").input_ids == loaded[3]("你好").input_ids
