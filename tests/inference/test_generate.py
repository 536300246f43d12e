"""The token loops against transformers' own generate."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.inference.detokenizer import Detokenizer
from engine.inference.generate import Reply, generate_batch, reply_batch, stream
from engine.inference.sampling import Sampling, open_row

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
def test_a_common_prefix_of_prompts_is_processed_once(model: Any, tokenizer: Any) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_greedy_stream_equals_generate_in_16_bits(smollm2: Path, tokenizer: Any, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    narrow = AutoModelForCausalLM.from_pretrained(smollm2, dtype=getattr(torch, dtype)).eval()
    ids = prompt(tokenizer, QUESTIONS[1])
    row = torch.tensor([ids])
    expected = narrow.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=24, do_sample=False)
    assert answered(narrow, tokenizer, ids, Sampling(24)).ids == expected[0, len(ids) :].tolist()


@pytest.mark.gpu
def test_greedy_replies_equal_generate_on_a_gpu(smollm2: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).to("cuda").eval()
    prompts = [prompt(tokenizer, question) for question in QUESTIONS]
    together = generate_batch(model, tokenizer, prompts, 32, END)
    for ids, found in zip(prompts, together, strict=True):
        row = torch.tensor([ids], device="cuda")
        made = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=32, do_sample=False)
        expected = made[0, len(ids) :].tolist()
        assert answered(model, tokenizer, ids, Sampling(32)).ids == expected
        assert found == [token for token in expected if token not in END]


def answered(model: Any, tokenizer: Any, ids: list[int], sampling: Sampling) -> Reply:
    *_, last = stream(model, tokenizer, ids, sampling, END)
    assert last.reply is not None
    return last.reply


@pytest.mark.slow
def test_a_batch_of_any_settings_equals_its_rows_alone(whole_model: Any, tokenizer: Any) -> None:
    model = whole_model
    samplings = [
        Sampling(20, stop=("France", "Paris")),
        Sampling(12, temperature=1.0, seed=5, top_p=0.9),
        Sampling(3, repetition_penalty=1.5),
        Sampling(16, temperature=0.7, seed=5, min_p=0.05, no_repeat_ngram=2),
        Sampling(16),
    ]
    prompts = [prompt(tokenizer, QUESTIONS[index % 3]) for index in range(len(samplings))]
    rows = [open_row(sampling, ids) for sampling, ids in zip(samplings, prompts, strict=True)]
    heard: dict[int, Reply] = {}
    together = reply_batch(model, tokenizer, rows, END, heard.__setitem__, size=3)
    assert heard == dict(enumerate(together))
    for found, sampling, ids in zip(together, samplings, prompts, strict=True):
        alone = answered(model, tokenizer, ids, sampling)
        assert (found.text, found.ids, found.finish) == (alone.text, alone.ids, alone.finish)
        assert found.prompt_tokens == len(ids) and 0 < found.first_token_seconds <= found.seconds
    assert (together[0].text, together[0].finish, together[2].finish) == ("The capital of ", "stop", "length")


@pytest.mark.slow
def test_penalties_are_those_of_generate(model: Any, tokenizer: Any) -> None:
    import torch

    ids = prompt(tokenizer, QUESTIONS[1])
    row = torch.tensor([ids])
    named = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    expected = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=16, do_sample=False, **named)
    found = answered(model, tokenizer, ids, Sampling(16, repetition_penalty=1.3, no_repeat_ngram=2))
    assert found.ids == expected[0, len(ids) :].tolist()


@pytest.mark.slow
def test_a_prompt_in_chunks_gets_the_reply_of_generate(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from engine.inference import prefill as reading

    monkeypatch.setitem(reading._OPERATIONS, "cpu", 6e8)
    prompts = [prompt(tokenizer, "Tell me more. " * count + QUESTIONS[0]) for count in (60, 90)]
    read: list[int] = []
    hook = model.register_forward_pre_hook(lambda *call: read.append(call[2]["input_ids"].shape[1]), with_kwargs=True)
    try:
        alone = [answered(model, tokenizer, ids, Sampling(8)).ids for ids in prompts]
        assert len([tokens for tokens in read if tokens > 1]) > 4
        rows = [open_row(Sampling(8), ids) for ids in prompts]
        assert [reply.ids for reply in reply_batch(model, tokenizer, rows, END)] == alone
    finally:
        hook.remove()
    for ids, found in zip(prompts, alone, strict=True):
        row = torch.tensor([ids])
        expected = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=8, do_sample=False)
        assert found == expected[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("reading", [True, False])
def test_a_reply_is_cancelled_within_200_ms(model: Any, tokenizer: Any, reading: bool) -> None:
    """While a prompt of 4500 tokens is read, or between tokens. Counted are seconds of this thread: other programs are
    at work too."""
    ids = prompt(tokenizer, "Tell me more. " * (1500 if reading else 1))
    clock = time.pthread_getcpuclockid(threading.get_ident())
    seconds = []
    for delay in (0.1, 0.2, 0.3, 0.4):
        given_up: list[float] = []
        timer = threading.Timer(delay, lambda said=given_up: said.append(time.clock_gettime(clock)))
        pieces = stream(model, tokenizer, ids, Sampling(1000), {-1}, cancelled=lambda said=given_up: bool(said))
        if reading:
            timer.start()
        for piece in pieces:
            if piece.count == 1 and piece.reply is None and not reading:
                timer.start()
        seconds.append(time.clock_gettime(clock) - given_up[0])
        assert piece.reply is not None and piece.reply.finish == "cancelled"
        assert (piece.reply.tokens == 0) is reading
    assert min(seconds) < 0.2, seconds


@pytest.mark.slow
def test_a_batch_is_cancelled_too(model: Any, tokenizer: Any) -> None:
    rows = [open_row(Sampling(50), prompt(tokenizer, question)) for question in QUESTIONS]
    replies = reply_batch(
        model, tokenizer, rows, {-1}, cancelled=lambda: len(rows[0].history) - len(prompt(tokenizer, QUESTIONS[0])) >= 3
    )
    assert [(reply.finish, reply.tokens) for reply in replies] == [("cancelled", 3)] * 3
