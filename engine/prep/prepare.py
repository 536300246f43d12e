"""Prepares a profile's data, from files to tokens on disk. The entry point is `prepare`.

sources → expand → validate → exclude → clean → dedup → split → balance → tokenize (and pack). The result is cached by
content hash: a second run with the same files, tokenizer and settings only computes the hash, without loading a
tokenizer. The rows after the stages have a cache entry of their own, so that other lengths or another tokenizer do not
repeat the stages. A killed preparation is continued.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models import limits
from engine.options.tokenizer import TokenizerOptions
from engine.prep import profile_tokenizer
from engine.prep.base_model import (
    Progress,
    check_here,
    list_tokenizer_files,
    load_tokenizer,
    locate_base,
    locate_base_folder,
)
from engine.prep.errors import check_rejects, count_bad, problems_for_mistakes
from engine.prep.first_rows import check_held_out
from engine.prep.prepared_entry import make_lock, record_template, sequence_kind, token_settings, write_entry
from engine.prep.sources import find_left_out
from engine.prep.stages import exclude, pipeline, pretokenized, source_files
from engine.prep.stages.context import Context, default_processes
from engine.prep.stages.pipeline import OPTIONAL_STAGES, SourceFiles, StageRows
from engine.prep.stages.source_files import PARTS
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache

_PATHS = ("train", "validation", "validation_rows", "test_rows", "rejects")
"""Keys of `prepared.json` that are paths."""
_NOT_OF_ROWS = {"template", "turns", "thinking", "max_length", "packing", "processes", "catalog", "expand"}
"""Keys of the data section that do not change rows. (Catalogue entries and expanded rows count as sources.)"""


def prepare(profile: Profile, home: Home, progress: Progress) -> dict[str, Any]:
    """Make sure that the cache has the profile's tokens. Returns the content of `prepared.json`.

    Raises ProblemError: nothing to train on, too many bad rows, a base without tokenizer or template …
    """
    trains_tokenizer = isinstance(profile.model.tokenizer, TokenizerOptions)
    given: Path | None = None
    if trains_tokenizer:
        base, tokenizer_files = locate_base_folder(profile, home, progress), profile_tokenizer.list_files(profile)
    else:
        base, given = locate_base(profile, home, progress)
        tokenizer_files = list_tokenizer_files(profile, given)
    own_vocabulary = profile.model.tokenizer is not None or profile.model.has_shape
    embedding = Path(base) if base and not own_vocabulary else None
    if embedding and given:
        limits.check_vocabulary(embedding, given)
    model: dict[str, Any] = {"base": base, "tokenizer": None, "vocabulary": None}
    if profile.model.tokenizer is not None:
        model["tokenizer"] = str(given)
    if folders := pretokenized.find_folders(profile.data, profile.directory, learning=trains_tokenizer):
        assert given
        return {**_use_tokenised(profile, given, folders, embedding), **model}
    sources = locate_sources(profile, home, progress)
    files = {**list_source_files(sources), **tokenizer_files}
    total = sum(path.stat().st_size for path in files.values())
    digests = cache.file_digests(files, lambda done: progress("reading", done, total))
    expansion = expand_sources(profile, home, sources, digests, progress) if profile.data.expand else None
    settings = row_settings(profile, sources)
    folder = given or profile_tokenizer.folder_of(profile, digests, settings, home)
    name = _name_entry(profile, sources, digests, **({"tokenizer": folder.name} if trains_tokenizer else {}))
    damaged: list[str] = []
    _make_entry(profile, home, name, sources, digests, folder, progress, damaged)
    if trains_tokenizer:
        model |= {"tokenizer": str(folder), "vocabulary": profile_tokenizer.read_record(folder)}
    entry = home.cache / name
    content = json.loads((entry / "prepared.json").read_text(encoding="utf-8"))
    for key in _PATHS:
        content[key] = str(entry / content[key]) if content[key] else None
    check_held_out(profile, (content["validation_rows"], content["test_rows"]))
    files_of_rows = describe_files(list_source_files(sources), digests)
    left_out = list_left_out(profile, sources)
    _drop_used(profile, content["stages"])
    return {
        **content,
        "hash": name,
        **model,
        "files": files_of_rows,
        "sources": [str(path) for path in list_source_files(sources).values()],
        "left_out": left_out,
        "expanded": expansion,
        "damaged": damaged,
    }


def find_prepared(profile: Profile, home: Home) -> dict[str, Any] | None:
    """The content of `prepared.json` if the cache has the profile's tokens; None if they would have to be made. Nothing
    is fetched, trained or expanded. Raises ProblemError."""
    if isinstance(profile.model.tokenizer, TokenizerOptions) or profile.data.expand:
        return None

    def quiet(*_: object) -> None: ...

    try:
        check_here(profile, home)
        base, given = locate_base(profile, home, quiet)
    except ProblemError as error:
        if error.problem.code == "model.not_pulled":
            return None
        raise
    model = {"base": base, "tokenizer": str(given) if profile.model.tokenizer is not None else None}
    if folders := pretokenized.find_folders(profile.data, profile.directory, learning=False):
        return {**_use_tokenised(profile, given, folders, None), **model}
    try:
        sources = locate_sources(profile, home, quiet, fetches=False)
    except ProblemError:
        return None
    files = {**list_source_files(sources), **list_tokenizer_files(profile, given)}
    digests = cache.remember_digests(home, files)
    return _read_entry(home, _name_entry(profile, sources, digests), model)


def list_inputs(profile: Profile, home: Home) -> list[Path]:
    """The files of the profile's sources, and the folders that sources name. Nothing is fetched. Raises ProblemError,
    also for sources whose files are not known beforehand."""
    if profile.data.expand or pretokenized.find_folders(profile.data, profile.directory, learning=False):
        raise ProblemError(Problem(code="data.source.unusable", title="The rows come from elsewhere"))
    sources = locate_sources(profile, home, lambda *_: None, fetches=False)
    named = [profile.directory / options.source for listed in sources.values() for options, _ in listed]
    parents = [path if path.is_dir() else path.parent for path in named if path.is_dir() or "*" in path.name]
    return [*list_source_files(sources).values(), *(path for path in parents if path.is_dir())]


def _name_entry(profile: Profile, sources: SourceFiles, digests: dict[str, str], **further: Any) -> str:
    """The name of the cache entry with the profile's tokens."""
    settings = {
        **row_settings(profile, sources),
        "max_length": profile.data.max_length,
        "sequences": sequence_kind(profile),
        **token_settings(profile),
        **further,
    }
    return cache.entry_name(digests, settings)


def _read_entry(home: Home, name: str, model: dict[str, Any]) -> dict[str, Any] | None:
    entry = home.cache / name
    if not (entry / "prepared.json").is_file():
        return None
    content = json.loads((entry / "prepared.json").read_text(encoding="utf-8"))
    for key in _PATHS:
        content[key] = str(entry / content[key]) if content[key] else None
    return {**content, "hash": name, **model}


def list_left_out(profile: Profile, sources: SourceFiles) -> list[dict[str, Any]]:
    """The files of the sources' folders that are not read, because their names say that they are for another part."""
    found = []
    for part, listed in sources.items():
        for options, _ in listed:
            try:
                left = find_left_out(options.source, profile.directory, part)
            except ValueError:  # rows of an expansion have no source that a user could name
                continue
            if left:
                found.append({"part": part, "source": options.source, "files": [path.name for path in left]})
    return found


def _drop_used(profile: Profile, stages: list[dict[str, Any]]) -> None:
    """Drop the columns by which other stages choose from those that were not used."""
    data = profile.data
    chosen_by = {data.split.stratify_by if data.split else None, data.balance.by if data.balance else None}
    for stage in stages:
        if "unused_columns" in stage:
            stage["unused_columns"] = {
                name: rows for name, rows in stage["unused_columns"].items() if name not in chosen_by
            }


def _make_entry(
    profile: Profile,
    home: Home,
    name: str,
    sources: SourceFiles,
    digests: dict[str, str],
    tokenizer_folder: Path,
    progress: Progress,
    damaged: list[str],
) -> None:
    """Create the cache entry `name`, and the tokenizer if the profile trains one, unless both exist already and are
    whole. `damaged` is told of those that are not."""

    def exists() -> bool:
        entry = cache.find_entry(home, name, damaged)
        if tokenizer_folder.parent == home.cache:
            cache.find_entry(home, tokenizer_folder.name, damaged)
        return entry is not None and (entry / "prepared.json").is_file() and tokenizer_folder.is_dir()

    if exists():
        return
    with cache.work_folder(home, name) as work:
        if exists():  # another process has created it while this one waited
            return
        rows = _stage_rows(profile, home, sources, digests, work, progress)
        if not tokenizer_folder.is_dir():
            with problems_for_mistakes("The tokenizer cannot be trained"):
                profile_tokenizer.make(profile, rows.parts["train"], tokenizer_folder, home, progress)
        with cache.new_entry(home, name) as entry:
            content = write_entry(profile, tokenizer_folder, rows, entry, work, progress)
            (entry / "prepared.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    cache.stamp_entry(home.cache / name)


def _use_tokenised(
    profile: Profile, tokenizer_folder: Path, folders: dict[str, Path], embedding: Path | None
) -> dict[str, Any]:
    """The content of `prepared.json` for data that is tokenised already. Its conversations are unknown, so the lock has
    no golden ones."""
    data = profile.data
    tokenizer = load_tokenizer(tokenizer_folder, data.template, profile.directory, profile.model.trust_remote_code)
    counts = {
        part: pretokenized.count_tokens(folder, profile.method, data.max_length) for part, folder in folders.items()
    }
    rows_of_embedding = limits.read_embedding_rows(embedding) if embedding else None
    for folder in folders.values():
        pretokenized.check_ids(folder, profile.method, rows_of_embedding)
    files = {f"{part}.{path.name}": path for part, folder in folders.items() for path in sorted(folder.iterdir())}
    template = record_template(profile, tokenizer)
    states = {part: folder / "state.json" for part, folder in folders.items()}
    return {
        **dict.fromkeys(_PATHS),
        **{part: str(folder) for part, folder in folders.items()},
        "rows": counts["train"].rows,
        "tokens": counts["train"].tokens,
        "trained_tokens": counts["train"].trained_tokens,
        "rejected": 0,
        "expanded": None,
        "stages": [],
        "template": template,
        "lock": make_lock(tokenizer, tokenizer_folder, []),
        "stats": pretokenized.summarize(counts),
        "files": describe_files(files, cache.file_digests(files, lambda _: None)),
        "hash": cache.entry_key(states, {"max_length": data.max_length}, lambda _: None),
    }


def locate_sources(profile: Profile, home: Home, progress: Progress, *, fetches: bool = True) -> SourceFiles:
    """The sources of each part with their files; without `fetches`, one that is not fetched yet is an error. Raises
    ProblemError."""
    found: SourceFiles = {part: [] for part in PARTS}
    for part in PARTS:
        for index, source in enumerate(getattr(profile.data, part)):
            try:
                options = source_files.resolve_source(source, profile.data, profile.directory, part)
                paths = source_files.list_paths(options, profile.directory, home, progress, part, fetches=fetches)
                found[part].append((options, paths))
            except (ValueError, OSError) as error:
                raise ProblemError(
                    Problem(
                        code="data.source.unusable",
                        title=f"data.{part}.{index}.source cannot be used",
                        cause=str(error),
                    )
                )
    return found


def list_source_files(sources: SourceFiles) -> dict[str, Path]:
    """Role -> file, for all source files."""
    return {
        f"{part}.{index}.{number}": path
        for part, listed in sources.items()
        for index, (_, paths) in enumerate(listed)
        for number, path in enumerate(paths)
    }


def describe_files(files: dict[str, Path], digests: dict[str, str]) -> list[dict[str, Any]]:
    """Part, name, size and SHA-256 of every file, so that another machine can find them again."""
    return [
        {"part": role.partition(".")[0], "name": path.name, "bytes": path.stat().st_size, "sha256": digests[role]}
        for role, path in files.items()
    ]


def is_expanded(profile: Profile, home: Home, progress: Progress) -> bool:
    """Whether the cache has all rows that the profile wants from a service, so that preparing sends no request. Raises
    ProblemError."""
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
    """Expand the training sources: adds the new rows to `sources` and their files to `digests`. Returns the report."""
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
    """Everything that the rows depend on besides the bytes of their files. Paths do not matter."""
    listed = {
        part: [{"files": len(paths), **options.model_dump(exclude={"source"})} for options, paths in found]
        for part, found in sources.items()
    }
    kinds = [path.suffix.lower() for found in sources.values() for _, paths in found for path in paths]
    data = profile.data.model_dump(exclude=_NOT_OF_ROWS | set(PARTS))
    if data["exclude"] is None:
        del data["exclude"]  # entries from before there were lists stay valid
    else:
        data["exclude"] = sorted(read_excluded(profile).items())
    return {"data": data, "sources": listed, "kinds": kinds, "seed": profile.training.seed}


# ── the rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stage_rows(
    profile: Profile, home: Home, sources: SourceFiles, digests: dict[str, str], work: Path, progress: Progress
) -> StageRows:
    """The rows after all stages: in the cache if the profile enables optional stages, else in `work`."""
    if not any(getattr(profile.data, key) for key in OPTIONAL_STAGES):
        return run_stages(profile, sources, work / "rows", progress)
    name = rows_entry(profile, sources, digests)
    kept = home.cache / name
    if not cache.find_entry(home, name):
        with cache.work_folder(home, name) as folder:
            if not cache.find_entry(home, name):
                rows = run_stages(profile, sources, folder / "rows", progress)
                with cache.new_entry(home, name) as entry:
                    rows.save(entry)
    return StageRows.load(kept)


def rows_entry(profile: Profile, sources: SourceFiles, digests: dict[str, str]) -> str:
    """The name of the cache entry for the rows after all stages."""
    of_rows = {role: digests[role] for role in list_source_files(sources)}
    return "data-" + cache.entry_name(of_rows, row_settings(profile, sources))


def read_excluded(profile: Profile) -> dict[str, float]:
    """The weights of the rows that `data.exclude` lists. Raises ProblemError."""
    assert profile.data.exclude is not None
    try:
        return exclude.read_list(profile.directory / Path(profile.data.exclude).expanduser())
    except (OSError, ValueError) as error:
        raise ProblemError(
            Problem(
                code="data.source.unusable",
                title=f"data.exclude: {profile.data.exclude} cannot be used",
                cause=str(error),
                hint="`cockpit data worst RUN --drop` writes such a list; or leave data.exclude out",
            )
        )


def run_stages(
    profile: Profile, sources: SourceFiles, folder: Path, progress: Progress, begun: StageRows | None = None
) -> StageRows:
    """Run the stages that the profile enables, except those that `begun` has completed. Raises ProblemError."""
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
            read_excluded(profile) if data.exclude is not None else None,
        )
