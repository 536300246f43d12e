"""A profile's data, from files to tokens on disk. `prepare` is the whole of it.

Reading, rendering, encoding and writing are one stream; what was made is kept by content hash, and a second run with the same
files, tokenizer and settings only computes the hash (no tokenizer is loaded for that).
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.inference.lock import end_of_turn, render, template_sha256
from engine.models import targets
from engine.models.folders import has_tokenizer
from engine.prep import cache, rows, store
from engine.prep.options import SourceOptions
from engine.prep.rows import Rejects, Row
from engine.prep.tokenize import Counts, Tokens, tokenize
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.profile import Profile

Progress = Callable[[str, int, int], None]
"""Told (phase, done, total): `pulling`, `reading` and `tokenising` in bytes."""

_GOLDEN = 3
"""Conversations whose token ids the template lock keeps."""


def prepare(profile: Profile, home: Home, progress: Progress) -> dict[str, Any]:
    """Make the profile's tokens present in the cache. Returns what `prepared.json` says.

    Raises ProblemError: nothing to train on, too many bad rows, a base without tokenizer or template …
    """
    base, tokenizer_folder = locate_base(profile, home, progress)
    files = _files(profile, tokenizer_folder)
    total = sum(path.stat().st_size for path in files.values())
    settings = _settings(profile)
    name = cache.key(files, settings, lambda done: progress("reading", done, total))
    made = home.cache / name / "prepared.json"
    if not made.is_file():
        with cache.entry(home, name) as folder:
            content = _make(profile, tokenizer_folder, folder, progress)
            (folder / "prepared.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    content = json.loads(made.read_text(encoding="utf-8"))
    for part in ("train", "validation", "validation_rows", "rejects"):
        content[part] = str(made.parent / content[part]) if content[part] else None
    return {**content, "hash": name, "base": base}


def load_tokenizer(folder: Path, template: str, directory: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer, with the profile's template in place of its own unless that says `auto`. Raises ProblemError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ProblemError(
            Problem(
                title=f"The tokenizer in {folder} cannot be loaded",
                cause=str(error),
                hint=f"look with: cockpit model verify {folder}",
            )
        ) from error
    if template != "auto":
        tokenizer.chat_template = template_file(template, directory).read_text(encoding="utf-8")
    return tokenizer


def template_file(template: str, directory: Path) -> Path:
    """The Jinja file that `data.template` names. Raises ProblemError."""
    path = (directory / Path(template).expanduser()).absolute()
    if not path.is_file():
        raise ProblemError(
            Problem(title=f"There is no chat template {path}", hint="data.template is auto or the path of a Jinja file")
        )
    return path


def locate_base(profile: Profile, home: Home, progress: Progress) -> tuple[str, Path]:
    """The base model (absolute folder or hub id) and the folder of its tokenizer, pulled when it is a catalogue model. Raises ProblemError."""
    target = targets.resolve(profile.model.base, home, profile.directory)
    target = targets.fetch(target, home, lambda _name, done, total: progress("pulling", done, total))
    if target.on_hub:
        raise ProblemError(
            Problem(
                title=f"{target.base} is not on this machine",
                hint=f"cockpit model pull {target.base}, then name its folder in model.base",
            )
        )
    for folder in filter(None, (target.adapter, Path(target.base))):
        if has_tokenizer(folder):
            return target.base, folder
    raise ProblemError(
        Problem(
            title=f"{target.base} has no tokenizer",
            cause="there is no tokenizer.json in the folder",
            hint="copy the tokenizer's files from where the model came from",
        )
    )


def _files(profile: Profile, tokenizer_folder: Path) -> dict[str, Path]:
    """Role -> file, for all whose content the tokens depend on."""
    files = {name: tokenizer_folder / name for name in cache.TOKENIZER_FILES if (tokenizer_folder / name).is_file()}
    if profile.data.template != "auto":
        files["template"] = template_file(profile.data.template, profile.directory)
    for part in ("train", "validation"):
        for index, source in enumerate(getattr(profile.data, part)):
            try:
                files[f"{part}.{index}"] = rows.locate(source, profile.directory)
            except ValueError as error:
                raise ProblemError(Problem(title=f"data.{part}.{index}.source cannot be used", cause=str(error)))
    return files


def _settings(profile: Profile) -> dict[str, Any]:
    data = profile.data.model_dump(exclude={"test", "template"})
    for source in (*data["train"], *data["validation"]):
        del source["source"]  # the file's bytes count, wherever it lies
    return {"data": data, "loss_on": _loss_on(profile), "seed": profile.training.seed}


def _loss_on(profile: Profile) -> str:
    return str(profile.method.loss_on)  # type: ignore[attr-defined]


# ── a miss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _make(profile: Profile, tokenizer_folder: Path, folder: Path, progress: Progress) -> dict[str, Any]:
    """Fill a cache entry. Returns `prepared.json`'s content with paths relative to the entry."""
    data = profile.data
    tokenizer = load_tokenizer(tokenizer_folder, data.template, profile.directory, profile.model.trust_remote_code)
    sizes = {
        part: sum(rows.locate(source, profile.directory).stat().st_size for source in getattr(data, part))
        for part in ("train", "validation")
    }
    total = sum(sizes.values())
    with (folder / "rejects.jsonl").open("w", encoding="utf-8") as file:
        golden: list[Row] = []
        train, rejects = Counts(), Rejects(file.write)
        stream = _tokens(
            profile, data.train, tokenizer, rejects, train, lambda done: progress("tokenising", done, total)
        )
        store.write(_first_chats(itertools.islice(stream, data.max_rows), golden), folder / "train")
        _check_rejects(rejects, data.max_rejected, "data.train")
        _check_trained(train, data.max_length, tokenizer, _loss_on(profile))
        held_out, held_rejects = Counts(), Rejects(file.write)
        if data.validation:
            stream = _tokens(
                profile,
                data.validation,
                tokenizer,
                held_rejects,
                held_out,
                lambda done: progress("tokenising", sizes["train"] + done, total),
            )
            with (folder / "validation.jsonl").open("w", encoding="utf-8") as kept:
                store.write(_written(stream, kept.write), folder / "validation")
            _check_rejects(held_rejects, data.max_rejected, "data.validation")
            if not held_out.rows:
                raise ProblemError(
                    Problem(title="The validation set is empty", hint="leave data.validation out, or mend its files")
                )
    stats = {"train": train.summary(), "validation": held_out.summary()}
    if data.packing:
        (folder / "train").rename(folder / "plain")
        stats["train"]["sequences"] = store.write_packed(folder / "plain", folder / "train", data.max_length)
        shutil.rmtree(folder / "plain")
    return {
        "train": "train",
        "validation": "validation" if data.validation else None,
        "validation_rows": "validation.jsonl" if data.validation else None,
        "rejects": "rejects.jsonl",
        "rows": train.rows,
        "tokens": train.tokens,
        "trained_tokens": train.trained_tokens,
        "rejected": rejects.count + held_rejects.count,
        "template": None if data.template == "auto" else tokenizer.chat_template,
        "lock": lock(tokenizer, tokenizer_folder, [row.content["messages"] for row in golden]),
        "stats": stats,
    }


def _tokens(
    profile: Profile,
    sources: list[SourceOptions],
    tokenizer: Any,
    rejects: Rejects,
    counts: Counts,
    progress: Callable[[int], object],
) -> Iterator[Tokens]:
    good = rows.read(sources, profile.directory, rejects, profile.training.seed, progress)
    try:
        yield from tokenize(
            _with_template(good, tokenizer), tokenizer, _loss_on(profile), profile.data.max_length, rejects, counts
        )
    except ValueError as error:
        raise ProblemError(Problem(title="The base's tokenizer cannot be used", cause=str(error)))


def _with_template(good: Iterable[Row], tokenizer: Any) -> Iterator[Row]:
    """The rows; conversations need a template, and none is ever borrowed."""
    for row in good:
        if not tokenizer.chat_template and "messages" in row.content:
            raise ProblemError(
                Problem(
                    title="The base has no chat template",
                    cause=f"{Path(row.file).name}:{row.line} is a conversation, and nothing says how this model writes one",
                    hint="name a Jinja file in data.template, or take an instruction-tuned base",
                )
            )
        yield row


def _first_chats(stream: Iterable[Tokens], golden: list[Row]) -> Iterator[Tokens]:
    for tokens in stream:
        if len(golden) < _GOLDEN and "messages" in tokens.row.content and tokens.row not in golden:
            golden.append(tokens.row)
        yield tokens


def _written(stream: Iterable[Tokens], write: Callable[[str], object]) -> Iterator[Tokens]:
    """The stream, each row's canonical form written down beside: what replies are generated for."""
    for tokens in stream:
        write(json.dumps(tokens.row.content, ensure_ascii=False) + "\n")
        yield tokens


def lock(tokenizer: Any, folder: Path, chats: list[list[dict[str, str]]]) -> dict[str, Any]:
    """What chat must share with training: the template's hash, the tokens that end a reply, some conversations' token ids."""
    generation = folder / "generation_config.json"
    configured = (
        json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    )
    stops = {
        *(configured if isinstance(configured, list) else [configured]),
        tokenizer.eos_token_id,
        end_of_turn(tokenizer),
    }
    return {
        "template_sha256": template_sha256(tokenizer),
        "eos_token_ids": sorted(stops - {None}),
        "golden": [{"messages": chat, "ids": render(tokenizer, chat, reply_follows=False)} for chat in chats],
    }


# ── refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_rejects(rejects: Rejects, limit: float, part: str) -> None:
    if rejects.count > limit * rejects.read:
        raise ProblemError(
            Problem(
                title=f"{rejects.count} of {rejects.read} rows of {part} are bad",
                cause="; ".join(rejects.first) + (" …" if rejects.count > len(rejects.first) else ""),
                hint=f"mend the rows, or raise data.max_rejected (now {limit:g}) to go on without them",
            )
        )


def _check_trained(counts: Counts, max_length: int, tokenizer: Any, loss_on: str) -> None:
    if not counts.rows and counts.masked:
        raise ProblemError(
            Problem(
                title="No token would be trained",
                cause=f"all {counts.masked} rows are masked: cut at {max_length} tokens, none reaches its reply",
                hint="raise data.max_length",
            )
        )
    if not counts.rows:
        raise ProblemError(
            Problem(
                title="The training set is empty",
                cause="its files hold no rows",
                hint="name files with rows in data.train",
            )
        )
    if counts.ended or loss_on == "all":
        return
    cut = counts.truncated == counts.rows
    raise ProblemError(
        Problem(
            title="The end of a turn is never trained: the model would not learn to stop",
            cause=f"every row is cut at {max_length} tokens, before its reply ends"
            if cut
            else f"the chat template puts no special token after a reply (the tokenizer's end token is {tokenizer.eos_token!r})",
            hint="raise data.max_length"
            if cut
            else "name a template in data.template that ends the assistant's turns with an end token",
        )
    )
