"""The probabilities of a text's tokens: those of one plain pass over all of it, however it is divided."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from engine.inference import token_scores
from engine.inference.loaded_model import LoadedModel
from engine.inference.prefill import Cancelled
from engine.inference.token_scores import ScoredToken, TokenScorer, score_tokens, summarize_scores


@pytest.fixture(scope="module")
def tiny() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Letters:
    """A tokenizer of single characters."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return type("Encoded", (), {"input_ids": [ord(each) for each in text]})

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize("begin", [1, 5, 19])
@pytest.mark.parametrize("chunk", [3, 256])
def test_each_token_is_scored_behind_those_before_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, begin: int, chunk: int
) -> None:
    import torch

    monkeypatch.setattr(token_scores, "CHUNK", chunk)
    ids = [(37 * at) % 200 + 60 for at in range(20)]
    scored = score_tokens(tiny, TokenScorer(Letters()), ids, begin, 4)
    with torch.no_grad():
        logits = tiny(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    assert len(scored) == 20 - begin
    for at, each in enumerate(scored, begin):
        assert each.text == chr(ids[at]) and each.logprob == pytest.approx(float(logits[at - 1, ids[at]]), abs=1e-4)
        values, best = logits[at - 1].topk(4)
        assert [text for text, _ in each.top] == [chr(int(one)) for one in best]
        assert [value for _, value in each.top] == pytest.approx(values.tolist(), abs=1e-4)
    loss = torch.nn.functional.nll_loss(logits[begin - 1 : -1], torch.tensor(ids[begin:]))
    summary = summarize_scores(scored)
    assert summary["scored"] == 20 - begin
    assert summary["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-4)


class Bytes(Letters):
    """A tokenizer of single bytes."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(each % 256 for each in ids).decode(errors="replace")


def test_the_parts_of_a_character_end_in_its_text(tiny: Any) -> None:
    ids = [*" a巴 é🙂!".encode()]
    scored = score_tokens(tiny, TokenScorer(Bytes()), ids, 1, 300)
    part = "\ufffd"
    assert [each.text for each in scored] == ["a", part, part, "巴", " ", part, "é", part, part, part, "🙂", "!"]
    for each in scored:
        assert (each.text, each.logprob) in each.top
    cut = score_tokens(tiny, TokenScorer(Bytes()), ids[:4], 1, 0)
    assert [each.text for each in cut] == ["a", part, part], "its end is missing"


@pytest.mark.parametrize(
    ("before", "text", "behind", "begin"),
    [
        ([], "ab", [], 0),
        ([1], "ab", [], 1),
        ([2, 3], "ab", [], 2),  # GLM: [gMASK] <sop>
        ([1], "ab", [4], 1),
        ([1], "\x01", [], 1),  # the text has that special token itself
        ([1], "", [], 1),
    ],
)
def test_what_a_tokenizer_puts_around_a_text_is_not_scored(
    before: list[int], text: str, behind: list[int], begin: int
) -> None:
    loaded: Any = SimpleNamespace(tokenizer=Letters())
    own = [ord(each) for each in text]
    assert LoadedModel.find_text(loaded, [*before, *own, *behind], text) == (begin, [*before, *own])


def test_what_cannot_be_scored(tiny: Any) -> None:
    with pytest.raises(ValueError, match="context of 64"):
        score_tokens(tiny, TokenScorer(Letters()), [60] * 65, 1, 0)
    assert len(score_tokens(tiny, TokenScorer(Letters()), [60] * 64, 1, 0)) == 63
    with pytest.raises(Cancelled):
        score_tokens(tiny, TokenScorer(Letters()), [60] * 20, 1, 0, lambda: True)
    broken = summarize_scores([ScoredToken("a", None), ScoredToken("b", math.nan, (("c", -math.inf),))])
    assert broken["perplexity"] is None and broken["tokens"][1] == ["b", None, [["c", None]]]
    assert summarize_scores([ScoredToken("a", -1e6)])["perplexity"] == pytest.approx(math.exp(700))
