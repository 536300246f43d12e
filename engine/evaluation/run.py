"""The whole of an evaluation: rows, losses, replies, a judge, metrics, thresholds. What is done stays done across kills (`records`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.evaluation.collect_outputs import Measuring
from engine.evaluation.dataset import Material, Own, of_source
from engine.evaluation.request import NEW_TOKENS, Models, Wanted, Watch, check
from engine.evaluation.results_store import LOSSES, Record
from engine.evaluation.summarize import conclude, tallies_of
from engine.models import folders, targets
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

__all__ = ["Models", "Wanted", "Watch", "evaluate", "settled", "slug"]

_SLUG = re.compile(r"[^\w.@-]+")


def evaluate(name: str, wanted: Wanted, home: Home, directory: Path, models: Models, watch: Watch) -> dict[str, Any]:
    """Measure a target. Returns `metrics`, `passed`, and all else that `evaluation.json` keeps. Raises ProblemError, ValueError."""
    target = targets.resolve(name, home, directory)
    wanted = settled(wanted, target, home)
    own = Own.of(home.run(target.run)) if target.run else None
    watch("reading", 0, 0)
    material = (
        of_source(
            wanted.data, wanted.format, wanted.rows, home, directory, lambda done, total: watch("reading", done, total)
        )
        if wanted.data
        else _own(own, name).material(wanted.rows)
    )
    scores = any(
        folders.is_reward_model(each) for each in (target.adapter, None if target.on_hub else Path(target.base)) if each
    )
    if scores and not material.are_pairs:
        raise ValueError(
            f"{target.label} is a reward model: it is measured on preference pairs, and {material.source} holds others"
        )
    questions = [] if scores else material.questions(wanted.task, wanted.samples)
    for question in questions:
        tallies_of({"row": question.row, "reply": "", "reference": question.reference}, wanted.task)
    identity = _identity(target, wanted, material)
    folder = _folder(target, wanted, home, identity)
    with Record(folder, identity, again=wanted.again) as record:
        notes = [*record.notes, *material.said()]
        measuring = Measuring(record, models, target, material, own, wanted, watch, notes)
        if scores:
            measuring.reward_model()
        else:
            measuring.language_model(questions)
        told = {
            "target": target.label,
            "run": target.run,
            "step": target.step,
            "data": material.source,
            "sha256": material.sha256,
            "rows": len(material.rows) or len(record.done(LOSSES)),
            "rejected": material.rejected,
        }
        return conclude(record, told, wanted, notes, watch)


def settled(wanted: Wanted, target: Target, home: Home) -> Wanted:
    """What the run says where nobody else does: on its own rows it is measured as it was while it trained. Raises ValueError."""
    own = Own.of(home.run(target.run)) if target.run else None
    further: dict[str, Any] = {}
    if own is not None and wanted.data is None:
        further = {name: own.said("evaluation", name) for name in ("task", "thresholds", "samples")}
    if own is not None:
        further["max_new_tokens"] = own.said("generation", "max_new_tokens")
    if own is not None and wanted.judge is not None:
        wanted = msgspec.structs.replace(wanted, judge=(own.said("evaluation", "judge") or {}) | wanted.judge)
    given = {name: value for name, value in further.items() if getattr(wanted, name) is None and value is not None}
    wanted = msgspec.structs.replace(wanted, **given)
    check(wanted)
    return wanted


def _own(own: Own | None, name: str) -> Own:
    if own is None:
        raise ProblemError(
            Problem(
                code="evaluation.no_rows",
                title=f"There is nothing to evaluate {name} on",
                cause="it is no run, so it held no rows out",
                hint="name rows with --data",
            )
        )
    return own


# ── where it is kept ───────────────────────────────────────────────────────────────────────────────────────────────


def _identity(target: Target, wanted: Wanted, material: Material) -> dict[str, Any]:
    """All that rows and replies depend on: another evaluation has another."""
    return {
        "target": target.label,
        "weights": _fingerprint(target),
        "data": material.source,
        "sha256": material.sha256,
        "rows": len(material.rows),
        "task": wanted.task,
        "samples": wanted.samples,
        "max_new_tokens": wanted.max_new_tokens or NEW_TOKENS,
        "constrained": wanted.constrained,
        "dtype": wanted.dtype,
        "quantization": wanted.quantization,
    }


def _fingerprint(target: Target) -> str:
    """Of the files that hold the weights, by name, size and time."""
    digest = hashlib.sha256(f"{target.base} {target.adapter}".encode())
    for folder in filter(None, (target.adapter, None if target.on_hub else Path(target.base))):
        for path in sorted(folder.glob("*")):
            if path.is_file():
                told = path.stat()
                digest.update(f"{path.name} {told.st_size} {told.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _folder(target: Target, wanted: Wanted, home: Home, identity: Mapping[str, Any]) -> Path:
    if wanted.out:
        return Path(wanted.out)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    if target.run is not None and target.step is not None:
        return home.run(target.run).evaluations / f"step-{target.step:08d}-{digest}"
    return home.evaluations / f"{slug(target.label)}-{digest}"


def slug(text: str) -> str:
    """`text` as part of a file's name."""
    return _SLUG.sub("-", text).strip("-")
