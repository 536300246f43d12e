"""Imports of the libraries that models are run with.

They are thousands of modules. Python would collect garbage hundreds of times while it imports them, each time among
more objects, and would find next to none: a seventh of the time that the imports take.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOADING = (
    "torch",
    "transformers",
    "transformers.conversion_mapping",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.modeling_layers",
    "transformers.generation.utils",
)
"""What loading a model imports, whatever its family."""


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """A context in which Python does not look for garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def import_all(names: Iterable[str] = LOADING) -> None:
    """Import modules, in this order, without those that this version of their package lacks. Their objects, which live
    as long as the process, are left out of later collections. Has no effect when all are imported already. Raises what
    the modules raise."""
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    with collecting_no_garbage():
        for name in missing:
            if name == "transformers":
                import_transformers()
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name or "." not in name:
                    raise
    gc.freeze()


def import_transformers() -> None:
    """Import transformers, and have it look once through the sources of its models, of which there are 1,600: it keeps
    what it finds by the path that it is given, and gives a folder first and then a file of that folder."""
    import transformers
    from transformers.utils import import_utils

    assert transformers
    looking: Any = getattr(import_utils, "create_import_structure_from_path", None)
    if hasattr(looking, "cache_info"):  # else another version, which keeps nothing
        import_utils.create_import_structure_from_path = lambda path: looking(_name_folder(path))


def _name_folder(path: str | Path) -> Path:
    """The folder of a package's `__init__.py`, and any other path as it is, in the type that transformers begins
    with."""
    path = Path(path)
    return path.parent if path.name == "__init__.py" else path


def is_adapted(model: Any) -> bool:
    """Whether peft has wrapped the model. peft, which takes long to import, is not imported for it."""
    kind = getattr(sys.modules.get("peft"), "PeftModel", None)
    return kind is not None and isinstance(model, kind)
