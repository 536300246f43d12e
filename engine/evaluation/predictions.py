"""Scoring replies that were generated elsewhere: JSON lines of `reply` and `reference`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine.evaluation import history
from engine.evaluation.request import EvaluationRequest, Watch, check_request
from engine.evaluation.results_store import LOSSES, REPLIES, ResultStore
from engine.evaluation.run import make_slug
from engine.evaluation.summarize import summarize
from engine.protocol.home import Home


def evaluate(path: Path, request: EvaluationRequest, home: Home, watch: Watch) -> dict[str, Any]:
    """As `run.evaluate`. Raises ProblemError, and ValueError, naming the line, for a file that cannot be read."""
    check_request(request)
    entries = read_predictions(path)
    questions = json.dumps([[entry["asked"], entry["reference"]] for entry in entries])
    sha256 = hashlib.sha256(questions.encode()).hexdigest()
    replies = hashlib.sha256(json.dumps([entry["reply"] for entry in entries]).encode()).hexdigest()
    identity = {
        "target": path.name,
        "data": str(path.absolute()),
        "sha256": sha256,
        "replies": replies,
        "rows": len(entries),
        "task": request.task,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(request.out) if request.out else home.evaluations / f"{make_slug(path.stem)}-{digest}"
    with ResultStore(folder, identity, again=request.again) as store:
        done = store.rows(REPLIES)
        if len(done) < len(entries):
            store.add(REPLIES, [entry for entry in entries if entry["row"] not in done])
        store.mark_complete(LOSSES, [])
        facts = {
            "target": path.name,
            "run": None,
            "step": None,
            "data": str(path),
            "sha256": sha256,
            "rows": len(entries),
            "rejected": 0,
        }
        return summarize(store, facts, request, [], watch)


def add_comparison(result: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` with the comparison of the two, of which `result` is the second. Raises ValueError for replies to
    different references."""
    return other | history.compare_folders(Path(other["directory"]), Path(result["directory"]))


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Entries as in `replies.jsonl`. A reply or reference that is not text is converted to JSON. Raises ValueError
    naming the line."""
    entries: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}")
            if not isinstance(entry, dict) or entry.get("reply") is None:
                raise ValueError(
                    f"{path}:{number}: a line is an object with reply, and with reference where there is one"
                )
            reference, prompt = entry.get("reference"), entry.get("messages", entry.get("prompt"))
            entries.append(
                {
                    "row": len(entries),
                    "asked": prompt if isinstance(prompt, list) else _text(prompt or ""),
                    "reference": None if reference is None else _text(reference),
                    "reply": _text(entry["reply"]),
                    **{name: entry[name] for name in ("tokens", "stopped", "seconds") if name in entry},
                }
            )
    if not entries:
        raise ValueError(f"{path} has no replies")
    return entries


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
