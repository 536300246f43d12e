"""Decodes one row with a faster step, if a trial finds it correct and faster (`engine.models.trials`).

Two steps are tried. The lean step (`engine.inference.lean_step`) needs no preparation; on CUDA it is captured in a
graph. The other is a compiled program: compilation takes from half a minute to several minutes, in a process of its
own, and chat goes on meanwhile without it. All of this begins after the first longer reply. A reply that is being
written when a step is ready goes on with it. Verdicts and programs are kept in the home, for the next time that a model
of this configuration is loaded. `COCKPIT_COMPILE=0` turns all of this off; `COCKPIT_COMPILE=1` allows compilation on a
CPU too, where it is off by default.
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
from engine.inference.lean_step import LeanStep, is_lean, make_lean_step
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
"""Compilation begins after a reply of at least this many tokens; for shorter ones it is not worthwhile."""
_STEPS = 4
"""Number of tokens that the trial decodes."""
_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
_FASTER = 1.15
"""The program must be this many times as fast. A smaller gain may be noise on a machine that also does other work."""
_ROOM = 256
"""Number of tokens after the prompt that the cache has room for at first."""


@dataclass
class Output:
    """What a forward pass returns, with the names of transformers."""

    logits: Any
    past_key_values: Any


class Program:
    """A loaded program with the weights of one model."""

    def __init__(self, path: Path, model: Any) -> None:
        import torch

        self._runner = torch._inductor.aoti_load_package(str(path))
        self.take_weights(model)

    def take_weights(self, model: Any) -> None:
        """Use the weights of `model`, without copying them. Raises KeyError if `model` lacks one of the program's."""
        self.model = model
        own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._weights = {name: own[name.removeprefix("model.")].detach() for name in self._runner.get_constant_fqns()}
        self._runner.load_constants(self._weights, check_full_update=True, user_managed=True)

    def drop_weights(self) -> None:
        """Forget the model, so that its memory can be freed; `take_weights` comes before the next step."""
        self.model, self._weights = None, {}

    def step(self, ids: Any, held: Held) -> Any:
        """The logits `[1, vocabulary]` after the token `ids` [1, 1], which is appended to the cache `held`."""
        import torch

        held.make_room()
        logits = self._runner(ids, torch.tensor([held.length], device=ids.device), held.tensors)
        held.length += 1
        return logits


class Compilation:
    """Compiles, tries and uses the program for one loaded base."""

    def __init__(self, home: Home, base: str, say: Callable[[str], object] = lambda _: None) -> None:
        """`say` is called with one line that says whether the program is used, and why."""
        self._home, self._base, self._say = home, base, say
        self._program: Program | LeanStep | None = None
        """The step in use."""
        self._speedup = 0.0
        self._thread: threading.Thread | None = None
        self._over = False
        self._latest: weakref.ref[Any] | None = None
        """The model of the newest reply. It may be unloaded while another process compiles."""
        self.active = 0
        """Number of replies that are being written."""

    def open(self, model: Any, cancelled: Callable[[], bool]) -> Callable[..., Any]:
        """The forward pass of a reply of one row."""
        self._latest = weakref.ref(model)
        if not self._over and self._thread is None and is_usable(model) and self._is_known(model):
            self._start(model)
        return _Forward(self, model, cancelled)

    def watch(self, model: Any, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces of a reply. After them compilation begins if the reply had at least `LEAST_TOKENS` tokens."""
        self.active += 1
        count = 0
        try:
            for piece in pieces:
                count = piece.count
                yield piece
        finally:
            self.active -= 1
            if not self.active and isinstance(self._program, LeanStep):
                self._program.rest()
        if count >= LEAST_TOKENS and not self._over and self._thread is None and is_usable(model):
            self._start(model)

    def find(self, model: Any) -> Program | LeanStep | None:
        """The step in use, with the weights of `model`; None if it cannot be used now."""
        program = self._program
        if program is None or program.model is model:
            return program
        fits = _is_leanable if isinstance(program, LeanStep) else is_compilable
        if self.active > 1 or not fits(model):
            return None
        program.take_weights(model)
        return program

    def give_up(self, error: Exception) -> None:
        """Never use a step again in this process."""
        self._program, self._over = None, True
        self._say(f"replies go on without the faster step: {first_line(error)}")

    def drop_weights(self) -> None:
        """Forget the model of the step in use, which is about to be unloaded or replaced."""
        if self._program is not None:
            self._program.drop_weights()

    def wait(self) -> None:
        """Wait until the thread that compiles and tries the program has ended."""
        if self._thread is not None:
            self._thread.join()

    def _path(self, model: Any) -> Path:
        from engine.inference.step_program import name_program

        return self._home.cache / "compiled" / f"{name_program(model)}.pt2"

    def _trials(self, device: Any) -> Trials:
        from engine.inference.step_program import describe_device

        return Trials(self._home, str(device), describe_device(device))

    def _is_known(self, model: Any) -> bool:
        """Whether a step has been tried or compiled before, for a model of this configuration."""
        path = self._path(model)
        return path.exists() or self._trials(model.device).read(f"lean step {path.stem}") is not None

    def _start(self, model: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=(self._describe(model),), name="compile", daemon=True)
        self._thread.start()

    def _describe(self, model: Any) -> dict[str, Any]:
        """What the thread, and the worker that compiles the program, need to know."""
        return {
            "base": self._base,
            "attention": model.config._attn_implementation,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "threads": _count_threads(),
            "path": str(self._path(model)),
            "fits": has_memory_to_build(model),
            "lean": _is_leanable(model),
            "compilable": is_compilable(model),
        }

    def _run(self, request: dict[str, Any]) -> None:
        """Try the steps that this model can have."""
        try:
            trials = self._trials(request["device"])
            if request["lean"]:
                self._offer(trials, "lean step", request, make_lean_step)
            if request["compilable"]:
                try:
                    self._compile(trials, request)
                except Exception as error:
                    if self._program is None:
                        raise
                    self._say(f"replies go on with the lean step, without the compiled one: {first_line(error)}")
        except Exception as error:  # noqa: BLE001 - whatever a compiler, loader or driver raises
            self.give_up(error)
        finally:
            self._over = self._program is None

    def _compile(self, trials: Trials, request: dict[str, Any]) -> None:
        """Compile the program unless it is there, and try it unless there is a verdict."""
        path = Path(request["path"])
        name = f"compiled step {path.stem}"
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
        self._offer(trials, "compiled step", request, lambda model: Program(path, model))

    def _offer(self, trials: Trials, kind: str, request: dict[str, Any], make: Callable[[Any], Any]) -> None:
        """Use the step that `make` makes for the newest model, if it is correct and faster than the one in use."""
        name = f"{kind} {Path(request['path']).stem}"
        kept = trials.read(name)
        while self.active and kept is None:  # a trial would take the device from a reply
            time.sleep(0.1)
        model = self._latest() if self._latest else None
        if model is None or str(self._path(model)) != request["path"]:
            return
        if kept is None:
            kept = _try(trials, name, make(model), model)
            self._say(f"{kind}: {kept.reason}")
        if kept.used and kept.speedup > self._speedup:
            self._program, self._speedup = make(model), kept.speedup


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
    """A `CancellableForward` that uses the program for single tokens, as soon as there is one."""

    def __init__(self, compilation: Compilation, model: Any, cancelled: Callable[[], bool]) -> None:
        self._compilation, self._model = compilation, model
        self._plain = CancellableForward(model, cancelled)

    def __call__(self, ids: Any, cache: Any) -> Any:
        from engine.inference.step_program import Held

        if cache is not None and ids.numel() == 1:
            try:
                program = self._compilation.find(self._model)
                held = cache if isinstance(cache, Held) or program is None else _hold(cache)
                if program is not None and held is not None:
                    return Output(program.step(ids, held)[:, None], held)
            except Exception as error:  # noqa: BLE001 - whatever a compiled program raises; the plain path goes on
                self._compilation.give_up(error)
        return self._plain(ids, cache.to_cache() if isinstance(cache, Held) else cache)


def is_usable(model: Any) -> bool:
    """Whether a faster step can be tried for this model, and that is not turned off."""
    return os.environ.get(VARIABLE) != "0" and (is_compilable(model) or _is_leanable(model))


def is_compilable(model: Any) -> bool:
    """Whether a model can be compiled: it is one of transformers' own, on one device, with unquantised weights of one
    dtype and full attention in all layers; a compiler is installed; and compilation is not turned off."""
    import torch

    # On a CPU compiling takes minutes, and decoding became no faster (see bench/results).
    wanted = os.environ.get(VARIABLE) or ("0" if model.device.type == "cpu" else "1")
    if wanted == "0" or not _has_compiler(model.device.type):
        return False
    if not type(model).__module__.startswith("transformers.models.") or is_spread(model):
        return False
    if getattr(model, "reads_both_ways", False) or str(model.dtype).removeprefix("torch.") not in _TOLERANCES:
        return False
    if not _attends_to_all(model):
        return False
    config = model.config.get_text_config()
    # The program is compiled from the configuration, so weights must be tied exactly where the configuration ties them.
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    if bool(getattr(config, "tie_word_embeddings", False)) != (ends[0] is ends[1]):
        return False
    linear = (torch.nn.Linear, torch.nn.Embedding)
    return all(weight.dtype == model.dtype and weight.device == model.device for weight in model.parameters()) and all(
        type(part) in linear for part in model.modules() if hasattr(part, "in_features")
    )


def _is_leanable(model: Any) -> bool:
    known = str(model.dtype).removeprefix("torch.") in _TOLERANCES
    return known and not is_spread(model) and is_lean(model) and _attends_to_all(model)


def _attends_to_all(model: Any) -> bool:
    """Whether every layer attends to all tokens, without a window."""
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ())}
    return not getattr(config, "sliding_window", None) and kinds <= {"full_attention"}


def _has_compiler(kind: str) -> bool:
    import importlib.util

    if kind == "cuda":
        return importlib.util.find_spec("triton") is not None
    return kind == "cpu" and any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++")))


def _count_threads() -> int:
    import torch

    return int(torch.get_num_threads())


def _hold(cache: Any) -> Held | None:
    """The content of a cache; None unless all its layers keep all tokens."""
    from transformers.cache_utils import DynamicLayer

    from engine.inference.step_program import Held

    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    length = cache.get_seq_length()
    return Held(cache, 1 << (length + _ROOM - 1).bit_length())


def _try(trials: Trials, name: str, program: Program | LeanStep, model: Any) -> Verdict:
    """Compare some tokens of the program with those of the model."""
    import torch

    # A copy, since a reply may put hooks into the model's modules.
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
    # Whoever quits after a first reply would otherwise have refused the lean step for good.
    harmless = isinstance(program, LeanStep) and model.device.type == "cpu"
    return trials.decide(name, plain, fast, tolerance=tolerance, faster=_FASTER, harmless=harmless)


def has_memory_to_build(model: Any) -> bool:
    """Whether the device has room for a second copy of the weights, which the process that compiles for a GPU needs."""
    if model.device.type == "cpu":
        return True
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return size * 1.2 < accelerator.free_bytes(model.device)
