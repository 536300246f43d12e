"""Continuous batching: rows that join and leave at any token get the tokens of `model.generate` alone."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.inference.sampling import Sampling
from engine.serving import scheduler as scheduling
from engine.serving.jobs import Job, JobEnd, JobText, Rejection
from engine.serving.scheduler import Scheduler
from tests.training.harness import make_model

LATER = 60.0


class Desk:
    """A scheduler on its thread, and what it told."""

    def __init__(self, model: Any, tokenizer: Any, **settings: Any) -> None:
        self.ended: dict[Job, JobEnd] = {}
        self.said: dict[Job, str] = {}
        self.come = threading.Condition()
        self.scheduler = Scheduler(model, tokenizer, frozenset({1}), self._deliver, **settings)
        self.thread = threading.Thread(target=self.scheduler.run)
        self.thread.start()

    def _deliver(self, told: list[tuple[Job, JobText | JobEnd]]) -> None:
        with self.come:
            for job, event in told:
                if isinstance(event, JobEnd):
                    assert job not in self.ended, "a job ends once"
                    self.ended[job] = event
                else:
                    self.said[job] = self.said.get(job, "") + event.text
            self.come.notify()

    def job(self, prompt: list[int], tokens: int, **sampling: Any) -> Job:
        return Job(prompt, Sampling(max_new_tokens=tokens, **sampling), time.monotonic() + LATER)

    def until(self, condition: Any) -> None:
        with self.come:
            assert self.come.wait_for(condition, LATER)

    def close(self) -> None:
        self.scheduler.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


def tiny(folder: Path, **changes: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

    make_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if changes:
        values = model.config.to_dict()
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        further = ("num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id", "bos_token_id")
        model = MistralForCausalLM(MistralConfig(**{name: values[name] for name in (*names, *further)}, **changes))
    return model.eval(), tokenizer


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 24}], ids=["all tokens", "a window"])
def test_replies_in_a_batch_equal_those_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch

    torch.manual_seed(0)
    model, tokenizer = tiny(tmp_path, **changes)
    generator = random.Random(0)
    asked = [
        ([generator.randrange(4, 64) for _ in range(generator.randrange(1, 90))], generator.randrange(1, 60))
        for _ in range(48)
    ]
    wanted = []
    for prompt, tokens in asked:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": tokens}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        wanted.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
    desk = Desk(model, tokenizer, slots=16)
    jobs = []
    for prompt, tokens in asked:
        jobs.append(desk.job(prompt, tokens))
        desk.scheduler.submit(jobs[-1:])
        time.sleep(generator.random() * 0.005)
    desk.until(lambda: len(desk.ended) == len(jobs))
    assert [desk.said.get(job, "") for job in jobs] == wanted
    assert desk.scheduler.figures.tokens == sum(job.tokens for job in jobs)
    assert desk.scheduler.idle
    desk.close()


def test_a_seeded_reply_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    model, tokenizer = tiny(tmp_path)
    desk = Desk(model, tokenizer, slots=8)
    alone = desk.job([5, 6, 7], 20, temperature=1.0, top_k=30, seed=11)
    desk.scheduler.submit([alone])
    desk.until(lambda: alone in desk.ended)
    beside = [desk.job([8] * index, 30, temperature=0.7, seed=index) for index in range(1, 7)]
    again = desk.job([5, 6, 7], 20, temperature=1.0, top_k=30, seed=11)
    desk.scheduler.submit([*beside, again])
    desk.until(lambda: len(desk.ended) == 8)
    assert desk.said[again] == desk.said[alone]
    assert len({desk.said[job] for job in beside}) > 3
    desk.close()


def test_cancelled_and_late_jobs_free_their_place_and_the_queue_is_limited(tmp_path: Path) -> None:
    model, tokenizer = tiny(tmp_path)
    desk = Desk(model, tokenizer, slots=2, queue=1)
    long = [desk.job([9, 10], 200), desk.job([9, 11], 200)]
    desk.scheduler.submit(long)
    desk.until(lambda: len(desk.said) == 2)
    late = desk.job([4], 5)
    late.deadline = time.monotonic() + 0.01
    desk.scheduler.submit([late])
    with pytest.raises(Rejection) as refused:
        desk.scheduler.submit([desk.job([4], 5)])
    assert refused.value.full
    desk.until(lambda: late in desk.ended)
    assert desk.ended[late].finish == "late"
    began = time.monotonic()
    desk.scheduler.cancel(long[0])
    desk.until(lambda: long[0] in desk.ended)
    assert desk.ended[long[0]].finish == "cancelled" and time.monotonic() - began < 0.2
    assert long[0].tokens < 200
    desk.scheduler.drain()
    with pytest.raises(Rejection) as refused:
        desk.scheduler.submit([desk.job([4], 5)])
    assert not refused.value.full
    desk.close()
    assert desk.ended[long[1]].finish in ("closing", "length")


def test_a_failure_ends_only_the_replies_concerned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny(tmp_path)
    forward = type(model).forward

    def failing(self: Any, input_ids: Any, **settings: Any) -> Any:
        if 13 in input_ids.tolist()[0]:
            raise RuntimeError("unable to allocate memory")
        return forward(self, input_ids=input_ids, **settings)

    monkeypatch.setattr(type(model), "forward", failing)
    monkeypatch.setattr(scheduling.traceback, "print_exception", lambda error: None)
    desk = Desk(model, tokenizer)
    bad, good = desk.job([13, 14], 4), desk.job([15, 16], 4)
    desk.scheduler.submit([bad, good])
    desk.until(lambda: len(desk.ended) == 2)
    assert desk.ended[bad] == JobEnd("failed", "unable to allocate memory")
    assert desk.ended[good].finish == "length"
    desk.close()


def test_a_row_waits_when_the_cache_has_no_room_for_it(tmp_path: Path) -> None:
    model, tokenizer = tiny(tmp_path)
    desk = Desk(model, tokenizer, slots=8, room=200_000)  # two layers of 2 × 2 × 16 numbers: 512 bytes a token
    jobs = [desk.job([20 + index], 100) for index in range(4)]
    most = 0
    deliver = desk._deliver

    def counting(told: Any) -> None:
        nonlocal most
        most = max(most, len(desk.scheduler._rows))
        deliver(told)

    desk.scheduler._deliver = counting
    desk.scheduler.submit(jobs)
    desk.until(lambda: len(desk.ended) == 4)
    assert most == 1 and all(end.finish in ("length", "stop") for end in desk.ended.values())
    desk.close()


def test_pieces_of_a_prompt_are_timed_by_what_the_device_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device computes after it was handed the work: here each piece takes 0.3 s, far too long, until it is waited
    for."""
    monkeypatch.setattr(scheduling.accelerator, "synchronize", lambda _: time.sleep(0.3))
    desk = Desk(*tiny(tmp_path / "tiny"))
    try:
        before = desk.scheduler._chunk
        job = desk.job([5] * 40, 1, temperature=0.0)
        desk.scheduler.submit([job])
        desk.until(lambda: job in desk.ended)
        assert desk.scheduler._chunk < before
    finally:
        desk.close()
