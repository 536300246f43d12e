"""The methods and adapters that a profile may choose: `kind -> "module:Options"`.

The options model of each is beside the code that reads it; the profile imports it by these strings.
"""

from __future__ import annotations

from typing import NamedTuple


class Strategy(NamedTuple):
    """A row of `STRATEGIES`: `"module:Class"` (see `engine.training.parallel`), and what the form says of it."""

    reference: str
    help: str
    sharded: bool = False
    """Whether each rank has only its share of the weights."""
    foreign: bool = False
    """Whether the strategy is another engine's, which no forecast knows."""


METHODS = {
    "sft": "engine.training.methods.sft:Options",
    "pretrain": "engine.training.methods.pretrain:Options",
    "reward": "engine.training.methods.reward:Options",
    "dpo": "engine.training.methods.dpo:Options",
    "kto": "engine.training.methods.kto:Options",
    "orpo": "engine.training.methods.orpo:Options",
    "grpo": "engine.training.methods.grpo:Options",
    "rloo": "engine.training.methods.rloo:Options",
}
"""What is optimised. Each module also has `build`, which makes the method (see `engine.training.methods`)."""

ADAPTERS = {
    "none": "engine.training.adapters.none:Options",
    "lora": "engine.training.adapters.lora:Options",
    "rslora": "engine.training.adapters.rslora:Options",
    "dora": "engine.training.adapters.dora:Options",
    "ia3": "engine.training.adapters.ia3:Options",
    "oft": "engine.training.adapters.oft:Options",
    "prefix": "engine.training.adapters.prefix:Options",
    "prompt": "engine.training.adapters.prompt:Options",
}
"""Which weights are trained. Each module also has `attach(model, options)`."""

ROW_KINDS = {
    "tokens": "text or conversations, as token ids with labels",
    "pairs": "a prompt with a chosen and a rejected reply",
    "judged": "a prompt with one reply and whether it was good",
    "prompts": "prompts to answer, with what a reward needs to know",
}
"""Kinds of prepared rows, with a description of each. A method's `Options.rows` says which kind it takes."""

STRATEGIES = {
    "ddp": Strategy("engine.training.parallel.ddp:DataParallel", "each has all of it"),
    "zero1": Strategy("engine.training.parallel.zero1:Zero1", "each has the states of a share of the weights"),
    "zero2": Strategy("engine.training.parallel.fsdp:Zero2", "and their gradients", sharded=True),
    "fsdp": Strategy(
        "engine.training.parallel.fsdp:FullySharded", "each has a share of weights, gradients and states", sharded=True
    ),
    "deepspeed": Strategy(
        "engine.training.parallel.deepspeed:DeepSpeed", "what launch.deepspeed says", sharded=True, foreign=True
    ),
}
"""`launch.strategy`: how several processes share a training step. A single process needs none."""
FORECAST = tuple(name for name, strategy in STRATEGIES.items() if not strategy.foreign)
"""The strategies that a forecast knows, in the order of their cost."""
AUTO = "auto"
"""A `launch.strategy` that is replaced by one of `STRATEGIES` before training starts, by the forecast."""

TRACKERS = {
    "mlflow": ("mlflow", "mlflow-skinny"),
    "swanlab": ("swanlab", "swanlab"),
    "trackio": ("trackio", "trackio"),
    "comet": ("comet_ml", "comet_ml"),
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
}
"""`logging.trackers`: the module of each tracker and the package that pip installs for it. How each is started is in
`engine.training.trackers`."""
