"""No adapter: all weights of the base are trained."""

from __future__ import annotations

from typing import Any, Literal

from engine.options.base import Variant


class Options(Variant):
    kind: Literal["none"] = "none"


def attach(model: Any, options: Options) -> Any:
    """Return `model` itself, with all weights trainable."""
    return model.requires_grad_(True)
