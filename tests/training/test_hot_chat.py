"""A run answers while it trains, and its losses are bit for bit those of one that was asked nothing."""

from __future__ import annotations

import pytest

from engine.training import hot_chat
from tests.training.harness import Supervised
from tests.training.here import Here, at, one_after_another
from tests.training.test_exact import LOSSES, MANY

SAMPLED = {"temperature": 0.9, "top_p": 0.9, "seed": 3, "max_new_tokens": 12, "repetition_penalty": 1.2}


def ask(text: str = "w1 w2", **arguments: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "request": "r", "max_new_tokens": 6} | arguments


@pytest.fixture(scope="module")
def whole(tmp_path_factory, prepared) -> Here:
    run = Here(tmp_path_factory.mktemp("whole"), "whole", prepared, *MANY)
    assert run.train() == ("completed", 21)
    return run


@pytest.mark.parametrize("changes", [(), ("training.ema={decay: 0.5}",)])
def test_losses_are_bit_for_bit_those_of_a_run_that_was_asked_nothing(changes, whole, tmp_path, prepared, monkeypatch):
    """With dropout, across evaluations, a save and an epoch's end; each boundary makes a token or two."""
    monkeypatch.setattr(hot_chat, "HOLD_SECONDS", 0.0)
    if changes:
        whole = Here(tmp_path, "averaged", prepared, *MANY, *changes)
        whole.train()
    run = Here(tmp_path, "asked", prepared, *MANY, *changes)
    orders = one_after_another(
        at(1, "generate", **ask()), at(3, "generate", **ask("w3", **SAMPLED)), at(15, "generate", **ask())
    )
    assert run.train(orders=orders) == ("completed", 21)
    for name in LOSSES:
        assert run.series(name) == whole.series(name), name
    assert (run.run.checkpoint(21) / "adapter_model.safetensors").read_bytes() == (
        whole.run.checkpoint(21) / "adapter_model.safetensors"
    ).read_bytes()
    first, second, _ = (answer.result for answer in run.answers)
    assert 0 < first["tokens"] <= 6 and first["first_step"] == 1
    assert second["boundaries"] > 1 and second["step_seconds"] > 0
    assert first["held_seconds"] >= first["longest_hold_seconds"] > 0


def test_the_newest_weights_answer(tmp_path, prepared):
    """Greedy, at one boundary: what the checkpoint of that step says."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engine.inference.generate import generate_batch
    from engine.models.template_lock import render

    run = Here(tmp_path, "newest", prepared, *MANY, "checkpoint.every_steps=5", "training.learning_rate=0.1")
    run.train(orders=one_after_another(at(5, "generate", **ask("w9 w8")), at(20, "generate", **ask("w9 w8"))))
    assert [answer.result["boundaries"] for answer in run.answers] == [1, 1]
    tokenizer = AutoTokenizer.from_pretrained(prepared["base"])
    prompt = render(tokenizer, [{"role": "user", "content": "w9 w8"}], reply_follows=True)
    replies = []
    for step in (5, 20):
        base = AutoModelForCausalLM.from_pretrained(prepared["base"], dtype="float32")
        model = PeftModel.from_pretrained(base, str(run.run.checkpoint(step))).eval()
        (ids,) = generate_batch(model, tokenizer, [prompt], 6, [1])
        replies.append(tokenizer.decode(ids))
    assert [answer.result["reply"] for answer in run.answers] == replies
    assert replies[0] != replies[1], "it has learned something between the two"


def test_what_goes_wrong_is_the_answer_and_the_run_goes_on(whole, tmp_path, prepared, monkeypatch):
    """A real allocator that has no room, a question that makes no sense, one that does not fit."""
    from engine.inference import prefill

    read = prefill.CancellableForward.__call__

    def greedy(self, ids, *others):
        import torch

        if ids.shape[1] > 20:
            torch.empty(1 << 50)
        return read(self, ids, *others)

    monkeypatch.setattr(prefill.CancellableForward, "__call__", greedy)
    run = Here(tmp_path, "wrong", prepared, *MANY)
    orders = one_after_another(
        at(2, "generate", **ask(" ".join(["w4"] * 30))),
        at(3, "generate", **ask(temperature=-1)),
        at(4, "generate", **ask(task="poems")),
        at(5, "generate", **ask(" ".join(["w4"] * 300))),
        at(6, "generate", **ask()),
    )
    assert run.train(orders=orders) == ("completed", 21)
    outcomes = [answer.problem.title if answer.problem else answer.result["finish"] for answer in run.answers]
    assert outcomes[:1] == ["Training leaves too little memory for this reply"]
    assert outcomes[1:4] == ["This cannot be answered"] * 3 and outcomes[4] in ("stop", "length")
    assert "no task 'poems'" in run.answers[2].problem.cause and "context of 256" in run.answers[3].problem.cause
    for name in LOSSES:
        assert run.series(name) == whole.series(name), name


def test_a_stop_or_the_end_answers_what_is_open(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(hot_chat, "HOLD_SECONDS", 0.0)
    run = Here(tmp_path, "ended", prepared, *MANY)
    both = one_after_another(
        at(2, "generate", **ask(max_new_tokens=100)), at(2, "generate", **ask("w5")), at(3, "stop")
    )
    assert run.train(orders=both) == ("stopped", 3)
    first, second, third = run.answers
    assert first.id == "stop" and second.result["finish"] == "cancelled" and second.result["tokens"] >= 1
    assert third.problem.title == "The run has ended"


def test_it_answers_while_the_run_is_paused(tmp_path, prepared):
    run = Here(tmp_path, "paused", prepared, *MANY)
    plan = [("pause", {}), ("generate", ask()), ("continue", {})]
    given: list[str] = []

    def orders(run):
        """Each when the one before is answered."""
        if run.step() < 2 or len(given) == len(plan) or len(given) > len(run.answers):
            return []
        given.append(plan[len(given)][0])
        return [plan[len(given) - 1]]

    assert run.train(orders=orders) == ("completed", 21)
    assert [answer.id for answer in run.answers] == ["pause", "generate", "continue"]
    assert run.answers[1].result["first_step"] == 2


@pytest.mark.slow
def test_two_ranks_agree_and_a_reply_can_be_given_up(start_run):
    """Real processes: rank 1 waits for rank 0's slices, and nothing changes for either."""
    losses = []
    for name in ("quiet", "asked"):
        run = start_run(name, *MANY, "training.micro_batch=1", "launch.processes=2")
        run.start(processes=2)
        if name == "asked":
            _talk(run)
        assert run.wait() == 0, run.log()
        losses.append({name: run.series(name) for name in LOSSES})
    assert losses[0] == losses[1]


def _talk(run: Supervised) -> None:
    answer = run.ask("generate", **ask("w1", request="one", max_new_tokens=40))
    assert answer.problem is None and answer.result["tokens"] >= 1
    assert any(getattr(each, "kind", "") == "tokens" and each.request == "one" for each in run.heard)
    # A ban on every pair that comes twice keeps it from ending soon.
    identity = run.tell("generate", **ask("w2", request="two", max_new_tokens=200, no_repeat_ngram=2))
    run.cancel("two")
    run.until(lambda: identity in run.answers)
    assert run.answers[identity].result["finish"] in ("cancelled", "stop")
