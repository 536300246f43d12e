"""Runs a profile's stages up to one of them. The rows are kept in the cache, and a later preparation continues from
them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from engine.config.profile import Profile
from engine.options.data import SourceOptions
from engine.prep.base_model import Progress
from engine.prep.prepare import expand_sources, list_source_files, locate_sources, rows_entry, run_stages
from engine.prep.stages.pipeline import OPTIONAL_STAGES, SourceFiles, StageRows
from engine.protocol.home import Home
from engine.storage import cache

EXPAND, VALIDATE, TOKENIZE = "expand", "validate", "tokenize"


class StageOutput(NamedTuple):
    """The rows that leave a stage. With data expansion also the folder of the expansion, and the sources whose form its
    rows have."""

    rows: StageRows
    expansion: Path | None
    forms: list[SourceOptions]


class _Step(NamedTuple):
    """A profile that ends with a given stage, and the cache entry for the rows that leave it."""

    profile: Profile
    sources: SourceFiles
    name: str


def list_stages(profile: Profile) -> list[str]:
    """The stages of a profile, in order."""
    enabled = [name for name in OPTIONAL_STAGES if getattr(profile.data, name)]
    return [*([EXPAND] if profile.data.expand else []), VALIDATE, *enabled, TOKENIZE]


def run_until(profile: Profile, stage: str, home: Home, progress: Progress) -> StageOutput:
    """Run the stages up to and including this one; those done before are read from the cache.

    For `expand` the rows are returned after validation, for `tokenize` as they enter it. Raises ValueError for a stage
    that the profile does not have, ProblemError.
    """
    if stage not in list_stages(profile):
        raise ValueError(f"the profile has no stage {stage}, only {', '.join(list_stages(profile))}")
    sources = locate_sources(profile, home, progress)
    files = list_source_files(sources)
    total = sum(path.stat().st_size for path in files.values())
    digests = cache.file_digests(files, lambda done: progress("reading", done, total))
    own = [options for options, _ in sources["train"]]
    expansion = expand_sources(profile, home, sources, digests, progress) if profile.data.expand else None
    forms = [options for options, _ in sources["train"][len(own) :]] or own
    folder = Path(expansion["directory"]) if expansion else None
    names = [name for name in list_stages(profile) if name not in (EXPAND, TOKENIZE)]
    last = names.index(stage) if stage in names else 0 if stage == EXPAND else len(names) - 1
    steps = [_make_step(profile, sources, names[: at + 1], names, digests) for at in range(last + 1)]
    begun: StageRows | None = None
    for step in reversed(steps):
        if cache.find_entry(home, step.name):
            begun = StageRows.load(home.cache / step.name)
            if step is steps[-1]:
                return StageOutput(begun, folder, forms)
            break
    step = steps[-1]
    with cache.work_folder(home, step.name) as shop:
        rows = run_stages(step.profile, step.sources, shop / "rows", progress, begun)
        with cache.new_entry(home, step.name) as kept:
            rows.save(kept)
    return StageOutput(StageRows.load(home.cache / step.name), folder, forms)


def _make_step(
    profile: Profile, sources: SourceFiles, done: list[str], names: list[str], digests: dict[str, str]
) -> _Step:
    """The cache entry has the name that `prepare` gives the rows of such a profile, so after the last stage `prepare`
    finds them."""
    later = [name for name in names if name not in done]
    if later:  # weights and limits apply after all stages
        data = profile.data.model_copy(update={**dict.fromkeys(later), "max_rows": None})
        profile = replace(profile, data=data)
        sources = {
            part: [(options.model_copy(update={"weight": 1.0}), paths) for options, paths in found]
            for part, found in sources.items()
        }
    return _Step(profile, sources, rows_entry(profile, sources, digests))
