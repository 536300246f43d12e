"""Verbs on data files, and on tokenizers."""

from __future__ import annotations

from cockpit.command_line.options import FORMAT, SEED, SET, Verb, option

FILE = option("file", metavar="FILE", help="a data file, a folder or a glob")
ENCODING = option("--encoding", metavar="NAME", help="encoding of a text file that is not UTF-8, e.g. gb18030")
FORCE = option("--force", action="store_true", help="replace files that cockpit has not written")
OUT = option("--out", metavar="DIR", required=True, help="folder for rows.jsonl, rejects.jsonl and report.json")
MODEL = option("--model", metavar="TARGET", required=True, help="the model whose tokenizer and chat template are used")
LENGTH = option("--max-length", type=int, metavar="N", default=1024, help="longest sequence, in tokens (1024)")
LOSS_ON = option(
    "--loss-on",
    choices=("auto", "assistant", "all"),
    default="auto",
    help="which tokens are trained (assistant; all in plain text)",
)
PROCESSES = option("--processes", type=int, metavar="N", help="number of processes (one a core)")
RULE = option(
    "--set",
    metavar="K=V",
    action="append",
    default=[],
    dest="overrides",
    help="a rule, e.g. clean.min_chars=20 or dedup.threshold=0.9",
)

DATA_VERBS = (
    Verb("inspect", "show what a file contains: format, columns, a row", "tools:data", (FILE, FORMAT, ENCODING)),
    Verb(
        "validate",
        "name every bad row",
        "tools:data",
        (
            FILE,
            FORMAT,
            ENCODING,
            option("--out", metavar="DIR", help="also write rows.jsonl and rejects.jsonl there"),
            PROCESSES,
        ),
    ),
    Verb(
        "clean",
        "repair text and drop rows that break a rule, with counts",
        "tools:data",
        (FILE, FORMAT, ENCODING, OUT, FORCE, RULE, PROCESSES),
    ),
    Verb(
        "dedup",
        "drop duplicate and near-duplicate rows",
        "tools:data",
        (
            FILE,
            FORMAT,
            ENCODING,
            OUT,
            FORCE,
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
        "hold out rows for validation and test",
        "tools:data",
        (
            FILE,
            FORMAT,
            ENCODING,
            OUT,
            FORCE,
            option("--validation", type=float, metavar="SHARE", default=0.1, help="share of rows (0.1)"),
            option("--test", type=float, metavar="SHARE", default=0.0, help="share of rows (0)"),
            option("--stratify-by", metavar="COLUMN", help="give each value of this column the same share"),
            SEED,
            PROCESSES,
        ),
    ),
    Verb(
        "balance",
        "give each value of a column the same number of rows",
        "tools:data",
        (
            FILE,
            FORMAT,
            ENCODING,
            OUT,
            FORCE,
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
            ENCODING,
            option("--to", metavar="FORMAT", required=True, help="the format to write"),
            option("--out", metavar="FILE", required=True, help="a .jsonl file"),
            FORCE,
        ),
    ),
    Verb(
        "expand",
        "generate new rows with an OpenAI-compatible service",
        "tools:data",
        (
            option("file", metavar="FILE", help="seed rows"),
            FORMAT,
            ENCODING,
            OUT,
            SET,
            option("--dry-run", action="store_true", help="show the prompts and their highest possible cost"),
        ),
    ),
    Verb(
        "tokenize",
        "write rows as token ids and labels",
        "tools:data",
        (
            FILE,
            FORMAT,
            ENCODING,
            MODEL,
            OUT,
            LENGTH,
            LOSS_ON,
            option(
                "--packing",
                action="store_true",
                help="pack several rows into a sequence, without attention between them",
            ),
            option(
                "--blocks",
                action="store_true",
                help="concatenate plain text into blocks of --max-length, as for pretraining",
            ),
            PROCESSES,
        ),
    ),
    Verb(
        "stats",
        "lengths, share of trained tokens, duplicates, languages, padding",
        "tools:data",
        (
            FILE,
            FORMAT,
            ENCODING,
            MODEL,
            LENGTH,
            LOSS_ON,
            option("--by", metavar="COLUMN", help="also for each value of this column"),
            option("--plot", metavar="PNG", help="draw the histogram of lengths"),
            FORCE,
            PROCESSES,
        ),
    ),
    Verb(
        "worst",
        "the training rows that a run learnt worst, likely label errors first",
        "tools:data",
        (
            option("run", metavar="RUN", help="a run, a prefix of one, or last"),
            option(
                "--by",
                choices=("error", "loss", "rise", "never-learnt"),
                default="error",
                help="order: likely label errors, the latest loss, its rise since the best epoch, or the best loss of "
                "all epochs (error)",
            ),
            option("--top", type=int, metavar="N", default=20, help="number of rows (20)"),
            option("--drop", metavar="LIST", help="add these rows to a list that data.exclude of a profile names"),
            option("--only", metavar="NUMBERS", help="of the rows, only these, such as 1,3-5"),
            option(
                "--weight",
                type=float,
                metavar="W",
                default=0.0,
                help="use them this often instead of leaving them out (0)",
            ),
        ),
    ),
)

TOKENIZER_VERBS = (
    Verb(
        "train",
        "train a tokenizer on texts",
        "tools:tokenizer",
        (
            option("files", nargs="+", metavar="FILE", help="data files of any format"),
            option("--out", metavar="DIR", required=True, help="folder that AutoTokenizer will load"),
            option("--kind", choices=("bpe", "unigram"), default="bpe", help="the algorithm (bpe)"),
            option("--size", type=int, metavar="N", default=15_000, help="tokens, special ones included (15000)"),
            option(
                "--samples",
                type=int,
                metavar="N",
                default=100_000,
                help="texts to learn from, sampled at random (100000)",
            ),
            option(
                "--special",
                action="append",
                default=[],
                metavar="TOKEN",
                help="an additional special token (repeatable)",
            ),
            option("--template", metavar="FILE", help="a Jinja chat template (ChatML by default)"),
            option("--no-byte-fallback", action="store_true", help="unknown characters become <unk>, not bytes"),
            option(
                "--compare",
                action="append",
                default=[],
                metavar="TARGET",
                help="also report the compression of this model's tokenizer (repeatable)",
            ),
            SEED,
        ),
    ),
)
