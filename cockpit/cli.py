"""The command line: its parser, and the one place where errors become exit statuses.

Nothing heavy is imported before the verb is known: `cockpit --help` costs little more than Python itself.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from cockpit.command_line.data_verbs import DATA_VERBS, TOKENIZER_VERBS
from cockpit.command_line.model_verbs import BASE_MODEL_VERBS, CHAT, EVAL, EXPORT, GENERATE, SERVE
from cockpit.command_line.options import Verb, option
from cockpit.command_line.run_verbs import ENGINE_VERBS, PROFILE_VERBS, RUN_VERBS, START_VERBS
from cockpit.exit_status import DONE, INTERRUPTED, WRONG

VERBS = (
    *START_VERBS,
    CHAT,
    GENERATE,
    EVAL,
    EXPORT,
    SERVE,
    *RUN_VERBS,
    Verb("profile", "list, show and check profiles", verbs=PROFILE_VERBS),
    Verb("data", "inspect data files, and make training sets from them", verbs=DATA_VERBS),
    Verb("tokenizer", "train tokenizers of your own", verbs=TOKENIZER_VERBS),
    Verb("model", "find, download and verify base models", verbs=BASE_MODEL_VERBS),
    Verb("engine", "control the background engine of this home", verbs=ENGINE_VERBS),
    Verb(
        "doctor",
        "check this machine, or a model folder",
        "tools:doctor",
        (
            option("folder", nargs="?", metavar="FOLDER", help="check this model folder"),
            option("--hosts", metavar="A,B", help="measure whether these hosts can train together, over ssh"),
            option(
                "--ssh-option",
                action="append",
                default=[],
                metavar="OPTION",
                help="with --hosts: an option of ssh (repeatable)",
            ),
            option(
                "--again", action="store_true", help="forget which accelerated paths were tried: they are tried anew"
            ),
        ),
    ),
)


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit, so that `--json` also applies to mistyped commands."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


class UsageError(ValueError):
    code = "request.usage"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class VersionAction(argparse.Action):
    """Looks the version up only when it is asked for: importlib.metadata takes longer than the rest of the parser."""

    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"cockpit {version('cockpit')}")
        sys.exit(DONE)


def build_parser() -> Parser:
    """The parser of all verbs. Shared options work before and after the verb."""
    parser = Parser(
        prog="cockpit",
        description="The terminal cockpit for training language models. Without a verb it opens the app.",
        epilog="Results go to stdout, everything else to stderr.",
        allow_abbrev=False,
    )
    parser.set_defaults(function="open_app:open_app", home=None, json=False)
    _add_shared(parser)
    parser.add_argument("--readonly", action="store_true", help="only watch: no key of the app changes a run")
    parser.add_argument("--version", action=VersionAction, nargs=0, help="print the version and exit")
    _add_verbs(parser, VERBS)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: an option that is absent after the verb must not overwrite one that was given before it.
    parser.add_argument("--home", metavar="DIR", default=argparse.SUPPRESS, help="instead of COCKPIT_HOME (~/.cockpit)")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _add_verbs(parser: argparse.ArgumentParser, verbs: tuple[Verb, ...], required: bool = False) -> None:
    children = parser.add_subparsers(metavar="VERB", title="verbs", required=required)
    for verb in verbs:
        child = children.add_parser(verb.name, help=verb.help, description=verb.help, allow_abbrev=False)
        _add_shared(child)
        for each in verb.options:
            child.add_argument(*each.flags, **each.settings)
        if verb.verbs:
            _add_verbs(child, verb.verbs, required=True)
        else:
            child.set_defaults(function=verb.function, verb=verb.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from engine.protocol.terminal import guard

    guard()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = build_parser().parse_args(arguments)
        module, _, name = options.function.partition(":")
        status: int = getattr(importlib.import_module(f"cockpit.verbs.{module}"), name)(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output (head, less) has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001 - `report` raises again what is not the user's mistake
        from cockpit.verbs.output import report

        report(error, as_json="--json" in arguments)
        return WRONG


if __name__ == "__main__":
    sys.exit(main())
