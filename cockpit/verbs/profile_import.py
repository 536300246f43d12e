"""`cockpit profile import`: a profile from another program's configuration."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from cockpit.language.translate import tr, tr_engine
from cockpit.verbs.output import emit, say
from engine.config.foreign_profiles import Imported, read_foreign
from engine.config.profile import ProfileError, parse
from engine.protocol.home import Home, write_private
from engine.protocol.messages import Problem, ProblemError


def import_(options: argparse.Namespace) -> int:
    """Print the profile, or write it to `--out`. Returns 1 if it has to be completed before it can be trained."""
    source = Path(options.file)
    found = read_foreign(_load(source), source.name)
    text = _write_yaml(found, source.name)
    target = Path(options.out) if options.out else None
    problems = _check(text, source.name, (target or source).absolute().parent, Home.locate(options.home))
    if target is not None:
        if target.exists():
            title = tr("{target} exists", target=target)
            raise ProblemError(
                Problem(code="output.not_empty", title=title, hint=tr("name a file that does not exist yet"))
            )
        write_private(target, text.encode())
    if options.json:
        emit({"program": found.program, "profile": found.settings, "path": str(target.absolute()) if target else "",
              "left_out": found.left_out, "remarks": found.remarks, "issues": problems})  # fmt: skip
        return 1 if problems else 0
    print(target) if target is not None else sys.stdout.write(text)
    say(tr("read as a configuration of {program}", program=found.program), "dim")
    for key, value in found.left_out.items():
        say(tr("no counterpart: {key}: {value}", key=key, value=value), "yellow")
    for remark in (*found.remarks, *problems):
        say(remark)
    return 1 if problems else 0


def _load(path: Path) -> Any:
    """YAML, or JSON, which is YAML too. Raises ProblemError."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProblemError(Problem(code="file.not_found", title=tr("There is no file {path}", path=path)))
    except (OSError, ValueError, YAMLError) as error:
        raise ProblemError(
            Problem(code="file.unreadable", title=tr("{path} cannot be read", path=path), cause=str(error))
        )


def _write_yaml(found: Imported, name: str) -> str:
    """The profile, with what was left out in comments at the top."""
    from ruamel.yaml import YAML

    written = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(found.settings, written)
    head = [f"# From {_join_lines(name)}, a configuration of {found.program}."]
    if found.left_out:
        head.append("# Left out, since there is no counterpart:")
        head += [f"#   {_join_lines(key)}: {_join_lines(str(value))[:90]}" for key, value in found.left_out.items()]
    return "\n".join(head) + "\n\n" + written.getvalue()


def _join_lines(text: str) -> str:
    """A text for a comment: on one line, and without characters that YAML does not have."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _check(text: str, name: str, directory: Path, home: Home) -> list[str]:
    """What is wrong or missing in the profile, as `cockpit profile check` says it of one in `directory`."""
    try:
        parse(text, name, directory, (), home)
    except ProfileError as error:
        return [
            f"{issue.key}: {tr_engine(issue.message)}" if issue.key else tr_engine(issue.message)
            for issue in error.issues
        ]
    return []
