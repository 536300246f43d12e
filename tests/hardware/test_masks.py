"""Masks of devices: read as CUDA reads them, and composed so that a job sees what both shells leave, and nothing else.

The oracle for CUDA's reading is torch's own, which mimics the driver; that of the composition is the intersection of
sets.
"""

from __future__ import annotations

import random

import pytest
import torch

from engine.hardware import masks
from engine.protocol.messages import Device

UUIDS = ["GPU-8932f937-d72c", "GPU-8932aaaa-0000", "GPU-41b3cccc-1111", "GPU-00000000-2222", "GPU-41b3dddd-3333"]
CARDS = [Device(index=at, ordinal=at, name=f"T{at}", uuid=uuid) for at, uuid in enumerate(UUIDS)]
PARTS = [*UUIDS, "GPU-8932", "GPU-8932f", "GPU-41b3d", "GPU-", "GPU-ffff", "MIG-1", "0", "1", "2", "3", "4", "5", "64"]
PARTS += ["-1", "", " 2", "1gpu2", "x", "+3", "4 ", "GPU-41b3c "]


def read_as_torch(mask: str | None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The cards that CUDA sees under a mask, in its order."""
    if mask is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    found = torch.cuda._parse_visible_devices()
    if found and isinstance(found[0], str):
        return torch.cuda._transform_uuid_to_ordinals(found, UUIDS) if found[0].startswith("GPU-") else []
    seen: list[int] = []
    for ordinal in found:
        if ordinal >= len(UUIDS):
            break
        seen.append(ordinal)
    return seen


def make_mask(chance: random.Random) -> str | None:
    if chance.random() < 0.15:
        return None
    valid = [str(at) for at in range(5)] if chance.random() < 0.5 else [*UUIDS, "GPU-41b3d", "GPU-00"]
    parts = chance.sample(valid, chance.randint(0, 4))
    if chance.random() < 0.4:
        parts.insert(chance.randint(0, len(parts)), chance.choice(PARTS))
    return ",".join(parts)


def test_a_job_sees_what_both_shells_leave_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    seen_some = 0
    for _ in range(4000):
        pair = [make_mask(chance) for _ in range(2)]
        own, sent = ({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask} for mask in pair)
        engine, shell = (read_as_torch(mask, monkeypatch) for mask in pair)
        last = shell if pair[1] is not None else engine
        expected = [card for card in last if card in engine and card in shell]
        assert list(masks.find_visible(CARDS, own, sent)) == expected, pair
        job = masks.restrict(sent, own, CARDS)
        assert read_as_torch(job.get("CUDA_VISIBLE_DEVICES"), monkeypatch) == expected, (pair, job)
        assert job["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        chosen = chance.sample(expected, chance.randint(0, len(expected)))
        job = masks.restrict(sent, own, CARDS, chosen)
        assert read_as_torch(job["CUDA_VISIBLE_DEVICES"], monkeypatch) == chosen, (pair, job)
        given = {token for mask in pair if mask for token in masks.read_tokens(mask)}
        if given and job["CUDA_VISIBLE_DEVICES"] != "-1":
            assert set(job["CUDA_VISIBLE_DEVICES"].split(",")) <= given, "tokens are kept as they were written"
        seen_some += bool(chosen)
    assert seen_some > 1000


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        ("4,5", ["4", "5"]),
        ("-1", []),
        ("", []),
        ("0,-1,1", ["0"]),
        ("1,1", []),
        ("GPU-8932,GPU-41b3,0", ["GPU-8932", "GPU-41b3"]),
        ("MIG-a,MIG-b", ["MIG-a", "MIG-b"]),
        ("one", []),
    ],
)
def test_tokens_are_kept(mask: str, tokens: list[str]) -> None:
    assert masks.read_tokens(mask) == tokens


def test_the_card_of_an_inherited_mask_stays_that_card() -> None:
    job = masks.restrict({"CUDA_VISIBLE_DEVICES": "3,4,5"}, {"CUDA_VISIBLE_DEVICES": "4,3"}, CARDS, [4])
    assert job["CUDA_VISIBLE_DEVICES"] == "4"
    own = {"CUDA_VISIBLE_DEVICES": "GPU-41b3c,GPU-00"}
    assert masks.restrict({}, own, CARDS, [2])["CUDA_VISIBLE_DEVICES"] == "GPU-41b3c"
    assert masks.restrict({}, own, CARDS)["CUDA_VISIBLE_DEVICES"] == "GPU-41b3c,GPU-00"
    assert masks.restrict({}, {"CUDA_VISIBLE_DEVICES": "-1"}, CARDS)["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "CUDA_VISIBLE_DEVICES" not in masks.restrict({}, {}, CARDS), "nothing is hidden where nobody asks for it"


def test_a_card_that_cannot_be_reached_is_not_counted() -> None:
    lost = [CARDS[0], Device(index=1, name=""), Device(index=2, ordinal=1, name="T2", uuid=UUIDS[2])]
    assert list(masks.find_visible(lost)) == [0, 2]
    assert masks.restrict({}, {}, lost, [2])["CUDA_VISIBLE_DEVICES"] == "1"


def test_instances_of_a_divided_card_are_named_by_their_uuid() -> None:
    whole = Device(index=1, ordinal=1, name="A", uuid="GPU-bb")
    parts = [Device(index=2 + at, name="M", uuid=f"MIG-{at}", parent=0, parent_uuid="GPU-aa") for at in range(3)]
    cards = [whole, *parts]
    assert masks.restrict({}, {}, cards, [3])["CUDA_VISIBLE_DEVICES"] == "MIG-1"
    own = {"CUDA_VISIBLE_DEVICES": "MIG-2,MIG-0"}
    assert masks.find_visible(cards, own) == {4: "MIG-2", 2: "MIG-0"}
    assert masks.restrict({"CUDA_VISIBLE_DEVICES": "MIG-0"}, own, cards)["CUDA_VISIBLE_DEVICES"] == "MIG-0"
    assert list(masks.find_visible(cards, {"CUDA_VISIBLE_DEVICES": "GPU-bb"})) == [1]


def test_without_a_list_of_devices_the_tokens_are_intersected() -> None:
    def cut(sent: dict[str, str], own: dict[str, str], count: int | None = 1) -> dict[str, str]:
        job = masks.restrict(sent, own, [], [], count)
        return {name: job[name] for name in masks.VARIABLES if name in job}

    assert cut({}, {}) == {"CUDA_VISIBLE_DEVICES": "0"}, "one process never sees several devices"
    assert cut({}, {}, 2) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert cut({}, {}, None) == {}
    assert cut({"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "5,6"}) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert cut({"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}) == {"CUDA_VISIBLE_DEVICES": "-1"}
    both = {"HIP_VISIBLE_DEVICES": "0,1", "ROCR_VISIBLE_DEVICES": "4,5"}
    assert cut({}, both) == {"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "4,5"}
    assert cut({"ASCEND_RT_VISIBLE_DEVICES": "3,2"}, {}) == {"ASCEND_RT_VISIBLE_DEVICES": "3"}


def make_cards(kind: str) -> list[Device]:
    return [Device(index=at, ordinal=at, kind=kind, name="", uuid=f"GPU-{at}f") for at in range(6)]


def see_amd(environment: dict[str, str], cards: list[Device]) -> list[int]:
    """What HIP sees: ROCr's mask first, then HIP's, or else CUDA's, over what is left."""
    left = [card.index for card in cards]
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        mask = environment.get(name)
        if mask is None and name.startswith("HIP"):
            mask = environment.get("CUDA_VISIBLE_DEVICES")
        if mask is not None:
            tokens = [token for token in mask.split(",") if token != "-1"]
            uuids = {f"GPU-{index}f": at for at, index in enumerate(left)}
            left = [left[uuids[token] if token in uuids else int(token)] for token in tokens]
    return left


def test_amd_masks_are_composed_in_their_two_layers() -> None:
    chance, cards = random.Random(3), make_cards("amd")

    def make() -> dict[str, str]:
        made = {}
        left = 6
        if chance.random() < 0.5:
            rocr = chance.sample(range(6), chance.randint(1, 6))
            left = len(rocr)
            made["ROCR_VISIBLE_DEVICES"] = ",".join(chance.choice([str(at), f"GPU-{at}f"][:1]) for at in rocr)
        if chance.random() < 0.5:
            name = chance.choice(["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
            made[name] = ",".join(map(str, chance.sample(range(left), chance.randint(1, left))))
        return made

    for _ in range(1000):
        own, sent = make(), make()
        both = [index for index in see_amd(sent if sent else own, cards) if index in see_amd(own, cards)]
        assert list(masks.find_visible(cards, own, sent)) == both, (own, sent)
        chosen = both[:2]
        assert see_amd(masks.restrict(sent, own, cards, chosen), cards) == chosen, (own, sent)


def test_selectors_of_oneapi_and_masks_of_ascend() -> None:
    intel, ascend = make_cards("intel"), make_cards("ascend")
    own = {"ONEAPI_DEVICE_SELECTOR": "level_zero:1,2,3;!level_zero:2"}
    assert list(masks.find_visible(intel, own)) == [1, 3]
    sent = {"ONEAPI_DEVICE_SELECTOR": "*:gpu"}
    assert masks.restrict(sent, own, intel, [3])["ONEAPI_DEVICE_SELECTOR"] == "level_zero:3"
    assert masks.restrict({"ONEAPI_DEVICE_SELECTOR": "opencl:cpu"}, {}, intel)["ONEAPI_DEVICE_SELECTOR"] == "!*:gpu"
    mask = {"ASCEND_RT_VISIBLE_DEVICES": "5,4"}
    assert masks.restrict({}, mask, ascend, [4])["ASCEND_RT_VISIBLE_DEVICES"] == "4"
