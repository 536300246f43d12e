"""Gradients are summed while the last backward pass goes on: in one order on all ranks, and whatever befalls a rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.training.parallel import reduction
from engine.training.parallel.reduction import IN_FLIGHT, Reduction, make_buckets
from engine.training.ranks import Ranks
from tests.training import warm

LAYERS = 6


def stack() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(LAYERS)))


BUCKET = sum(weight.numel() * weight.element_size() for weight in torch.nn.Linear(16, 16).parameters())
"""Bytes of a layer's gradients."""


class Group:
    """A process group of two ranks with the same gradients, which tells what it is asked to do."""

    def __init__(self, told: list[str]) -> None:
        self.told, self.sent, self.open, self.most = told, 0, 0, 0

    def all_reduce(self, flat: Any, async_op: bool = False) -> Any:
        assert async_op
        group, number = self, self.sent
        self.told.append(f"send {number}")
        self.sent, self.open = self.sent + 1, self.open + 1
        self.most = max(self.most, self.open)

        class Work:
            def wait(self) -> None:
                group.told.append(f"wait {number}")
                group.open -= 1
                flat.mul_(2)

        return Work()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    group = Group([])
    monkeypatch.setattr(torch.distributed, "all_reduce", group.all_reduce)
    return group


def pass_through(model: torch.nn.Sequential, told: list[str], upto: int = LAYERS) -> None:
    """A forward and backward pass, which tells when the gradient of each layer's input is there."""
    values = torch.ones(2, 16, requires_grad=True)
    for number, layer in enumerate(model[:upto]):
        values.register_hook(lambda _, number=number: told.append(f"layer {number}"))
        values = layer(values)
    values.square().sum().backward()


def test_layers_are_sent_while_earlier_ones_are_computed(group: Group) -> None:
    model, plain = stack(), stack()
    summing = Reduction([*model.parameters()], Ranks(), bucket=BUCKET)
    for _ in range(2):  # the first pass is watched
        model.zero_grad()
        pass_through(model, [])  # a micro-batch before the last: nothing is sent
        assert group.open == 0
        group.told.clear()
        group.sent = group.most = 0
        summing.arm()
        pass_through(model, group.told)
        summing.flush()
        summing.wait()
    assert group.most == IN_FLIGHT == 2
    order = [each for each in group.told if not each.startswith("wait")]
    at = {each: place for place, each in enumerate(order)}
    for number in range(LAYERS - 2):  # bucket n has layer 5-n, and is sent before the second layer below is computed
        assert at[f"send {number}"] < at[f"layer {LAYERS - 3 - number}"], order
    assert [each for each in order if each.startswith("send")] == [f"send {number}" for number in range(LAYERS)]
    for _ in range(2):
        pass_through(plain, [])
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, 2 * theirs.grad)  # type: ignore[operator, arg-type]


def test_weights_without_gradients_do_not_change_the_order(group: Group) -> None:
    """The last layers are unused: nothing may be sent before the pass has ended."""
    model = stack()
    summing = Reduction([*model.parameters()], Ranks(), bucket=BUCKET)
    for _ in range(2):
        group.told.clear()
        summing.arm()
        pass_through(model, group.told, upto=LAYERS - 1)
        assert not any(each.startswith("send") for each in group.told)
        summing.wait()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_pass_that_adds_to_a_gradient_twice_is_sent_at_its_end(group: Group) -> None:
    class Nested(torch.autograd.Function):
        """As layers that compute their own backward pass by another."""

        @staticmethod
        def forward(ctx: Any, values: Any) -> Any:
            ctx.save_for_backward(values)
            return values.detach().clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
            with torch.enable_grad():
                again = ctx.saved_tensors[0].detach().requires_grad_()
                model[0](again).sum().backward()
            return gradient

    model = stack()
    summing = Reduction([*model.parameters()], Ranks(), bucket=BUCKET)
    summing.arm()
    summing.wait()  # a step without a pass here says nothing about passes
    for _ in range(2):
        model.zero_grad()
        group.told.clear()
        summing.arm()
        values = model[0](torch.ones(2, 16, requires_grad=True))
        Nested.apply(model[1](values)).sum().backward()
        expected = [weight.grad.clone() for weight in model[0].parameters()]
        assert group.told == []
        summing.wait()
        assert all(
            torch.equal(weight.grad, 2 * one)  # type: ignore[arg-type]
            for weight, one in zip(model[0].parameters(), expected, strict=True)
        )


def test_a_rank_without_memory_makes_room_before_it_sends_zeros(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sent = stack(), []
    summing = Reduction([*model.parameters()], Ranks(), bucket=BUCKET)
    summing.arm()
    pass_through(model, [])

    def send(flat: Any) -> None:
        sent.append((int(flat.count_nonzero()), any(weight.grad is not None for weight in model.parameters())))

    monkeypatch.setattr(torch.distributed, "all_reduce", send)
    summing.abandon()
    assert sent == [(0, False)] * LAYERS


def test_waiting_for_sums_is_no_work_of_a_rank(group: Group) -> None:
    model = stack()
    summing = Reduction([*model.parameters()], Ranks(), bucket=BUCKET)
    for _ in range(2):
        summing.arm()
        pass_through(model, [])
        summing.wait()
        assert summing.take_waited() > 0 == summing.take_waited()


def test_buckets_hold_one_dtype_and_no_more_than_their_size() -> None:
    weights = [torch.nn.Parameter(torch.zeros(10, dtype=[torch.float32, torch.bfloat16][n % 2])) for n in range(9)]
    weights.append(torch.nn.Parameter(torch.zeros(1000)))
    buckets = make_buckets(weights, 80)
    assert sorted(id(weight) for bucket in buckets for weight in bucket) == sorted(map(id, weights))
    assert buckets[0] == [weights[-1]], "the last weight of the model is the first to be found"
    for bucket in buckets:
        assert len({weight.dtype for weight in bucket}) == 1
        assert len(bucket) == 1 or sum(weight.numel() * weight.element_size() for weight in bucket) <= 80
    small = [torch.nn.Parameter(torch.zeros(2**20)) for _ in range(16)]
    assert len(make_buckets(small)) == reduction.BUCKETS
    assert make_buckets([]) == []


def test_a_device_with_streams_sends_on_one_of_its_own(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    told = group.told

    class Stream:
        device = torch.device("cuda")

        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            told.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            told.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            told.append(f"off {self.name}")

    monkeypatch.setattr(reduction, "_make_stream", lambda device: Stream("side"))
    monkeypatch.setattr(reduction, "_current_stream", lambda device: Stream("pass"))
    model = stack()[:2]
    summing = Reduction([*model.parameters()], Ranks(), bucket=BUCKET)
    summing._early = True
    summing.arm()
    model(torch.ones(2, 16)).sum().backward()
    summing.wait()
    sent = ["side waits for pass", "on side"]
    assert told == [
        *(*sent, "send 0", "off side"), *(*sent, "send 1", "off side"),
        *("on side", "wait 0", "wait 1", "off side", "pass waits for side"),
    ]  # fmt: skip


# ── two ranks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _strategy(ranks: Ranks, kind: Callable[..., Any]) -> Any:
    from types import SimpleNamespace

    accelerator = SimpleNamespace(
        prepare_model=lambda model, **_: model,
        prepare_optimizer=lambda made: made,
        backward=lambda loss: loss.backward(),
    )
    made = kind(accelerator, ranks)
    made.prepare(stack(), lambda model: torch.optim.SGD(model.parameters(), lr=1e-3))
    return made


def _rows(rank: int, step: int) -> Any:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(10 * step + rank))


def _compare() -> None:
    """On one of two ranks; what is wrong fails the process."""
    torch.set_num_threads(1)
    from engine.training import ranks as meeting
    from engine.training.parallel.ddp import DataParallel
    from engine.training.parallel.zero1 import Zero1

    reduction.LEAST = BUCKET
    ranks = meeting.join_ranks("cpu")
    for kind in (DataParallel, Zero1):
        ours, serial, alone = _strategy(ranks, kind), _strategy(ranks, kind), stack()
        for step in range(4):
            for strategy in (ours, serial):
                for last in (False, True):
                    loss = strategy.model[: LAYERS - (ranks.rank and step == 2)](_rows(ranks.rank, step)).square().sum()
                    if last and strategy is ours:
                        strategy.begin_reduction(failed=False)
                    strategy.backward(loss)
                strategy.end_pass()
                strategy.reduce()
            for rank in (0, 0, 1, 1):
                alone[: LAYERS - (rank and step == 2)](_rows(rank, step)).square().sum().backward()
            found = [[weight.grad for weight in each.parameters()] for each in (ours.model, serial.model, alone)]
            assert all(map(torch.equal, found[0], found[1])), "not what is summed serially"
            torch.testing.assert_close(found[0], found[2])
            for strategy in (ours, serial):
                strategy.optimizer.step()
                strategy.drop()
            alone.zero_grad()
            with torch.no_grad():
                for weight, theirs in zip(alone.parameters(), ours.model.parameters(), strict=True):
                    weight.copy_(theirs)
        _run_out_of_memory(ours, ranks)


def _run_out_of_memory(strategy: Any, ranks: Ranks) -> None:
    """In the pass after the vote, on one rank; and before the vote. All ranks go on together."""

    def fail(_: Any) -> None:
        raise torch.OutOfMemoryError

    for within in (True, False):
        values = strategy.model(_rows(ranks.rank, 9))
        if within and ranks.rank:
            hook = strategy.model[2].weight.register_hook(fail)
        strategy.begin_reduction(failed=bool(ranks.rank) and not within)
        failed = bool(ranks.rank) and not within
        with pytest.raises(torch.OutOfMemoryError) if ranks.rank and within else nullcontext():
            if not failed:
                strategy.backward(values.sum())
        if ranks.rank:
            strategy.drop()
            if within:
                hook.remove()
        else:
            strategy.end_pass()
        assert ranks.sum([1.0]) == [2.0]
        strategy.drop()
        assert all(weight.grad is None for weight in strategy.model.parameters())
    strategy.backward(strategy.model(torch.ones(1, 16)).sum())
    one = [weight.grad.clone() for weight in strategy.model.parameters()]
    strategy.reduce()
    assert all(
        torch.equal(weight.grad, 2 * each) for weight, each in zip(strategy.model.parameters(), one, strict=True)
    )
    strategy.drop()


@pytest.mark.slow
def test_two_ranks_sum_what_they_would_sum_serially_and_survive_a_lack_of_memory(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = warm.start(["tests.training.test_reduction"], 2, environment, log)
    assert ranks.wait() == 0, log.read_text()


if __name__ == "__main__" and len(sys.argv) == 1:  # one of the ranks of the last test
    _compare()
