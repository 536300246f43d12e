"""The `data` section of a profile."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from engine.options.base import Options, option


class SourceOptions(Options):
    source: str = option(
        help="A file, a folder or a glob, a path in the bundled data/, or hf://org/name.", min_length=1
    )
    format: str = option("auto", help="Format of the rows; auto detects it from the first ones.")
    encoding: str | None = option(
        None, help="Encoding of text files, such as gb18030; none: UTF-8, or what the byte order mark says."
    )
    columns: dict[str, str] = option(
        {}, help="Own column names for the format's: {instruction: question, output: reply}."
    )
    prompt: str | None = option(
        None, help="Text of the user's turn, with {column} placeholders, in place of the format's own."
    )
    system: str | None = option(None, help="System prompt for rows that have none.")
    weight: float = option(1.0, help="How often each row is seen in an epoch; 0.5 takes a seeded half.", gt=0)
    max_rows: int | None = option(None, help="Take at most this many rows.", unit="rows", ge=1)

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                "".encode(name)
        except LookupError:
            raise ValueError(f"{name!r} is not a known encoding of text; common ones are gb18030, shift_jis, cp1252")
        return name


class CleanOptions(Options):
    """Each rule can be switched off on its own, and reports how many rows it changed or dropped."""

    unicode: bool = option(True, help="Repair text that was decoded wrongly (mojibake).")
    normalize: Literal["none", "NFC", "NFKC"] = option("NFC", help="Unicode normal form.")
    control_characters: bool = option(True, help="Remove control characters, all but newline and tab.")
    blanks: bool = option(True, help="Trim blanks at the ends, and blank lines beyond two.")
    empty: bool = option(True, help="Drop rows whose question or reply is empty.")
    min_chars: int | None = option(None, help="Drop shorter rows.", unit="characters", ge=1)
    max_chars: int | None = option(None, help="Drop longer rows.", unit="characters", ge=1)
    boilerplate: list[str] = option([], help="Regular expressions; a row whose reply matches one is dropped.")

    @field_validator("boilerplate")
    @classmethod
    def _check_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a valid regular expression: {error}")
        return patterns


class DedupOptions(Options):
    exact: bool = option(True, help="Drop rows whose text was seen before.")
    near: bool = option(True, help="Drop rows nearly equal to an earlier one (MinHash over character shingles).")
    threshold: float = option(0.8, help="Jaccard similarity from which two rows are near-duplicates.", gt=0, le=1)
    shingle: int = option(5, help="Length of a shingle.", unit="characters", ge=1)
    against_held_out: bool = option(True, help="Drop training rows that are (nearly) in the validation or test set.")


class SplitOptions(Options):
    """Shares of the training sources that are held out. Near-duplicates stay in the same part."""

    validation: float = option(0.0, help="Share of rows for validation.", ge=0, lt=1)
    test: float = option(0.0, help="Share of rows for the final test.", ge=0, lt=1)
    stratify_by: str | None = option(None, help="Column whose values get the same share each.")
    seed: int = option(42, help="Seed of the choice.")


class BalanceOptions(Options):
    """Balances training rows; held-out rows are left as they are."""

    by: str = option(help="Column whose values are to have the same number of rows.", min_length=1)
    to: Literal["smallest", "median", "largest"] | Annotated[int, Field(ge=1)] = option(
        "smallest", help="Rows of each value: larger groups are sampled, smaller ones repeated."
    )
    seed: int = option(42, help="Seed of the choice.")


class PriceOptions(Options):
    """Per million tokens, in the service's currency."""

    input: float = option(0.0, help="Price of a million prompt tokens.", ge=0)
    output: float = option(0.0, help="Price of a million reply tokens.", ge=0)


class ServiceOptions(Options):
    """The options of any use of an OpenAI-compatible service. `SECTION` is the key in a profile."""

    SECTION: ClassVar[str]

    base_url: str = option("https://api.deepseek.com", help="Address of the service.")
    model: str = option("deepseek-chat", help="The service's name of the model.")
    api_key_env: str = option("DEEPSEEK_API_KEY", help="Variable that holds the key. Never the key itself.")
    concurrency: int = option(4, help="Requests at one time.", ge=1)
    temperature: float = option(0.0, help="Sampling temperature.", ge=0)
    max_tokens: int = option(512, help="Longest answer.", unit="tokens", ge=1)
    token_limit: int | None = option(None, help="Stop before this many tokens, prompts included.", unit="tokens", ge=1)
    cost_limit: float | None = option(None, help="Stop before this cost, in the currency of `price`.", gt=0)
    price: PriceOptions = option(PriceOptions(), help="The service's prices.")
    retries: int = option(
        5, help="How often a failed request is repeated; waiting for a rate limit does not count.", ge=0
    )
    timeout: float = option(120.0, help="Longest wait for an answer.", unit="seconds", gt=0)


class ExpandOptions(ServiceOptions):
    """New training rows from an OpenAI-compatible service."""

    SECTION: ClassVar[str] = "expand"

    task: str | None = option(
        None,
        help="Task whose schema every answer must fit, or rows for rows of any format; none: the task of the seeds.",
    )
    samples: int = option(100, help="New rows to make.", unit="rows", ge=1)
    prompts: dict[str, str] = option(
        {}, help="Prompt of each task, with {seed} for seed rows and {count} for how many to make."
    )
    per_request: int = option(5, help="Rows that one request asks for.", unit="rows", ge=1)
    shots: int = option(3, help="Seed rows that a prompt shows.", unit="rows", ge=1)
    similarity: float = option(
        0.8, help="Jaccard similarity from which a new row is a duplicate of a seed or of another.", gt=0, le=1
    )
    temperature: float = option(1.0, help="Sampling temperature.", ge=0)
    max_tokens: int = option(4096, help="Longest answer.", unit="tokens", ge=1)
    seed: int = option(42, help="Seed of the choice of seed rows.")


SourceOption = str | SourceOptions
"""How a source may be written: a path alone is `{source: PATH}`."""


class DataOptions(Options):
    train: list[SourceOptions] = option(help="Training sources: a path, or a list of paths or sources.", min_length=1)
    validation: list[SourceOptions] = option([], help="Held-out sources, for evaluation while training.")
    test: list[SourceOptions] = option([], help="Sources for the final evaluation.")
    catalog: str | None = option(None, help="A LLaMA-Factory dataset_info.json: its names can be sources.")
    max_length: int = option(1024, help="Longest sequence; longer rows are cut at the end.", unit="tokens", ge=8)
    packing: bool = option(False, help="Put several rows into one sequence, with attention kept apart.")
    template: str = option("auto", help="Chat template: auto takes the model's own; or a path to a Jinja file.")
    turns: Literal["auto", "together", "unrolled"] = option(
        "auto",
        help="Sequences of a conversation: auto makes one, or several where the template changes earlier turns once "
        "later ones follow; together always makes one, unrolled one for each reply.",
    )
    thinking: Literal["keep", "empty", "require"] = option(
        "keep",
        help="Where the template opens a thought before each reply: keep trains replies as they are, and chat opens no "
        "thought; empty closes an empty thought before a reply without one; require rejects such replies.",
    )
    max_rows: int | None = option(
        None, help="Take at most this many training rows in total, a seeded sample.", unit="rows", ge=1
    )
    max_rejected: float = option(0.01, help="Share of bad rows beyond which a launch is refused.", ge=0, le=1)
    processes: int | None = option(None, help="Processes that prepare data; none: one a core.", ge=1)
    exclude: str | None = option(
        None,
        help="A list of training rows to leave out or to use less often, as `cockpit data worst --drop` writes it.",
    )
    clean: CleanOptions | None = option(None, help="Clean rows before they are used.")
    dedup: DedupOptions | None = option(None, help="Drop duplicates.")
    split: SplitOptions | None = option(None, help="Hold out a part of the training sources.")
    balance: BalanceOptions | None = option(None, help="Balance the values of a column.")
    expand: ExpandOptions | None = option(None, help="Make new training rows with a service.")

    @field_validator(
        "train", "validation", "test", mode="before", json_schema_input_type=str | SourceOptions | list[SourceOption]
    )
    @classmethod
    def _complete_sources(cls, given: Any) -> Any:
        """Read a path as a source, and one path or source as a list of one. Raises ValueError."""
        listed = [given] if isinstance(given, (str, dict)) else given
        if not isinstance(listed, list):
            raise ValueError("must be a path, or a list of paths and sources")
        return [{"source": each} if isinstance(each, str) else each for each in listed]
