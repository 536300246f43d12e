"""Lets llama.cpp itself compute a GGUF file, where `llama-cpp-python` is installed.

llama.cpp gives logits alone. The tokens of a prompt, sampling, stop tokens and schemas are those of all other models,
so that the same settings mean the same.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.inference.prefill import Cancelled
from engine.protocol.text import first_line

PACKAGE = "llama_cpp"
_LEAST = 2048
"""Tokens for which there is room at first. A cache of the whole context would take gigabytes for many models."""
_CHUNK = 64
"""Tokens of a prompt that are computed between two looks at whether the reply has been cancelled."""


@dataclass
class Output:
    """What a forward pass returns, with the names of transformers. The cache is llama.cpp's own."""

    logits: Any
    past_key_values: Any


class LlamaCppModel:
    """A GGUF file in llama.cpp. It holds the tokens of one conversation, which the next reply goes on with."""

    def __init__(self, file: Path, context: int, device: str = "cpu", *, spread: bool = False) -> None:
        """`spread`: over all visible cards. Raises what llama.cpp's Python package raises for a file that it cannot
        read."""
        self._package = importlib.import_module(PACKAGE)
        self._file, self._most = file, context
        self._options = choose_options(self._package, device, spread)
        self._held: list[int] = []
        self._llama: Any = self._open(min(context, _LEAST))

    @property
    def version(self) -> str:
        return f"llama-cpp-python {self._package.__version__}"

    def open(self, model: Any, cancelled: Callable[[], bool]) -> Callable[..., Output]:
        """The forward pass of one reply, whose logits are on the device of `model`."""
        ids: list[int] = []

        def forward(following: Any, cache: Any) -> Output:
            if cache is None:
                ids.clear()
            ids.extend(following[0].tolist())
            return Output(self._advance(ids, cancelled).to(model.device), self)

        return forward

    def _open(self, room: int) -> Any:
        return self._package.Llama(str(self._file), n_ctx=room, verbose=False, **self._options)

    def _advance(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Any:
        """The logits [1, 1, vocabulary] after `ids`. Raises Cancelled."""
        import numpy
        import torch

        if self._llama is not None and len(ids) > self._llama.n_ctx():
            self._llama.close()
            self._held, self._llama = [], None
        if self._llama is None:  # also when there was no memory for it the last time
            self._llama = self._open(min(self._most, max(_LEAST, 2 * len(ids))))
        # Not all models can take tokens back (recurrent ones cannot), so what does not go on begins anew.
        if not len(self._held) < len(ids) or self._held != ids[: len(self._held)]:
            self._llama.reset()
            self._held = []
        while len(self._held) < len(ids):
            if len(ids) - len(self._held) > 1 and cancelled():
                raise Cancelled
            chunk = list(ids[len(self._held) : len(self._held) + _CHUNK])
            self._llama.eval(chunk)
            self._held += chunk
        found = self._package.llama_get_logits_ith(self._llama.ctx, -1)
        logits = numpy.ctypeslib.as_array(found, shape=(self._llama.n_vocab(),))
        return torch.from_numpy(logits.copy())[None, None]  # the next token overwrites llama.cpp's own


def choose_options(package: Any, device: str, spread: bool) -> dict[str, Any]:
    """llama.cpp's options for the device that was chosen: left alone, it would take all cards that it sees, also when
    another program's model is on them, and half of the host's cores, also in a container that has fewer."""
    import torch

    threads = torch.get_num_threads()
    options = {"n_threads": threads, "n_threads_batch": threads, "n_gpu_layers": 0}
    kind, _, card = device.partition(":")
    if kind != "cpu" and package.llama_supports_gpu_offload():
        options["n_gpu_layers"] = -1
        if kind == "cuda" and not spread:
            options |= {"split_mode": package.LLAMA_SPLIT_MODE_NONE, "main_gpu": int(card or 0)}
    return options


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def find(file: Path | None, context: int, device: str, *, spread: bool = False) -> tuple[LlamaCppModel | None, str]:
    """The model of a GGUF file in llama.cpp where it is installed and computes on the kind of device that was chosen,
    and a note for the user, which is empty where it is not installed."""
    if file is None or not is_installed():
        return None, ""
    try:
        if device != "cpu" and not importlib.import_module(PACKAGE).llama_supports_gpu_offload():
            return None, ""
        made = LlamaCppModel(file, context, device, spread=spread)
    except Exception as error:  # noqa: BLE001 - a library of another build raises many kinds
        return (
            None,
            f"llama.cpp cannot compute it ({first_line(error)}), so single replies are computed with these",
        )
    return made, f"single replies are computed by llama.cpp ({made.version}) from the file itself"


def score_texts(
    file: Path, texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> tuple[list[Any], list[list[int]], str]:
    """llama.cpp's log-probabilities [tokens, vocabulary] of each of `ids`, its own token ids of `texts`, and its
    version. Raises what its Python package raises."""
    import torch

    package = importlib.import_module(PACKAGE)
    room = max(map(len, ids)) + 1
    llama = package.Llama(str(file), n_ctx=room, n_batch=room, logits_all=True, verbose=False)
    try:
        scores = []
        for each in ids:
            llama.reset()
            llama.eval(list(each))
            scores.append(torch.from_numpy(llama.scores[: len(each)].copy()).log_softmax(-1))
        own = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    finally:
        llama.close()
    return scores, own, f"llama.cpp (llama-cpp-python {package.__version__})"
