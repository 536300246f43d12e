"""`cockpit data worst RUN`: the training rows that the run learnt worst, likely label errors first."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from engine.config.profile import parse
from engine.models import targets
from engine.models.base import load_tokenizer
from engine.prep import worst_rows
from engine.prep.prepare import locate_sources
from engine.prep.row_index import Indexer
from engine.prep.sources import Progress
from engine.prep.stages import exclude
from engine.prep.token_parts import TokenParts
from engine.prep.worst_rows import WorstRow
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache

_SHOWN = 160
"""Characters of a text that a terminal gets."""


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{run, by, epochs, rows, places, worst: [{file, line, score, losses, prompt, answer, alike}][, list, listed]}`.

    Raises ProblemError for a run without a ledger, ValueError for a wrong request.
    """
    directory = targets.find_run(arguments.run, home)
    if directory is None:
        raise ValueError(f"there is no run {arguments.run}")
    if arguments.top < 1:
        raise ValueError(f"--top {arguments.top}: must be at least 1")
    placed = getattr(arguments, "placed", None)
    report, rows = ({"run": directory.id}, []) if placed else list_worst(directory, arguments.by, arguments.top)
    report["worst"] = [row.to_json() for row in rows]
    if arguments.drop:
        chosen = _find_placed(directory, placed) if placed else _choose(rows, arguments.only)
        report["worst"] = [row.to_json() for row in chosen]  # of a live run, the numbers may be of other rows by now
        path = Path(arguments.drop).expanduser().absolute()
        entries = describe_rows(home, directory, chosen, arguments.weight, progress)
        report |= {"list": str(path), "listed": exclude.add_to_list(path, entries), "added": len(entries)}
    return report


def describe(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    said = [f"{result['run']}: {result['rows']} rows in {result['epochs']} epochs, the worst by {result['by']} first"]
    if not result["places"]:
        said.append("their files and lines are not known: the data were prepared by an older version, or elsewhere")
    for number, row in enumerate(result["worst"], 1):
        losses = " → ".join("–" if loss is None else f"{loss:.3g}" for loss in row["losses"])
        said += ["", f"{number}. {_name(row)}  score {row['score']:.3g}  loss {losses}"]
        said += [f"   {_shorten(row['prompt'], at_end=True)}", f"   ▸ {_shorten(row['answer'])}"]
        for other in row["alike"]:
            said.append(f"   alike ({other['similarity']:.0%}) {_name(other)}: {_shorten(other['answer'])}")
    if "list" in result:
        said += ["", f"{result['added']} rows added to {result['list']} ({result['listed']} in all)"]
        said.append("set data.exclude to that file in the next run's profile")
    return "\n".join(said)


def _name(row: dict[str, Any]) -> str:
    return f"{row['file']}:{row['line']}" if row["line"] else "(place unknown)"


def _shorten(text: str, *, at_end: bool = False) -> str:
    text = " ".join(text.split())
    if len(text) <= _SHOWN:
        return text
    return f"…{text[-_SHOWN:]}" if at_end else f"{text[:_SHOWN]}…"


def list_worst(directory: RunDirectory, by: str, top: int) -> tuple[dict[str, Any], list[WorstRow]]:
    """Facts about a run's ledger, and its `top` worst rows. Raises ProblemError and ValueError."""
    prepared = _read_prepared(directory)
    train = Path(prepared["train"])
    if not (train / "state.json").is_file():
        raise ValueError(f"the prepared rows of {directory.id} are not in the cache any more: {train}")
    try:
        tokens = TokenParts(train)
        found = worst_rows.read_losses(directory.row_losses, train, tokens)
    except (ValueError, OSError) as error:
        raise ProblemError(
            Problem(
                code="run.no_row_losses",
                title=f"{directory.id} has no losses of rows",
                cause=str(error),
                hint="runs of sft and pretrain record them while logging.row_losses is true",
            )
        )
    order, scores = worst_rows.rank(found, by)
    chosen = order[:top].tolist()
    tokenizer = load_tokenizer(
        prepared.get("tokenizer") or prepared["base"], _trusts(directory), prepared.get("template")
    )
    parts = [int(found.parts[row]) for row in chosen]
    alike = worst_rows.find_alike(tokens, parts)
    rows = []
    for row, part in zip(chosen, parts, strict=True):
        prompt, answer = worst_rows.split_row(tokens, part, tokenizer)
        losses = [float(loss) if math.isfinite(loss) else None for loss in found.losses[:, row]]
        rows.append(WorstRow(float(scores[row]), losses, prompt, answer, part=part))
        _place(rows[-1], found.places, row, prepared)
        of_part = found.places is not None and {int(each): at for at, each in enumerate(found.parts)}
        for other, similarity in alike[part]:
            place = WorstRow(0.0, [], "", "")
            if of_part and other in of_part:
                _place(place, found.places, of_part[other], prepared)
            text = worst_rows.split_row(tokens, other, tokenizer)[1]
            rows[-1].alike.append(
                {"file": place.file, "line": place.line, "similarity": round(similarity, 3), "answer": text}
            )
    facts = {
        "run": directory.id,
        "by": by,
        "epochs": len(found.losses),
        "rows": int((found.losses == found.losses).any(axis=0).sum()),
        "places": found.places is not None,
    }
    return facts, rows


def describe_rows(
    home: Home, directory: RunDirectory, rows: list[WorstRow], weight: float, progress: Progress
) -> list[dict[str, Any]]:
    """The lines of a list for `data.exclude` that names these rows. Raises ProblemError, and ValueError for rows whose
    file has changed since the run was prepared."""
    if not 0 <= weight <= 1:
        raise ValueError(f"--weight {weight}: a weight is from 0 (leave the row out) to 1")
    prepared = _read_prepared(directory)
    if any(row.line == 0 for row in rows):
        raise ValueError(
            "the places of rows are not known: this run's data were prepared by an older version, or tokenised "
            f"elsewhere. Those of an older version are prepared anew, with places, in the next run after "
            f"{Path(prepared['train']).parent} has been deleted"
        )
    job = json.loads((directory.path / "job.json").read_text())
    profile = parse(
        directory.profile.read_text(), str(directory.profile), Path(job["directory"]), home=home, prepared=True
    )
    files = [
        (options, path)
        for found in locate_sources(profile, home, progress, fetches=False).values()
        for options, paths in found
        for path in paths
    ]
    entries = []
    for number in sorted({row.file_number for row in rows}):
        path = Path(prepared["sources"][number])
        options = next((options for options, each in files if each == path), None)
        _check_unchanged(path, prepared["files"][number]["sha256"], known=options is not None)
        assert options is not None
        indexed, _ = Indexer(home).index(options, path, None, lambda _: None)
        lines = {row.line for row in rows if row.file_number == number}
        for at, line in enumerate(indexed.lines):
            if line in lines:
                name = exclude.digest(indexed.row(at).content)
                entries.append({"digest": name, "weight": weight, "file": str(path), "line": line, "run": directory.id})
    return entries


def _check_unchanged(path: Path, sha256: str, *, known: bool) -> None:
    if not known:
        raise ValueError(f"{path} is no source of the run's profile any more, or was made by an expansion")
    if not path.is_file() or cache.file_digests({"": path}, lambda _: None)[""] != sha256:
        raise ValueError(f"{path} has changed since the run was prepared, so its lines may be other rows: train again")


def _choose(rows: list[WorstRow], only: str | None) -> list[WorstRow]:
    """The rows with these numbers in the list, counted from 1, such as `1,3-5`; without, all. Raises ValueError."""
    if not only:
        return rows
    chosen: set[int] = set()
    for piece in only.split(","):
        first, _, last = piece.strip().partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= len(rows)):
            raise ValueError(f"--only {only}: give numbers from the list, such as 1,3-5; it has {len(rows)}")
        chosen.update(range(int(first), int(last) + 1))
    return [rows[number - 1] for number in sorted(chosen)]


def _find_placed(directory: RunDirectory, places: list[list[Any]]) -> list[WorstRow]:
    """The rows at these (file, line). A number in a list would name another row when the run has gone on meanwhile.
    Raises ValueError."""
    sources = _read_prepared(directory).get("sources", [])
    if unknown := next((file for file, _ in places if file not in sources), None):
        raise ValueError(f"{unknown} is no file of {directory.id}")
    return [WorstRow(0.0, [], "", "", file, line, sources.index(file)) for file, line in places]


def _place(row: WorstRow, places: Any, number: int, prepared: dict[str, Any]) -> None:
    if places is None:
        return
    file_number, line = map(int, places[number])
    listed = prepared.get("sources", ())  # of an older version's run: none
    if file_number < len(listed):
        row.file_number, row.line, row.file = file_number, line, listed[file_number]


def _read_prepared(directory: RunDirectory) -> dict[str, Any]:
    if not directory.prepared.is_file():
        raise ValueError(f"{directory.id} has no prepared rows yet")
    content: dict[str, Any] = json.loads(directory.prepared.read_text(encoding="utf-8"))
    return content


def _trusts(directory: RunDirectory) -> bool:
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(directory.profile.read_text(encoding="utf-8"))
    return bool((document.get("model") or {}).get("trust_remote_code"))
