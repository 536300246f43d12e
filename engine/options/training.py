"""The sections `training`, `checkpoint`, `logging` and `limits` of a profile."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from engine.options.base import Options, option
from engine.options.tables import TRACKERS


class EmaOptions(Options):
    decay: float = option(
        0.999,
        help="Share of the average that a step keeps; less in the first steps, (1 + step) / (10 + step).",
        gt=0,
        lt=1,
    )


class TrainingOptions(Options):
    epochs: float = option(1.0, help="Passes over the training set.", gt=0)
    max_steps: int | None = option(
        None, help="Stop after this many optimiser steps; takes precedence over epochs.", unit="steps", ge=1
    )
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = option(
        1,
        help="Rows per process and forward pass; auto: as many as fit, found out before the first step. accumulation "
        "then says how many rows of a process make up a global batch.",
        unit="rows",
    )
    tokens_per_batch: int | None = option(
        None,
        help="Tokens per process and forward pass, at most: as many rows as fit. Takes the place of micro_batch, which "
        "then stays 1.",
        unit="tokens",
        ge=1,
    )
    accumulation: int = option(
        1,
        help="Forward passes per optimiser step. Global batch = micro_batch (or tokens_per_batch) × accumulation × "
        "processes.",
        ge=1,
    )
    learning_rate: float = option(2.0e-4, help="Peak learning rate.", gt=0)
    scheduler: Literal["cosine", "linear", "polynomial", "constant", "wsd"] = option(
        "cosine", help="Shape of the learning rate after warm-up; wsd: constant, then decay."
    )
    power: float = option(2.0, help="Exponent of the polynomial scheduler; 1 is linear.", gt=0)
    decay_share: float = option(
        0.1, help="Share of all steps, at the end, in which wsd decays the learning rate.", gt=0, le=1
    )
    warmup: float = option(0.0, help="Below 1 a share of all steps, from 1 on a number of steps.", ge=0)
    optimizer: Literal["adamw", "adam", "sgd", "adafactor", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = (
        option("adamw", help="Optimiser. The 8-bit and paged ones need a GPU.")
    )
    masters: Literal["float32", "none"] = option(
        "float32",
        help="With all weights trained: keep them in float32 and compute in model.dtype, or train them in model.dtype, "
        "which takes half the memory and loses most small updates.",
    )
    weight_decay: float = option(0.0, help="Weight decay; decoupled but for adam and sgd.", ge=0)
    max_grad_norm: float = option(1.0, help="Clip the gradient's norm to this; 0 clips nothing.", ge=0)
    gradient_checkpointing: bool = option(
        False, help="Recompute activations in the backward pass: less memory, about a third slower."
    )
    label_smoothing: float = option(
        0.0,
        help="Share of each target's probability that is spread over the whole vocabulary while training.",
        ge=0,
        lt=1,
    )
    router_aux_loss: float | None = option(
        None,
        help="Weight of the loss that balances the experts of a mixture; none: the model's own weight if its routers "
        "are trained, else 0.",
        ge=0,
    )
    neftune: float = option(
        0.0, help="Noise on embeddings while training (NEFTune's alpha, often 5); 0 adds none.", ge=0
    )
    ema: EmaOptions | None = option(
        None, help="Keep an exponential average of the trained weights, which is what is evaluated and saved."
    )
    seed: int = option(42, help="Seed of the data order, dropout and adapter initialisation.", ge=0, lt=1 << 32)
    rehearsal: bool | Literal["auto"] = option(
        "auto",
        help=(
            "Before the first step, try a step, evaluation, saving and reloading with the longest batch, "
            "so that errors show at once; auto: without the step where memory is certain to suffice."
        ),
    )
    threads: int | None = option(None, help="CPU threads per process; none: the cores shared by the processes.", ge=1)
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = option(
        "auto", help="Processes per rank that prepare batches; auto: none on a CPU, else by the number of cores."
    )
    tf32: bool = option(False, help="Let NVIDIA cards multiply float32 matrices in TF32: faster, 10 bits of mantissa.")
    compile: bool | Literal["auto"] = option(
        "auto",
        help="Compile the model's layers with torch.compile; auto: on CUDA and MPS, for runs that are long enough.",
    )
    liger: bool | Literal["auto"] = option(
        "auto", help="Use Liger's kernels; auto: on CUDA where the package liger-kernel is installed."
    )
    optimizations: bool = option(True, help="false: only the libraries' own code paths, nothing compiled, no Liger.")

    @property
    def rows(self) -> int:
        """`micro_batch` as a number: with `auto`, what a run begins with."""
        return 1 if self.micro_batch == "auto" else self.micro_batch


class CheckpointOptions(Options):
    every_steps: int | None = option(
        None, help="Steps between two checkpoints; none: one per epoch.", unit="steps", ge=1
    )
    keep: int = option(3, help="Complete checkpoints to keep, the best and the last always among them.", ge=1)
    best_by: str = option(
        "eval/loss", help="Metric that names the best checkpoint, such as eval/loss or eval/triples_f1."
    )
    output: str | None = option(None, help="Folder to which the final checkpoint is published, complete or not at all.")


class WandbOptions(Options):
    project: str = option(help="Project there.", min_length=1)
    name: str | None = option(None, help="Name of the run there; none: the run's id.")
    mode: Literal["online", "offline"] = option(
        "online", help="offline keeps it in the run's directory, for `wandb sync`."
    )


_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_OPEN = re.compile(r"(json|xml|form)s?://[^\s@?]+")
"""Addresses of one's own services, in which nothing is secret."""


def _check_address(address: str) -> str:
    """An address of apprise in a profile, which is kept with the run and shown: it names secrets, and holds none."""
    if not _VARIABLE.search(address) and not _OPEN.fullmatch(address):
        raise ValueError(
            "such an address holds a secret, and a profile is kept and shown: put it into a variable of the "
            "environment, and write $NAME"
        )
    return address


Address = Annotated[str, AfterValidator(_check_address)]


class LoggingOptions(Options):
    every_steps: int = option(1, help="Steps between two entries of metrics.", unit="steps", ge=1)
    plots: bool = option(True, help="Draw loss curves as pictures at each checkpoint.")
    tensorboard: bool = option(True, help="Also write TensorBoard events.")
    row_losses: bool = option(True, help="Keep each training row's loss in each epoch, for `cockpit data worst`.")
    wandb: WandbOptions | None = option(None, help="Also log to Weights & Biases.")
    notify: list[Address] = option(
        [],
        help="Where to tell of completion, trouble, and a start after a wait in the queue: addresses of apprise, with "
        "secrets as $VARIABLES.",
        examples=[["$SLACK_ADDRESS"]],
    )
    trackers: list[str] = option([], help=f"Also log to these: {', '.join(TRACKERS)}.")
    project: str = option("cockpit", help="Project, or experiment, of the run in logging.trackers.", min_length=1)
    offline: bool = option(
        False, help="true: logging.trackers send nothing; their records stay in trackers/ of the home."
    )

    @field_validator("trackers")
    @classmethod
    def _check_trackers(cls, trackers: list[str]) -> list[str]:
        for name in trackers:
            if name not in TRACKERS:
                raise ValueError(f"there is no tracker {name!r}: choose from {', '.join(TRACKERS)}")
        if len(set(trackers)) < len(trackers):
            raise ValueError("a tracker is named twice")
        return trackers


class LimitOptions(Options):
    disk_free_gb: float = option(2.0, help="Pause when less than this is free where the run writes.", unit="GB", ge=0)
    memory_percent: float | None = option(
        None, help="Pause while more of the host's memory is in use.", unit="%", gt=0, le=100
    )
    cpu_percent: float | None = option(
        None,
        help="Pause while other programs use more of the host's CPU; what this run computes is not counted.",
        unit="%",
        gt=0,
        le=100,
    )
    temperature: float | None = option(None, help="Pause while a device is hotter.", unit="°C", gt=0)
    loss_spike: float | None = option(
        None,
        help="Hold a step back whose loss is more than this many times the median of the last 32; none: never.",
        gt=1,
    )
