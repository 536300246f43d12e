"""Weights in the original layouts: the goldens' own in every split and dtype that is published, and random ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engine.models.glm.generations import list_tensors, recognise

GOLDENS = Path(__file__).parents[2] / "goldens"
FIRST, THIRD, FOURTH = (GOLDENS / name for name in ("chatglm", "chatglm3", "glm4_original_layout"))


def golden(folder: Path) -> dict[str, Any]:
    """`case.name` -> tensor."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(folder / "golden.safetensors")
    return found


def rewrite(source: Path, place: Path, shards: int = 1, binary: bool = False, dtype: str = "float32") -> Path:
    """The golden model of `source` in `place`, in `shards` files."""
    import torch
    from safetensors.torch import load_file

    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", place)
    write(place, load_file(source / "model.safetensors"), shards, binary, getattr(torch, dtype))
    return place


def fill(folder: Path, shards: int = 1, binary: bool = False, dtype: str = "float32", scale: float = 0.1) -> Path:
    """Random weights (seeded) for the config.json that lies in `folder`."""
    import torch

    generation = recognise(json.loads((folder / "config.json").read_text()))
    assert generation is not None
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) * scale for name, shape in list_tensors(generation).items()}
    for name, tensor in made.items():
        if "layernorm" in name and name.endswith("weight"):
            tensor += 1
    write(folder, made, shards, binary, getattr(torch, dtype))
    return folder


def write(folder: Path, weights: dict[str, Any], shards: int, binary: bool, dtype: Any) -> None:
    import torch
    from safetensors.torch import save_file

    stem, suffix = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    names = sorted(weights)
    placed: dict[str, str] = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        part = {key: weights[key].to(dtype).clone() for key in names[number::shards]}
        torch.save(part, folder / name) if binary else save_file(part, folder / name, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": placed}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
