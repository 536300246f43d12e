"""Talking to models, from Python too:

    from engine.inference import PRESETS, Sampling, load

    model = load("last")                                      # any TARGET: a run, RUN@STEP, a folder, a name, a hub id, a GGUF file
    model.chat("Why is the sea blue?").text                   # a conversation of one turn; or a list of messages
    for piece in model.stream([{"role": "user", "content": "Hi"}], Sampling(**PRESETS["chat"])):
        print(piece.text, end="")
    model.generate("Once upon a time", Sampling(max_new_tokens=64))   # a text, continued as it stands
    model.batch(["one", "two"], Sampling(temperature=1.0, seed=7))    # many at once, in their order
    model.model, model.tokenizer                              # transformers' own

What is imported here is loaded when it is asked for: the other modules of the package do not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.inference.generate import Piece as Piece
    from engine.inference.generate import Reply as Reply
    from engine.inference.loaded_model import Loaded as Loaded
    from engine.inference.loaded_model import load as load
    from engine.inference.sampling import PRESETS as PRESETS
    from engine.inference.sampling import Sampling as Sampling

FACE = {
    "load": "engine.inference.loaded_model",
    "Loaded": "engine.inference.loaded_model",
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
