"""The command line: a table of verbs, and the one place where errors become exit statuses.

Exit status: 0 done, 1 the job failed, 2 the request was wrong, 130 interrupted. Nothing heavy is imported before the
verb is known: `cockpit --help` costs little more than Python itself.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Option:
    """One `add_argument` call."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Verb:
    """`function` is a "module:function" string under `cockpit.verbs`, or empty for a group of `verbs`."""

    name: str
    help: str
    function: str = ""
    options: tuple[Option, ...] = ()
    verbs: tuple[Verb, ...] = ()


def option(*flags: str, **settings: Any) -> Option:
    return Option(flags, settings)


DTYPES, QUANTIZATIONS = ("bfloat16", "float16", "float32"), ("none", "nf4", "int8")

RUN = option("run", metavar="RUN", help="a run's id, an unambiguous prefix of it, or `last`")
PROFILE = option("profile", metavar="PROFILE", help="a YAML or JSON file, or the name of a built-in profile")
SET = option("--set", metavar="K=V", action="append", default=[], dest="overrides", help="override one setting, e.g. training.epochs=2")  # fmt: skip
DETACH = option("--detach", action="store_true", help="print the run's id and leave it running")

FILE = option("file", metavar="FILE", help="a data file, a folder or a glob")
FORMAT = option("--format", metavar="FORMAT", default="auto", help="format of the rows (detected automatically)")
OUT = option("--out", metavar="DIR", required=True, help="folder for rows.jsonl, rejects.jsonl and report.json")
MODEL = option("--model", metavar="TARGET", required=True, help="whose tokenizer and chat template")
LENGTH = option("--max-length", type=int, metavar="N", default=1024, help="longest sequence, in tokens (1024)")
LOSS_ON = option("--loss-on", choices=("auto", "assistant", "all"), default="auto", help="which tokens are trained (assistant; all in plain text)")  # fmt: skip
PROCESSES = option("--processes", type=int, metavar="N", help="processes that work (one a core)")
SEED = option("--seed", type=int, metavar="N", default=42, help="seed of the choice (42)")

TARGET = option("target", metavar="TARGET", help="a run, `last`, RUN@STEP, a folder, a GGUF file, a catalogue name or a hub id")  # fmt: skip
SYSTEM = option("--system", metavar="T", help="system prompt")
SAMPLING = (
    option("--task", metavar="NAME", help="prompt exactly as this task was trained, e.g. triples, and read the reply"),
    option("--json-schema", metavar="F", help="replies fit the JSON schema in this file; task: the schema of --task"),
    option("--preset", metavar="NAME", help="creative, chat, factual or greedy; what is named beside it changes it"),
    option("--max-new-tokens", type=int, metavar="N", help="longest reply, in tokens (256)"),
    option("--temperature", type=float, metavar="X", help="0 is greedy, the default"),
    option("--top-k", type=int, metavar="N", help="sample among the N likeliest tokens"),
    option("--top-p", type=float, metavar="X", help="sample among the likeliest tokens of this total probability"),
    option("--min-p", type=float, metavar="X", help="leave out tokens with less than this share of the likeliest one's probability"),
    option("--repetition-penalty", type=float, metavar="X", help="above 1, what was said becomes less likely"),
    option("--no-repeat-ngram", type=int, metavar="N", help="no N tokens come in the same order twice"),
    option("--seed", type=int, metavar="N", help="seed of sampling"),
    option("--stop", metavar="T", action="append", help="a text before which a reply ends (repeatable)"),
    option("--dtype", choices=DTYPES, help="to load it in (as trained, or stored)"),
    option("--quantization", choices=QUANTIZATIONS, help="to load it in (as trained, or none)"),
)  # fmt: skip

RULE = option("--set", metavar="K=V", action="append", default=[], dest="overrides", help="a rule, e.g. clean.min_chars=20 or dedup.threshold=0.9")  # fmt: skip

DATA = (
    Verb("inspect", "what a file holds: format, columns, a row", "tools:data", (FILE, FORMAT)),
    Verb(
        "validate",
        "name every bad row",
        "tools:data",
        (FILE, FORMAT, option("--out", metavar="DIR", help="also write rows.jsonl and rejects.jsonl there"), PROCESSES),
    ),
    Verb(
        "clean",
        "repair text and drop what is empty, by rules that count",
        "tools:data",
        (FILE, FORMAT, OUT, RULE, PROCESSES),
    ),
    Verb(
        "dedup",
        "drop rows that are there (nearly) twice",
        "tools:data",
        (
            FILE,
            FORMAT,
            OUT,
            option(
                "--against",
                metavar="FILE",
                action="append",
                default=[],
                help="also drop rows that are in this file (repeatable)",
            ),
            RULE,
            PROCESSES,
        ),
    ),
    Verb(
        "split",
        "hold rows out for validation and test",
        "tools:data",
        (
            FILE,
            FORMAT,
            OUT,
            option("--validation", type=float, metavar="SHARE", default=0.1, help="share of rows (0.1)"),
            option("--test", type=float, metavar="SHARE", default=0.0, help="share of rows (0)"),
            option("--stratify-by", metavar="COLUMN", help="give each value of this column the same share"),
            SEED,
            PROCESSES,
        ),
    ),
    Verb(
        "balance",
        "even out the values of a column",
        "tools:data",
        (
            FILE,
            FORMAT,
            OUT,
            option("--by", metavar="COLUMN", required=True, help="the column"),
            option(
                "--to",
                metavar="N",
                default="smallest",
                help="rows of each value: smallest, median, largest or a number",
            ),
            SEED,
            PROCESSES,
        ),
    ),
    Verb(
        "convert",
        "write the rows in another format",
        "tools:data",
        (
            FILE,
            FORMAT,
            option("--to", metavar="FORMAT", required=True, help="the format to write"),
            option("--out", metavar="FILE", required=True, help="a .jsonl file"),
        ),
    ),
    Verb(
        "expand",
        "make new rows with an OpenAI-compatible service",
        "tools:data",
        (
            option("file", metavar="FILE", help="seed rows"),
            FORMAT,
            OUT,
            SET,
            option("--dry-run", action="store_true", help="show the prompts and what they would cost at most"),
        ),
    ),
    Verb(
        "tokenize",
        "rows to token ids and labels on disk",
        "tools:data",
        (
            FILE,
            FORMAT,
            MODEL,
            OUT,
            LENGTH,
            LOSS_ON,
            option("--packing", action="store_true", help="several rows to a sequence, attention kept apart"),
            option(
                "--blocks",
                action="store_true",
                help="plain text end to end in blocks of --max-length, as for pretraining",
            ),
            PROCESSES,
        ),
    ),
    Verb(
        "stats",
        "lengths, trained share, duplicates, languages, waste",
        "tools:data",
        (
            FILE,
            FORMAT,
            MODEL,
            LENGTH,
            LOSS_ON,
            option("--by", metavar="COLUMN", help="also for each value of this column"),
            option("--plot", metavar="PNG", help="draw the histogram of lengths"),
            PROCESSES,
        ),
    ),
)

VERBS = (
    Verb(
        "demo",
        "train the embedded model on the bundled sentences and show what it learnt",
        "demo:demo",
        (option("--headless", action="store_true", help="progress bars instead of the app"), SET),
    ),
    Verb(
        "train",
        "run all that a profile asks for, and follow it",
        "train:train",
        (
            PROFILE,
            SET,
            DETACH,
            option("--output-dir", metavar="DIR", help="publish the final checkpoint there"),
            option(
                "--from",
                choices=("check", "expand", "prepare", "train", "evaluate", "export"),
                metavar="STAGE",
                dest="first",
                help="begin there, with what this profile's newest run has done before it: check, expand, prepare, train, evaluate, export",
            ),
            option("--no-rehearsal", action="store_true", help="begin at once, without the longest batch's rehearsal"),
        ),
    ),
    Verb("prepare", "read, check and tokenise a profile's data, nothing more", "train:prepare", (PROFILE, SET, DETACH)),
    Verb(
        "chat",
        "one answer, or a conversation, with a run, a checkpoint or a model",
        "chat:chat",
        (
            TARGET,
            option("--prompt", metavar="T", help="ask this once and leave"),
            option(
                "--hot", action="store_true", help="a run while it trains: its newest weights answer, and it goes on"
            ),
            SYSTEM,
            *SAMPLING,
        ),
    ),
    Verb(
        "generate",
        "replies to a file of prompts; goes on where it was stopped",
        "generate:generate",
        (
            TARGET,
            option(
                "--input",
                metavar="F",
                required=True,
                help="a prompt a line (.txt), or rows of any format, or with `prompt` or `text`",
            ),
            option(
                "--output", metavar="F", required=True, help="a .jsonl or .json file for the rows with their replies"
            ),
            SYSTEM,
            *SAMPLING,
            option("--batch-size", type=int, metavar="N", help="prompts decoded together (32)"),
            option("--devices", metavar="D,…", help="GPUs by number, or cpu (all that are free)"),
            option("--again", action="store_true", help="begin anew where other settings were at work"),
        ),
    ),
    Verb(
        "eval",
        "measure a run, a checkpoint or a model on rows; or replies from elsewhere",
        "evaluate:evaluate",
        (
            option(
                "target",
                nargs="?",
                metavar="TARGET",
                help="a run, `last`, RUN@STEP, a folder, a catalogue name or a hub id",
            ),
            option(
                "--predictions", metavar="FILE", help="score these JSON lines of reply and reference, without a model"
            ),
            option("--data", metavar="SOURCE", help="rows to measure on (those that the run held out)"),
            FORMAT,
            option("--task", metavar="NAME", help="score replies as answers to this task, e.g. triples"),
            option("--rows", type=int, metavar="N", help="take at most so many rows"),
            option("--samples", type=int, metavar="N", help="generate replies for so many of them (all); 0 for none"),
            option("--max-new-tokens", type=int, metavar="N", help="longest reply, in tokens (the run's, else 256)"),
            option("--constrained", action="store_true", help="let replies hold to the task's JSON schema"),
            option(
                "--thresholds",
                "--threshold",
                action="append",
                default=[],
                metavar="T",
                help="what must be reached, e.g. 'schema_validity >= 0.95'; a failed one exits 1 (repeatable)",
            ),
            option(
                "--judge",
                nargs="?",
                const="",
                action="append",
                metavar="K=V",
                help="let a service give points; settings such as model=NAME (repeatable)",
            ),
            option(
                "--against",
                action="append",
                default=[],
                metavar="TARGET",
                help="measure this, too, and say whether the difference is beyond noise (repeatable)",
            ),
            option(
                "--out", metavar="DIR", help="folder for the replies and their scores (in the run, else in the home)"
            ),
            option("--again", action="store_true", help="measure anew what was measured before"),
            option("--dtype", choices=DTYPES, help="to load in (as trained)"),
            option("--quantization", choices=QUANTIZATIONS, help="to load with (as trained)"),
        ),
    ),
    Verb(
        "export",
        "a run, checkpoint or model as a folder that others load, measured against what it was made from",
        "export:export",
        (
            option("target", metavar="TARGET", help="a run, `last`, RUN@STEP, a folder, a catalogue name or a hub id"),
            option("--out", metavar="DIR", required=True, help="the folder to make; it must not exist, or be empty"),
            option("--adapter-only", action="store_true", help="the adapter alone, not merged into its base"),
            option("--dtype", choices=DTYPES, help="of the weights (as trained)"),
            option(
                "--gguf",
                nargs="?",
                const="auto",
                choices=("auto", "f32", "f16", "bf16", "q8_0"),
                metavar="TYPE",
                help="also write GGUF: f32, f16, bf16, q8_0 or auto",
            ),
            option("--converter", metavar="PATH", help="a llama.cpp checkout, for --gguf (else looked for on PATH)"),
        ),
    ),
    Verb(
        "serve",
        "a model at an OpenAI-compatible address; without a target, list what is served",
        "serve:serve",
        (
            option(
                "target",
                metavar="TARGET",
                nargs="?",
                help="a run, `last`, RUN@STEP, a folder, a catalogue name or a hub id; with --stop a service, port or target",
            ),
            option(
                "--host",
                metavar="H",
                help="address to listen at (127.0.0.1); others than this machine's own need a key",
            ),
            option("--port", type=int, metavar="N", help="0 takes a free one (8000)"),
            option("--api-key-env", metavar="NAME", help="the variable that holds the key which clients must show"),
            option("--task", metavar="NAME", help="wrap a bare text in this task's prompt, e.g. triples"),
            option("--constrained", action="store_true", default=None, help="every reply fits the task's JSON schema"),
            option(
                "--preset",
                metavar="NAME",
                help="how to sample where a request does not say: creative, chat, factual, greedy",
            ),
            option(
                "--max-tokens",
                type=int,
                metavar="N",
                dest="longest",
                help="longest reply where a request does not say (1024)",
            ),
            option("--slots", type=int, metavar="N", help="replies made at a time (16)"),
            option("--queue", type=int, metavar="N", help="replies that may wait for a place (128)"),
            option("--max-body", type=int, metavar="BYTES", dest="most_bytes", help="largest request (1048576)"),
            option("--timeout", type=float, metavar="SECONDS", dest="seconds", help="that a request may take (600)"),
            option("--dtype", choices=DTYPES, help="to load it in (as trained or stored)"),
            option("--quantization", choices=QUANTIZATIONS, help="to load it in (as trained)"),
            option("--backend", metavar="NAME", help="transformers, or vllm where it is installed (transformers)"),
            option("--detach", action="store_true", help="print the address and leave it running"),
            option("--stop", action="store_true", help="end a server; requests in flight have five seconds"),
        ),
    ),
    Verb(
        "runs",
        "list runs, the newest last",
        "runs:runs",
        (option("--state", default="", metavar="STATE", help="only those in this state"),),
    ),
    Verb("show", "all about a run", "runs:show", (RUN,)),
    Verb(
        "metrics",
        "a run's metric values, from its journal",
        "runs:metrics",
        (
            RUN,
            option(
                "--name",
                action="append",
                default=[],
                metavar="NAME",
                help="only this metric, e.g. train/loss (repeatable)",
            ),
            option("--all", action="store_true", help="every attempt's values, superseded ones too"),
        ),
    ),
    Verb(
        "logs",
        "what a run's processes printed",
        "runs:logs",
        (RUN, option("--follow", "-f", action="store_true", help="go on until the run ends")),
    ),
    Verb(
        "plot",
        "a run's curves as a picture",
        "tools:plot",
        (
            RUN,
            option(
                "--name",
                action="append",
                default=[],
                metavar="NAME",
                dest="names",
                help="this metric instead of the losses (repeatable)",
            ),
            option("--out", metavar="FILE", help="the PNG to write (one in the run's plots/)"),
        ),
    ),
    Verb(
        "stop",
        "end a run after its present step, with a checkpoint",
        "runs:stop",
        (RUN, option("--now", action="store_true", help="end its processes at once, without a checkpoint")),
    ),
    Verb("pause", "hold a run at its next step boundary", "runs:pause", (RUN,)),
    Verb(
        "continue",
        "let a paused run go on",
        "runs:continue_",
        (
            RUN,
            option("--skip", action="store_true", help="leave out the rows of the batch that is held back"),
            option("--rollback", action="store_true", help="go back to the checkpoint before it, and leave them out"),
        ),
    ),
    Verb(
        "set",
        "change settings of a running run",
        "runs:set_",
        (RUN, option("changes", nargs="+", metavar="K=V", help="e.g. training.learning_rate=1e-4")),
    ),
    Verb(
        "resume",
        "go on with a run that has ended, from a checkpoint",
        "train:resume",
        (option("run", metavar="RUN[@STEP]", help="its newest checkpoint, or the one of STEP"), SET, DETACH),
    ),
    Verb("delete", "remove a run that has ended, with its checkpoints", "runs:delete", (RUN,)),
    Verb(
        "profile",
        "list, show and check profiles",
        verbs=(
            Verb("list", "built-in profiles and your own", "profile:list_"),
            Verb("show", "print a profile", "profile:show", (PROFILE, SET)),
            Verb("check", "report all problems of a profile", "profile:check", (PROFILE, SET)),
            Verb("schema", "the JSON Schema of profiles", "profile:schema"),
        ),
    ),
    Verb("data", "look at data files, and make training sets of them", verbs=DATA),
    Verb(
        "tokenizer",
        "tokenizers of your own",
        verbs=(
            Verb(
                "train",
                "train a tokenizer on texts",
                "tools:tokenizer",
                (
                    option("files", nargs="+", metavar="FILE", help="data files of any format"),
                    option("--out", metavar="DIR", required=True, help="folder that AutoTokenizer will load"),
                    option("--kind", choices=("bpe", "unigram"), default="bpe", help="the algorithm (bpe)"),
                    option(
                        "--size", type=int, metavar="N", default=15_000, help="tokens, special ones included (15000)"
                    ),
                    option(
                        "--samples",
                        type=int,
                        metavar="N",
                        default=100_000,
                        help="texts to learn from, a seeded sample (100000)",
                    ),
                    option(
                        "--special",
                        action="append",
                        default=[],
                        metavar="TOKEN",
                        help="a further special token (repeatable)",
                    ),
                    option("--template", metavar="FILE", help="a Jinja chat template (ChatML by default)"),
                    option(
                        "--no-byte-fallback", action="store_true", help="unknown characters become <unk>, not bytes"
                    ),
                    option(
                        "--compare",
                        action="append",
                        default=[],
                        metavar="TARGET",
                        help="report the compression of this model's tokenizer too",
                    ),
                    SEED,
                ),
            ),
        ),
    ),
    Verb(
        "model",
        "find, fetch and verify base models",
        verbs=(
            Verb(
                "find",
                "models on this machine, and what is damaged",
                "tools:model_find",
                (option("folders", nargs="*", metavar="FOLDER", help="look here too"),),
            ),
            Verb(
                "pull",
                "fetch a model into the home",
                "tools:model_pull",
                (option("name", metavar="NAME", help="a catalogue name or org/name on the hub"),),
            ),
            Verb(
                "verify",
                "check a model folder, file by file",
                "tools:model_verify",
                (option("folder", metavar="FOLDER", help="for instance one copied by hand"),),
            ),
        ),
    ),
    Verb(
        "engine",
        "the background engine of this home",
        verbs=(
            Verb("status", "is it running, since when, what lives", "engine:status"),
            Verb("start", "start it if it is not running", "engine:start"),
            Verb(
                "stop",
                "end it; refuses while jobs live",
                "engine:stop",
                (option("--force", action="store_true", help="end live jobs now, too"),),
            ),
            Verb("reindex", "rebuild the registry from the run directories", "engine:reindex"),
        ),
    ),
    Verb(
        "doctor",
        "check this machine, or a model folder",
        "tools:doctor",
        (option("folder", nargs="?", metavar="FOLDER", help="check this model folder"),),
    ),
)


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and leave, so that `--json` holds for mistyped commands too."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


class UsageError(ValueError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def build_parser() -> Parser:
    """The parser of all verbs. Shared options work before and after the verb."""
    parser = Parser(prog="cockpit", description="The terminal cockpit for training language models. Without a verb: the app.",
                    epilog="Results go to stdout, everything else to stderr.", allow_abbrev=False)  # fmt: skip
    parser.set_defaults(function="app:open_app", home=None, json=False)
    _add_shared(parser)
    parser.add_argument("--readonly", action="store_true", help="the app only watches: no key changes a run")
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
    """Run one command; returns its exit status."""
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
        # Whoever read us (head, less) has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001 - `report` raises again what is no user's mistake
        from cockpit.verbs.output import report

        report(error, as_json="--json" in arguments)
        return WRONG


if __name__ == "__main__":
    sys.exit(main())
