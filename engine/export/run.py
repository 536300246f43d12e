"""Exporting a TARGET to a folder: merged weights or the adapter alone, compared with the checkpoint.

An adapter that was trained on a quantised base is merged twice, into the original weights and into the dequantised ones
that the run computed with. Both folders are written and read back, and the one whose answers are closer to the
checkpoint's is kept. The folder appears under its name only when all of it is measured and on disk.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from engine.export import agreement, model_card, modelfile, reward_scores
from engine.export import gguf_converter as gguf
from engine.export.request import ExportRequest, ExportResult
from engine.models import accelerator, folders, loading, merge, placement, targets
from engine.models import template_lock as lock
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.storage.atomic import write_folder

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_LEGAL = ("LICENSE*", "NOTICE*", "MODEL_LICENSE*")


def export(
    target: Target,
    out: Path,
    request: ExportRequest,
    home: Home,
    progress: Progress = lambda *_: None,
    check: agreement.Cancelled = lambda: None,
) -> ExportResult:
    """Write `target` into the folder `out`, which is absent or empty, complete or not at all.

    Raises ProblemError, OSError, and what `check` raises.
    """
    check_request(target, out, request)
    target = targets.fetch(target, home, progress)
    targets.check(target, folders.find_weights_problems)
    lock.check_target(target)
    _check_disk(target, out, request)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    results: list[ExportResult] = []

    def fill(folder: Path) -> None:
        results.append(_ExportJob(target, request, home, folder, out, progress, check).fill())
        if not request.replacing:
            _check_empty(out)

    write_folder(out, fill)
    return replace(results[0], directory=out)


def check_request(target: Target, out: Path, request: ExportRequest) -> None:
    """Raises ProblemError for a request that cannot succeed, before anything is loaded."""
    if not request.replacing:
        _check_empty(out)
    if request.adapter_only and target.adapter is None:
        raise ProblemError(
            Problem(
                code="export.no_adapter",
                title=f"{target.label} has no adapter",
                cause="it is a whole model",
                hint="leave --adapter-only out",
            )
        )
    if target.adapter and not request.adapter_only and (problem := merge.explain_unmergeable(target)):
        raise ProblemError(problem)
    if request.gguf:
        scoring = target.adapter and folders.is_reward_model(target.adapter)
        if request.adapter_only or scoring or (not target.on_hub and folders.is_reward_model(Path(target.base))):
            what = "a reward model" if not request.adapter_only else "an adapter alone"
            raise ProblemError(
                Problem(
                    code="export.gguf_unsupported",
                    title=f"GGUF is for whole language models, not for {what}",
                    hint="leave --gguf out",
                )
            )
        gguf.find_converter(request.converter)
        if request.gguf in gguf.QUANTISED:
            gguf.find_quantizer(request.converter)


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProblemError(
            Problem(
                code="output.not_empty",
                title=f"{out} is not empty",
                hint="name a folder that does not exist yet, or empty this one",
            )
        )


def _check_disk(target: Target, out: Path, request: ExportRequest) -> None:
    """Raises ProblemError when the disk has no room for the candidates, which exist at the same time."""
    if request.adapter_only or target.on_hub:
        return
    place = next(parent for parent in (out, *out.parents) if parent.exists())
    one = placement.estimate_bytes(Path(target.base), request.dtype or target.dtype) / placement.OVERHEAD
    needed = one * (len(_candidate_bases(target)) + bool(request.gguf) + (request.gguf in gguf.QUANTISED))
    free = shutil.disk_usage(place).free
    if needed > free:
        cause = (
            f"about {needed / 1e9:.1f} GB are written there before the better folder is known, "
            f"{free / 1e9:.1f} GB are free"
        )
        raise ProblemError(
            Problem(
                code="disk.low",
                title=f"Too little disk for {out}",
                cause=cause,
                hint="make room, or name another place",
            )
        )


def _candidate_bases(target: Target) -> tuple[str, ...]:
    """The bases into which an adapter is merged, to compare."""
    quantised = target.quantization not in (None, "none")
    return (merge.PRISTINE, merge.DEQUANTISED) if quantised else (merge.PRISTINE,)


def _remove_leftovers(out: Path) -> None:
    """Remove what interrupted exports have left beside `out`."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*"):
        pid = left.name.rpartition(".")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)) and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


class _ExportJob:
    """One export into `folder`, which is renamed to `out` when it is complete."""

    def __init__(
        self,
        target: Target,
        request: ExportRequest,
        home: Home,
        folder: Path,
        out: Path,
        progress: Progress,
        check: agreement.Cancelled,
    ) -> None:
        self.target, self.request, self.home = target, request, home
        self.folder, self.out, self.progress, self.check = folder, out, progress, check
        self.dtype = request.dtype or target.dtype
        scored = target.adapter or (None if target.on_hub else Path(target.base))
        self.scores = bool(scored and folders.is_reward_model(scored))

    def fill(self) -> ExportResult:
        """Write all candidates, keep the closest, and add licence and card."""
        measure = self._measure_reward_model if self.scores else self._measure_language_model
        before, compare = measure()
        candidates: dict[str, dict[str, Any]] = {}
        best = ""
        for name, write in self._writers().items():
            self.check()
            draft = self.folder / f".{name}"
            draft.mkdir()
            write(draft)
            accelerator.release()
            candidates[name] = compare(before, draft)
            if best and _distance(candidates[name]) >= _distance(candidates[best]):
                shutil.rmtree(draft)
                continue
            if best:
                shutil.rmtree(self.folder / f".{best}")
            best = name
        agreement.check(candidates[best], self.target.label)
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
        converted = self._convert()
        exported = ExportResult(self.out, self._kind(), agreed, converted)
        self._copy_licences()
        self.progress("writing the card", 0, 0)
        model_card.write(self.folder, self.target, exported, self.dtype, self.home)
        return exported

    # ── what is written ───────────────────────────────────────────────────────────────────────────────────────────

    def _kind(self) -> str:
        if self.request.adapter_only:
            return "adapter"
        if self.scores:
            return "reward"
        return "merged" if self.target.adapter else "model"

    def _writers(self) -> dict[str, Callable[[Path], None]]:
        """The candidates by name, each with what writes it into an empty folder."""
        if self.request.adapter_only:
            return {"adapter": self._write_adapter}
        if self.target.adapter is None:
            return {"model": self._write_whole}
        return {base: partial(self._write_merged, base) for base in _candidate_bases(self.target)}

    def _write_merged(self, base: str, folder: Path) -> None:
        def report(done: int, total: int) -> None:
            self.check()
            self.progress(f"merging into the {base} base", done, total)

        merge.write_model(
            merge.build_merged(self.target, base, self.dtype, report, self.target.trust_remote_code),
            self.target,
            folder,
        )
        self._record_dtype(folder)

    def _write_whole(self, folder: Path) -> None:
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
                    title=f"{self.target.label} has weights that are not finite",
                    cause=f"the first of them in {name}",
                    hint="choose an earlier checkpoint of the run",
                )
            )
        self.progress("writing the weights", 0, 0)
        merge.write_model(model, self.target, folder)
        self._record_dtype(folder)

    def _write_adapter(self, folder: Path) -> None:
        source = self.target.adapter
        assert source is not None
        for name in _ADAPTER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if self.request.dtype:
            _cast(folder / "adapter_model.safetensors", self.request.dtype)
        merge.write_tokenizer(self.target, folder)
        if self.target.lock:
            shutil.copyfile(self.target.lock, folder / "lock.json")

    def _record_dtype(self, folder: Path) -> None:
        """Write the export's dtype into its template lock, from which chat reads it."""
        path = folder / "lock.json"
        if path.is_file():
            recorded = json.loads(path.read_text(encoding="utf-8")) | {"quantization": "none"}
            recorded |= {"dtype": self.dtype} if self.dtype else {}
            path.write_text(json.dumps(recorded, ensure_ascii=False, indent=1), encoding="utf-8")

    def _copy_licences(self) -> None:
        """Copy the base's licence beside its weights."""
        if self.target.on_hub or self.request.adapter_only:
            return
        for pattern in _LEGAL:
            for path in Path(self.target.base).glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, self.folder / path.name)

    # ── what is measured ──────────────────────────────────────────────────────────────────────────────────────────

    def _measure_language_model(self) -> tuple[Any, Callable[[Any, Path], dict[str, Any]]]:
        """The checkpoint's answers, and a function that compares an export's folder with them."""
        from engine.inference.loaded_model import LoadedModel

        self.progress("loading the checkpoint", 0, 0)
        loaded = LoadedModel(self.target, self.target.dtype, self.target.quantization or "none", None)
        if loaded.tokenizer is None:
            raise ProblemError(
                Problem(
                    code="tokenizer.missing",
                    title=f"{self.target.label} has no tokenizer",
                    cause="without one the export cannot be compared with it",
                    hint="copy the tokenizer's files from where the model came from beside its weights",
                )
            )
        probes = agreement.make_probes(self.target, loaded.tokenizer)
        before = agreement.answer_probes(loaded, probes, self.check, self._reporter("asking the checkpoint"))
        del loaded
        accelerator.release()

        def compare(before: agreement.Answers, folder: Path) -> dict[str, Any]:
            made = LoadedModel(self._read_back(folder), self.dtype, self._quantization(), None)
            after = agreement.answer_probes(made, probes, self.check, self._reporter("asking the export"))
            del made
            accelerator.release()
            return agreement.compare(probes, before, after)

        return before, compare

    def _measure_reward_model(self) -> tuple[Any, Callable[[Any, Path], dict[str, Any]]]:
        from engine.models import tokenizers

        conversations, source = reward_scores.load_conversations(self.target, tokenizers.load(self.target.folder))
        self.progress("asking the checkpoint", 0, len(conversations))
        quantization = self.target.quantization or "none"
        before = reward_scores.score(self.target, self.target.dtype, quantization, conversations, self.check)
        accelerator.release()

        def compare(before: list[float], folder: Path) -> dict[str, Any]:
            self.progress("asking the export", 0, len(conversations))
            after = reward_scores.score(
                self._read_back(folder), self.dtype, self._quantization(), conversations, self.check
            )
            accelerator.release()
            return reward_scores.compare(before, after, source)

        return before, compare

    def _read_back(self, folder: Path) -> Target:
        lock = folder / "lock.json"
        written = Target(base=str(folder), label=folder.name, lock=lock if lock.is_file() else None)
        return replace(self.target, adapter=folder) if self.request.adapter_only else written

    def _quantization(self) -> str:
        return (self.target.quantization or "none") if self.request.adapter_only else "none"

    def _reporter(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total)

    def _convert(self) -> dict[str, Any] | None:
        if not self.request.gguf:
            return None
        self.check()
        self.progress(f"writing GGUF ({self.request.gguf})", 0, 0)
        kind, named = self.request.gguf, self.request.converter
        quantizer = gguf.find_quantizer(named) if kind in gguf.QUANTISED else None
        made = gguf.convert(self.folder, self.out.name, kind, gguf.find_converter(named), quantizer)
        return made | modelfile.write(self.folder, self.folder / made["file"], self.target)


def _distance(figures: dict[str, Any]) -> float:
    return float(figures["score_difference"] if "score_difference" in figures else figures["kl"] or 0.0)


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
