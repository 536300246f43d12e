"""Running an evaluation: rows, losses, replies, a judge, metrics, thresholds. Finished work survives an
interruption."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.evaluation import benchmarks, forgetting
from engine.evaluation.collect_outputs import OutputCollector
from engine.evaluation.dataset import EvaluationSet, RunFiles, read_source
from engine.evaluation.request import NEW_TOKENS, EvaluationRequest, Models, Watch, check_request
from engine.evaluation.results_store import LOSSES, ResultStore, make_entry
from engine.evaluation.summarize import summarize, tally_entry
from engine.models import folders, targets, template_lock
from engine.models.targets import Target
from engine.models.template_metadata import read_template, read_thinking_marks
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.tasks.thoughts import Marks

_SLUG = re.compile(r"[^\w.@-]+")


def evaluate(
    name: str, request: EvaluationRequest, home: Home, directory: Path, models: Models, watch: Watch
) -> dict[str, Any]:
    """Measure a target. Returns the content of `evaluation.json`, with `metrics` and `passed`. Raises ProblemError,
    ValueError."""
    target = targets.resolve(name, home, directory)
    if request.forgetting:
        return _ask_own_questions(forgetting, "forgetting", target, request, home, models, watch)
    if request.benchmarks:
        return _ask_own_questions(benchmarks, "benchmark", target, request, home, models, watch)
    request = fill_defaults(request, target, home)
    run = RunFiles.read(home.run(target.run)) if target.run else None
    watch("reading", 0, 0)
    dataset = (
        read_source(
            request.data,
            request.format,
            request.rows,
            home,
            directory,
            lambda done, total: watch("reading", done, total),
        )
        if request.data
        else _require_run(run, name).held_out(request.rows)
    )
    folders_of_target = (target.adapter, None if target.on_hub else Path(target.base))
    is_reward_model = any(folders.is_reward_model(folder) for folder in folders_of_target if folder)
    if is_reward_model and not dataset.are_pairs:
        raise ValueError(
            f"{target.label} is a reward model: it needs preference pairs, and {dataset.source} has other rows"
        )
    questions = [] if is_reward_model else dataset.questions(request.task, request.samples)
    marks = _read_marks(target)
    for question in questions:
        tally_entry(make_entry(question.row, question.prompt, question.reference, "", "", marks), request.task)
    identity = _identity(target, request, dataset)
    folder = _folder(target, request, home, identity)
    with ResultStore(folder, identity, again=request.again) as store:
        notes = [*store.notes, *dataset.notes()]
        collector = OutputCollector(store, models, target, dataset, run, request, watch, notes)
        if is_reward_model:
            collector.collect_reward_scores()
        else:
            collector.collect_language_model(questions)
        facts = {
            "target": target.label,
            "run": target.run,
            "step": target.step,
            "data": dataset.source,
            "sha256": dataset.sha256,
            "rows": len(dataset.rows) or len(store.rows(LOSSES)),
            "rejected": dataset.rejected,
        }
        return summarize(store, facts, request, notes, watch)


def _ask_own_questions(
    part: Any, origin: str, target: Target, request: EvaluationRequest, home: Home, models: Models, watch: Watch
) -> dict[str, Any]:
    """Measure with a part that brings its own questions: `benchmarks` or `forgetting`."""
    check_request(request)
    part.check_request(request)
    identity = {
        "target": target.label,
        "weights": _fingerprint(target),
        "dtype": request.dtype,
        "quantization": request.quantization,
        "origin": origin,
        **part.describe_request(request),
    }
    with ResultStore(_folder(target, request, home, identity), identity, again=request.again) as store:
        found: dict[str, Any] = part.run(store, target, request, models, watch)
        return found


def _read_marks(target: Target) -> Marks:
    """The marks of the target's thinking, by the files of its tokenizer."""
    folder = template_lock.find_tokenizer_folder(target)
    return read_thinking_marks(read_template(folder) if folder else None)


def fill_defaults(request: EvaluationRequest, target: Target, home: Home) -> EvaluationRequest:
    """Complete the request from the target's run: on its own rows it is measured as it was during training. Raises
    ValueError."""
    run = RunFiles.read(home.run(target.run)) if target.run else None
    defaults: dict[str, Any] = {}
    if run is not None and request.data is None:
        defaults = {name: run.setting("evaluation", name) for name in ("task", "thresholds", "samples")}
    if run is not None:
        defaults["max_new_tokens"] = run.setting("generation", "max_new_tokens")
    if run is not None and request.judge is not None:
        request = msgspec.structs.replace(request, judge=(run.setting("evaluation", "judge") or {}) | request.judge)
    given = {name: value for name, value in defaults.items() if getattr(request, name) is None and value is not None}
    request = msgspec.structs.replace(request, **given)
    check_request(request)
    return request


def _require_run(run: RunFiles | None, name: str) -> RunFiles:
    if run is None:
        raise ProblemError(
            Problem(
                code="evaluation.no_rows",
                title=f"There is nothing to evaluate {name} on",
                cause="it is not a run, so it has no held-out rows",
                hint="name rows with --data",
            )
        )
    return run


# ── where it is stored ──────────────────────────────────────────────────────────────────────────────────────────────


def _identity(target: Target, request: EvaluationRequest, dataset: EvaluationSet) -> dict[str, Any]:
    """Everything that rows and replies depend on."""
    return {
        "target": target.label,
        "weights": _fingerprint(target),
        "data": dataset.source,
        "sha256": dataset.sha256,
        "rows": len(dataset.rows),
        "task": request.task,
        "samples": request.samples,
        "max_new_tokens": request.max_new_tokens or NEW_TOKENS,
        "constrained": request.constrained,
        "dtype": request.dtype,
        "quantization": request.quantization,
    }


def _fingerprint(target: Target) -> str:
    """A hash of the names, sizes and times of the files that hold the weights."""
    digest = hashlib.sha256(f"{target.base} {target.adapter}".encode())
    for folder in filter(None, (target.adapter, None if target.on_hub else Path(target.base))):
        for path in sorted(folder.glob("*")):
            if path.is_file():
                stat = path.stat()
                digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _folder(target: Target, request: EvaluationRequest, home: Home, identity: Mapping[str, Any]) -> Path:
    if request.out:
        return Path(request.out)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    if target.run is not None and target.step is not None:
        return home.run(target.run).evaluations / f"step-{target.step:08d}-{digest}"
    return home.evaluations / f"{make_slug(target.label)}-{digest}"


def make_slug(text: str) -> str:
    """`text` as part of a file's name."""
    return _SLUG.sub("-", text).strip("-")
