"""Looking words up gives what encoding the whole text gives, id for id and place for place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prep.encoding import EncodeRequest, TextEncoder, WordEncoder, cuts_at_blanks

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def built(backend: Any, kind: str) -> Any:
    """The embedded model's vocabulary behind another tokenizer's rules for words."""
    from tokenizers import Regex, Tokenizer, normalizers
    from tokenizers import pre_tokenizers as pre

    made = Tokenizer.from_str(backend.to_str())
    bytes_ = pre.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(pattern: str) -> Any:
        return pre.Split(Regex(pattern), behavior="isolated")

    if kind == "digits":  # SmolLM2 as published
        made.pre_tokenizer = pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)])
    elif kind == "llama3":
        made.pre_tokenizer = pre.Sequence([split(CL100K), bytes_])
    elif kind == "qwen":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre.Sequence([split(CL100K.replace("{1,3}", "")), bytes_])
    elif kind == "gpt4o":
        made.pre_tokenizer = pre.Sequence([split(O200K), bytes_])
    elif kind == "deepseek":
        parts = [split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), bytes_]
        made.pre_tokenizer = pre.Sequence(parts)
    return made


@pytest.fixture(scope="session")
def backends(smollm2: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    embedded = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    return {kind: built(embedded, kind) for kind in KINDS}


KINDS = ("embedded", "digits", "llama3", "qwen", "gpt4o", "deepseek")

WORDS = st.sampled_from(
    [*"aZ9 .,'\"-_<>(\n\t\r\\/{é²½ｱ你好。　\u00a0\u0301\u2028🎉", "  ", "\n\n", " \n", "'s", "'LL", "don't",
     "word", "Word", "12345", "<|im_start|>", "<|im_end|>", "<|im_", "<repo_name>", "1.",
     "e\u0301", "Å", "ﬁ", "\u1100\u1161", "ZWJ\u200d"]
)  # fmt: skip
TEXTS = st.lists(WORDS, max_size=25).map("".join) | st.text(max_size=60) | st.lists(WORDS, max_size=12).map(" ".join)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(text=TEXTS, places=st.lists(st.integers(0, 200), max_size=6), special=st.booleans())
def test_words_looked_up_are_the_tokens_of_the_whole_text(
    backends: dict[str, Any], text: str, places: list[int], special: bool
) -> None:
    asked = [EncodeRequest(text, sorted({min(place, len(text)) for place in places}), special)]
    for kind, backend in backends.items():
        known = ENCODERS.setdefault(kind, WordEncoder(backend))
        (expected,) = TextEncoder(backend).encode(asked)
        assert [known.encode(asked)[0] for _ in range(2)] == [expected, expected], kind


ENCODERS: dict[str, WordEncoder] = {}


def test_the_tokenizers_of_many_models_cut_at_blanks(backends: dict[str, Any]) -> None:
    assert all(map(cuts_at_blanks, backends.values()))


def test_begin_and_end_tokens_are_those_of_the_tokenizer(backends: dict[str, Any]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    framed = Tokenizer.from_str(backends["embedded"].to_str())
    framed.post_processor = TemplateProcessing(
        single="<repo_name> $A <|endoftext|>", special_tokens=[("<repo_name>", 3), ("<|endoftext|>", 0)]
    )
    for text in ("some text", "", " ", "a"):
        asked = [EncodeRequest(text, [0, len(text)], special) for special in (True, False)]
        assert WordEncoder(framed).encode(asked) == TextEncoder(framed).encode(asked)


def refuses(change: str, backend: Any) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers
    from tokenizers import pre_tokenizers as pre

    made = Tokenizer.from_str(backend.to_str())
    match change:
        case "lower case":
            made.normalizer = normalizers.Lowercase()
        case "a blank before the text":
            made.pre_tokenizer = pre.ByteLevel(add_prefix_space=True)
        case "unknown pattern":
            made.pre_tokenizer = pre.Split(Regex(r"\S+ \S+|\s+"), behavior="isolated")
        case "known among unknown":
            made.pre_tokenizer = pre.Split(Regex(CL100K + r"|x y"), behavior="isolated")
        case "no words":
            made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        case "sentencepiece":
            made.pre_tokenizer = pre.Metaspace()
        case "a token that takes blanks with it":
            made.add_tokens([AddedToken("<mask>", lstrip=True)])
        case "a token found in normalised text":
            made.normalizer = normalizers.NFC()
            made.add_tokens([AddedToken("<x>", normalized=True)])
        case "random":
            made.model.dropout = 0.1
    return made


@pytest.mark.parametrize(
    "change",
    ["lower case", "a blank before the text", "unknown pattern", "known among unknown", "no words", "sentencepiece",
     "a token that takes blanks with it", "a token found in normalised text", "random"],
)  # fmt: skip
def test_what_cannot_be_proved_is_encoded_whole(backends: dict[str, Any], change: str) -> None:
    assert not cuts_at_blanks(refuses(change, backends["embedded"]))


def test_nothing_is_remembered_without_bound(backends: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.prep.encoding._MOST", 50)
    encoder = WordEncoder(backends["embedded"])
    for number in range(100):
        asked = [EncodeRequest(f"w{number} x{number} " + "y" * 100 + str(number), [0, 3], False)]
        assert encoder.encode(asked) == TextEncoder(backends["embedded"]).encode(asked)
    assert max(len(encoder._spaced), len(encoder._exact), len(encoder._within)) < 60
