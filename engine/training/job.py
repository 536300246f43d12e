"""The context of a training session: the run, its profile, ranks, device, reporter and inbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models import accelerator, base, base_weights
from engine.models.devices import Device
from engine.prep.token_batching import TokenPlan
from engine.protocol.home import RunDirectory
from engine.training.hot_chat import HotChat
from engine.training.inbox import Inbox
from engine.training.plots import Plots
from engine.training.ranks import Ranks
from engine.training.reporter import Reporter


@dataclass
class Job:
    """`prepared` is the content of prepared.json; `submitted` is the run's frozen profile, `profile` the same with the
    settings that were changed while the run was running."""

    run: RunDirectory
    attempt: int
    submitted: Profile
    profile: Profile
    prepared: dict[str, Any]
    ranks: Ranks
    device: Device
    reporter: Reporter
    inbox: Inbox
    tokenizer: Any
    plots: Plots
    base_weights: str | None = None
    """Identity of the base's weights, on rank 0; None where they have none."""
    masters: bool = False
    """Whether checkpoints also hold master weights: the trained weights differ from the published ones, which are
    rounded to 16 bits or averaged."""
    longest_row: int = 0
    """Tokens of the longest training row; 0 before the rows are read."""
    saved_step: int = -1
    checkpoints: dict[int, dict[str, float]] = field(default_factory=dict)
    """Complete checkpoints with their metrics, by step."""
    written: set[int] = field(default_factory=set)
    """Steps of all checkpoints that the journal tells of, those of abandoned branches too. Only these are ever
    pruned."""
    skipped: set[int] = field(default_factory=set)
    """Numbers of training rows that are left out because their batch was bad."""
    hot_chat: HotChat = field(default_factory=HotChat)
    """Answers questions with the weights that are being trained."""
    replayed: dict[str, Any] = field(default_factory=dict)
    """Settings that were changed after the checkpoint that this attempt resumes."""
    plan: TokenPlan | None = None
    """What a global batch is, for a run with `training.tokens_per_batch`: as when the run was started."""
    resumed_from: Path | None = None
    """The checkpoint that this attempt resumes; None for a new run."""
    load_base: Callable[..., Any] = base.load
    """Loads the base, as `engine.models.base.load` does. A forecast takes its shape alone."""
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the run takes, by `engine.training.memory_report`'s names."""
    grows: bool = False
    """Whether the rehearsal looks for the largest micro-batch that fits."""
    has_tried_paths: bool = False
    """Whether this process was the first on its device to try a fast path that the run may use."""
    simulated: bool = False
    """Whether this is a forecast: nothing is tried on a device then, as nothing is computed."""

    def device_peak(self) -> dict[str, float]:
        """Peak memory of this rank's device in bytes, as a metric; empty on a CPU."""
        peak = accelerator.read_peak()
        return {} if peak is None else {f"device/{self.ranks.local}/memory_peak": float(peak)}

    def lock_text(self, profile: Profile) -> str:
        """The content of lock.json: the settings that chat and export must share with training."""
        return json.dumps(
            self.prepared["lock"]
            | {
                "base": None if profile.model.from_scratch else self.prepared["base"],
                base_weights.KEY: self.base_weights,
                "dtype": profile.model.dtype,
                "quantization": profile.model.quantization,
                "quantize_experts": profile.model.quantize_experts,
                "attention": profile.model.attention,
                "generation": profile.generation.model_dump(),
            },
            ensure_ascii=False,
            indent=1,
        )
