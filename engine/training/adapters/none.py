"""No adapter: all weights of the base are trained."""

from __future__ import annotations

from typing import Literal

from engine.protocol.options import Variant


class Options(Variant):
    kind: Literal["none"] = "none"
