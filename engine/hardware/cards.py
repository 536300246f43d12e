"""Known types of accelerators: how fast they compute and how much memory they have, by their vendors' data sheets."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CardType:
    """`name` are words of the name that the driver gives. `peak` is in 10^12 dense bfloat16 operations a second with
    float32 sums, in float16 for a card without bfloat16 (`bfloat16` false). `memory` has the sizes that there are in
    GB, the smallest first."""

    name: str
    peak: float
    memory: tuple[int, ...]
    bfloat16: bool = True


CARDS = tuple(
    CardType(*row)
    for row in (
        ("B200", 2250, (180,)), ("GB200", 2500, (186,)), ("H200 NVL", 835, (141,)), ("H200", 989, (141,)),
        ("H100 PCIE", 756, (80,)), ("H100 NVL", 835, (94,)), ("H100", 989, (80,)), ("GH200", 989, (96, 144)),
        ("H800", 989, (80,)), ("H20", 148, (96, 141)), ("A100", 312, (40, 80)), ("A800", 312, (40, 80)),
        ("A40", 150, (48,)), ("A30", 165, (24,)), ("A10G", 70, (24,)), ("A10", 125, (24,)), ("L40S", 362, (48,)),
        ("L40", 181, (48,)), ("L4", 121, (24,)), ("RTX 6000 ADA", 364, (48,)), ("RTX A6000", 155, (48,)),
        ("RTX 5090", 210, (32,)), ("RTX 4090", 165, (24,)), ("RTX 3090", 71, (24,)), ("V100", 125, (16, 32), False),
        ("T4", 65, (16,), False), ("MI325X", 1307, (256,)), ("MI300X", 1307, (192,)), ("MI250X", 191.5, (64,)),
    )
)  # fmt: skip
"""The first that fits counts. Each half of an MI250X is a card of its own."""
_LESS = re.compile(r"\b(?:LAPTOP|MAX-Q|MOBILE|MIG|D|TI|SUPER)\b")
"""Words of a card that has another peak than its namesake, be it a part of it."""
_MAKERS = re.compile(r"\b(?:NVIDIA|AMD|GEFORCE|TESLA|INSTINCT|QUADRO)\b")


def find_type(label: str) -> CardType | None:
    """The type of the card that the driver calls `label`; None where it is not known."""
    name = label.upper()
    if _LESS.search(name):
        return None
    return next((card for card in CARDS if re.search(rf"(?<![\w-]){card.name}(?!\w)", name)), None)


def find_peak(label: str, compute: str) -> float | None:
    """The operations a second of the card called `label` in the dtype `compute`; None where they are not known."""
    found = find_type(label)
    known = found is not None and (compute == "float16" or (compute == "bfloat16" and found.bfloat16))
    return found.peak * 1e12 if found is not None and known else None


def find_named(text: str) -> CardType | None:
    """The type that a person means by `text`, such as `h100`, `RTX 4090` or `4090`; None if it is not known."""
    wanted = _shorten(text)
    return next(
        (card for card in CARDS if wanted in (_shorten(card.name), _shorten(card.name).removeprefix("RTX"))), None
    )


def suggest(text: str) -> list[str]:
    """The names of known types that are most like `text`."""
    names = {_shorten(card.name): card.name for card in CARDS}
    return [names[each] for each in difflib.get_close_matches(_shorten(text), names, 3, 0.5)]


def _shorten(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", _MAKERS.sub("", text.upper()))
