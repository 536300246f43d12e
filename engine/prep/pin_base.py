"""Pins a run's base model and tokenizer to folders that do not change.

A run that serves as base may continue training or be deleted. So before anything is prepared, its checkpoint is put
into the cache under the hash of its content: hard-linked if possible, with an adapter merged into its base. The new
run's frozen profile names that folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.config.profile import Profile
from engine.models import targets, template_lock
from engine.models.folders import ADAPTER
from engine.models.merge import merge
from engine.models.targets import Target
from engine.prep.base_model import Progress, locate_tokenizer
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache, manifest

VERSION = 2
"""Increased when the result of merging changes, so that older folders are not reused."""


def pin_base(profile: Profile, home: Home, progress: Progress) -> Profile:
    """`profile` with cached folders in `model.base` and `model.tokenizer` if these belong to a run or are adapters,
    else unchanged.

    Raises ProblemError.
    """
    found = {"base": _pin_model(profile, home, progress), "tokenizer": _pin_tokenizer(profile, home, progress)}
    changed = {key: str(folder) for key, folder in found.items() if folder}
    return replace(profile, model=profile.model.model_copy(update=changed)) if changed else profile


def _pin_model(profile: Profile, home: Home, progress: Progress) -> Path | None:
    if not profile.model.needs_base:
        return None
    target = targets.resolve(profile.model.base, home, profile.directory)
    if target.adapter is None and not _belongs_to_run(target.folder, home):
        return None
    target = targets.fetch(target, home, lambda _name, done, total: progress("pulling", done, total))
    if target.on_hub:
        raise ProblemError(
            Problem(
                code="model.not_pulled",
                title=f"{target.label} is an adapter on {target.base}, which is not on this machine",
                hint=f"cockpit model pull {target.base}",
            )
        )
    return _cache_target(target, home, profile.model.trust_remote_code, progress)


def _pin_tokenizer(profile: Profile, home: Home, progress: Progress) -> Path | None:
    named = profile.model.tokenizer
    if not isinstance(named, str):
        return None
    source = locate_tokenizer(named, profile.directory, home, progress)
    if not _belongs_to_run(source, home):
        return None
    files = cache.tokenizer_files(source)
    folder = home.cache / f"tokenizer-of-{cache.entry_key(files, {}, lambda _: None)}"
    if not folder.is_dir():
        with cache.new_entry(home, folder.name) as draft:
            _link(files, draft, lambda _: None)
    return folder


def _belongs_to_run(folder: Path, home: Home) -> bool:
    return folder.resolve().is_relative_to(home.runs.resolve())


def _cache_target(target: Target, home: Home, trust_remote_code: bool, progress: Progress) -> Path:
    """The cache entry of `target`, created if necessary. Raises ProblemError, also for a target that does not match its
    template lock."""
    template_lock.check_target(target)
    files = _list_files("", target.folder)
    if target.adapter:
        files |= _list_files("base/", Path(target.base))
    total = sum(path.stat().st_size for path in files.values())
    digests = cache.file_digests(files, lambda done: progress("reading", done, total))
    label = re.sub(r"[^\w.@-]+", "-", target.label)
    folder = home.cache / f"{label}-{cache.entry_name(digests, {'base': VERSION})[:16]}"
    if not folder.is_dir():
        with cache.work_folder(home, folder.name):
            if not folder.is_dir():  # another process may have created it while this one waited
                with cache.new_entry(home, folder.name) as draft:
                    if target.adapter:
                        merge(target, draft, trust_remote_code, lambda done, of: progress("merging", done, of))
                    else:
                        _link(files, draft, lambda done: progress("keeping", done, len(files)))
    return folder


def _list_files(role: str, folder: Path) -> dict[str, Path]:
    """Role -> file, for the files in `folder` itself and its tokenizer's further templates: the other folders below it
    are needed only to resume that run."""
    found = {f"{role}{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
    found |= {f"{role}{name}": path for name, path in cache.tokenizer_files(folder).items()}
    found.pop(f"{role}{manifest.FILE}", None)  # it is about the folder that they are taken from
    assert found.keys() & {f"{role}config.json", f"{role}{ADAPTER}"}, folder
    return found


def _link(files: dict[str, Path], folder: Path, progress: Callable[[int], None]) -> None:
    for done, (name, path) in enumerate(files.items(), 1):
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            os.link(path, folder / name)
        except OSError:  # a file system without links, or another one
            shutil.copyfile(path, folder / name)
        progress(done)
