"""The options of sampling a reply: the `generation` section of a profile, options of the command line, fields of the
app."""

from __future__ import annotations

from typing import Any

from engine.options.base import Options, option

PRESETS: dict[str, dict[str, Any]] = {
    "creative": {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    "chat": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "factual": {"temperature": 0.5, "top_k": 20, "top_p": 0.85},
    "greedy": {"temperature": 0.0},
}


class SamplingOptions(Options):
    """The fields of `engine.inference.sampling.Sampling`, with their help texts."""

    max_new_tokens: int = option(256, help="Longest reply.", unit="tokens", ge=1)
    temperature: float = option(0.0, help="0 is greedy.", ge=0)
    top_k: int | None = option(None, help="Sample among the k likeliest tokens.", ge=1)
    top_p: float | None = option(
        None, help="Sample among the likeliest tokens that together have this probability.", gt=0, le=1
    )
    min_p: float | None = option(
        None, help="Leave out tokens with less than this share of the likeliest one's probability.", ge=0, le=1
    )
    repetition_penalty: float = option(
        1.0, help="Above 1, tokens that the prompt or the reply already has become less likely.", gt=0
    )
    no_repeat_ngram: int | None = option(
        None, help="No sequence of this many tokens occurs twice in prompt and reply.", unit="tokens", ge=1
    )
    seed: int | None = option(None, help="Seed of sampling.", ge=0, lt=1 << 63)
    stop: list[str] = option([], help="Texts before which a reply ends.")


def find_preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises ValueError."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
