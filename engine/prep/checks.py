"""Checks of a profile's data and tokenizer sections before a launch. They look at names, suffixes and sizes, never into
files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.llm_api.client import VARIABLE, on_loopback
from engine.models import targets
from engine.models.folders import has_tokenizer
from engine.options.tokenizer import TokenizerOptions
from engine.prep.expand import seeds
from engine.prep.expand.decisions import is_expansion
from engine.prep.formats import FORMATS
from engine.prep.sources import HUB, list_files
from engine.prep.stages.source_files import PARTS, resolve_source
from engine.prep.tokenizer_training import minimum_size
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.protocol.text import did_you_mean


def check_sources(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yields `(key, message)` for each source that is missing, empty or of an unknown kind, for a missing template, and
    for options that exclude each other."""
    data = sections.get("data")
    if data is None:
        return
    for part in PARTS:
        for index, source in enumerate(getattr(data, part)):
            if source.format not in ("auto", *FORMATS):
                hint = did_you_mean(source.format, FORMATS)
                yield (
                    f"data.{part}.{index}.format",
                    f"must be auto, {', '.join(FORMATS)}, not {source.format!r}{hint}",
                )
            if part != "train" and source.weight != 1:
                yield f"data.{part}.{index}.weight", "applies to training rows only: held-out rows are read once"
            try:
                found = resolve_source(source, data, directory, part)
                # An expansion whose rows are all dropped may still be opened: the user can take decisions back.
                if not found.source.startswith(HUB) and not any(
                    path.stat().st_size or is_expansion(path.parent)
                    for path in list_files(found.source, directory, part)
                ):
                    yield f"data.{part}.{index}.source", f"{source.source} is empty"
            except (ValueError, OSError) as error:
                yield f"data.{part}.{index}.source", str(error)
    if data.catalog and not (directory / Path(data.catalog).expanduser()).is_file():
        yield "data.catalog", f"there is no {data.catalog} beside the profile ({directory})"
    method = sections.get("method")
    if data.packing and method and method.rows != "tokens":
        yield "data.packing", f"cannot be combined with method.kind {method.kind}: its rows cannot be joined"
    if data.split:
        yield from _check_split(data)
    if data.expand:
        yield from _check_expand(data.expand)
    if data.template != "auto" and not (directory / Path(data.template).expanduser()).is_file():
        yield (
            "data.template",
            f"there is no {data.template} beside the profile ({directory}); auto takes the model's own",
        )


def check_tokenizer(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yields `(key, message)` for a tokenizer that does not fit the model, is missing, or cannot be trained."""
    model, data = sections.get("model"), sections.get("data")
    if model is None or model.tokenizer is None:
        return
    if model.init != "config":
        yield (
            "model.tokenizer",
            f"needs model.init config: the weights of {model.base} know another vocabulary; "
            "for another chat template alone, name it in data.template",
        )
    elif isinstance(model.tokenizer, TokenizerOptions):
        yield from _check_tokenizer_training(model.tokenizer, data, directory)
    else:
        folder = (directory / Path(model.tokenizer).expanduser()).absolute()
        try:
            if not has_tokenizer(folder):
                targets.resolve(model.tokenizer, home or Home.locate(), directory)
        except ProblemError as error:
            yield "model.tokenizer", ": ".join(filter(None, (error.problem.title, error.problem.cause)))


def _check_tokenizer_training(options: TokenizerOptions, data: Any, directory: Path) -> Iterator[tuple[str, str]]:
    given = data is not None and data.template != "auto"
    if options.chat_template and given:
        yield "model.tokenizer.chat_template", "data.template names one already: leave one of them out"
    elif options.chat_template and not (directory / Path(options.chat_template).expanduser()).is_file():
        yield "model.tokenizer.chat_template", f"there is no {options.chat_template} beside the profile ({directory})"
    try:
        small = minimum_size(options.special_tokens, not (options.chat_template or given), options.byte_fallback)
    except ValueError as error:
        yield "model.tokenizer.special_tokens", str(error)
        return
    if options.vocab_size < small:
        yield (
            "model.tokenizer.vocab_size",
            f"must be at least {small}, which special tokens and the alphabet alone are, not {options.vocab_size}",
        )


def check_keys(profile: Any, shell: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields `(key, message)` if the shell that submits a run lacks the API key of the service that makes its rows."""
    expand = profile.data.expand
    if expand and not shell.get(expand.api_key_env, "").strip() and not on_loopback(expand.base_url):
        yield (
            "data.expand.api_key_env",
            f"there is no key for {expand.base_url}: the variable {expand.api_key_env} is not set; "
            f"export {expand.api_key_env}=… in this shell, or name another variable",
        )


def _check_expand(expand: Any) -> Iterator[tuple[str, str]]:
    if not VARIABLE.fullmatch(expand.api_key_env):
        # The value is not repeated: it may be the key itself.
        yield "data.expand.api_key_env", "must be the name of an environment variable that holds the key"
    if urlsplit(expand.base_url).scheme not in ("http", "https"):
        yield "data.expand.base_url", f"must be an address such as https://api.deepseek.com, not {expand.base_url!r}"
    if expand.cost_limit is not None and not (expand.price.input or expand.price.output):
        yield "data.expand.cost_limit", "needs data.expand.price: what a million tokens cost"
    for key, message in seeds.find_problems(expand):
        yield f"data.expand.{key}", message


def _check_split(data: Any) -> Iterator[tuple[str, str]]:
    for part in ("validation", "test"):
        if getattr(data, part) and getattr(data.split, part):
            yield f"data.split.{part}", f"there is data.{part} already: leave one of them out"
    if not data.split.validation and not data.split.test:
        yield "data.split", "holds out nothing: set validation or test to a share of the rows"
    if data.split.validation + data.split.test >= 1:
        yield "data.split", "leaves nothing to train on: validation and test together must be below 1"
