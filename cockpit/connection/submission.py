"""The request that queues a profile, and the environment variables that a job gets from the shell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.protocol.environment import is_secret, remove_launcher_variables
from engine.protocol.messages import Submit

if TYPE_CHECKING:
    from engine.config.profile import Profile

SERVICES = ("HF_", "HUGGING_FACE_", "MODELSCOPE_", "WANDB_", "MLFLOW_", "SWANLAB_", "TRACKIO_", "COMET_", "CLEARML_")
"""Prefixes of variables that a job gets from the shell even where they are secrets: for hubs and trackers."""


def shell_environment(shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that every job and service gets from the shell: all but secrets that are not for a hub or tracker,
    and what a launcher has set there."""
    return {
        name: value
        for name, value in remove_launcher_variables(shell).items()
        if name.startswith(SERVICES) or not is_secret(name)
    }


def api_key_environment(profile: Profile, shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables named in a profile's `*_api_key_env` fields, as far as the shell has them."""
    return {name: shell[name] for name in _key_variables(profile.to_dict()) if name in shell}


def build_submission(
    profile: Profile,
    kind: str = "train",
    source: str = "",
    output: str = "",
    shell: Mapping[str, str] = os.environ,
    directory: str = "",
) -> Submit:
    """The request that queues `profile`.

    Besides `shell_environment`, the job gets the variables named in `*_api_key_env` fields and those that
    `launch.environment` names without a value. A value in the profile takes precedence over the shell's. `shell` is
    that of the engine's host; variables that the profile names are taken from here where it lacks them. `directory`
    takes the place of the profile's own.
    """
    return Submit(
        profile=profile.to_yaml(),
        kind=kind,
        source=source,
        directory=directory or str(profile.directory),
        environment=_job_environment(profile.to_dict(), shell, {**os.environ, **shell}),
        output=output,
    )


def resume_environment(directory: str, shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that the run in `directory` gets from the shell that resumes it, by the same rules as on
    submission."""
    try:
        profile = YAML(typ="safe").load(Path(directory, "profile.yaml").read_text(encoding="utf-8"))
    except (OSError, YAMLError):
        return shell_environment(shell)  # the engine reports what is wrong with it
    return _job_environment(profile if isinstance(profile, dict) else {}, shell, shell)


def _job_environment(
    profile: Mapping[str, Any], shell: Mapping[str, str], keys_from: Mapping[str, str]
) -> dict[str, str]:
    named = (profile.get("launch") or {}).get("environment") or {}
    keys = {name: keys_from[name] for name in (*_key_variables(profile), *named) if name in keys_from}
    return {name: value for name, value in (shell_environment(shell) | keys).items() if not named.get(name)}


def _key_variables(node: Any) -> Iterator[str]:
    """The values of all `*_api_key_env` fields, at any depth."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key).endswith("api_key_env") and isinstance(value, str):
                yield value
            else:
                yield from _key_variables(value)
    elif isinstance(node, list):
        for item in node:
            yield from _key_variables(item)
