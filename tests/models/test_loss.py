"""The cross entropy of long sequences: in chunks it is what it is at once, in a bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models import loss
from engine.models.loss import PickedHead, token_losses
from engine.models.segments import Segments
from engine.prep.batching import collate_flat, collate_padded
from tests.models.small import EXPERTS, build

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "gemma2": {"final_logit_softcapping": 3.0, "sliding_window": 64}, "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0}, "mixtral": EXPERTS, "gpt2": {"tie_word_embeddings": True},
    "phi": {},
}  # fmt: skip


def compute(logits: Any, targets: Any) -> tuple[Any, Any]:
    return token_losses(logits, targets, 0.1), logits.argmax(-1) == targets


def losses_and_gradients(model: Any, batch: Any, segments: Segments) -> tuple[Any, Any, dict[str, Any]]:
    model.zero_grad()
    losses, right = PickedHead(model, segments).compute(model, batch, compute)
    (losses * torch.linspace(0.5, 1.5, len(losses))).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return losses, right, gradients


@pytest.mark.parametrize("trained", ["all", "body"])
@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_have_the_losses_and_gradients_of_the_whole(
    name: str,
    trained: str,
    rows: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(name, **{"sliding_window": None, **FAMILIES[name]})
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    if trained == "body":
        model.get_output_embeddings().requires_grad_(False)
    batch = collate_padded(rows) if name == "cohere" else collate_flat(rows)
    segments = Segments()
    if name != "cohere":
        segments.install(model)
    whole = losses_and_gradients(model, batch, segments)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: seen.append(len(output)))
    monkeypatch.setattr(loss, "LARGEST", 10 * 64)  # ten positions
    chunks = losses_and_gradients(model, batch, segments)
    assert max(size for size in seen if size != 8) == 10 or name == "mixtral", seen
    torch.testing.assert_close(chunks[0], whole[0])
    assert chunks[1].equal(whole[1]) and chunks[2].keys() == whole[2].keys()
    for parameter, gradient in chunks[2].items():
        torch.testing.assert_close(gradient, whole[2][parameter], rtol=1e-4, atol=1e-5, msg=parameter)
    with torch.no_grad():
        quiet, _ = PickedHead(model, segments).compute(model, batch, compute)
    torch.testing.assert_close(quiet, whole[0])


def test_a_head_whose_results_are_changed_in_an_unknown_way_is_not_cut(
    rows: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("llama")
    head = model.get_output_embeddings()
    forward = model.forward

    def changed(**named: Any) -> Any:
        found = forward(**named)
        found.logits = found.logits.square()
        return found

    monkeypatch.setattr(model, "forward", changed)
    batch = collate_padded(rows)
    whole = losses_and_gradients(model, batch, Segments())
    monkeypatch.setattr(loss, "LARGEST", 64)
    seen: list[int] = []
    head.register_forward_hook(lambda _, __, output: seen.append(len(output)))
    cut = losses_and_gradients(model, batch, Segments())
    torch.testing.assert_close(cut[0], whole[0])
    assert len(batch["targets"]) in seen


def test_no_target_at_all_is_a_loss_of_nothing() -> None:
    model = build("llama")
    batch = collate_flat([{"input_ids": [3, 4], "labels": [-100, -100]}])
    segments = Segments()
    segments.install(model)
    losses, _ = PickedHead(model, segments).compute(model, batch, compute)
    assert losses.shape == (0,)
    losses.sum().backward()


@pytest.mark.parametrize(("positions", "vocabulary"), [(8192, 128_256), (2048, 151_936), (1000, 262_144)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_the_loss_is_bounded(positions: int, vocabulary: int, dtype: torch.dtype) -> None:
    """Beyond the model, at most 1.1 GiB: the library's takes 11.7 GiB for the first of these."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = build_fake(vocabulary, dtype)
        model.get_output_embeddings().requires_grad_(False)
        batch = {
            "input_ids": torch.zeros(1, positions, dtype=torch.long),
            "position_ids": torch.arange(positions)[None],
            "lengths": None,
            "picked": torch.arange(positions),
            "targets": torch.zeros(positions, dtype=torch.long),
        }
        head = PickedHead(model, Segments())
        head._finish, head._finish_known = (lambda logits: logits), True  # it is found by comparing numbers
        with PeakMemory() as peak:
            (losses,) = head.compute(model, batch, lambda *given: (token_losses(*given),))
            losses.sum().backward()
    assert 0.2 < peak.bytes / 2**30 < 1.1


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within it, at their most."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}
        super().__enter__()
        return self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self._living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._living = {key: kept for key, kept in self._living.items() if not kept[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._living.values()))
        return found


def build_fake(vocabulary: int, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=vocabulary
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype)
