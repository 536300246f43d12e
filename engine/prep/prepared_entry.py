"""Tokenises the rows of a profile into a cache entry: token sets, held-out rows, rejects, and the template lock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models.chat_template import adapt_template
from engine.models.template_lock import find_turn_ends, hash_template, render
from engine.models.template_metadata import read_metadata
from engine.prep import row_places, token_store
from engine.prep.base_model import Progress, load_tokenizer
from engine.prep.errors import check_kind, check_rejects, check_trained, count_bad, problems_for_mistakes
from engine.prep.rows import Rejects
from engine.prep.stages import row_files
from engine.prep.stages.context import default_processes
from engine.prep.stages.pipeline import StageRows
from engine.prep.token_rows import UNLIMITED, Counts
from engine.prep.tokenize_files import PLACES, ROWS, TokenizeResult, tokenize_rows
from engine.protocol.messages import Problem, ProblemError


def write_entry(
    profile: Profile, tokenizer_folder: Path, rows: StageRows, folder: Path, work: Path, progress: Progress
) -> dict[str, Any]:
    """Fill a cache entry. Returns the content of `prepared.json`, with paths relative to the entry."""
    data = profile.data
    tokenizer = load_tokenizer(tokenizer_folder, data.template, profile.directory, profile.model.trust_remote_code)
    rejects_path = folder / "rejects.jsonl"
    with rejects_path.open("wb") as file:
        for path in rows.rejects:
            with path.open("rb") as rejected:
                shutil.copyfileobj(rejected, file, 2**20)
    counts = {part: Counts() for part in ("train", "validation")}
    golden: list[list[dict[str, Any]]] = []
    refused = done = 0
    total = sum(path.stat().st_size for part, path in rows.parts.items() if part != "test")
    with rejects_path.open("a", encoding="utf-8") as file:
        for part in counts:
            if part not in rows.parts:
                continue
            rejects = Rejects(file.write)
            report = partial(_report_after, progress, done, total)
            result = _tokenize_part(profile, tokenizer, rows, part, folder, work, rejects, report)
            counts[part], golden = result.counts, golden or result.golden
            done += rows.parts[part].stat().st_size
            refused += rejects.count
    if "test" in rows.parts:
        with (folder / "test.jsonl").open("wb") as kept:
            kept.writelines(row.raw + b"\n" for row in row_files.read_file(rows.parts["test"]))
    template = record_template(profile, tokenizer)
    stats = {part: each.summary() for part, each in counts.items()}
    _join_rows(profile, folder, stats, progress)
    return {
        "train": "train",
        "validation": "validation" if "validation" in rows.parts else None,
        "validation_rows": "validation.jsonl" if "validation" in rows.parts else None,
        "test_rows": "test.jsonl" if "test" in rows.parts else None,
        "rejects": "rejects.jsonl",
        "rows": counts["train"].rows,
        "tokens": counts["train"].tokens,
        "trained_tokens": stats["train"]["trained_tokens"],
        "rejected": refused + sum(stage["rejected"] for stage in rows.stages if stage["name"] == "validate"),
        "stages": rows.stages,
        "template": template,
        "thought_opening": read_metadata(template).get("opened"),
        "lock": make_lock(tokenizer, tokenizer_folder, golden),
        "stats": stats,
    }


def _tokenize_part(
    profile: Profile,
    tokenizer: Any,
    rows: StageRows,
    part: str,
    folder: Path,
    work: Path,
    rejects: Rejects,
    progress: Callable[[int, int], object],
) -> TokenizeResult:
    """Tokenise one part into the entry. Raises ProblemError if too few rows remain."""
    data, settings = profile.data, token_settings(profile)
    with problems_for_mistakes("The base's tokenizer cannot be used"):
        result = tokenize_rows(
            [rows.parts[part]],
            folder / part,
            tokenizer,
            settings["loss_on"],
            UNLIMITED if sequence_kind(profile) == "blocks" else data.max_length - settings.get("room", 0),
            rejects,
            work / part,
            data.processes or default_processes(),
            progress,
            rows.files,
            kept={ROWS: folder / "validation.jsonl"} if part == "validation" else {PLACES: folder / row_places.FILE},
            kind=settings["wanted"],
            max_prompt=settings["max_prompt"],
            task=settings.get("task"),
            turns=data.turns,
            thinking=data.thinking,
        )
    check_kind(result.counts, profile.method, f"data.{part}")
    checked = rows.validate_counts(part)
    check_rejects(
        count_bad(profile, checked) + rejects.count,
        checked["in"],
        (checked["first"] + rejects.first)[:3],
        data.max_rejected,
        f"data.{part}",
    )
    if part == "train":
        check_trained(result.counts, data.max_length, tokenizer, profile.method, rows)
    elif not result.counts.rows:
        raise ProblemError(
            Problem(
                code="data.split.empty",
                title="The validation set is empty",
                hint="raise data.split.validation" if data.split else "leave data.validation out, or mend its files",
            )
        )
    return result


def _report_after(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress("tokenising", before + done, total)


def _join_rows(profile: Profile, folder: Path, stats: dict[str, dict[str, int]], progress: Progress) -> None:
    """Join rows into sequences if the profile says so: packing for training only, blocks for training and
    evaluation."""
    sequences, capacity = sequence_kind(profile), profile.data.max_length
    for part in ("train", "validation") if sequences == "blocks" else ("train",):
        if sequences == "rows" or not (folder / part).is_dir():
            continue
        (folder / part).rename(folder / "plain")
        if sequences == "packed":
            report = partial(progress, "packing")
            stats[part]["sequences"] = token_store.write_packed(
                folder / "plain", folder / part, capacity, report, partial(row_places.reorder, folder)
            )
        else:
            blocks = token_store.write_blocks(folder / "plain", folder / part, capacity, partial(progress, "joining"))
            if part == "train":
                row_places.divide(folder, token_store.TokenSet(folder / "plain").lengths, capacity)
            # A document that continues in another block begins anew there: nothing predicts that part's first token.
            stats[part] |= {"sequences": blocks.rows, "trained_tokens": blocks.trained_tokens}
        shutil.rmtree(folder / "plain")


def record_template(profile: Profile, tokenizer: Any) -> Any:
    """The chat template that the run's checkpoints get, set in `tokenizer` too; None for the tokenizer's own."""
    own = tokenizer.chat_template
    if profile.method.rows != "prompts":  # type: ignore[attr-defined]
        tokenizer.chat_template = adapt_template(tokenizer, profile.data.thinking)
    changed = profile.data.template != "auto" or tokenizer.chat_template != own
    return tokenizer.chat_template if changed else None


def make_lock(tokenizer: Any, folder: Path, chats: list[list[dict[str, str]]]) -> dict[str, Any]:
    """The template lock, which chat must match: the template's hash, the tokens that end a reply, and some
    conversations' token ids, rendered on its date if the template writes the date."""
    generation = folder / "generation_config.json"
    configured = (
        json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    )
    stops = {
        *(configured if isinstance(configured, list) else [configured]),
        *find_turn_ends(tokenizer),
    }
    now = datetime.now() if "strftime_now" in json.dumps(tokenizer.chat_template) else None
    return {
        "template_sha256": hash_template(tokenizer),
        "eos_token_ids": sorted(stops - {None}),
        "date": now.isoformat(timespec="seconds") if now else None,
        "golden": [{"messages": chat, "ids": render(tokenizer, chat, reply_follows=False, date=now)} for chat in chats],
    }


def token_settings(profile: Profile) -> dict[str, Any]:
    """The settings of the method that the tokens depend on."""
    method = profile.method
    return {
        "wanted": method.rows,  # type: ignore[attr-defined]
        "loss_on": str(getattr(method, "loss_on", "assistant")),
        "max_prompt": getattr(method, "max_prompt", None),
        "turns": profile.data.turns,
        "thinking": profile.data.thinking,
        **_sampling_settings(method),
    }


def _sampling_settings(method: Any) -> dict[str, Any]:
    """Further settings of a method that samples replies: the `room` for a reply behind the prompt, and the task of the
    references."""
    return {"room": method.max_new_tokens, "task": method.reward.task} if method.rows == "prompts" else {}


def sequence_kind(profile: Profile) -> str:
    """What a training sequence contains: one row (`rows`), several whole rows (`packed`), or as much text as fits
    (`blocks`)."""
    chosen = "packed" if profile.data.packing else "rows"
    return str(getattr(profile.method, "sequences", chosen))
