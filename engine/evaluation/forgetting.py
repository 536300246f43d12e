"""What a model has forgotten: the bundled questions, asked before and after (`cockpit eval TARGET --forgetting`).

`data/forgetting/questions.jsonl` has facts, arithmetic and instructions in English and Chinese. A reply is right or
wrong by the question's `check`, without a judge:

contains    one of these stands in the reply, as a word or number of its own
number      the last number in the reply is this one
pattern     the whole reply, without blanks around it, matches this regular expression; upper and lower case count alike

questions.jsonl     {"row", "kind", "language", "question", "reply", "right"} of each question
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.config.bundled import find_bundled
from engine.evaluation.compare import compare_means
from engine.evaluation.request import EvaluationRequest, Models, Watch
from engine.evaluation.results_store import ResultStore, read_lines
from engine.evaluation.summarize import describe_verdicts
from engine.models.targets import Target
from engine.options import thresholds
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

SAMPLES = "questions.jsonl"
NEW_TOKENS = 64
"""Longest reply: the questions are answered in a few words."""
_NOT_WITH = ("data", "task", "samples", "constrained", "judge", "benchmarks")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_HAN_NUMBER = "零〇一二三四五六七八九十百千万两"


def read_questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in _path().read_text(encoding="utf-8").splitlines()]


def _path() -> Path:
    return find_bundled("data") / "forgetting" / SAMPLES


def check_request(request: EvaluationRequest) -> None:
    """Raises ValueError for a request that asks for other rows, or for none."""
    if request.rows is not None and request.rows < 1:
        raise ValueError(f"--rows must be at least 1 with --forgetting, not {request.rows}")
    if clash := [name for name in _NOT_WITH if getattr(request, name)]:
        raise ValueError(
            f"--{clash[0].replace('_', '-')} cannot be used with --forgetting, which has its own questions"
        )


def describe_request(request: EvaluationRequest) -> dict[str, Any]:
    """What the results depend on besides the target."""
    return {
        "forgetting": True,
        "data": "bundled questions",
        "rows": request.rows,
        "max_new_tokens": request.max_new_tokens or NEW_TOKENS,
        "sha256": hashlib.sha256(_path().read_bytes()).hexdigest(),
    }


def find_base(target: Target, home: Home) -> str:
    """The model that a target was trained from. Raises ProblemError where that is not known."""
    if target.adapter is not None:
        return target.base
    if target.run is not None:
        prepared = home.run(target.run).prepared
        content = json.loads(prepared.read_bytes()) if prepared.is_file() else {}
        if content.get("base") and not content.get("vocabulary"):
            return str(content["base"])
    raise ProblemError(
        Problem(
            code="evaluation.no_rows",
            title=f"{target.label} was trained from nothing that is known",
            cause="it is no adapter, and no run with a base",
            hint="name what to compare it with: --against TARGET",
        )
    )


def run(store: ResultStore, target: Target, request: EvaluationRequest, models: Models, watch: Watch) -> dict[str, Any]:
    """Ask the target; returns the content of `evaluation.json`. Raises ProblemError, ValueError."""
    questions = read_questions()[: request.rows]
    answered = {entry["row"]: entry for entry in read_lines(store.folder / SAMPLES)}
    missing = [question for question in questions if question["id"] not in answered]
    if missing:
        _ask(store, models.language_model(target, request.dtype, request.quantization), missing, request, watch)
    entries = list(read_lines(store.folder / SAMPLES))
    values = {name: sum(rows.values()) / len(rows) for name, rows in _group(entries).items()}
    result = {
        "metrics": values,
        **describe_verdicts(thresholds.check_thresholds(request.thresholds or [], _named(values))),
        "target": target.label,
        "run": target.run,
        "step": target.step,
        "data": "bundled questions",
        "sha256": "",
        "rows": len(entries),
        "rejected": 0,
        "task": None,
        "replies": 0,  # they are in a file of their own, which has no prompts or scores to sort by
        "notes": store.notes,
        "directory": str(store.folder),
    }
    store.finish([], result)
    return result


def _named(values: Mapping[str, float]) -> dict[str, float | None]:
    return {f"eval/{name}": value for name, value in values.items()}


def _ask(
    store: ResultStore, loaded: Any, questions: list[dict[str, Any]], request: EvaluationRequest, watch: Watch
) -> None:
    from engine.inference.sampling import Sampling

    prompts = [[{"role": "user", "content": question["question"]}] for question in questions]
    done = 0

    def on_reply(index: int, reply: Any) -> None:
        nonlocal done
        if reply.finish == "cancelled":
            return
        done += 1
        question = questions[index]
        entry = {name: question[name] for name in ("kind", "language", "question")}
        entry |= {"row": question["id"], "reply": reply.text, "right": is_right(reply.text, question["check"])}
        store.add(SAMPLES, [entry])
        if not watch.is_cancelled():
            watch("questions", done, len(questions))

    watch("questions", 0, len(questions))
    sampling = Sampling(max_new_tokens=request.max_new_tokens or NEW_TOKENS)
    loaded.batch(prompts, sampling, on_reply, watch.is_cancelled)
    watch("questions", done, len(questions))


def is_right(reply: str, check: Mapping[str, Any]) -> bool:
    """Whether a reply passes a question's check."""
    reply = reply.strip()
    if "number" in check:
        found = _NUMBER.findall(re.sub(r"(?<=\d)[,，](?=\d{3}(?!\d))", "", reply).replace("−", "-"))
        return bool(found) and float(found[-1]) == check["number"]
    if "pattern" in check:
        return re.fullmatch(check["pattern"], reply, re.IGNORECASE | re.DOTALL) is not None
    return any(_stands_in(answer, reply) for answer in check["contains"])


def _stands_in(answer: str, reply: str) -> bool:
    """Whether the answer is in the reply, and not a part of another word or number."""
    beside = "A-Za-z0-9" if answer.isascii() else _HAN_NUMBER if set(answer) <= set(_HAN_NUMBER) else ""
    edges = (f"(?<![{beside}])", f"(?![{beside}])") if beside else ("", "")
    return re.search(f"{edges[0]}{re.escape(answer)}{edges[1]}", reply, re.IGNORECASE) is not None


def compare_folders(before: Path, after: Path) -> dict[str, Any]:
    """`compare.compare_means` of two folders, with the questions that the first answered rightly and the second does
    not (`forgot`), and the other way round (`learnt`). Raises ValueError when they have no question in common."""
    sides = [{entry["row"]: entry for entry in read_lines(folder / SAMPLES)} for folder in (before, after)]
    first, second = (_group(side.values()) for side in sides)
    found = compare_means(first, second, dict.fromkeys(first, 1))
    return found | {"forgot": list(_list_lost(*sides)), "learnt": list(_list_lost(*reversed(sides)))}


def _list_lost(before: Mapping[int, dict[str, Any]], after: Mapping[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row, entry in sorted(before.items()):
        if row in after and entry["right"] and not after[row]["right"]:
            named = {name: entry[name] for name in ("row", "kind", "language", "question")}
            yield named | {"right": entry["reply"], "wrong": after[row]["reply"]}


def _group(entries: Any) -> dict[str, dict[int, float]]:
    """Metric -> question -> 1 if it was answered rightly, else 0: over all, by kind and by language."""
    found: dict[str, dict[int, float]] = {}
    for entry in entries:
        for name in ("right", f"right_{entry['kind']}", f"right_{entry['language']}"):
            found.setdefault(name, {})[entry["row"]] = float(entry["right"])
    return found
