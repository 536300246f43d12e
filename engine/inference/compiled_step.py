"""Decoding one row with a compiled program, once it has proved itself (see `engine.models.trials`).

Compilation takes from half a minute to minutes. It begins after the first longer reply, in a process of its own, and
chat goes on meanwhile as before; the reply that is then being written goes on with the program. It is kept in the home,
for the next time that a model of this shape is loaded. `COCKPIT_COMPILE=0` turns all of this off,
`=1` turns it on where it is off: on a CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.inference.decoder import copy_modules
from engine.inference.prefill import CancellableForward
from engine.models import accelerator
from engine.models.placement import is_spread
from engine.models.trials import Trials, Verdict
from engine.protocol.home import Home, make_private
from engine.protocol.text import first_line

if TYPE_CHECKING:
    from engine.inference.generate import Piece
    from engine.inference.step_program import Held

VARIABLE = "COCKPIT_COMPILE"
WORKER = "engine.workers.compile_step"
LEAST_TOKENS = 32
"""A reply of as many tokens shows that it is worth while."""
_STEPS = 4
"""Tokens of the trial."""
_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
_FASTER = 1.15
"""How many times as fast the program must be: less is within the noise of a machine that does other things, too."""
_ROOM = 256
"""Tokens that there is room for at first, behind the prompt."""


@dataclass
class Output:
    """What a forward pass returns, in the words of transformers."""

    logits: Any
    past_key_values: Any


class Program:
    """A loaded program with the weights of one model."""

    def __init__(self, path: Path, model: Any) -> None:
        import torch

        self._runner = torch._inductor.aoti_load_package(str(path))
        self.take_weights(model)

    def take_weights(self, model: Any) -> None:
        """Compute with the weights of `model`, which are not copied. Raises KeyError for one that it lacks."""
        self.model = model
        own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._weights = {name: own[name.removeprefix("model.")].detach() for name in self._runner.get_constant_fqns()}
        self._runner.load_constants(self._weights, check_full_update=True, user_managed=True)

    def step(self, ids: Any, held: Held) -> Any:
        """Logits `[1, vocabulary]` behind the token `ids` [1, 1]; `held` becomes longer by it."""
        import torch

        held.make_room()
        logits = self._runner(ids, torch.tensor([held.length], device=ids.device), held.tensors)
        held.length += 1
        return logits


class Compilation:
    """The program for one loaded base: whether there is one, whether it is worth while, and using it."""

    def __init__(self, home: Home, base: str, say: Callable[[str], object] = lambda _: None) -> None:
        """`say` is called with one line when the program is first used, or cannot be."""
        self._home, self._base, self._say = home, base, say
        self._program: Program | None = None
        self._thread: threading.Thread | None = None
        self._over = False
        self._latest: weakref.ref[Any] | None = None
        """The model of the newest reply. It may be unloaded while another process compiles."""
        self.active = 0
        """Replies being written."""

    def open(self, model: Any, cancelled: Callable[[], bool]) -> Callable[..., Any]:
        """The forward pass of a reply of one row."""
        self._latest = weakref.ref(model)
        if not self._over and self._thread is None and is_compilable(model) and self._path(model).exists():
            self._start(model)
        return _Forward(self, model, cancelled)

    def watch(self, model: Any, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces of a reply, after which compilation begins if the reply shows that it is worth while."""
        self.active += 1
        count = 0
        try:
            for piece in pieces:
                count = piece.count
                yield piece
        finally:
            self.active -= 1
        if count >= LEAST_TOKENS and not self._over and self._thread is None and is_compilable(model):
            self._start(model)

    def find(self, model: Any) -> Program | None:
        """The program, with the weights of `model`."""
        program = self._program
        if program is None or program.model is model:
            return program
        if self.active > 1 or not is_compilable(model):
            return None
        program.take_weights(model)
        return program

    def give_up(self, error: Exception) -> None:
        """Never use the program again in this process."""
        self._program, self._over = None, True
        self._say(f"replies go on without the compiled step: {first_line(error)}")

    def wait(self) -> None:
        """Until what was begun has ended."""
        if self._thread is not None:
            self._thread.join()

    def _path(self, model: Any) -> Path:
        from engine.inference.step_program import name_program

        return self._home.cache / "compiled" / f"{name_program(model)}.pt2"

    def _start(self, model: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=(self._describe(model),), name="compile", daemon=True)
        self._thread.start()

    def _describe(self, model: Any) -> dict[str, Any]:
        """What the worker must know, without the weights."""
        return {
            "base": self._base,
            "attention": model.config._attn_implementation,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "threads": _count_threads(),
            "path": str(self._path(model)),
            "fits": has_memory_to_build(model),
        }

    def _run(self, request: dict[str, Any]) -> None:
        """Compile unless that is done, load, and try."""
        from engine.inference.step_program import describe_device

        try:
            path, device = Path(request["path"]), request["device"]
            name = f"compiled step {path.stem}"
            trials = Trials(self._home, device, describe_device(device))
            kept = trials.read(name)
            if kept is not None and not kept.used:
                return
            if not path.exists():
                if not request["fits"]:
                    return
                if failure := _build(request, self._home):
                    trials.keep(Verdict(name, used=False, reason=failure))
                    self._say(f"compiled step: {failure}")
                    return
            while self.active and kept is None:  # a trial would take the device from a reply
                time.sleep(0.1)
            model = self._latest() if self._latest else None
            if model is None or str(self._path(model)) != request["path"]:
                return
            program = Program(path, model)
            if kept is None:
                kept = _try(trials, name, program, model)
                self._say(f"compiled step: {kept.reason}")
            if kept.used:
                self._program = program
        except Exception as error:  # noqa: BLE001 - whatever a compiler, loader or driver raises
            self.give_up(error)
        finally:
            self._over = self._program is None


def _build(request: dict[str, Any], home: Home) -> str:
    """Compile in another process; returns why that failed, or an empty text."""
    path = Path(request["path"])
    make_private(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", WORKER, "--home", str(home.root), json.dumps(request)],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": scratch, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode == 0 and path.exists():
        return ""
    lines = ended.stderr.strip().splitlines()
    return f"it does not compile: {lines[-1][:300] if lines else f'status {ended.returncode}'}"


class _Forward:
    """As `CancellableForward`, with the program for single tokens as soon as there is one."""

    def __init__(self, compilation: Compilation, model: Any, cancelled: Callable[[], bool]) -> None:
        self._compilation, self._model = compilation, model
        self._plain = CancellableForward(model, cancelled)

    def __call__(self, ids: Any, cache: Any) -> Any:
        from engine.inference.step_program import Held

        program = self._compilation.find(self._model) if cache is not None and ids.shape[1] == 1 else None
        if program is not None:
            try:
                held = cache if isinstance(cache, Held) else _hold(cache)
                if held is not None:
                    return Output(program.step(ids, held)[:, None], held)
            except Exception as error:  # noqa: BLE001 - whatever a compiled program raises; the plain path goes on
                self._compilation.give_up(error)
        return self._plain(ids, cache.to_cache() if isinstance(cache, Held) else cache)


def is_compilable(model: Any) -> bool:
    """Whether a model is one of transformers' own, whole on one device, with plain weights in one dtype and attention
    to all tokens, and nothing keeps it from being compiled here."""
    import torch

    # On a CPU it takes minutes to compile, and gained nothing by the clock (see bench/results).
    wanted = os.environ.get(VARIABLE) or ("0" if model.device.type == "cpu" else "1")
    if wanted == "0" or not _has_compiler(model.device.type):
        return False
    if not type(model).__module__.startswith("transformers.models.") or is_spread(model):
        return False
    if getattr(model, "reads_both_ways", False) or str(model.dtype).removeprefix("torch.") not in _TOLERANCES:
        return False
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) or {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        return False
    # The program is made for weights that are shared as the configuration says.
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    if bool(getattr(config, "tie_word_embeddings", False)) != (ends[0] is ends[1]):
        return False
    linear = (torch.nn.Linear, torch.nn.Embedding)
    return all(weight.dtype == model.dtype and weight.device == model.device for weight in model.parameters()) and all(
        type(part) in linear for part in model.modules() if hasattr(part, "in_features")
    )


def _has_compiler(kind: str) -> bool:
    import importlib.util

    if kind == "cuda":
        return importlib.util.find_spec("triton") is not None
    return kind == "cpu" and any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++")))


def _count_threads() -> int:
    import torch

    return int(torch.get_num_threads())


def _hold(cache: Any) -> Held | None:
    """The content of a cache, if all its layers keep all tokens."""
    from transformers.cache_utils import DynamicLayer

    from engine.inference.step_program import Held

    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    length = cache.get_seq_length()
    return Held(cache, 1 << (length + _ROOM - 1).bit_length())


def _try(trials: Trials, name: str, program: Program, model: Any) -> Verdict:
    """Compare some tokens of the program with those of the model."""
    import torch

    # Of its own, since a reply may put hooks into the model's modules.
    plain_model = copy_modules(model, {})
    ids = torch.arange(16, device=model.device)[None] + 5
    with torch.inference_mode():
        start = plain_model(input_ids=ids, use_cache=True).past_key_values

    def plain() -> list[Any]:
        import copy

        with torch.inference_mode():
            cache, found = copy.deepcopy(start), []
            for at in range(_STEPS):
                output = plain_model(
                    input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                found.append(output.logits[:, -1])
        return found

    def fast() -> list[Any]:
        with torch.inference_mode():
            held = _hold(start)
            assert held is not None, "this model keeps a cache of another kind"
            return [program.step(ids[:, at : at + 1], held).clone() for at in range(_STEPS)]

    tolerance = _TOLERANCES[str(model.dtype).removeprefix("torch.")]
    return trials.decide(name, plain, fast, tolerance=tolerance, faster=_FASTER)


def has_memory_to_build(model: Any) -> bool:
    """Whether the device has room for the weights once more, which a process that compiles for a card needs."""
    if model.device.type == "cpu":
        return True
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return size * 1.2 < accelerator.free_bytes(model.device)
