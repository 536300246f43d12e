"""`cockpit man`: the manual page, made from the parser that reads the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib.metadata import version

FILES = {
    "~/.cockpit": "the home: runs, profiles, models, settings.yaml; COCKPIT_HOME or --home names another",
}
ENVIRONMENT = {
    "COCKPIT_HOME": "the home, unless --home names one",
    "NO_COLOR": "if set, neither the app nor a verb writes a colour",
    "EDITOR, VISUAL": "what the app edits profiles and rows with",
}
STATUS = {
    "0": "done",
    "130": "ctrl+c",
    "1": "the run or the check failed",
    "2": "wrong use, or a problem that was explained",
}


def man(options: argparse.Namespace) -> int:
    print(build_page(), end="")
    return 0


def build_page() -> str:
    """The page in roff, section 1."""
    from cockpit.cli import build_parser

    parser = build_parser(whole=True)
    release = re.match(r"[\w.+]*", version("cockpit"))
    lines = [
        f'.TH COCKPIT 1 "" "cockpit {release[0] if release else ""}" "User Commands"',
        ".SH NAME",
        _text(f"cockpit - {(parser.description or '').partition('.')[0]}"),
        ".SH SYNOPSIS",
        ".B cockpit",
        "[OPTIONS] [VERB ...]",
        ".SH DESCRIPTION",
        _text(f"{parser.description} {parser.epilog}"),
        ".SH OPTIONS",
        *_options(parser),
        ".SH VERBS",
        *_verbs(parser, "cockpit"),
    ]
    for title, rows in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", STATUS)):
        lines.append(f".SH {title}")
        for name, meaning in rows.items():
            lines += [".TP", f".B {_text(name)}", _text(meaning)]
    return "\n".join([*lines, ""])


def _verbs(parser: argparse.ArgumentParser, called: str) -> Iterator[str]:
    """Each verb with its options, groups of verbs unfolded."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                if any(isinstance(each, argparse._SubParsersAction) for each in verb._actions):
                    yield from _verbs(verb, f"{called} {name}")
                    continue
                places = " ".join(str(each.metavar or each.dest) for each in verb._actions if not each.option_strings)
                yield f'.SS "{_text(f"{called} {name} {places}".strip())}"'
                yield _text(verb.description or "")
                yield from _options(verb, shared=False)


def _options(parser: argparse.ArgumentParser, *, shared: bool = True) -> Iterator[str]:
    """The options and operands of a parser; those that every verb has only if `shared`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        if not shared and {"--home", "--json", "--on", "--help"} & set(action.option_strings):
            continue
        value = "" if action.nargs == 0 else " " + _value(action)
        flags = [f"\\fB{_text(flag)}\\fR{_text(value)}" for flag in action.option_strings] or [_text(value.strip())]
        yield from (".TP", ", ".join(flags), _text((action.help or "").replace("%%", "%")))


def _value(action: argparse.Action) -> str:
    choices = ",".join(map(str, action.choices)) if action.choices else ""
    return str(action.metavar or (f"{{{choices}}}" if choices else action.dest.upper()))


def _text(text: str) -> str:
    """Text as roff wants it: no line begins with a request, and hyphens can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
