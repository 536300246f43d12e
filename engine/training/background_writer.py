"""Writes a large checkpoint in a thread, from a copy in the host's memory, while training goes on.

The loop waits until the copy is made, not until it is written. A checkpoint still appears complete or not at all. The
journal names it only once it is on the disk: at the next step boundary after the write, the main thread records it.
Only one write runs at a time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SMALLEST = 2**30
"""Bytes from which a write in the background is worthwhile: smaller checkpoints are written in a few seconds."""
SHARE = 0.5
"""Largest share of the host's free memory that the copy may take."""


@dataclass
class CheckpointFiles:
    """The content of a checkpoint, apart from the tokenizer and the model's configuration."""

    weights: dict[str, Any] | None
    """The whole model's weights, as they are stored. None: the model's weights at the time of writing."""
    objects: dict[str, Any]
    """Objects that torch saves, by the names of their files in `trainer/`."""
    texts: dict[str, str]
    """Contents of text files, by their path."""
    shards: Path | None = None
    """A folder with the shares of all ranks, where the model is divided among them."""


def is_worthwhile(size: int) -> bool:
    """Whether a checkpoint of `size` bytes is large enough, and the host has enough memory for a copy."""
    return SMALLEST <= size <= SHARE * psutil.virtual_memory().available


def count_bytes(content: Any) -> int:
    """The bytes of all tensors in nested containers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _list_tensors(content))


def _list_tensors(content: Any) -> Iterator[Any]:
    import torch

    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping):
        for each in content.values():
            yield from _list_tensors(each)
    elif isinstance(content, (list, tuple)):
        for each in content:
            yield from _list_tensors(each)


def copy_to_host(content: Any) -> Any:
    """A deep copy of nested containers, with all tensors on the host; they are copied one by one."""
    import torch

    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copy_to_host(each) for key, each in content.items()}
    if type(content) in (list, tuple):
        return type(content)(copy_to_host(each) for each in content)
    return copy.deepcopy(content)


class BackgroundWriter:
    """Runs at most one write at a time. Only the main thread calls its methods."""

    def __init__(self) -> None:
        self.step: int | None = None
        """The step of the checkpoint that is being written, or whose write failed; None if there is neither."""
        self._write: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, write: Callable[[], None]) -> None:
        """Call `write` in a thread."""
        assert self.step is None
        self.step, self._write = step, write
        self.restart()

    def restart(self) -> None:
        """Start a failed write again; does nothing if no write has failed."""
        if self.step is None or self.busy or (self._thread is not None and self._error is None):
            return
        self._error = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error

    def wait(self) -> OSError | None:
        """Wait for the write to end. Returns the OSError with which it failed, or None when it is complete, and then
        forgets it. Raises any other error."""
        if self._thread is not None:
            self._thread.join()
        if self._error is None:
            self.step, self._thread, self._write = None, None, lambda: None
        elif not isinstance(self._error, OSError):
            error, self.step = self._error, None
            raise error
        return self._error
