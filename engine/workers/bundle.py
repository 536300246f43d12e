"""`cockpit report RUN [--bundle [FILE]]`: what is known about a run, and one file with it for whoever is to help.

Without `--bundle` it prints the summary. A bundle is listed before it is written; on a terminal it can be read first.
Exit status: 0 done, 1 not written since nobody agreed, 2 a wrong request.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.models.targets import find_run
from engine.models.versions import list_versions
from engine.protocol.console import GuardedConsole, text
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, show_controls, to_json
from engine.workers import bundle_parts, redaction
from engine.workers.redaction import Redactor, RowTexts

ERR = GuardedConsole(stderr=True)
ABOUT = {
    "summary.md": "state, problem, warnings, and what was left out",
    "versions.json": "versions of Python and of the libraries",
    "doctor.json": "the checks of `cockpit doctor` on this machine",
    "profile.yaml": "the settings: numbers, choices and names of models",
    "events.jsonl": "the worker's journal, without texts of rows",
    "lifecycle.jsonl": "the engine's journal of the run",
    "forecast.json": "memory as forecast, as rehearsed and as it was",
    "log.txt": "the end of the log",
    "stacks.txt": "stacks and tracebacks in the log",
    "engine.log": "the end of the engine's log",
}


def main() -> int:
    arguments = _parse()
    try:
        return _report(Home(arguments.home), arguments)
    except ProblemError as error:
        problem = error.problem
        ERR.print(": ".join(filter(None, (problem.title, problem.cause))), style="bold red", soft_wrap=True)
        if problem.hint:
            ERR.print(f"→ {problem.hint}", style="cyan", soft_wrap=True)
        if arguments.json:
            print(to_json({"error": problem.document()}))
        return 2
    except KeyboardInterrupt:
        return 130


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cockpit report")
    parser.add_argument("run")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, nargs="?", const=Path())
    for flag in ("--with-rows", "--with-paths", "--with-names", "--no-doctor", "--yes", "--json"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def _report(home: Home, arguments: argparse.Namespace) -> int:
    run = find_run(arguments.run, home)
    if run is None:
        raise ProblemError(
            Problem(code="run.not_found", title=f"There is no run {arguments.run!r}", hint="`cockpit runs` lists them")
        )
    target = None
    if arguments.bundle is not None:
        target = Path(f"report-{run.id}.zip") if arguments.bundle == Path() else arguments.bundle
        if target.exists():
            raise ProblemError(
                Problem(code="output.not_empty", title=f"{target} exists", hint="name a file that does not exist yet")
            )
    files, redactor = make_files(
        home,
        run,
        os.environ,
        with_rows=arguments.with_rows,
        with_paths=arguments.with_paths,
        with_names=arguments.with_names,
        doctor=None if arguments.no_doctor or target is None else _run_doctor,
    )
    if target is None:
        print(
            to_json({"run": run.id, "summary": files["summary.md"]}) if arguments.json else files["summary.md"],
            end="\n" if arguments.json else "",
        )
        return 0
    _list(files)
    if not arguments.yes and not _agrees(target, files):
        ERR.print(text(f"{target} is not written"))
        return 1
    _write(target, files)
    if arguments.json:
        sizes = {name: len(content.encode()) for name, content in files.items()}
        print(to_json({"path": str(target.absolute()), "files": sizes, "left_out": redactor.counts}))
    else:
        print(target)
    return 0


# ── what goes in ───────────────────────────────────────────────────────────────────────────────────────────────────


def make_files(
    home: Home,
    run: RunDirectory,
    environment: Mapping[str, str],
    *,
    with_rows: bool = False,
    with_paths: bool = False,
    with_names: bool = False,
    doctor: Callable[[Home], list[dict[str, Any]]] | None = None,
) -> tuple[dict[str, str], Redactor]:
    """The files of a bundle by name, and the redactor that has counted what was left out."""
    logs = {"log.txt": bundle_parts.read_tail(run.log), "engine.log": bundle_parts.read_tail(home.engine_log)}
    journals = {name: bundle_parts.list_entries(path) for name, path in _list_journals(run)}
    checks = doctor(home) if doctor else []
    report = bundle_parts.load(run.report)
    rows = None if with_rows else _look_at_rows(home, run, [*logs.values(), journals, checks, report, run.id])
    paths = bundle_parts.list_known_paths(home, run)
    job = bundle_parts.load(run.path / "job.json")
    profile = bundle_parts.load(run.profile)
    redactor = Redactor(
        secrets=redaction.list_secrets({**environment, **bundle_parts.list_environment(profile)}),
        names=redaction.list_names(environment, paths)
        | {str(job.get("host") or "")}
        | bundle_parts.list_own_names(profile),
        paths=paths,
        rows=rows,
        keep_paths=with_paths,
        keep_names=with_names,
    )
    strict = rows is not None and not rows.complete

    def clean(document: Any) -> Any:
        return bundle_parts.clean_tree(document, redactor, strict)

    files = {"versions.json": _dump(list_versions())}
    if doctor:
        files["doctor.json"] = _dump(bundle_parts.clean_tree(checks, redactor, strict=False))
    files["profile.yaml"] = bundle_parts.clean_profile(
        bundle_parts.read_text(run.profile), redactor, with_rows=with_rows, with_paths=with_paths
    )
    for name, entries in journals.items():
        files[name] = "".join(json.dumps(clean(entry), ensure_ascii=False) + "\n" for entry in entries)
    memory = [entry for entry in journals["events.jsonl"] if entry["kind"] == "memory"]
    files["forecast.json"] = _dump(clean({"entries": memory, "report": report.get("memory")}))
    for name, lines in logs.items():
        files[name] = redactor.clean("\n".join(bundle_parts.clean_log(lines) if strict else lines)) + "\n"
    stacks = bundle_parts.find_stacks(logs["log.txt"])
    files["stacks.txt"] = redactor.clean("\n".join(bundle_parts.clean_log(stacks) if strict else stacks)) + "\n"
    summary = _summarize(redactor.clean(run.id), journals, clean, strict, redactor)
    files["summary.md"] = summary
    return {name: files[name] for name in ABOUT if name in files}, redactor


def _list_journals(run: RunDirectory) -> list[tuple[str, Path]]:
    return [("events.jsonl", run.events), ("lifecycle.jsonl", run.lifecycle)]


def _look_at_rows(home: Home, run: RunDirectory, asked: list[Any]) -> RowTexts:
    """Which texts of `asked` hold text of rows."""
    texts: list[str] = []
    _gather(asked, texts)
    rows, seen = RowTexts(texts), 0
    for value in bundle_parts.list_rows(home, run):
        if isinstance(value, Exception) or seen > bundle_parts.MOST_ROWS:
            rows.complete = False
            if seen > bundle_parts.MOST_ROWS:
                break
            continue
        rows.see(value)
        seen += len(str(value))
    return rows


def _gather(value: Any, texts: list[str]) -> None:
    if isinstance(value, dict):
        texts.extend(map(str, value))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _gather(each, texts)
    elif isinstance(value, str):
        texts.append(value)


def _run_doctor(home: Home) -> list[dict[str, Any]]:
    from engine.workers.doctor import run_all

    return [asdict(check) for check in run_all(home)]


def _summarize(
    run: str, journals: dict[str, list[dict[str, Any]]], clean: Callable[[Any], Any], strict: bool, redactor: Redactor
) -> str:
    """The summary as Markdown."""
    events, lifecycle = journals["events.jsonl"], journals["lifecycle.jsonl"]
    states = [entry for entry in lifecycle if entry["kind"] == "state"]
    state = clean(states[-1]) if states else {"state": "queued"}
    lines = [f"# {run}", "", f"- state: {state['state']}" + (f" ({state['code']})" if state.get("code") else "")]
    for kind, keys in (("start", ("max_steps", "processes", "global_batch", "parameters")), ("metrics", ("step",))):
        last: dict[str, Any] = next((entry for entry in reversed(events) if entry["kind"] == kind), {})
        lines += [f"- {key}: {last[key]}" for key in keys if key in last]
    ends = [entry.get("problem") for entry in [*events, *states] if entry.get("problem")]
    if ends:
        problem = clean(ends[-1])
        lines += ["", f"## {problem.get('code', 'unknown')}", ""]
        lines += [f"{problem[key]}\n" for key in ("title", "cause", "hint") if problem.get(key)]
    warnings = [entry for entry in [*events, *lifecycle] if entry["kind"] == "warning"]
    if warnings:
        lines += ["", "## Warnings", ""]
        lines += [f"- `{each.get('code', 'unknown')}`: {clean(each.get('message', ''))}" for each in warnings[-20:]]
    if redactor.rows is not None or not (redactor.keep_paths and redactor.keep_names):
        lines += ["", "## Left out", ""]
        lines += [f"- {kind}: {count} places" for kind, count in sorted(redactor.counts.items())]
        if strict:
            lines.append("- every free text, since not all rows of the run could be read to compare with")
    return "\n".join(lines).rstrip() + "\n"


def _dump(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


# ── showing and writing ────────────────────────────────────────────────────────────────────────────────────────────


def _list(files: Mapping[str, str]) -> None:
    for name, content in files.items():
        ERR.print(text(f"{name:<18}{len(content.encode()):>9,} bytes  {ABOUT[name]}"), soft_wrap=True)


def _agrees(target: Path, files: Mapping[str, str]) -> bool:
    """Ask on a terminal, where the files can be read first. Raises ProblemError without one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ProblemError(
            Problem(
                code="request.unconfirmed",
                title=f"{target} is not written",
                cause="without a terminal nobody can be asked whether these files may be in it",
                hint="--yes writes it",
            )
        )
    while True:
        ERR.print(f"Write them to {show_controls(str(target))}? [y]es, [s]how them first, [N]o ", end="", markup=False)
        answer = sys.stdin.readline().strip().lower()
        if answer not in ("s", "show"):
            return answer in ("y", "yes")
        for name, content in files.items():
            ERR.print(text(f"── {name}", "bold"))
            ERR.print(text(content), soft_wrap=True)


def _write(target: Path, files: Mapping[str, str]) -> None:
    """Write the archive, readable by its owner alone, complete or not at all. Raises ProblemError."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name, content in files.items():
                archive.writestr(name, content.encode("utf-8", "backslashreplace"))
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links, such as exFAT
            if target.exists():
                raise
            temporary.rename(target)
    except OSError as error:
        raise ProblemError(
            Problem(code="file.unwritable", title=f"{target} cannot be written", cause=error.strerror or str(error))
        )
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    guard()
    sys.exit(main())
