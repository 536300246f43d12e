"""The files of a bundle: what is known about a run, without what must not leave the machine.

Structured entries keep only the fields named here; every text that is kept goes through the redactor.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML, YAMLError

from engine.prep import readers, sources
from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory
from engine.workers.redaction import Redactor

TAIL = 400
"""Lines that are kept of a log."""
READ = 1 << 20
"""Bytes at the end of a log that are looked at."""
MOST_METRICS = 2000
"""Entries of metrics that are kept, evenly spread."""
MOST_ROWS = 64 << 20
"""Bytes of text of rows that texts are compared with."""

_NUMBERS_OF_TEXT = ("prompt", "reply", "reference", "text")
_DROPPED = frozenset(
    {"path", "directory", "file", "pid", "identity", "slurm_conf", "slurm_name", "line", *_NUMBERS_OF_TEXT}
)
"""Fields of journal entries that hold paths, rows or ids of this machine."""
_SAFE = re.compile(r"[a-z][a-z0-9]*(?:[_.\-/][a-z0-9]+)*|[0-9.:+\-TZ]+|(?:float|bfloat|int)\d+|nf4", re.IGNORECASE)
"""A setting's value that is a word of the program: a choice, a version, a module."""
PARTS = ("train", "validation", "test")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_KEYS = re.compile(
    r"system|prompt|probe|description|name$|source|path|folder|output|template|directory|base_url|hosts|address|python$"
    r"|arguments|columns|rows$|text|stop|stratify|^by$|replace|pattern|keep$|drop$|environment|project|entity|slurm|run$"
    r"|^(?:train|validation|test)$|rubric|boilerplate|exclude|catalog|converter|^ssh_|notify|special_tokens"
)
"""Settings whose texts, and those in them, are somebody's own."""
_SHAPES = re.compile(
    r'\s*File "|Traceback |(?:Current thread|Thread) 0x|\s+\^+$|Exception in thread|During handling|The above exception'
    r"|Fatal Python error|Segmentation fault|Extension modules|\d\d:\d\d:\d\d  (?:memory |[\d,]+ of [\d,]+ parameters)"
    r"|\d\d:\d\d:\d\d  step [\d,]+  (?:[a-z_]+ (?:[\d.,e+-]+|not finite)(?:  |$))+$"
)
"""Lines that hold no row, whatever the rows are."""
_ERROR = re.compile(r"([\w.]+(?:Error|Exception|Warning|Interrupt|Exit)): .+")


# ── journals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def list_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal as JSON, without texts of rows and paths; metrics thinned out, and damaged or unknown
    lines only counted."""
    entries, unknown = [], 0
    for entry, _ in journal.read(path):
        if isinstance(entry, journal.Unknown):
            unknown += 1
        else:
            entries.append(_strip(msgspec.to_builtins(entry)))
    metrics = [each for each in entries if each["kind"] == "metrics"]
    if len(metrics) > MOST_METRICS:
        step = len(metrics) / MOST_METRICS
        kept = {id(metrics[int(index * step)]) for index in range(MOST_METRICS)} | {id(metrics[-1])}
        entries = [each for each in entries if each["kind"] != "metrics" or id(each) in kept]
    return [*entries, {"kind": "unknown", "count": unknown}] if unknown else entries


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(each) for key, each in value.items() if key not in _DROPPED}
    return [_strip(each) for each in value] if isinstance(value, list) else value


def clean_tree(value: Any, redactor: Redactor, strict: bool) -> Any:
    """A JSON document with each text, and each key, redacted. `strict`: texts that are not words of the program are
    left out, since the rows are not known."""
    if isinstance(value, dict):
        return {
            _clean_text(str(key), redactor, strict): clean_tree(each, redactor, strict) for key, each in value.items()
        }
    if isinstance(value, list):
        return [clean_tree(each, redactor, strict) for each in value]
    return _clean_text(value, redactor, strict) if isinstance(value, str) else value


def _clean_text(text: str, redactor: Redactor, strict: bool) -> str:
    if strict and not _SAFE.fullmatch(text):
        text = "\n".join(clean_log(text.split("\n"))) or "[text]"
    return redactor.clean(text)


# ── the profile ────────────────────────────────────────────────────────────────────────────────────────────────────


def clean_profile(text: str, redactor: Redactor, *, with_rows: bool, with_paths: bool) -> str:
    """The settings of a profile: numbers, choices and names of models; other texts are left out."""
    try:
        document = YAML(typ="safe").load(text)
    except (YAMLError, ValueError):
        return "# the profile is not valid YAML\n"
    written = io.StringIO()
    YAML().dump(_clean_setting("", document, redactor, with_rows, with_paths), written)
    return written.getvalue()


def _clean_setting(
    key: str, value: Any, redactor: Redactor, with_rows: bool, with_paths: bool, *, own: bool = False
) -> Any:
    """`own`: the setting is in one whose texts are somebody's own."""
    if isinstance(value, dict):
        plain = {str(each): value[each] for each in value}
        if key in ("environment", "columns"):
            return {redactor.clean(name): "[left out]" for name in plain}
        own = own or (key not in PARTS and bool(_TEXT_KEYS.search(key)))
        return {
            redactor.clean(name): _clean_setting(name, each, redactor, with_rows, with_paths, own=own)
            for name, each in plain.items()
        }
    if isinstance(value, list):
        return [_clean_setting(key, each, redactor, with_rows, with_paths, own=own) for each in value]
    if not isinstance(value, str) or with_rows:
        return redactor.clean(value) if isinstance(value, str) else value
    if value in ("auto", "none"):
        return value
    if key == "base" and _HUB.fullmatch(value) and not Path(value).exists():
        return redactor.clean(value)
    if (own or _TEXT_KEYS.search(key)) and not (with_paths and "/" in value):
        return f"[left out{Path(value).suffix if re.fullmatch(r'[.][a-z0-9]{1,8}', Path(value).suffix) else ''}]"
    return redactor.clean(value) if with_paths or _SAFE.fullmatch(value) else "[left out]"


# ── logs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_tail(path: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a log; none of a file that is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - READ))
            return file.read().decode("utf-8", "backslashreplace").splitlines()[-lines:]
    except OSError:
        return []


def clean_log(lines: Iterable[str]) -> list[str]:
    """Only lines of known shapes: tracebacks without their messages, steps, stacks. Source lines in a traceback are
    left out: they cannot be told from text of a row."""
    kept = []
    for line in lines:
        if found := _ERROR.fullmatch(line.strip()):
            kept.append(f"{found[1]}: [text]")
        elif _SHAPES.match(line):
            kept.append(line)
    return kept


def find_stacks(lines: list[str]) -> list[str]:
    """The stacks of threads, and the last traceback, in a log."""
    kept: list[str] = []
    inside = False
    for line in lines:
        begins = re.match(r"(?:Current thread|Thread) 0x|Traceback |Fatal Python error", line)
        inside = bool(begins) or (inside and (line.startswith((" ", "\t")) or bool(_ERROR.fullmatch(line))))
        if inside:
            kept.append(line)
    return kept[-TAIL:]


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_rows(home: Home, run: RunDirectory) -> Iterator[Any]:
    """Everything that holds text of rows: sources, prepared rows, evaluations, votes, replies in the journal; and, in
    the end, an exception's instance for each source that cannot be read."""
    for entry, _ in journal.read(run.events):
        if isinstance(entry, (journal.BadBatch, journal.Sample)):
            yield (
                [row.text for row in entry.rows]
                if isinstance(entry, journal.BadBatch)
                else [
                    entry.prompt,
                    entry.reply,
                    entry.reference,
                ]
            )
    for path in [*run.evaluations.rglob("*.jsonl"), *run.path.glob("*votes.jsonl"), *_list_prepared(home, run)]:
        yield from _read_rows(path)
    profile = load(run.profile)
    yield [value for key, value in _walk_settings("", profile) if re.search(r"system|prompt|probe|description", key)]
    directory = Path(load(run.path / "job.json").get("directory") or "/")
    data: Any = profile.get("data")
    data = data if isinstance(data, dict) else {}
    for part in PARTS:
        given = data.get(part) or []
        for source in given if isinstance(given, list) else [given]:
            named = source.get("source", "") if isinstance(source, dict) else str(source)
            try:
                files = sources.list_files(str(named), directory, part)
            except (ValueError, OSError) as error:
                yield error
                continue
            for file in files:
                yield from _read_rows(file)


def _list_prepared(home: Home, run: RunDirectory) -> Iterator[Path]:
    """The files with rows in the run's entry of the cache."""
    prepared = load(run.prepared)
    for key in ("validation_rows", "test_rows", "rejects"):
        if isinstance(prepared.get(key), str) and Path(prepared[key]).is_file():
            yield Path(prepared[key])


def _read_rows(path: Path) -> Iterator[Any]:
    try:
        for record in readers.read(path):
            yield record.value if record.value is not None else ValueError(record.reason)
    except (ValueError, OSError, ImportError) as error:
        yield error


def _walk_settings(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _walk_settings(f"{key}.{name}", each)
    elif isinstance(value, list):
        for each in value:
            yield from _walk_settings(key, each)
    elif isinstance(value, str):
        yield key, value


def load(path: Path) -> dict[str, Any]:
    """A JSON or YAML mapping; empty for anything else."""
    try:
        found = YAML(typ="safe").load(read_text(path))
    except (ValueError, YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def read_text(path: Path) -> str:
    """The text of a file; empty for one that cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return ""


def list_environment(profile: dict[str, Any]) -> dict[str, str]:
    """The variables that a profile sets."""
    launch = profile.get("launch")
    found = launch.get("environment") if isinstance(launch, dict) else None
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def list_own_names(profile: dict[str, Any]) -> set[str]:
    """Names of users, hosts and accounts in a profile."""
    hosts = {value for key, value in _walk_settings("", profile) if re.search(r"\.(?:hosts|entity|account)$", key)}
    return {part for host in hosts for part in re.split(r"[@:%]", host) if not part.isdecimal()}


def list_known_paths(home: Home, run: RunDirectory) -> set[str]:
    """Paths of this machine that may stand in texts, with blanks in them or not."""
    job = load(run.path / "job.json")
    found = {str(home.root), str(run.path), str(Path.home()), str(Path.cwd())}
    found |= {str(job.get(key) or "") for key in ("source", "directory", "output")}
    for file in (run.profile, run.prepared):
        for key, value in _walk_settings("", load(file)):
            files = re.search(r"\.(?:source|train|validation|test|exclude|catalog)$", key)
            if (files and Path(value).suffix) or ("/" in value and not _HUB.fullmatch(value)):
                found.add(value)
    return {path for path in found if len(path) > 1} | {str(Path(path).parent) for path in found if path.count("/") > 2}
