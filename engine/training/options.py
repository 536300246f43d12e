"""What a profile says about optimisation, checkpoints and logging."""

from __future__ import annotations

from typing import Literal

from engine.protocol.options import Options, option


class TrainingOptions(Options):
    epochs: float = option(1.0, help="Passes over the training set.", gt=0)
    max_steps: int | None = option(
        None, help="Stop after so many optimiser steps; wins over epochs.", unit="steps", ge=1
    )
    micro_batch: int = option(1, help="Rows per process and forward pass.", unit="rows", ge=1)
    accumulation: int = option(
        1, help="Forward passes per optimiser step. Global batch = micro_batch × accumulation × processes.", ge=1
    )
    learning_rate: float = option(2.0e-4, help="Peak learning rate.", gt=0)
    scheduler: Literal["cosine", "linear", "polynomial", "constant"] = option(
        "cosine", help="Shape of the learning rate after warm-up."
    )
    warmup: float = option(0.0, help="Below 1 a share of all steps, from 1 on a number of steps.", ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = option(
        "adamw", help="Optimiser. The 8-bit ones need a GPU."
    )
    weight_decay: float = option(0.0, help="Decoupled weight decay.", ge=0)
    max_grad_norm: float = option(1.0, help="Clip the gradient's norm to this; 0 clips nothing.", ge=0)
    gradient_checkpointing: bool = option(
        False, help="Recompute activations in the backward pass: less memory, about a third slower."
    )
    seed: int = option(42, help="Seed of the data order, dropout and adapter initialisation.", ge=0)
    threads: int | None = option(None, help="CPU threads per process; none: the cores shared by the processes.", ge=1)


class CheckpointOptions(Options):
    every_steps: int | None = option(None, help="Save every so many steps; none: once an epoch.", unit="steps", ge=1)
    keep: int = option(3, help="Complete checkpoints to keep, the best and the last always among them.", ge=1)
    best_by: str = option(
        "eval/loss", help="Metric that names the best checkpoint; losses and perplexity down, all else up."
    )
    output: str | None = option(None, help="Folder to which the final checkpoint is published, complete or not at all.")


class LoggingOptions(Options):
    every_steps: int = option(1, help="Write metrics every so many steps.", unit="steps", ge=1)
    tensorboard: bool = option(True, help="Also write TensorBoard events.")


class LimitOptions(Options):
    disk_free_gb: float = option(2.0, help="Pause when less than this is free where the run writes.", unit="GB", ge=0)
    memory_percent: float | None = option(
        None, help="Refuse to start when more of the host's memory is in use.", unit="%", gt=0, le=100
    )


class GenerationOptions(Options):
    max_new_tokens: int = option(256, help="Longest reply.", unit="tokens", ge=1)
    temperature: float = option(0.0, help="0 is greedy.", ge=0)
    top_k: int | None = option(None, help="Sample among the k likeliest tokens.", ge=1)
    top_p: float | None = option(
        None, help="Sample among the likeliest tokens that together have this probability.", gt=0, le=1
    )
    seed: int | None = option(None, help="Seed of sampling.", ge=0)
