"""Bases whose weights are stored quantised: GPTQ, AWQ and compressed-tensors need a library of their own.

transformers reads them through that library and would say that it is missing only when the weights are loaded, in the
middle of a launch.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.models import files
from engine.protocol.messages import Problem

LIBRARIES = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
}
"""Method in config.json -> the packages through which transformers reads it."""
NAMES = {"gptq": "GPTQ", "awq": "AWQ", "compressed-tensors": "compressed-tensors"}
_DISTRIBUTIONS = {"compressed_tensors": "compressed-tensors"}


def read_method(folder: Path) -> str:
    """The method of `LIBRARIES` by which a model folder's weights are quantised; empty for other folders."""
    path = folder / "config.json"
    if not path.is_file():
        return ""
    config: Any = files.read_json_object(path).get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    return method if isinstance(method, str) and method in LIBRARIES else ""


def find_problem(folder: Path) -> Problem | None:
    """Why the weights in a folder cannot be read here; None if they can, or are of another kind."""
    method = read_method(folder)
    missing = [name for name in LIBRARIES.get(method, ()) if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    packages = " ".join(_DISTRIBUTIONS.get(name, name) for name in missing)
    return Problem(
        code="model.quantized_unreadable",
        title=f"The weights in {folder} are quantised with {NAMES[method]}, which cannot be read here",
        cause=f"transformers reads them through {' and '.join(missing)}, not installed in this Python",
        hint=f"pip install {packages}; or name the model that was quantised, with model.quantization nf4 "
        "where memory is short",
    )


@contextmanager
def reading(folder: Path, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments for `from_pretrained` with which weights that are stored quantised are read as they are meant.

    transformers' auto classes take `quantization_config=None` for the folder's own, and would draw the weights at
    random. The weights of compressed-tensors are unpacked while they are loaded: left packed, they are unpacked by the
    first pass through the whole model, which neither chat nor training begins with.
    """
    given = dict(arguments)
    if given.get("quantization_config") is None:
        given.pop("quantization_config", None)
        if read_method(folder) == "compressed-tensors":
            given["quantization_config"] = _unpacking()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")  # and the folder has one: as it should be
        yield given


def _unpacking() -> Any:
    from transformers import CompressedTensorsConfig

    known = inspect.signature(CompressedTensorsConfig).parameters
    return CompressedTensorsConfig(**({"dequantize": True} if "dequantize" in known else {"run_compressed": False}))


def find_conflicts(folder: Path, quantization: str, trains_all: bool) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for settings that do not go with a folder whose weights are stored quantised."""
    name = NAMES.get(read_method(folder), "")
    if name and quantization != "none":
        yield "model.quantization", f"the base's weights are stored with {name}: leave it out"
    if name and trains_all:
        yield "adapter.kind", f"the base's weights are stored with {name} and cannot be trained themselves: take lora"
