"""The token loops against transformers' own generate."""

from __future__ import annotations

from typing import Any

import pytest

from engine.inference.generate import generate_batch, stream
from engine.inference.sampling import Sampling
from engine.inference.telling import Detokenizer

QUESTIONS = ("What is the capital of France?", "List three primes.", "Describe the sea in one short line.")
END = {2}


def prompt(tokenizer: Any, question: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    return ids


def test_text_never_breaks_a_character(tokenizer: Any) -> None:
    text = "naïve 中文字 👩‍🚀🌟 done"
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer(text).input_ids
    pieces = [detokenizer.add(token) for token in ids]
    assert len(ids) > len(text.split())
    assert "" in pieces, "some token must have ended inside a character for this to test anything"
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == detokenizer.text == text


@pytest.mark.slow
def test_greedy_stream_equals_generate(model: Any, tokenizer: Any) -> None:
    import torch

    for question in QUESTIONS:
        ids = prompt(tokenizer, question)
        row = torch.tensor([ids])
        expected = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=16, do_sample=False)
        *pieces, last = stream(model, tokenizer, ids, Sampling(16), END)
        assert last.reply is not None
        assert last.reply.ids == expected[0, len(ids) :].tolist()
        assert "".join(piece.text for piece in pieces) == last.reply.text
        assert last.reply.finish == ("stop" if last.reply.ids[-1] in END else "length")
        assert 0 < last.reply.first_token_seconds <= last.reply.seconds


@pytest.mark.slow
def test_a_batch_equals_its_rows_alone(model: Any, tokenizer: Any) -> None:
    prompts = [prompt(tokenizer, question) for question in QUESTIONS]
    assert len({*map(len, prompts)}) > 1, "without padding this would test nothing"
    alone = []
    for ids in prompts:
        *_, last = stream(model, tokenizer, ids, Sampling(16), END)
        assert last.reply is not None
        alone.append([token for token in last.reply.ids if token not in END])
    assert generate_batch(model, tokenizer, prompts, 16, END) == alone


@pytest.mark.slow
def test_what_prompts_begin_with_is_read_once(model: Any, tokenizer: Any) -> None:
    """And the replies are those of the prompts alone, padded or not."""
    prompts = [prompt(tokenizer, "Say in one word: " + question) for question in QUESTIONS]
    read: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda *call: read.append(tuple(call[2]["input_ids"].shape)), with_kwargs=True
    )
    try:
        together = generate_batch(model, tokenizer, prompts, 8, END)
    finally:
        hook.remove()
    shared, rest = read[0][1], read[1][1]
    assert read[0][0] == 1 and shared > 4 and shared + rest == max(map(len, prompts))
    assert together == [generate_batch(model, tokenizer, [ids], 8, END)[0] for ids in prompts]
    assert generate_batch(model, tokenizer, [prompts[0]] * 3, 8, END) == [together[0]] * 3


@pytest.mark.slow
def test_sampling_is_seeded_and_cancel_stops_at_the_next_token(model: Any, tokenizer: Any) -> None:
    ids = prompt(tokenizer, QUESTIONS[2])

    def sample(seed: int, **more: Any) -> list[int]:
        sampling = Sampling(12, temperature=1.0, seed=seed, **more)
        *_, last = stream(model, tokenizer, ids, sampling, END)
        assert last.reply is not None
        return last.reply.ids

    assert sample(1) == sample(1) != sample(2)
    assert sample(1, top_k=1) == sample(2, top_p=1e-6), "both leave the likeliest token alone"

    seen: list[int] = []
    cancelled = stream(model, tokenizer, ids, Sampling(50), END, cancelled=lambda: len(seen) == 3)
    for piece in cancelled:
        seen.append(piece.count)
    assert piece.reply is not None
    assert (piece.reply.finish, piece.reply.tokens) == ("cancelled", 3)


@pytest.mark.slow
def test_a_prompt_that_fills_the_context_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="leaves no room in a context of 8192"):
        next(stream(model, tokenizer, [1] * 8192, Sampling(), END))
