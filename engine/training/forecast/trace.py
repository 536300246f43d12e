"""Runs one training step of a profile on tensors without content, and counts the memory of each phase.

The loop, the method, the adapter, the optimiser and the strategy are those of a run. Only the weights are missing, and
the other ranks: their collectives return at once.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from engine.config.profile import Profile
from engine.inference.generate import BATCH
from engine.inference.prefill import chunk_size
from engine.training import assemble
from engine.training.forecast import simulated
from engine.training.forecast.skeleton import PackedLinear, make_loader, packed_bytes, treat_as_real
from engine.training.forecast.tracker import MemoryTracker
from engine.training.loop import TrainingLoop
from engine.training.methods.base import take_counts
from engine.training.online.options import OnlineOptions

EIGHT_BITS = frozenset({"adamw_8bit", "paged_adamw_8bit"})
PAGED = frozenset({"paged_adamw", "paged_adamw_8bit"})
_BLOCK = 256
"""Elements of an 8-bit state that share a scale."""
_CHUNKS = 8
"""Passes over a prompt that are traced at most."""
_SMALLEST = 4096
"""Elements from which bitsandbytes keeps a weight's states in 8 bits."""


@dataclass
class Trace:
    """Bytes on the device of one rank, and what else a step shows. `load`, `step`, `reduction`, `optimizer`,
    `evaluation` and `generation` are peaks of the whole device; the others are parts of them."""

    weights: int = 0
    model: int = 0
    """Of the trained model's weights as they are stored, without copies, buffers and batches."""
    trained: int = 0
    """Of the weights that are trained, as this rank holds them."""
    gradients: int = 0
    states: int = 0
    """The optimiser's, and averaged weights."""
    averages: int = 0
    """The averaged weights alone."""
    load: int = 0
    """The peak while the model is made. Where weights are divided, it is made in host memory."""
    step: int = 0
    """The peak of forward and backward passes, with the optimiser's states."""
    reduction: int = 0
    optimizer: int = 0
    evaluation: int = 0
    generation: int = 0
    held: dict[str, int] = field(default_factory=dict)
    """By phase: what a process on a CPU has at the end of it besides the phase's peak, in gaps of its heap."""
    largest: int = 0
    """The largest weight."""
    flops: int = 0
    """Of the passes over one micro-batch."""
    held_out_flops: int = 0
    """Of the passes over all held-out rows of one rank."""
    tokens: int = 0
    """In that micro-batch."""
    whole: dict[str, int] = field(default_factory=dict)
    """Elements of all weights (`weights`) and of the trained ones (`trained`), whatever part this rank holds."""
    longest: int = 0
    steps: int = 0
    steps_per_epoch: int = 0
    micro_batches: int = 0
    """Of one rank in a step."""
    epoch_tokens: int = 0
    """Tokens of all training rows."""


def trace(
    profile: Profile,
    prepared: dict[str, Any],
    tokenizer: Any,
    device: simulated.SimulatedDevice,
    *,
    world: int = 1,
    available: int = 1 << 62,
    fake: bool = True,
) -> Trace:
    """Trace a step of rank 0 of `world`. With `fake` false the same is counted while it is really computed, on the
    weights of the base. `available` is the host's free memory in bytes. Raises ProblemError for what a run would
    refuse, and what the libraries raise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    optimizer = profile.training.optimizer
    if optimizer in EIGHT_BITS | PAGED:  # bitsandbytes' computes on cards alone
        profile = _replace_optimizer(profile, "adamw")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ranks = stack.enter_context(simulated.process_group(world))
        job = simulated.make_job(profile, prepared, tokenizer, device, ranks, folder)
        tracker = MemoryTracker(fake=fake)
        stack.enter_context(tracker.ignore_propagation())
        mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        if fake:
            stack.enter_context(treat_as_real())
            job.load_base = make_loader(tracker, available)
        return _Tracing(job, tracker, mode, optimizer).run()


class _Tracing:
    def __init__(self, job: Any, tracker: MemoryTracker, mode: Any, optimizer: str) -> None:
        self.job, self.tracker, self.mode, self.optimizer = job, tracker, mode, optimizer
        self.found = Trace()

    def run(self) -> Trace:
        found = self.found
        with self._watching("load"):
            loop = assemble.make_loop(self.job)
        self._pack_shares(loop)
        self.tracker.count((*loop.model.parameters(), *loop.model.buffers()))
        if isinstance(loop.profile.method, OnlineOptions):  # whose batches are made with passes of the reference
            with self.mode or nullcontext(), self.tracker:
                for head, each in loop.method.heads:
                    head.learn_finish(each, torch.arange(3, 11)[None])
        # Made outside: what a batch looks like depends on the content of rows.
        batch = loop.method.longest_batch([loop.method.rows[row] for row in loop.batches.pick_longest()])
        padded = _has_padding(batch)
        batch = self._simulate(batch)
        held_out = self._make_held_out(loop)
        self.tracker.padded = padded
        parameters = list(loop.model.parameters())
        found.weights = self.tracker.live
        found.model = self._size(parameters)
        found.trained = self._size([each for each in parameters if each.requires_grad])
        found.largest = max(each.numel() * each.element_size() for each in parameters)
        found.whole = {
            "weights": sum(each.numel() for each in parameters),
            "trained": sum(each.numel() for each in parameters if each.requires_grad),
        }
        found.states = self._size((loop.averages.values if loop.averages else {}).values())
        found.averages = found.states
        found.weights -= found.states
        loop.model.train()
        self._step(loop, batch)
        self._evaluate(loop, held_out)
        self._generate(loop)
        self._count_steps(loop, batch)
        return found

    def _pack_shares(self, loop: TrainingLoop) -> None:
        """Count a rank's share of each packed weight of a divided model; the strategy made it as 16 bits."""
        for module in loop.model.modules():
            if isinstance(module, PackedLinear) and isinstance(module.weight, DTensor):
                local = module.weight.to_local()
                whole = packed_bytes(tuple(module.weight.shape), module.quantization)
                self.tracker.recount(local, math.ceil(whole * local.numel() / max(1, module.weight.numel())))

    # ── the phases ────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, loop: TrainingLoop, batch: Any) -> None:
        found, method = self.found, loop.method
        units = max(method.units(batch), 1.0)
        before = self.tracker.flops
        with self._watching("step"):
            # With accumulation the second pass finds the first one's gradients in memory.
            for _ in range(min(loop.batches.accumulation, 2)):
                loop.compute_gradients([batch], units)
                found.flops, before = self.tracker.flops - before, self.tracker.flops
        gradients = [each.grad for each in loop.model.parameters() if each.grad is not None]
        found.gradients = self._size(gradients)
        with self._watching("reduction"):
            loop.strategy.reduce()
            loop.strategy.clip(loop.profile.training.max_grad_norm)
        self.tracker.answer = 1  # which is also how many steps were made, and that may not be none
        with self._watching("optimizer"):
            loop.optimizer.step()
        self.tracker.answer = 0
        states = [each for state in loop.optimizer.state.values() for each in state.values()]
        states = [each for each in states if isinstance(each, torch.Tensor)]
        dense = self._size(states)
        kept = dense if self.optimizer not in EIGHT_BITS | PAGED else self._pack_states(loop)
        if self.optimizer == "adam" and self.job.device.kind == "cuda":
            found.optimizer += found.trained  # there torch keeps the denominators of all weights at once
        found.optimizer -= dense - kept
        found.states += kept
        found.step += kept
        found.reduction += kept
        del gradients, states
        loop.optimizer.zero_grad()

    def _pack_states(self, loop: TrainingLoop) -> int:
        """Count the states of AdamW as bitsandbytes keeps them; returns their bytes."""
        total = 0
        for weight, state in loop.optimizer.state.items():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor) and tensor.dim():
                    size = state_bytes(tensor.numel(), self.optimizer, embedding=self._is_embedding(loop, weight))
                    self.tracker.recount(tensor, size)
                    total += size
        return total

    def _is_embedding(self, loop: TrainingLoop, weight: Any) -> bool:
        return any(
            isinstance(module, torch.nn.Embedding) and module.weight is weight for module in loop.model.modules()
        )

    def _make_held_out(self, loop: TrainingLoop) -> Any:
        """The longest held-out micro-batch; None without one, and for methods that generate it."""
        rows = loop.evaluator.longest_rows()
        if not rows or isinstance(loop.profile.method, OnlineOptions):
            return None
        batch = loop.method.collate(rows)
        take_counts(batch)
        return self._simulate(batch)

    def _evaluate(self, loop: TrainingLoop, batch: Any) -> None:
        if batch is None:
            return
        loop.model.eval()
        before = self.tracker.flops
        with self._watching("evaluation"), torch.no_grad(), self.job.device.autocast():
            loop.method.measure(batch)
        self.found.held_out_flops = int((self.tracker.flops - before) * loop.evaluator.count_batches())
        loop.method.expect_plain_batches()
        loop.model.train()

    def _generate(self, loop: TrainingLoop) -> None:
        """Decode the last token of the longest replies, over a cache of all tokens before it."""
        rows, tokens = _count_replies(loop)
        if not rows:
            return
        loop.method.expect_plain_batches()
        loop.model.eval()
        with self._watching("generation"), torch.no_grad(), self.job.device.autocast():
            ids = torch.zeros(rows, max(1, tokens - 1), dtype=torch.long)
            cache, held = None, ids.shape[1]
            chunk = chunk_size(loop.model, rows, held, self.job.device.kind)
            for start in range(0, held, max(chunk, held // _CHUNKS)):
                part = ids[:, start : start + max(chunk, held // _CHUNKS)]
                cache = loop.model(
                    input_ids=part, use_cache=True, logits_to_keep=1, past_key_values=cache
                ).past_key_values
            loop.model(input_ids=ids[:, :1], use_cache=True, past_key_values=cache)
        loop.model.train()

    def _count_steps(self, loop: TrainingLoop, batch: Any) -> None:
        found, batches = self.found, loop.batches
        ids = batch.get("input_ids")
        found.tokens = 0 if ids is None else ids.numel()
        found.longest = max(batches.lengths, default=0)
        found.epoch_tokens = sum(batches.lengths)
        found.steps, found.steps_per_epoch = loop.max_steps, batches.per_epoch
        found.micro_batches = batches.accumulation

    # ── the tools ─────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _watching(self, phase: str) -> Iterator[None]:
        """Context whose operations are counted, and whose peak becomes a figure of the trace."""

        def report(peak: int) -> None:
            setattr(self.found, phase, peak)
            self.found.held[phase] = self.tracker.heap.high - peak

        with self.mode or nullcontext(), self.tracker, self.tracker.measure(report):
            yield

    def _size(self, tensors: Any) -> int:
        return self.tracker.size_of(tensors)

    def _simulate(self, batch: Any) -> Any:
        """The batch with its tensors made fake, and counted."""
        if isinstance(batch, dict):
            return {name: self._simulate(value) for name, value in batch.items()}
        if not isinstance(batch, torch.Tensor):
            return batch
        made = self.mode.from_tensor(batch) if self.mode else batch
        self.tracker.count([made])
        return made


def _has_padding(batch: Any) -> bool:
    """Whether a collated batch has padding that its mask tells the model of."""
    mask = batch.get("attention_mask")
    return mask is not None and not bool(mask.all())


def state_bytes(elements: int, optimizer: str, *, embedding: bool = False) -> int:
    """Bytes of one of AdamW's two states of a weight, as bitsandbytes keeps it."""
    if optimizer not in EIGHT_BITS or elements < _SMALLEST or embedding:
        return 4 * elements
    return elements + 4 * math.ceil(elements / _BLOCK)


def _replace_optimizer(profile: Profile, name: str) -> Profile:
    from engine.training import live_settings

    return live_settings.replace_setting(profile, "training.optimizer", name)


def _count_replies(loop: TrainingLoop) -> tuple[int, int]:
    """How many replies are decoded together, and the tokens of the longest prompt with its reply."""
    method = loop.profile.method
    if isinstance(method, OnlineOptions):
        from engine.training.online.method import DECODED_PER_ROW

        share = loop.batches.micro_batch * loop.batches.accumulation
        rows = min(share, DECODED_PER_ROW * loop.batches.micro_batch)
        return rows, max(loop.batches.lengths) + method.max_new_tokens
    prompts = loop.evaluator.longest_prompts(BATCH)
    return len(prompts), max(map(len, prompts), default=0) + loop.profile.generation.max_new_tokens
