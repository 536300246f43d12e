"""Masks of devices: which accelerators the environment of a process leaves visible, and the environment that leaves
exactly the chosen ones.

The engine's mask and the submitter's are intersected, and the tokens of a mask (`4`, `GPU-8932`, `MIG-41b3`) are kept
as they were written. Integers count the cards as `nvidia-smi` does, in the order of the bus: jobs get
`CUDA_DEVICE_ORDER=PCI_BUS_ID`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from engine.protocol.messages import Device

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
ONEAPI, ASCEND = "ONEAPI_DEVICE_SELECTOR", "ASCEND_RT_VISIBLE_DEVICES"
VARIABLES = (CUDA, HIP, ROCR, ONEAPI, ASCEND)
ORDER = "CUDA_DEVICE_ORDER"
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""With it, torch asks NVML whether there are devices, and opens nothing on them."""
NOTHING = "-1"
"""The mask that hides every device. HIP takes an empty one for none at all."""
NO_INTEL = "!*:gpu"
_INTEGER = re.compile(r"\s*([+-]?[0-9]+)")
_PREFIXES = ("GPU-", "MIG-")
_LEVEL_ZERO = "level_zero"

Tokens = dict[int, str]
"""Index of a device -> the token of a mask that names it, in the mask's order."""


def read_tokens(mask: str) -> list[str]:
    """The tokens of a mask as CUDA reads it: all of one kind, up to the first that is invalid; none when one is
    repeated."""
    prefix = next((each for each in _PREFIXES if mask.startswith(each)), "")
    tokens: list[str] = []
    for part in mask.split(","):
        if prefix:
            token = part if part.startswith(prefix) else ""
        else:
            number = _INTEGER.match(part)
            token = str(int(number[1])) if number and int(number[1]) >= 0 else ""
        if token in tokens:
            return []
        if not token:
            break
        tokens.append(token)
    return tokens


def find_named(token: str, cards: Sequence[Device]) -> Device | None:
    """The device that a token names: by its number, or by an unambiguous beginning of its uuid. A card that is divided
    into instances stands for the first of them."""
    if token.startswith("MIG-"):
        named = [card for card in cards if card.parent is not None and card.uuid.startswith(token)]
        return named[0] if len(named) == 1 else None
    if token.startswith("GPU-"):
        whole = {card.index if card.parent is None else card.parent for card in cards if _starts_with(card, token)}
        index = whole.pop() if len(whole) == 1 else None
    else:
        index = next((_find_whole(card) for card in cards if card.ordinal == int(token)), None)
    return next((card for card in cards if index is not None and _find_whole(card) == index), None)


def _find_whole(card: Device) -> int:
    """The index of the card that this device is, or is an instance of."""
    return card.index if card.parent is None else card.parent


def _starts_with(card: Device, token: str) -> bool:
    return (card.uuid if card.parent is None else card.parent_uuid).startswith(token)


def read_mask(mask: str | None, cards: Sequence[Device]) -> Tokens | None:
    """What a mask leaves visible of `cards`; None without a mask."""
    if mask is None:
        return None
    found: Tokens = {}
    for token in read_tokens(mask):
        card = find_named(token, cards)
        if card is None:
            break
        if card.index in found:
            return {}
        found[card.index] = token
    return found


def _read_nvidia(environment: Mapping[str, str], cards: Sequence[Device]) -> Tokens | None:
    return read_mask(environment.get(CUDA), cards)


def _read_ascend(environment: Mapping[str, str], cards: Sequence[Device]) -> Tokens | None:
    return read_mask(environment.get(ASCEND), cards)


def _read_amd(environment: Mapping[str, str], cards: Sequence[Device]) -> Tokens | None:
    """ROCr's mask comes first; what it leaves is counted anew, and HIP's mask, or else CUDA's, chooses from that."""
    outer = read_mask(environment.get(ROCR), cards)
    inner = environment.get(HIP, environment.get(CUDA))
    if outer is None or inner is None:
        return outer if inner is None else read_mask(inner, cards)
    by_index = {card.index: card for card in cards}
    left = [_renumber(by_index[index], place) for place, index in enumerate(outer)]
    return {index: outer[index] for index in read_mask(inner, left) or {}}


def _renumber(card: Device, ordinal: int) -> Device:
    return Device(index=card.index, name=card.name, uuid=card.uuid, ordinal=ordinal)


def _read_intel(environment: Mapping[str, str], cards: Sequence[Device]) -> Tokens | None:
    """The GPUs of Level Zero that a SYCL selector such as `level_zero:0,1;!level_zero:1` accepts."""
    selector = environment.get(ONEAPI)
    if selector is None:
        return None
    accepted: list[int] = []
    discarded: set[int] = set()
    terms = [term.strip() for term in selector.split(";") if term.strip()]
    for term in terms:
        backend, _, devices = term.lstrip("!").partition(":")
        if backend not in (_LEVEL_ZERO, "*"):
            continue
        for part in devices.split(","):
            named = [card.index for card in cards if part in ("*", "gpu") or part == str(card.ordinal)]
            if term.startswith("!"):
                discarded.update(named)
            else:
                accepted += named
    if all(term.startswith("!") for term in terms):
        accepted = [card.index for card in cards]
    ordinals = {card.index: str(card.ordinal) for card in cards}
    return {index: ordinals[index] for index in dict.fromkeys(accepted) if index not in discarded}


_READERS: dict[str, Callable[[Mapping[str, str], Sequence[Device]], Tokens | None]] = {
    "nvidia": _read_nvidia,
    "amd": _read_amd,
    "intel": _read_intel,
    "ascend": _read_ascend,
}


def find_visible(cards: Sequence[Device], *environments: Mapping[str, str]) -> Tokens:
    """The devices that all these environments leave visible, in the order of the last mask, each with the token of the
    first mask that names it. Devices that cannot be reached are left out."""
    default = {card.index: _make_token(card) for card in cards if card.parent is not None or card.ordinal is not None}
    kinds = list(dict.fromkeys(card.kind for card in cards))
    masks: list[Tokens] = []
    for environment in environments:
        read = [(kind, _READERS[kind](environment, [card for card in cards if card.kind == kind])) for kind in kinds]
        if any(mask is not None for _, mask in read):
            unmasked = [(kind, mask) for kind, mask in read if mask is None]
            masks.append(
                {index: token for _, mask in read for index, token in (mask or {}).items()}
                | {card.index: default[card.index] for card in cards if (card.kind, None) in unmasked}
            )
    if not masks:
        return default
    tokens = {index: mask[index] for mask in reversed(masks) for index in mask}
    return {index: tokens[index] for index in masks[-1] if all(index in mask for mask in masks) and index in default}


def _make_token(card: Device) -> str:
    return card.uuid if card.parent is not None else str(card.ordinal)


def is_masked(*environments: Mapping[str, str]) -> bool:
    return any(name in environment for environment in environments for name in VARIABLES)


def restrict(
    environment: Mapping[str, str],
    own: Mapping[str, str],
    cards: Sequence[Device],
    chosen: Sequence[int] | None = None,
    count: int | None = None,
) -> dict[str, str]:
    """`environment` with masks that leave exactly the `chosen` devices visible, or, with None, all that it and the
    engine's `own` environment leave visible.

    Where no device could be listed (no NVML in a container, for example), the masks' tokens are intersected as text,
    and the first `count` of them are left.
    """
    result = {NVML_CHECK: "1", **environment, ORDER: "PCI_BUS_ID"}
    if not cards:
        return result | _restrict_unlisted(environment, own, count)
    if chosen is None and not is_masked(environment, own):
        return result
    tokens = find_visible(cards, own, environment)
    indices = list(tokens) if chosen is None else list(chosen)
    defaults = find_visible(cards)
    for kind in dict.fromkeys(card.kind for card in cards):
        mine = [card.index for card in cards if card.kind == kind]
        named = [tokens.get(index) or defaults[index] for index in indices if index in mine and index in defaults]
        _WRITERS[kind](result, named, own)
    return result


def _write_nvidia(result: dict[str, str], tokens: list[str], own: Mapping[str, str]) -> None:
    result[CUDA] = ",".join(tokens) or NOTHING


def _write_amd(result: dict[str, str], tokens: list[str], own: Mapping[str, str]) -> None:
    """One variable alone: ROCr's, where one was set, since the tokens are its own, else HIP's."""
    name = ROCR if ROCR in result or ROCR in own else HIP
    for each in (ROCR, HIP, CUDA):
        result.pop(each, None)
    result[name] = ",".join(tokens) or NOTHING


def _write_intel(result: dict[str, str], tokens: list[str], own: Mapping[str, str]) -> None:
    result[ONEAPI] = f"{_LEVEL_ZERO}:{','.join(tokens)}" if tokens else NO_INTEL


def _write_ascend(result: dict[str, str], tokens: list[str], own: Mapping[str, str]) -> None:
    result[ASCEND] = ",".join(tokens) or NOTHING


_WRITERS: dict[str, Callable[[dict[str, str], list[str], Mapping[str, str]], None]] = {
    "nvidia": _write_nvidia,
    "amd": _write_amd,
    "intel": _write_intel,
    "ascend": _write_ascend,
}


def _restrict_unlisted(environment: Mapping[str, str], own: Mapping[str, str], count: int | None) -> dict[str, str]:
    """The masks of a host whose devices nobody can list."""
    result: dict[str, str] = {}
    for name in (CUDA, HIP, ROCR, ASCEND):
        masks = [read_tokens(each[name]) for each in (own, environment) if name in each]
        if masks:
            result[name] = ",".join(token for token in masks[-1] if token in masks[0]) or NOTHING
    if ONEAPI in own:
        result[ONEAPI] = own[ONEAPI]
    if count is None:
        return result
    # HIP counts what ROCr leaves: only the inner one is shortened.
    for name in [each for each in result if each != ONEAPI and not (each == ROCR and HIP in result)]:
        result[name] = ",".join(result[name].split(",")[:count])
    if not result:
        result[CUDA] = ",".join(map(str, range(count)))
    return result
