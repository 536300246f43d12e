"""From a profile to the request that queues it, with the variables that a job may have from the submitting shell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engine.protocol.messages import Submit

if TYPE_CHECKING:
    from engine.protocol.profile import Profile

PASSED_PREFIXES = ("HF_", "HUGGING_FACE_", "MODELSCOPE_", "WANDB_", "NCCL_")
PASSED_NAMES = frozenset({"CUDA_VISIBLE_DEVICES", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY"})


def environment(shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What any job or service gets from the shell: hubs, trackers, collectives, devices, proxies (in either case)."""
    return {
        name: value for name, value in shell.items() if name.startswith(PASSED_PREFIXES) or name.upper() in PASSED_NAMES
    }


def keys(profile: Profile, shell: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that the `*_api_key_env` fields of a profile name, those that the shell has."""
    return {name: shell[name] for name in _key_variables(profile.resolved()) if name in shell}


def submission(
    profile: Profile, kind: str = "train", source: str = "", output: str = "", shell: Mapping[str, str] = os.environ
) -> Submit:
    """The request that queues `profile`. Pure: the shell's variables come in as `shell`.

    Besides `environment`, the variables that `*_api_key_env` fields name are passed, and those that `launch.environment`
    names without giving a value. A value that the profile gives wins over the shell's.
    """
    given = {name for name, value in profile.launch.environment.items() if value}
    named = {name: shell[name] for name in profile.launch.environment if name in shell}
    passed = environment(shell) | keys(profile, shell) | named
    return Submit(
        profile=profile.to_yaml(),
        kind=kind,
        source=source,
        directory=str(profile.directory),
        environment={name: value for name, value in passed.items() if name not in given},
        output=output,
    )


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
