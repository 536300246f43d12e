"""Writes a large checkpoint in a thread, from a copy in the host's memory, while training goes on.

The loop waits for the copy alone. A checkpoint still appears whole or not at all, and the journal has it only when it
is on the disk: the main thread collects a finished write at the next boundary. One write is under way at a time.
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
"""Bytes from which it is worthwhile: less is written in a few seconds."""
SHARE = 0.5
"""Of the host's free memory that the copy may take, at most."""


@dataclass
class CheckpointFiles:
    """What a checkpoint consists of, besides its tokenizer and what the model's configuration says."""

    weights: dict[str, Any] | None
    """The weights of the whole model as they are stored; None: those that the model has when they are written."""
    objects: dict[str, Any]
    """What torch saves, by the name of the file among those for a resume."""
    texts: dict[str, str]
    """Contents of text files, by their path."""
    shards: Path | None = None
    """A folder with the shares of all ranks, where the model is divided among them."""


def is_worthwhile(size: int) -> bool:
    """Whether a checkpoint of so many bytes is large enough, and leaves the host enough memory."""
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
    """A copy of nested containers that shares nothing with them; tensors one by one, on the host."""
    import torch

    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copy_to_host(each) for key, each in content.items()}
    if type(content) in (list, tuple):
        return type(content)(copy_to_host(each) for each in content)
    return copy.deepcopy(content)


class BackgroundWriter:
    """At most one write. Only the main thread calls it."""

    def __init__(self) -> None:
        self.step: int | None = None
        """The step of the checkpoint that is being written, or could not be; None when there is none."""
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
        """Try again what failed; nothing otherwise."""
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
        """Wait for the write to end, and return why it failed; None for a complete one, which is then forgotten. Raises
        any error that is not the disk's."""
        if self._thread is not None:
            self._thread.join()
        if self._error is None:
            self.step, self._thread, self._write = None, None, lambda: None
        elif not isinstance(self._error, OSError):
            error, self.step = self._error, None
            raise error
        return self._error
