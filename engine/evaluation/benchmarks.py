"""Benchmarks of EleutherAI's lm-evaluation-harness on a target. The results are the harness's own numbers.

samples.jsonl       {"benchmark", "row", "scores"} of each row
benchmarks.json     the harness's results, with the versions of the benchmarks and their settings
requests_rank0.db   the model's answers: an evaluation that was interrupted goes on from them
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.evaluation import checks
from engine.evaluation.compare import compare_means
from engine.evaluation.request import EvaluationRequest, Models, Watch
from engine.evaluation.results_store import ResultStore, read_lines
from engine.evaluation.summarize import describe_verdicts
from engine.models.targets import Target
from engine.options import thresholds
from engine.options.evaluation import BenchmarkOptions
from engine.protocol.home import write_private
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import did_you_mean, first_line

SAMPLES, RESULTS, REQUESTS = "samples.jsonl", "benchmarks.json", "requests"
GROUP = "benchmark/"
"""Prefix of the names of metrics: `benchmark/arc_easy/acc`."""
_NOT_WITH = ("data", "task", "samples", "max_new_tokens", "constrained", "judge")
RESAMPLES = 1000
"""Resamples for the standard error of a metric that is no mean; the harness would take a hundred times as many."""
UNNAMED = "none"
"""The harness's name of the filter that changes nothing."""


def check_request(request: EvaluationRequest) -> None:
    """Raises ValueError, ProblemError for a request that cannot succeed, before anything is loaded."""
    if clash := [name for name in _NOT_WITH if getattr(request, name)]:
        raise ValueError(
            f"--{clash[0].replace('_', '-')} cannot be used with --benchmark: a benchmark has its own rows and metrics"
        )
    if request.rows is not None and request.rows < 1:
        raise ValueError(f"--rows must be at least 1 with --benchmark, not {request.rows}")
    if not checks.has_harness():
        raise ProblemError(
            Problem(
                code="package.missing",
                title="Benchmarks need the package lm_eval",
                cause="it is not installed",
                hint=checks.INSTALL,
            )
        )


def make_request(options: BenchmarkOptions, directory: Path) -> EvaluationRequest:
    """The request of a profile in `directory`."""
    return EvaluationRequest(
        benchmarks=list(options.names),
        benchmark_folder=str(directory / Path(options.folder).expanduser()) if options.folder else None,
        rows=options.rows,
        few_shot=options.few_shot,
        chat_template=options.chat_template,
    )


def describe_request(request: EvaluationRequest) -> dict[str, Any]:
    """What the results depend on besides the target."""
    folder = Path(request.benchmark_folder) if request.benchmark_folder else None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder else ():
        if folder and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes())
    return {
        "benchmarks": request.benchmarks,
        "data": ", ".join(request.benchmarks or ()),
        "rows": request.rows,
        "few_shot": request.few_shot,
        "chat_template": request.chat_template,
        "lm_eval": metadata.version("lm_eval"),
        "sha256": digest.hexdigest() if folder else "",
    }


def run(store: ResultStore, target: Target, request: EvaluationRequest, models: Models, watch: Watch) -> dict[str, Any]:
    """Measure the target; returns the content of `evaluation.json`. Raises ProblemError, ValueError."""
    watch("finding the benchmarks", 0, 0)
    manager = _find_benchmarks(request)
    loaded = models.language_model(target, request.dtype, request.quantization)
    if loaded.tokenizer is None:
        raise ProblemError(
            Problem(
                code="tokenizer.missing",
                title=f"{target.label} has no tokenizer",
                cause="benchmarks are texts",
                hint="copy the tokenizer's files from where the model came from beside its weights",
            )
        )
    if request.chat_template and not loaded.templated:
        raise ValueError(f"{target.label} has no chat template: leave --chat-template out")
    found = _measure(store.folder / REQUESTS, request, manager, loaded, watch)
    content = json.dumps(_summarize(found), ensure_ascii=False, indent=1, default=str)
    write_private(store.folder / RESULTS, content.encode())
    (store.folder / SAMPLES).unlink(missing_ok=True)
    store.add(SAMPLES, _list_samples(found))
    values = _read_metrics(found)
    result = {
        "metrics": values,
        **describe_verdicts(thresholds.check_thresholds(request.thresholds or [], values)),
        "target": target.label,
        "run": target.run,
        "step": target.step,
        "data": ", ".join(request.benchmarks or ()),
        "sha256": "",
        "rows": sum(each["effective"] for each in found["n-samples"].values()),
        "rejected": 0,
        "task": None,
        "replies": 0,
        "notes": store.notes,
        "directory": str(store.folder),
        "versions": {name: version for name, version in found["versions"].items() if name in found["results"]},
    }
    store.finish([], result)
    return result


def measure_model(request: EvaluationRequest, loaded: Any, watch: Callable[[str, int, int], None]) -> dict[str, float]:
    """The metrics of a model whose weights change, so that nothing of it is kept. Of `loaded` its `model`, `tokenizer`
    and `context` are used. Raises ProblemError, ValueError."""
    return _read_metrics(_measure(None, request, _find_benchmarks(request), loaded, watch))


def compare_folders(first: Path, second: Path) -> dict[str, Any]:
    """`compare.compare_means` on the rows of two folders. Raises ValueError when they have no row in common."""
    directions = json.loads((second / RESULTS).read_bytes())["directions"]
    return compare_means(_read_scores(first), _read_scores(second), directions)


def _read_scores(folder: Path) -> dict[str, dict[int, float]]:
    """Metric -> row of its benchmark -> value."""
    found: dict[str, dict[int, float]] = {}
    for entry in read_lines(folder / SAMPLES):
        for name, value in entry["scores"].items():
            found.setdefault(f"{GROUP}{entry['benchmark']}/{name}", {})[entry["row"]] = value
    return found


# ── the harness ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _find_benchmarks(request: EvaluationRequest) -> Any:
    """The harness's table of benchmarks. Raises ProblemError for a name that it does not have."""
    from lm_eval.tasks import TaskManager

    folder = request.benchmark_folder
    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if manager is None or not manager.match_tasks(request.benchmarks or []):
        manager = TaskManager(include_path=folder)
    for name in request.benchmarks or ():
        if not manager.match_tasks([name]):
            raise ProblemError(
                Problem(
                    code="evaluation.benchmark_unknown",
                    title=f"There is no benchmark {name!r}{did_you_mean(name, manager.all_tasks)}",
                    cause=f"neither lm_eval {metadata.version('lm_eval')} has it"
                    + (f" nor {folder}" if folder else ""),
                    hint="`lm_eval ls tasks` lists them; --benchmark-folder names a folder with files of your own",
                )
            )
    return manager


def _measure(
    answers: Path | None,
    request: EvaluationRequest,
    manager: Any,
    loaded: Any,
    watch: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The harness's results; the model's answers are kept in the file `answers`, if it is given. Raises ProblemError
    for rows that cannot be had."""
    from lm_eval.evaluator import simple_evaluate

    from engine.evaluation.benchmark_model import BenchmarkModel

    place = chdir(request.benchmark_folder) if request.benchmark_folder else nullcontext()
    try:
        with place:  # the files of its benchmarks name their rows relative to it
            found = simple_evaluate(
                model=BenchmarkModel(loaded, watch),
                tasks=list(request.benchmarks or ()),
                num_fewshot=request.few_shot,
                limit=request.rows,
                apply_chat_template=request.chat_template,
                use_cache=str(answers) if answers else None,
                task_manager=manager,
                bootstrap_iters=RESAMPLES,
                log_samples=True,
            )
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, ProblemError):
            raise
        raise ProblemError(
            Problem(
                code="evaluation.benchmark_failed",
                title=f"{', '.join(request.benchmarks or ())} cannot be measured",
                cause=first_line(error),
                hint="rows are fetched from the hub the first time: without a network, name a folder whose files "
                "point to local rows with --benchmark-folder",
            )
        ) from error
    assert found is not None
    return dict(found)


def _summarize(found: Mapping[str, Any]) -> dict[str, Any]:
    names = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name: found[name] for name in names if name in found} | {"directions": _read_directions(found)}


def _list_samples(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of all benchmarks, each with the metrics that are means over rows."""
    for benchmark, samples in found["samples"].items():
        for sample in samples:
            chosen = sample.get("filter", UNNAMED)
            scores = {
                _name_metric(name, chosen): float(sample[name])
                for name in sample.get("metrics", ())
                if isinstance(sample[name], int | float)
            }
            yield {"benchmark": benchmark, "row": sample["doc_id"], "scores": scores}


def _read_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """All results that are numbers, with their standard errors: `benchmark/arc_easy/acc`."""
    return {
        f"{GROUP}{benchmark}/{_name_metric(*key.split(',', 1))}": float(value)
        for benchmark, results in found["results"].items()
        for key, value in results.items()
        if "," in key and isinstance(value, int | float) and math.isfinite(value)
    }


def _read_directions(found: Mapping[str, Any]) -> dict[str, int]:
    """1 for metrics of which a higher value is better, -1 for those of which a lower one is."""
    directions: dict[str, int] = {}
    for name in _read_metrics(found):
        benchmark, _, metric = name.removeprefix(GROUP).partition("/")
        higher = found.get("higher_is_better", {}).get(benchmark, {}).get(metric.partition(":")[0])
        if higher is not None:
            directions[name] = 1 if higher else -1
    return directions


def _name_metric(metric: str, chosen: str) -> str:
    """A metric's name, with the filter of replies that it was computed behind, if that has a name."""
    return metric if chosen == UNNAMED else f"{metric}:{chosen}"
