"""What a row of the verb tables is made of, and the options that several verbs share."""

from __future__ import annotations

from typing import Any, NamedTuple


class Option(NamedTuple):
    """One `add_argument` call."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


class Verb(NamedTuple):
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
PROFILE = option(
    "profile", metavar="PROFILE", help="a YAML or JSON file, the name of a built-in profile, or - for stdin"
)
SET = option(
    "--set",
    metavar="K=V",
    action="append",
    default=[],
    dest="overrides",
    help="override one setting, e.g. training.epochs=2",
)
DETACH = option("--detach", action="store_true", help="print the run's id and leave it running")
FORMAT = option("--format", metavar="FORMAT", default="auto", help="format of the rows (detected automatically)")
SEED = option("--seed", type=int, metavar="N", default=42, help="random seed (42)")
SYSTEM = option("--system", metavar="T", help="system prompt")
TARGET = option(
    "target", metavar="TARGET", help="a run, `last`, RUN@STEP, a folder, a GGUF file, a catalogue name or a hub id"
)
SAMPLING = (
    option(
        "--task", metavar="NAME", help="prompt exactly as in this task's training, e.g. triples, and parse the reply"
    ),
    option(
        "--json-schema", metavar="F", help="make replies fit the JSON schema in this file; task: the schema of --task"
    ),
    option("--preset", metavar="NAME", help="creative, chat, factual or greedy; other sampling options change it"),
    option("--max-new-tokens", type=int, metavar="N", help="longest reply, in tokens (256)"),
    option("--temperature", type=float, metavar="X", help="0 is greedy, the default"),
    option("--top-k", type=int, metavar="N", help="sample among the N likeliest tokens"),
    option("--top-p", type=float, metavar="X", help="sample among the likeliest tokens of this total probability"),
    option(
        "--min-p", type=float, metavar="X", help="drop tokens below this share of the likeliest token's probability"
    ),
    option("--repetition-penalty", type=float, metavar="X", help="above 1, tokens that were used become less likely"),
    option("--no-repeat-ngram", type=int, metavar="N", help="never repeat a sequence of N tokens"),
    option("--seed", type=int, metavar="N", help="seed of sampling"),
    option("--stop", metavar="T", action="append", help="end a reply before this text (repeatable)"),
    option("--dtype", choices=DTYPES, help="dtype to load the model in (as trained, or as stored)"),
    option("--quantization", choices=QUANTIZATIONS, help="quantization to load the model with (as trained, or none)"),
)
