"""The command line: its parser, and the one place where errors become exit statuses.

Nothing heavy is imported before the verb is known: `cockpit --help` costs little more than Python itself.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from cockpit import remote_names
from cockpit.command_line.data_verbs import DATA_VERBS, TOKENIZER_VERBS
from cockpit.command_line.help_verbs import HELP_VERBS
from cockpit.command_line.model_verbs import BASE_MODEL_VERBS, CHAT, EVAL, EXPORT, GENERATE, MERGE, PUSH, SERVE
from cockpit.command_line.options import Verb, option
from cockpit.command_line.run_verbs import ENGINE_VERBS, PROFILE_VERBS, RUN_VERBS, START_VERBS
from cockpit.command_line.web_verbs import WEB_VERBS
from cockpit.exit_status import DONE, INTERRUPTED, WRONG
from cockpit.language.translate import read_language, set_language, tr
from cockpit.remote_names import HANG_UP, HERE

OPEN_APP = "open_app:open_app"
"""What runs without a verb."""
VERBS = (
    *START_VERBS,
    CHAT,
    GENERATE,
    EVAL,
    EXPORT,
    MERGE,
    PUSH,
    SERVE,
    *RUN_VERBS,
    Verb("profile", "list, show and check profiles", verbs=PROFILE_VERBS),
    Verb("data", "inspect data files, and make training sets from them", verbs=DATA_VERBS),
    Verb("tokenizer", "train tokenizers of your own", verbs=TOKENIZER_VERBS),
    Verb("model", "find, download and verify base models", verbs=BASE_MODEL_VERBS),
    Verb("engine", "control the background engine of this home", verbs=ENGINE_VERBS),
    Verb(
        "doctor",
        "check this machine, or a model folder; mend it, or test its cards",
        "tools:doctor",
        (
            option(
                "targets", nargs="*", metavar="CHECK|FOLDER", help="run these checks alone, or check this model folder"
            ),
            option("--fix", action="store_true", help="run the command that mends what fails, where that is safe"),
            option("--yes", action="store_true", help="with --fix: do not ask; for scripts"),
            option(
                "--stress",
                nargs="?",
                type=float,
                const=30.0,
                metavar="SECONDS",
                help="test each card for so long (30), or the CPU: wrong results, memory, speed, heat",
            ),
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
    *HELP_VERBS,
    *WEB_VERBS,
)


ALIASES = (Verb("env", "the same as `cockpit profile`", verbs=tuple(v for v in PROFILE_VERBS if v.name == "import")),)
"""Further names of verbs: they are understood, and not listed."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit, so that `--json` also applies to mistyped commands."""

    missing: Callable[[], None] | None = None
    """Adds the arguments of a verb when it is used first: those of all verbs take longer than Python's own start."""

    def complete(self) -> None:
        """Add what is missing."""
        missing, self.missing = self.missing, None
        if missing:
            missing()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """For a mistyped verb or choice say which one was probably meant, rather than list them all."""
        choices = [str(choice) for choice in action.choices or ()]
        if choices and str(value) not in choices and (meant := _did_you_mean(str(value), choices)):
            name = "verb" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
            raise argparse.ArgumentError(
                None,
                tr("there is no {name} {value!r}: {meant}", name=name, value=value, meant=meant).replace("  ", " "),
            )
        super()._check_value(action, value)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but for an option that does not exist say which one was probably meant."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            known = [flag for verb in getattr(parsed, "known", ()) for flag in verb]
            meant = _did_you_mean(extra[0].partition("=")[0], known)
            self.error(f"unrecognized arguments: {' '.join(extra)}{f': {meant}' if meant else ''}")
        return parsed


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    """The question after a mistyped word, empty when nothing is like it."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1, 0.7)
    return tr("did you mean `{close}`?", close=close[0]) if close else ""


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


def build_parser(*, whole: bool = False) -> Parser:
    """The parser of all verbs. Shared options work before and after the verb. The arguments of a verb are added when it
    is parsed; with `whole`, all of them at once."""
    parser = Parser(
        prog="cockpit",
        description=tr("The terminal cockpit for training language models. Without a verb it opens the app."),
        epilog=tr("Results go to stdout, everything else to stderr."),
        allow_abbrev=False,
    )
    parser.set_defaults(function=OPEN_APP, home=None, json=False, on=[])
    _add_shared(parser)
    parser.add_argument("--readonly", action="store_true", help=tr("only watch: no key of the app changes a run"))
    parser.add_argument("--version", action=VersionAction, nargs=0, help=tr("print the version and exit"))
    _add_verbs(parser, VERBS, whole=whole, hidden=() if whole else ALIASES)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: an option that is absent after the verb must not overwrite one that was given before it.
    parser.add_argument(
        "--home", metavar="DIR", default=argparse.SUPPRESS, help=tr("instead of COCKPIT_HOME (~/.cockpit)")
    )
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=tr("print JSON"))
    parser.add_argument(
        "--on",
        metavar="HOST",
        action="append",
        default=argparse.SUPPRESS,
        help=tr("work on this host, which ssh reaches: user@host; the app takes several, and . is this host"),
    )


def _add_verbs(
    parser: Parser, verbs: tuple[Verb, ...], *, required: bool = False, whole: bool, hidden: tuple[Verb, ...] = ()
) -> None:
    children = parser.add_subparsers(metavar="VERB", title=tr("verbs"), required=required)
    for verb in (*verbs, *hidden):
        listed: dict[str, Any] = {} if verb in hidden else {"help": tr(verb.help)}
        child = children.add_parser(verb.name, **listed, description=tr(verb.help), allow_abbrev=False, add_help=False)
        child.missing = partial(_add_arguments, child, verb, whole=whole)
        if whole:
            child.complete()


def _add_arguments(parser: Parser, verb: Verb, *, whole: bool) -> None:
    parser.add_argument("-h", "--help", action="help", help=tr("show this help message and exit"))
    _add_shared(parser)
    for each in verb.options:
        parser.add_argument(*each.flags, **each.settings | {"help": tr(each.settings.get("help", ""))})
    if verb.verbs:
        _add_verbs(parser, verb.verbs, required=True, whole=whole)
    else:
        flags = [option.flags for option in verb.options]
        parser.set_defaults(function=verb.function, verb=verb.name, known=[*flags, ("--home", "--json", "--help")])


def choose_function(options: argparse.Namespace) -> str:
    """The function of the verb, or the one that runs the verb on another host."""
    if options.function == OPEN_APP or (
        options.on in ([], [HERE]) and remote_names.count_hosts(options.arguments) <= 1
    ):
        return str(options.function)
    options.parse = build_parser().parse_args  # it tells what each argument is
    return "remote:run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from engine.protocol.terminal import guard

    guard()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # JSON is for programs, and errors are written into it, too.
        set_language("en" if "--json" in arguments else read_language())
        options = build_parser().parse_args(arguments)
        options.arguments = arguments
        remote_names.read_command(options.home)
        if HANG_UP in os.environ:
            from cockpit.verbs.remote import end_with_reader

            end_with_reader()
        module, _, name = choose_function(options).partition(":")
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
