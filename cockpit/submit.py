"""From a profile to the request that queues it, with the variables that a job may have from the submitting shell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.protocol.messages import Submit

if TYPE_CHECKING:
    from engine.config.profile import Profile

PASSED_PREFIXES = ("HF_", "HUGGING_FACE_", "MODELSCOPE_", "WANDB_", "NCCL_")
PASSED_NAMES = frozenset({"CUDA_VISIBLE_DEVICES", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY"})


def environment(shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What any job or service gets from the shell: hubs, trackers, collectives, devices, proxies (in either case)."""
    return {
        name: value for name, value in shell.items() if name.startswith(PASSED_PREFIXES) or name.upper() in PASSED_NAMES
    }


def keys(profile: Profile, shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that the `*_api_key_env` fields of a profile name, those that the shell has."""
    return {name: shell[name] for name in _key_variables(profile.to_dict()) if name in shell}


def submission(
    profile: Profile, kind: str = "train", source: str = "", output: str = "", shell: Mapping[str, str] = os.environ
) -> Submit:
    """The request that queues `profile`. Pure: the shell's variables come in as `shell`.

    Besides `environment`, the variables that `*_api_key_env` fields name are passed, and those that `launch.environment`
    names without giving a value. A value that the profile gives wins over the shell's.
    """
    return Submit(
        profile=profile.to_yaml(),
        kind=kind,
        source=source,
        directory=str(profile.directory),
        environment=_passed(profile.to_dict(), shell),
        output=output,
    )


def resumption(directory: str, shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the run in `directory` gets from the shell that resumes it: the same as from the one that submitted it."""
    try:
        profile = YAML(typ="safe").load(Path(directory, "profile.yaml").read_text(encoding="utf-8"))
    except (OSError, YAMLError):
        return environment(shell)  # what is wrong with it the engine will say
    return _passed(profile if isinstance(profile, dict) else {}, shell)


def _passed(profile: Mapping[str, Any], shell: Mapping[str, str]) -> dict[str, str]:
    wanted = (profile.get("launch") or {}).get("environment") or {}
    keys = {name: shell[name] for name in (*_key_variables(profile), *wanted) if name in shell}
    return {name: value for name, value in (environment(shell) | keys).items() if not wanted.get(name)}


def _key_variables(node: Any) -> Iterator[str]:
    """Values of all fields called `*_api_key_env`, wherever they stand."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key).endswith("api_key_env") and isinstance(value, str):
                yield value
            else:
                yield from _key_variables(value)
    elif isinstance(node, list):
        for item in node:
            yield from _key_variables(item)
