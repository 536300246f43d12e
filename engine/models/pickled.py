"""Reads the shapes in a PyTorch `.bin` file without PyTorch, and without running pickled code.

The format (torch.save since 1.6) is a zip archive with one top folder: `data.pkl`, and a file for each storage under
`data/`. `data.pkl` names functions to call. Only those that build a dict of tensors are known here, and they return
shapes.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.models.weights import DamagedFile, is_lfs_pointer

_BEFORE_ZIP = bytes.fromhex("80028a0a6cfc9c46f920")
"""How files of torch.save start before 1.6: a pickled number. Their content cannot be told without loading them."""
_ITEM_BYTES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}
"""Bytes of an element, by the storage's name; 1 for all others."""


_LARGEST_PICKLE = 16 << 20
"""Bytes of `data.pkl`, which may be packed a thousand times smaller; 100,000 tensors take about 15 MB."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by name; empty for a file from before torch 1.6. Raises DamagedFile."""
    if is_lfs_pointer(path):
        raise DamagedFile(f"{path.name} is a git-lfs pointer, not the weights: run `git lfs pull` in its repository")
    with path.open("rb") as file:
        beginning = file.read(len(_BEFORE_ZIP))
    if beginning == _BEFORE_ZIP:
        return {}
    if not beginning.startswith(b"PK"):
        raise DamagedFile(f"{path.name} is not a file of PyTorch weights")
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Shapes(archive, path.name).load()
    except DamagedFile:
        raise
    except zipfile.BadZipFile:
        raise DamagedFile(f"{path.name} is incomplete: the copy was cut off") from None
    except Exception as error:  # noqa: BLE001 - an unpickler raises anything for bytes that somebody else chose
        raise DamagedFile(f"{path.name} has unreadable content ({type(error).__name__})") from None
    if not isinstance(content, Mapping):
        raise DamagedFile(f"{path.name} holds a {type(content).__name__}, not tensors by name")
    return {str(name): shape for name, shape in content.items() if isinstance(shape, tuple)}


class _Shapes(pickle.Unpickler):
    """Unpickles a dict of tensors to a dict of shapes, and looks up nothing else."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._name = name
        self._sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        pickled = next((each for each in self._sizes if each.endswith("/data.pkl")), None)
        if pickled is None:
            raise DamagedFile(f"{name} is a zip archive, but not one of PyTorch weights")
        if self._sizes[pickled] > _LARGEST_PICKLE:
            raise DamagedFile(
                f"{name} describes its tensors in {self._sizes[pickled]:,} bytes, more than any model has"
            )
        self._top = pickled.removesuffix("data.pkl")
        super().__init__(archive.open(pickled))

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, *_: tuple(shape),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name.endswith("Storage"):
            return name
        raise DamagedFile(f"{self._name} holds something other than tensors ({module}.{name}): it would not be loaded")

    def persistent_load(self, pid: Any) -> None:
        _, kind, key, _, count = pid
        entry = f"{self._top}data/{key}"
        expected = count * _ITEM_BYTES.get(kind.removesuffix("Storage"), 1)
        if self._sizes.get(entry) != expected:
            raise DamagedFile(f"{self._name} has {self._sizes.get(entry, 0)} bytes of {expected} in {entry}")
