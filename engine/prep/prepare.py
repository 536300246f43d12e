"""A profile's data, from files to tokens on disk. `prepare` is the whole of it.

sources → expand → validate → clean → dedup → split → balance → tokenize (and pack). What was made is kept by content hash: a second run with the same
files, tokenizer and settings only computes the hash (no tokenizer is loaded for that). Rows that went through a stage are kept by a
hash of their own, so that other lengths or another tokenizer do not repeat it. A killed run goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models.template_lock import render, template_sha256, turn_ends
from engine.options.tokenizer import TokenizerOptions
from engine.prep import profile_tokenizer, token_store
from engine.prep.base_model import Progress, list_tokenizer_files, load_tokenizer, locate_base, locate_base_folder
from engine.prep.errors import check_kind, check_rejects, check_trained, count_bad, problems_for_mistakes
from engine.prep.rows import Rejects
from engine.prep.stages import pipeline, pretokenized, row_files, source_files
from engine.prep.stages.context import Context, default_processes
from engine.prep.stages.pipeline import OPTIONAL_STAGES, SourceFiles, StageRows
from engine.prep.stages.source_files import PARTS
from engine.prep.token_rows import UNLIMITED, Counts
from engine.prep.tokenize_files import tokenize_rows
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache

_WHERE = ("train", "validation", "validation_rows", "test_rows", "rejects")
"""Keys of `prepared.json` that are paths."""
_NOT_OF_ROWS = {"template", "max_length", "packing", "processes", "catalog", "expand"}
"""Keys of the data section that change no row. (A catalogue's entries count as what they say, and expanded rows as a source.)"""


def prepare(profile: Profile, home: Home, progress: Progress) -> dict[str, Any]:
    """Make the profile's tokens present in the cache. Returns what `prepared.json` says.

    Raises ProblemError: nothing to train on, too many bad rows, a base without tokenizer or template …
    """
    own = profile.model.tokenizer if isinstance(profile.model.tokenizer, TokenizerOptions) else None
    given: Path | None = None
    if own:
        base, pieces = locate_base_folder(profile, home, progress), profile_tokenizer.list_files(profile)
    else:
        base, given = locate_base(profile, home, progress)
        pieces = list_tokenizer_files(profile, given)
    told: dict[str, Any] = {"base": base, "tokenizer": None, "vocabulary": None}
    if profile.model.tokenizer is not None:
        told["tokenizer"] = str(given)
    if already := pretokenized.find_folders(profile.data, profile.directory, learning=own is not None):
        assert given
        whole = {f"{part}.{path.name}": path for part, folder in already.items() for path in sorted(folder.iterdir())}
        digests = cache.file_digests(whole, lambda _: None)
        return {**_use_tokenised(profile, given, already), **told, "files": describe_files(whole, digests)}
    sources = locate_sources(profile, home, progress)
    of_rows = list_source_files(sources)
    files = {**of_rows, **pieces}
    total = sum(path.stat().st_size for path in files.values())
    digests = cache.file_digests(files, lambda done: progress("reading", done, total))
    expansion = expand_sources(profile, home, sources, digests, progress) if profile.data.expand else None
    of_rows = list_source_files(sources)
    settings = row_settings(profile, sources)
    rows_name = "data-" + cache.entry_name({role: digests[role] for role in of_rows}, settings)
    data = profile.data
    tokenizer_folder = given or profile_tokenizer.folder_of(profile, digests, settings, home)
    learnt = {"tokenizer": tokenizer_folder.name} if own else {}
    name = cache.entry_name(
        digests,
        {
            **settings,
            "max_length": data.max_length,
            "sequences": _sequence_kind(profile),
            **_token_settings(profile),
            **learnt,
        },
    )
    made = home.cache / name / "prepared.json"

    def is_made() -> bool:
        return made.is_file() and tokenizer_folder.is_dir()

    if not is_made():
        with cache.work_folder(home, name) as work:
            if not is_made():  # another process may have made it while this one waited
                rows = _stage_rows(profile, home, sources, rows_name, work, progress)
                if not tokenizer_folder.is_dir():
                    with problems_for_mistakes("The tokenizer cannot be trained"):
                        profile_tokenizer.make(profile, rows.parts["train"], tokenizer_folder, home, progress)
                with cache.new_entry(home, name) as folder:
                    content = _write_entry(profile, tokenizer_folder, rows, folder, work, progress)
                    (folder / "prepared.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if own:
        told |= {"tokenizer": str(tokenizer_folder), "vocabulary": profile_tokenizer.read_record(tokenizer_folder)}
    content = json.loads(made.read_text(encoding="utf-8"))
    for part in _WHERE:
        content[part] = str(made.parent / content[part]) if content[part] else None
    told["files"] = describe_files(list_source_files(sources), digests)
    return {**content, "hash": name, **told, "expanded": expansion}


def _use_tokenised(profile: Profile, tokenizer_folder: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """`prepared.json` of data that is tokens already. Nothing is known of its chats: the lock holds no golden ones."""
    data = profile.data
    tokenizer = load_tokenizer(tokenizer_folder, data.template, profile.directory, profile.model.trust_remote_code)
    counts = {
        part: pretokenized.count_tokens(folder, profile.method, data.max_length) for part, folder in folders.items()
    }
    states = {part: folder / "state.json" for part, folder in folders.items()}
    return {
        **dict.fromkeys(_WHERE),
        **{part: str(folder) for part, folder in folders.items()},
        "rows": counts["train"].rows,
        "tokens": counts["train"].tokens,
        "trained_tokens": counts["train"].trained_tokens,
        "rejected": 0,
        "expanded": None,
        "stages": [],
        "template": None if data.template == "auto" else tokenizer.chat_template,
        "lock": make_lock(tokenizer, tokenizer_folder, []),
        "stats": pretokenized.summarize(counts),
        "hash": cache.entry_key(states, {"max_length": data.max_length}, lambda _: None),
    }


def locate_sources(profile: Profile, home: Home, progress: Progress) -> SourceFiles:
    """The files that each part is read from. Raises ProblemError."""
    found: SourceFiles = {part: [] for part in PARTS}
    for part in PARTS:
        for index, source in enumerate(getattr(profile.data, part)):
            try:
                options = source_files.resolve_source(source, profile.data, profile.directory)
                found[part].append((options, source_files.list_paths(options, profile.directory, home, progress)))
            except (ValueError, OSError) as error:
                raise ProblemError(Problem(title=f"data.{part}.{index}.source cannot be used", cause=str(error)))
    return found


def list_source_files(sources: SourceFiles) -> dict[str, Path]:
    """Role -> file."""
    return {
        f"{part}.{index}.{number}": path
        for part, listed in sources.items()
        for index, (_, paths) in enumerate(listed)
        for number, path in enumerate(paths)
    }


def describe_files(files: dict[str, Path], digests: dict[str, str]) -> list[dict[str, Any]]:
    """Every source file as another machine finds it again: its part of the data, name, bytes and SHA-256."""
    return [
        {"part": role.partition(".")[0], "name": path.name, "bytes": path.stat().st_size, "sha256": digests[role]}
        for role, path in files.items()
    ]


def is_expanded(profile: Profile, home: Home, progress: Progress) -> bool:
    """Whether all the rows that the profile asks a service for are in the cache: then preparing asks it nothing. Raises ProblemError."""
    from engine.prep.expand.stage import is_made

    options = profile.data.expand
    if options is None:
        return True
    sources = locate_sources(profile, home, progress)
    seeds = cache.file_digests(
        {role: path for role, path in list_source_files(sources).items() if role.startswith("train.")}, lambda _: None
    )
    return is_made(options, sources["train"], seeds, home)


def expand_sources(
    profile: Profile, home: Home, sources: SourceFiles, digests: dict[str, str], progress: Progress
) -> dict[str, Any]:
    """Add the rows that a service makes of the training sources to these, and their files to `digests`. Returns what is told of them."""
    from engine.prep.expand.stage import expand_training

    options = profile.data.expand
    assert options is not None
    seeds = {role: digest for role, digest in digests.items() if role.startswith("train.")}
    with problems_for_mistakes("The training rows cannot be expanded"):
        made = expand_training(options, sources["train"], seeds, home, progress)
    sources["train"] = [*sources["train"], *made.sources]
    further = {role: path for role, path in list_source_files(sources).items() if role not in digests}
    digests |= cache.file_digests(further, lambda _: None)
    return made.report


def row_settings(profile: Profile, sources: SourceFiles) -> dict[str, Any]:
    """All that the rows depend on beside the bytes of their files, wherever those lie."""
    listed = {
        part: [{"files": len(paths), **options.model_dump(exclude={"source"})} for options, paths in found]
        for part, found in sources.items()
    }
    kinds = [path.suffix.lower() for found in sources.values() for _, paths in found for path in paths]
    data = profile.data.model_dump(exclude=_NOT_OF_ROWS | set(PARTS))
    return {"data": data, "sources": listed, "kinds": kinds, "seed": profile.training.seed}


def _token_settings(profile: Profile) -> dict[str, Any]:
    """What the method asks of the tokens."""
    method = profile.method
    return {
        "wanted": method.rows,  # type: ignore[attr-defined]
        "loss_on": str(getattr(method, "loss_on", "assistant")),
        "max_prompt": getattr(method, "max_prompt", None),
        **_sampling_settings(method),
    }


def _sampling_settings(method: Any) -> dict[str, Any]:
    """What a method that samples replies asks besides: `room` for them behind a prompt, and the task of which the rows' own are answers."""
    return {"room": method.max_new_tokens, "task": method.reward.task} if method.rows == "prompts" else {}


def _sequence_kind(profile: Profile) -> str:
    """What a training sequence holds: `rows` one each, `packed` several whole ones, `blocks` whatever fills it."""
    chosen = "packed" if profile.data.packing else "rows"
    return str(getattr(profile.method, "sequences", chosen))


# ── a miss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stage_rows(
    profile: Profile, home: Home, sources: SourceFiles, name: str, work: Path, progress: Progress
) -> StageRows:
    """The rows after all stages: in the cache when the profile asks for any, else beside the work that they are for."""
    if not any(getattr(profile.data, key) for key in OPTIONAL_STAGES):
        return run_stages(profile, sources, work / "rows", progress)
    kept = home.cache / name
    if not (kept / "rows.json").is_file():
        with cache.work_folder(home, name) as shop:
            if not (kept / "rows.json").is_file():
                rows = run_stages(profile, sources, shop / "rows", progress)
                with cache.new_entry(home, name) as folder:
                    rows.save(folder)
    return StageRows.load(kept)


def run_stages(
    profile: Profile, sources: SourceFiles, folder: Path, progress: Progress, begun: StageRows | None = None
) -> StageRows:
    """All stages that the profile asks for but those that `begun` has behind it. Raises ProblemError."""
    data = profile.data
    context = Context(folder, data.processes or default_processes(), progress)
    with problems_for_mistakes("The data cannot be prepared"):
        return pipeline.run_stages(
            data,
            sources,
            profile.training.seed,
            context,
            lambda part, counts: check_rejects(
                count_bad(profile, counts), counts["in"], counts["first"], data.max_rejected, f"data.{part}"
            ),
            begun,
        )


def _write_entry(
    profile: Profile, tokenizer_folder: Path, rows: StageRows, folder: Path, work: Path, progress: Progress
) -> dict[str, Any]:
    """Fill a cache entry. Returns `prepared.json`'s content with paths relative to the entry."""
    data, how = profile.data, _token_settings(profile)
    tokenizer = load_tokenizer(tokenizer_folder, data.template, profile.directory, profile.model.trust_remote_code)
    with (folder / "rejects.jsonl").open("wb") as file:
        for path in rows.rejects:
            with path.open("rb") as rejected:
                shutil.copyfileobj(rejected, file, 2**20)
    total = sum(path.stat().st_size for part, path in rows.parts.items() if part != "test")
    counts = {part: Counts() for part in ("train", "validation")}
    golden: list[list[dict[str, Any]]] = []
    refused, done = 0, 0
    with (folder / "rejects.jsonl").open("a", encoding="utf-8") as file:
        for part in counts:
            if part not in rows.parts:
                continue
            rejects = Rejects(file.write)
            with problems_for_mistakes("The base's tokenizer cannot be used"):
                made = tokenize_rows(
                    [rows.parts[part]],
                    folder / part,
                    tokenizer,
                    how["loss_on"],
                    UNLIMITED if _sequence_kind(profile) == "blocks" else data.max_length - how.get("room", 0),
                    rejects,
                    work / part,
                    data.processes or default_processes(),
                    lambda at, _, before=done: progress("tokenising", before + at, total),  # type: ignore[misc]
                    rows.files,
                    kept_rows=folder / "validation.jsonl" if part == "validation" else None,
                    kind=how["wanted"],
                    max_prompt=how["max_prompt"],
                    task=how.get("task"),
                )
            counts[part], golden = made.counts, golden or made.golden
            check_kind(made.counts, profile.method, f"data.{part}")
            done += rows.parts[part].stat().st_size
            refused += rejects.count
            checked = rows.validate_counts(part)
            check_rejects(
                count_bad(profile, checked) + rejects.count,
                checked["in"],
                (checked["first"] + rejects.first)[:3],
                data.max_rejected,
                f"data.{part}",
            )
            if part == "train":
                check_trained(made.counts, data.max_length, tokenizer, profile.method, rows)
            elif not made.counts.rows:
                raise ProblemError(
                    Problem(
                        title="The validation set is empty",
                        hint="raise data.split.validation"
                        if data.split
                        else "leave data.validation out, or mend its files",
                    )
                )
    if "test" in rows.parts:
        with (folder / "test.jsonl").open("wb") as kept:
            kept.writelines(row.raw + b"\n" for row in row_files.read_file(rows.parts["test"]))
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
        "template": None if data.template == "auto" else tokenizer.chat_template,
        "lock": make_lock(tokenizer, tokenizer_folder, golden),
        "stats": stats,
    }


def _join_rows(profile: Profile, folder: Path, stats: dict[str, dict[str, int]], progress: Progress) -> None:
    """Put rows together as the profile says: packed for training, in blocks for training and evaluation alike."""
    sequences, capacity = _sequence_kind(profile), profile.data.max_length
    for part in ("train", "validation") if sequences == "blocks" else ("train",):
        if sequences == "rows" or not (folder / part).is_dir():
            continue
        (folder / part).rename(folder / "plain")
        if sequences == "packed":
            tell = partial(progress, "packing")
            stats[part]["sequences"] = token_store.write_packed(folder / "plain", folder / part, capacity, tell)
        else:
            blocks = token_store.write_blocks(folder / "plain", folder / part, capacity, partial(progress, "joining"))
            # A document that goes on in another block begins anew there: nothing predicts its first token.
            stats[part] |= {"sequences": blocks.rows, "trained_tokens": blocks.trained_tokens}
        shutil.rmtree(folder / "plain")


def make_lock(tokenizer: Any, folder: Path, chats: list[list[dict[str, str]]]) -> dict[str, Any]:
    """What chat must share with training: the template's hash, the tokens that end a reply, some conversations' token ids."""
    generation = folder / "generation_config.json"
    configured = (
        json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    )
    stops = {
        *(configured if isinstance(configured, list) else [configured]),
        *turn_ends(tokenizer),
    }
    return {
        "template_sha256": template_sha256(tokenizer),
        "eos_token_ids": sorted(stops - {None}),
        "golden": [{"messages": chat, "ids": render(tokenizer, chat, reply_follows=False)} for chat in chats],
    }
