"""What a TARGET is, as a folder for others: merged weights or the adapter alone, measured against the checkpoint that it was made from.

An adapter that was trained on a quantised base is put twice into unquantised weights, the pristine ones and those that the run computed with; both
folders are written and read back, and the one that answers more like the checkpoint is kept. Nothing stands under the final name before all of it is
measured and on the disk.
"""

from __future__ import annotations

import gc
import glob
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from engine.export import agreement, model_card, reward_scores
from engine.export import gguf_converter as gguf
from engine.models import folders, loading, merge, placement, targets
from engine.models import template_lock as lock
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.storage.atomic import write_folder

Progress = Callable[[str, int, int], None]
"""Told (what is done, done, total)."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_LEGAL = ("LICENSE*", "NOTICE*", "MODEL_LICENSE*")


@dataclass(frozen=True)
class Wanted:
    """`dtype` None: the one it was trained with, else the stored one. `gguf`: a type for the GGUF beside the weights, None for no such file;
    `converter`: where llama.cpp's converter is, None to look for one. `replacing`: an earlier export under that name may go."""

    adapter_only: bool = False
    dtype: str | None = None
    gguf: str | None = None
    converter: str | None = None
    replacing: bool = False


@dataclass(frozen=True)
class Exported:
    """`kind`: `merged`, `model`, `adapter` or `reward`. `agreement` is what `agreement.compare` or `scores.compare` says, with `base` where two were tried,
    and both figures in `candidates`; `gguf` is what `gguf.convert` says."""

    directory: Path
    kind: str
    agreement: dict[str, Any]
    gguf: dict[str, Any] | None = None


def export(
    target: Target,
    out: Path,
    wanted: Wanted,
    home: Home,
    progress: Progress = lambda *_: None,
    check: agreement.Cancelled = lambda: None,
) -> Exported:
    """Write `target` into the folder `out`, which is absent or empty, complete or not at all. Raises ProblemError, OSError, and what `check` raises."""
    refuse(target, out, wanted)
    target = targets.fetch(target, home, progress)
    targets.check(target, folders.find_weights_problems)
    lock.check_target(target)
    _room(target, out, wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    told: list[Exported] = []

    def fill(folder: Path) -> None:
        told.append(_Work(target, wanted, home, folder, out, progress, check).fill())
        if not wanted.replacing:
            _free(out)

    write_folder(out, fill)
    return replace(told[0], directory=out)


def refuse(target: Target, out: Path, wanted: Wanted) -> None:
    """Raises ProblemError for what can be said to be impossible before anything is loaded."""
    if not wanted.replacing:
        _free(out)
    if wanted.adapter_only and target.adapter is None:
        raise ProblemError(
            Problem(
                code="export.no_adapter",
                title=f"{target.label} has no adapter",
                cause="its weights are whole",
                hint="leave --adapter-only out",
            )
        )
    if target.adapter and not wanted.adapter_only and (problem := merge.explain_unmergeable(target)):
        raise ProblemError(problem)
    if wanted.gguf:
        scoring = target.adapter and folders.is_reward_model(target.adapter)
        if wanted.adapter_only or scoring or (not target.on_hub and folders.is_reward_model(Path(target.base))):
            what = "a reward model" if not wanted.adapter_only else "an adapter alone"
            raise ProblemError(
                Problem(
                    code="export.gguf_unsupported",
                    title=f"GGUF is for whole language models, not for {what}",
                    hint="leave --gguf out",
                )
            )
        gguf.find(wanted.converter)


def _free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProblemError(
            Problem(
                code="output.not_empty",
                title=f"{out} is not empty",
                hint="name a folder that does not exist yet, or empty this one",
            )
        )


def _room(target: Target, out: Path, wanted: Wanted) -> None:
    """Raises ProblemError when the disk has less than the folders take that stand side by side."""
    if wanted.adapter_only or target.on_hub:
        return
    place = next(parent for parent in (out, *out.parents) if parent.exists())
    one = placement.estimate_bytes(Path(target.base), wanted.dtype or target.dtype) / placement.OVERHEAD
    needed = one * (len(_bases(target)) + bool(wanted.gguf))
    free = shutil.disk_usage(place).free
    if needed > free:
        cause = f"about {needed / 1e9:.1f} GB are written there before the better folder is known, {free / 1e9:.1f} GB are free"
        raise ProblemError(
            Problem(
                code="disk.low",
                title=f"Too little disk for {out}",
                cause=cause,
                hint="make room, or name another place",
            )
        )


def _bases(target: Target) -> tuple[str, ...]:
    """The bases that an adapter is tried with."""
    quantised = target.quantization not in (None, "none")
    return (merge.PRISTINE, merge.DEQUANTISED) if quantised else (merge.PRISTINE,)


def _sweep(out: Path) -> None:
    """Remove what killed exports have left beside `out`."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*"):
        pid = left.name.rpartition(".")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)) and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


class _Work:
    """One export into `folder`, which will be called `out`."""

    def __init__(
        self,
        target: Target,
        wanted: Wanted,
        home: Home,
        folder: Path,
        out: Path,
        progress: Progress,
        check: agreement.Cancelled,
    ) -> None:
        self.target, self.wanted, self.home = target, wanted, home
        self.folder, self.out, self.progress, self.check = folder, out, progress, check
        self.dtype = wanted.dtype or target.dtype
        scored = target.adapter or (None if target.on_hub else Path(target.base))
        self.scores = bool(scored and folders.is_reward_model(scored))

    def fill(self) -> Exported:
        measure = self._scores if self.scores else self._answers
        before, compare = measure()
        candidates: dict[str, dict[str, Any]] = {}
        best = ""
        for name, write in self._writers().items():
            self.check()
            draft = self.folder / f".{name}"
            draft.mkdir()
            write(draft)
            _let_go()
            candidates[name] = compare(before, draft)
            if best and _distance(candidates[name]) >= _distance(candidates[best]):
                shutil.rmtree(draft)
                continue
            if best:
                shutil.rmtree(self.folder / f".{best}")
            best = name
        for path in (self.folder / f".{best}").iterdir():
            path.rename(self.folder / path.name)
        (self.folder / f".{best}").rmdir()
        agreed = candidates[best]
        if len(candidates) > 1:
            figures = {
                name: {key: each[key] for key in ("kl", "top1", "score_difference") if key in each}
                for name, each in candidates.items()
            }
            agreed = {**agreed, "base": best, "candidates": figures}
        converted = self._convert(before)
        exported = Exported(self.out, self._kind(), agreed, converted)
        self._legal()
        self.progress("writing the card", 0, 0)
        model_card.write(self.folder, self.target, exported, self.dtype, self.home)
        return exported

    # ── what is written ───────────────────────────────────────────────────────────────────────────────────────────

    def _kind(self) -> str:
        if self.wanted.adapter_only:
            return "adapter"
        if self.scores:
            return "reward"
        return "merged" if self.target.adapter else "model"

    def _writers(self) -> dict[str, Callable[[Path], None]]:
        """What may become of the export: a name, and who writes it into an empty folder."""
        if self.wanted.adapter_only:
            return {"adapter": self._adapter}
        if self.target.adapter is None:
            return {"model": self._whole}
        return {base: lambda folder, base=base: self._merged(base, folder) for base in _bases(self.target)}  # type: ignore[misc]

    def _merged(self, base: str, folder: Path) -> None:
        def tell(done: int, total: int) -> None:
            self.check()
            self.progress(f"merging into the {base} base", done, total)

        merge.write_model(
            merge.build_merged(self.target, base, self.dtype, tell, self.target.trust_remote_code), self.target, folder
        )
        self._say_dtype(folder)

    def _whole(self, folder: Path) -> None:
        import torch

        self.progress("reading the weights", 0, 0)
        load = loading.load_reward_model if self.scores else loading.load_model
        model = load(
            self.target.base,
            dtype=getattr(torch, self.dtype) if self.dtype else "auto",
            device_map="cpu",
            trust_remote_code=self.target.trust_remote_code,
        )
        if name := merge.find_non_finite(model):
            raise ProblemError(
                Problem(
                    code="model.not_finite",
                    title=f"{self.target.label} holds numbers that are not finite",
                    cause=f"the first of them in {name}",
                    hint="choose an earlier checkpoint of the run",
                )
            )
        self.progress("writing the weights", 0, 0)
        merge.write_model(model, self.target, folder)
        self._say_dtype(folder)

    def _adapter(self, folder: Path) -> None:
        source = self.target.adapter
        assert source is not None
        for name in _ADAPTER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if self.wanted.dtype:
            _cast(folder / "adapter_model.safetensors", self.wanted.dtype)
        merge.write_tokenizer(self.target, folder)
        if self.target.lock:
            shutil.copyfile(self.target.lock, folder / "lock.json")

    def _say_dtype(self, folder: Path) -> None:
        """The lock of an export names what it holds: chat takes it from there."""
        path = folder / "lock.json"
        if path.is_file():
            recorded = json.loads(path.read_text(encoding="utf-8")) | {"quantization": "none"}
            recorded |= {"dtype": self.dtype} if self.dtype else {}
            path.write_text(json.dumps(recorded, ensure_ascii=False, indent=1), encoding="utf-8")

    def _legal(self) -> None:
        """The base's licence goes where its weights go."""
        if self.target.on_hub or self.wanted.adapter_only:
            return
        for pattern in _LEGAL:
            for path in Path(self.target.base).glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, self.folder / path.name)

    # ── what is measured ──────────────────────────────────────────────────────────────────────────────────────────

    def _answers(self) -> tuple[Any, Callable[[Any, Path], dict[str, Any]]]:
        """What the checkpoint answers, and how an export's folder is compared with it."""
        from engine.inference.loaded_model import Loaded

        self.progress("loading the checkpoint", 0, 0)
        loaded = Loaded(self.target, self.target.dtype, self.target.quantization or "none", None)
        if loaded.tokenizer is None:
            raise ProblemError(
                Problem(
                    code="tokenizer.missing",
                    title=f"{self.target.label} has no tokenizer",
                    cause="nothing can be asked of it, so nobody could say that the export answers alike",
                    hint="copy the tokenizer's files from where the model came from beside its weights",
                )
            )
        sheet = agreement.sheet(self.target, loaded.tokenizer)
        before = agreement.answer(loaded, sheet, self.check, self._tell("asking the checkpoint"))
        del loaded
        _let_go()

        def compare(before: agreement.Answers, folder: Path) -> dict[str, Any]:
            made = Loaded(self._read_back(folder), self.dtype, self._quantization(), None)
            after = agreement.answer(made, sheet, self.check, self._tell("asking the export"))
            del made
            _let_go()
            return agreement.compare(sheet, before, after)

        return before, compare

    def _scores(self) -> tuple[Any, Callable[[Any, Path], dict[str, Any]]]:
        from engine.models import tokenizers

        asked, source = reward_scores.conversations(self.target, tokenizers.load(self.target.folder))
        self.progress("asking the checkpoint", 0, len(asked))
        quantization = self.target.quantization or "none"
        before = reward_scores.score(self.target, self.target.dtype, quantization, asked, self.check)
        _let_go()

        def compare(before: list[float], folder: Path) -> dict[str, Any]:
            self.progress("asking the export", 0, len(asked))
            after = reward_scores.score(self._read_back(folder), self.dtype, self._quantization(), asked, self.check)
            _let_go()
            return reward_scores.compare(before, after, source)

        return before, compare

    def _read_back(self, folder: Path) -> Target:
        lock = folder / "lock.json"
        written = Target(base=str(folder), label=folder.name, lock=lock if lock.is_file() else None)
        return replace(self.target, adapter=folder) if self.wanted.adapter_only else written

    def _quantization(self) -> str:
        return (self.target.quantization or "none") if self.wanted.adapter_only else "none"

    def _tell(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total)

    def _convert(self, before: Any) -> dict[str, Any] | None:
        if not self.wanted.gguf:
            return None
        self.check()
        self.progress(f"writing GGUF ({self.wanted.gguf})", 0, 0)
        return gguf.convert(self.folder, self.out.name, self.wanted.gguf, gguf.find(self.wanted.converter))


def _distance(figures: dict[str, Any]) -> float:
    return float(figures["score_difference"] if "score_difference" in figures else figures["kl"] or 0.0)


def _let_go() -> None:
    """Memory of a model that nobody names any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cast(path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    if not path.is_file():
        raise ProblemError(
            Problem(
                code="export.not_castable", title="Only adapters in safetensors can be cast", hint="leave --dtype out"
            )
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(
        {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()},
        temporary,
        {"format": "pt"},
    )
    temporary.replace(path)
