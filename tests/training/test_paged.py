"""bitsandbytes' paged states, with pages that a CPU can have: a rehearsal, a resume and a second loop keep them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch.utils._pytree import tree_map_only

from engine.training import optimizer_factory
from engine.training.paged_adamw import PagedAdamW


class Page(torch.Tensor):
    """A tensor that stops being paged once it is moved, as torch's tensors do."""

    is_paged = True


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Page]]:
    pages: list[Page] = []

    def allocate(self: Any, p: Any, dtype: Any = torch.float32) -> Any:
        pages.append(torch.zeros(p.shape, dtype=dtype).as_subclass(Page))  # type: ignore[arg-type]
        self.page_mng.paged_tensors.append(pages[-1])
        return pages[-1]

    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", allocate)
    yield pages
    functional.GlobalPageManager.get_instance().paged_tensors.clear()


def make(weights: list[Any]) -> PagedAdamW:
    return PagedAdamW(weights, lr=0.1, is_paged=True, optim_bits=32)


def take_step(optimizer: PagedAdamW, weights: list[Any], seed: int) -> None:
    """What a step does to the states, whose kernel needs a GPU."""
    numbers = torch.Generator().manual_seed(seed)
    for weight in weights:
        state = optimizer.state[weight]
        if not state:
            state["step"] = 0
            state["state1"], state["state2"] = (optimizer.get_state_buffer(weight) for _ in range(2))
            state["qmap1"] = torch.arange(4.0)
        state["step"] += 1
        for name in ("state1", "state2"):
            state[name].add_(torch.rand(weight.shape, generator=numbers))


@pytest.fixture
def weights() -> list[Any]:
    return [torch.nn.Parameter(torch.zeros(5, 3)), torch.nn.Parameter(torch.zeros(4))]


def test_a_rehearsal_leaves_states_of_zeros_in_the_same_pages(allocated: list[Page], weights: list[Any]) -> None:
    optimizer = make(weights)
    before = optimizer.state_dict()
    take_step(optimizer, weights, 0)
    optimizer_factory.reset(optimizer, before)
    assert all(not page.any() for page in allocated)
    assert {state["step"] for state in optimizer.state.values()} == {0}
    assert all(state["qmap1"].tolist() == [0, 1, 2, 3] for state in optimizer.state.values())
    take_step(optimizer, weights, 1)
    assert len(allocated) == 4 and len(optimizer.page_mng.paged_tensors) == 4


def test_a_resumed_state_is_in_pages(allocated: list[Page], weights: list[Any]) -> None:
    first = make(weights)
    take_step(first, weights, 0)
    saved = tree_map_only(torch.Tensor, lambda value: torch.tensor(value.tolist()), first.state_dict())
    expected = [state["state2"].tolist() for state in first.state.values()]
    second = make(weights)
    second.load_state_dict(saved)
    assert [state["state2"].tolist() for state in second.state.values()] == expected
    assert all(isinstance(state[name], Page) for state in second.state.values() for name in ("state1", "state2"))
    assert len(second.page_mng.paged_tensors) == 4, "the pages of the optimiser that is gone are not moved any more"
    assert len(allocated) == 4, "and they are used again"


def test_ordinary_optimisers_are_reset_by_their_state_dict() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    before = optimizer.state_dict()
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer_factory.reset(optimizer, before)
    assert not optimizer.state


def test_a_second_model_takes_no_settings_of_the_first(allocated: list[Page]) -> None:
    from bitsandbytes.optim import GlobalOptimManager

    settings = optimizer_factory.TrainingOptions(optimizer="paged_adamw_8bit")
    for _ in range(2):
        model = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
        optimizer_factory.make_optimizer(settings, model)
    assert len(GlobalOptimManager.get_instance().module_weight_config_triple) == 1
