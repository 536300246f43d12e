"""Finds the base model and the tokenizer that a profile names. No weights are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models import catalogue, targets, template_guard, tokenizers
from engine.models.folders import has_tokenizer, is_original_glm
from engine.models.targets import Target
from engine.options.tokenizer import TokenizerOptions
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total): in rows for `fetching` and `expanding`, in bytes for all others."""


def load_tokenizer(folder: Path, template: str, directory: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer, with the profile's chat template unless that is `auto`. Raises ProblemError."""
    try:
        tokenizer = tokenizers.load(folder, trust_remote_code)
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(
            Problem(
                code="tokenizer.unusable",
                title=f"The tokenizer in {folder} cannot be loaded",
                cause=str(error),
                hint=f"look with: cockpit model verify {folder}",
            )
        ) from error
    if template != "auto":
        path = find_template(template, directory)
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        template_guard.check(tokenizer.chat_template, str(path))
    return tokenizer


def find_template(template: str, directory: Path) -> Path:
    """The Jinja file that `data.template` names. Raises ProblemError."""
    path = (directory / Path(template).expanduser()).absolute()
    if not path.is_file():
        raise ProblemError(
            Problem(
                code="template.not_found",
                title=f"There is no chat template {path}",
                hint="data.template is auto or the path of a Jinja file",
            )
        )
    return path


def locate_base(profile: Profile, home: Home, progress: Progress) -> tuple[str | None, Path]:
    """The base model's absolute folder, None if the profile needs no base, and the folder of the profile's tokenizer.

    Both are pulled if they are in the catalogue. Raises ProblemError, also for a tokenizer that the profile trains:
    only `prepare` creates that.
    """
    base, named = locate_base_folder(profile, home, progress), profile.model.tokenizer
    if isinstance(named, TokenizerOptions):
        raise ProblemError(
            Problem(
                code="tokenizer.untrained",
                title="The profile's tokenizer is not trained yet",
                hint="prepare the data first: that trains it",
            )
        )
    if named is not None:
        return base, locate_tokenizer(named, profile.directory, home, progress)
    target = locate_model(profile, home, progress)
    return base, _tokenizer_folder(target, "copy the tokenizer's files from where the model came from")


def check_here(profile: Profile, home: Home) -> None:
    """Raises ProblemError where the base or its tokenizer would have to be downloaded or converted first."""
    named = [profile.model.base] if profile.model.needs_base or profile.model.tokenizer is None else []
    own = profile.model.tokenizer
    if isinstance(own, str) and not has_tokenizer((profile.directory / Path(own).expanduser()).absolute()):
        named.append(own)
    for each in named:
        target = targets.resolve(each, home, profile.directory)
        if (target.catalogue or target.gguf) and not Path(target.base).is_dir():
            raise ProblemError(
                Problem(
                    code="model.not_pulled",
                    title=f"{each} is not on this machine",
                    cause=_describe_pull(each, target),
                    hint=f"cockpit model pull {each}" if target.catalogue else f"cockpit prepare converts {each}",
                )
            )


def _describe_pull(name: str, target: Target) -> str:
    """What happens to a model that is not on this machine when a run on it is launched."""
    if not target.catalogue:
        return f"{name} is not converted yet; launching a run does that first"
    size = catalogue.CATALOGUE[target.catalogue].download
    return f"{name} is not here yet; launching a run pulls it first" + (f" ({size / 1e6:.0f} MB)" if size else "")


def locate_base_folder(profile: Profile, home: Home, progress: Progress) -> str | None:
    """The base model's folder, pulled if it is in the catalogue; None if the profile needs no base. Raises
    ProblemError."""
    return locate_model(profile, home, progress).base if profile.model.needs_base else None


def locate_model(profile: Profile, home: Home, progress: Progress) -> Target:
    """The base model, pulled if it is in the catalogue. Raises ProblemError."""
    target = targets.resolve(profile.model.base, home, profile.directory)
    target = targets.fetch(target, home, lambda _name, done, total: progress("pulling", done, total))
    if target.on_hub:
        raise ProblemError(
            Problem(
                code="model.not_pulled",
                title=f"{target.base} is not on this machine",
                hint=f"cockpit model pull {target.base}, then name its folder in model.base",
            )
        )
    if not getattr(profile.method, "scores", False):
        targets.check_is_language_model(target)
    return target


def locate_tokenizer(named: str, directory: Path, home: Home, progress: Progress) -> Path:
    """The folder of the tokenizer that `model.tokenizer` names, which is a folder or any target. Raises
    ProblemError."""
    folder = (directory / Path(named).expanduser()).absolute()
    if has_tokenizer(folder):
        return folder
    target = targets.resolve(named, home, directory)
    target = targets.fetch(target, home, lambda _name, done, total: progress("pulling", done, total))
    return _tokenizer_folder(target, "name a folder or a model with a tokenizer in model.tokenizer")


def _tokenizer_folder(target: Target, hint: str) -> Path:
    for folder in filter(None, (target.adapter, Path(target.base))):
        if has_tokenizer(folder):
            return folder
    raise ProblemError(
        Problem(
            code="tokenizer.missing",
            title=f"{target.base} has no tokenizer",
            cause="there is no tokenizer.json in the folder",
            hint=hint,
        )
    )


def list_tokenizer_files(profile: Profile, tokenizer_folder: Path) -> dict[str, Path]:
    """Role -> file, of all files that the tokenizer is read from."""
    files = cache.tokenizer_files(tokenizer_folder)
    if is_original_glm(tokenizer_folder):
        files["config.json"] = tokenizer_folder / "config.json"  # the generation, and with it the template
    if profile.data.template != "auto":
        files["template"] = find_template(profile.data.template, profile.directory)
    return files
