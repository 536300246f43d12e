"""Generating with models; the Python interface:

    from engine.inference import PRESETS, Sampling, load

    model = load("last")                   # any TARGET: a run, RUN@STEP, a folder, a name, a hub id, a GGUF file
    model.chat("Why is the sea blue?").text                           # one turn; or a list of messages
    model.chat("Tell me more.", max_new_tokens=64, temperature=0.7)   # any field of Sampling is a keyword
    for piece in model.stream([{"role": "user", "content": "Hi"}], Sampling(**PRESETS["chat"])):
        print(piece.text, end="")
    model.generate("Once upon a time", max_new_tokens=64)             # a text, continued as it stands
    model.batch(["one", "two"], temperature=1.0, seed=7)              # many at once, in their order
    model.model, model.tokenizer                                      # the objects of transformers

These names are imported when they are used, so that importing another module of the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.inference.generate import Piece as Piece
    from engine.inference.generate import Reply as Reply
    from engine.inference.loaded_model import LoadedModel as LoadedModel
    from engine.inference.loaded_model import load as load
    from engine.inference.sampling import PRESETS as PRESETS
    from engine.inference.sampling import Sampling as Sampling

FACE = {
    "load": "engine.inference.loaded_model",
    "LoadedModel": "engine.inference.loaded_model",
    "Sampling": "engine.inference.sampling",
    "PRESETS": "engine.inference.sampling",
    "Piece": "engine.inference.generate",
    "Reply": "engine.inference.generate",
}


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(FACE[name]), name)
