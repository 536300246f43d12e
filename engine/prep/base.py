"""The base model and the tokenizer that a profile means, as far as preparing needs them. No weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.models import targets
from engine.models.folders import has_tokenizer
from engine.prep import cache
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.profile import Profile

Progress = Callable[[str, int, int], None]
"""Told (phase, done, total): `fetching` and `expanding` in rows, all others in bytes."""


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


def tokenizer_files(profile: Profile, tokenizer_folder: Path) -> dict[str, Path]:
    """Role -> file."""
    files = {name: tokenizer_folder / name for name in cache.TOKENIZER_FILES if (tokenizer_folder / name).is_file()}
    if profile.data.template != "auto":
        files["template"] = template_file(profile.data.template, profile.directory)
    return files
