"""Replies that somebody else has generated, scored as if a model here had: JSON lines of `reply` and `reference`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine.evaluation import history
from engine.evaluation.request import Wanted, Watch, check
from engine.evaluation.results_store import LOSSES, REPLIES, Record
from engine.evaluation.run import slug
from engine.evaluation.summarize import conclude
from engine.protocol.home import Home


def evaluate(path: Path, wanted: Wanted, home: Home, watch: Watch) -> dict[str, Any]:
    """As `examine.evaluate`. Raises ValueError, naming the line, for what cannot be read; ProblemError."""
    check(wanted)
    entries = read(path)
    told = json.dumps([[entry["asked"], entry["reference"]] for entry in entries])
    sha256 = hashlib.sha256(told.encode()).hexdigest()
    replies = hashlib.sha256(json.dumps([entry["reply"] for entry in entries]).encode()).hexdigest()
    identity = {
        "target": path.name,
        "data": str(path.absolute()),
        "sha256": sha256,
        "replies": replies,
        "rows": len(entries),
        "task": wanted.task,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(wanted.out) if wanted.out else home.evaluations / f"{slug(path.stem)}-{digest}"
    with Record(folder, identity, again=wanted.again) as record:
        if len(record.done(REPLIES)) < len(entries):
            done = record.done(REPLIES)
            record.add(REPLIES, [entry for entry in entries if entry["row"] not in done])
        record.conclude(LOSSES, [])
        about = {
            "target": path.name,
            "run": None,
            "step": None,
            "data": str(path),
            "sha256": sha256,
            "rows": len(entries),
            "rejected": 0,
        }
        return conclude(record, about, wanted, [], watch)


def against(result: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` with the comparison of the two; `result` is the second. Raises ValueError for replies to other references."""
    return other | history.compared(Path(other["directory"]), Path(result["directory"]))


def read(path: Path) -> list[dict[str, Any]]:
    """Lines as `replies.jsonl` has them. A reply or reference that is no text is taken as its JSON. Raises ValueError naming the line."""
    entries: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                said = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}")
            if not isinstance(said, dict) or said.get("reply") is None:
                raise ValueError(
                    f"{path}:{number}: a line is an object with reply, and with reference where there is one"
                )
            reference, asked = said.get("reference"), said.get("messages", said.get("prompt"))
            entries.append(
                {
                    "row": len(entries),
                    "asked": asked if isinstance(asked, list) else _text(asked or ""),
                    "reference": None if reference is None else _text(reference),
                    "reply": _text(said["reply"]),
                    **{name: said[name] for name in ("tokens", "stopped", "seconds") if name in said},
                }
            )
    if not entries:
        raise ValueError(f"{path} holds no reply")
    return entries


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
