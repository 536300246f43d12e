"""Files with which other systems run a profile: a Slurm batch script, a SkyPilot task, a Kubeflow job.

Each starts `cockpit train` in the foreground on the machine that the system finds, with an engine of its own there.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from engine.config.batch_script import escape, list_options
from engine.config.profile import Profile

INSTALLED = "pip install cockpit"


def make(system: str, profile: Profile, path: str) -> str:
    """The file for one of `SYSTEMS`. `path` is the profile's. Raises ValueError for what the file cannot do."""
    if profile.launch.node_count > 1:
        raise ValueError(
            f"the profile trains on {profile.launch.node_count} nodes, and such a file starts one: submit it with "
            "launch.via: slurm or ssh, or set launch.nodes to 1"
        )
    return SYSTEMS[system](profile, path)


def _count(profile: Profile) -> int:
    return profile.launch.processes if isinstance(profile.launch.processes, int) else 1


def _name(profile: Profile) -> str:
    return re.sub(r"[^a-z0-9]+", "-", (profile.name or "train").lower()).strip("-")[:40] or "train"


def _train(path: str) -> list[str]:
    return ["cockpit", "train", path, "--set", "launch.via=local"]


def _make_slurm(profile: Profile, path: str) -> str:
    wanted = [each for each in list_options(profile.launch, 1) if not each.startswith(("--signal", "--requeue"))]
    if profile.launch.job.gres is None and _count(profile) > 1:
        wanted.append(f"--gres=gpu:{_count(profile)}")
    options = [f"--job-name=cockpit-{_name(profile)}", "--no-requeue", *wanted]
    lines = ["#!/bin/bash", *(f"#SBATCH {escape(option)}" for option in dict.fromkeys(options)), ""]
    lines += [
        "# Trains with an engine of its own on the node. COCKPIT_HOME must be on a file system that the node sees.",
        "# To steer the run from the login node, and to have it save and go on at the time limit, submit the profile",
        "# there with launch.via: slurm instead: `cockpit train PROFILE --set launch.via=slurm`.",
        f"exec {shlex.join(_train(path))}",
    ]
    return "\n".join(lines) + "\n"


def _make_skypilot(profile: Profile, path: str) -> str:
    task: dict[str, Any] = {
        "name": _name(profile),
        "resources": {"accelerators": f"A100:{_count(profile)}"},
        "num_nodes": 1,
        "workdir": ".",
        "setup": LiteralScalarString(f"{INSTALLED}\n"),
        "run": LiteralScalarString(f"{shlex.join(_train(path))}\n"),
    }
    head = "# A SkyPilot task: set the accelerators, then `sky launch FILE`. The profile and its data are read from\n"
    return head + "# workdir, which is this folder: paths in the profile must be relative to it.\n" + _dump(task)


def _make_kubeflow(profile: Profile, path: str) -> str:
    name = f"cockpit-{_name(profile)}"
    container = {
        "name": "pytorch",
        "image": "YOUR-IMAGE-WITH-COCKPIT",
        "command": _train("/profile/profile.yaml"),
        "env": [{"name": "COCKPIT_HOME", "value": "/home/cockpit"}],
        "resources": {"limits": {"nvidia.com/gpu": _count(profile)}},
        "volumeMounts": [
            {"name": "profile", "mountPath": "/profile"},
            {"name": "home", "mountPath": "/home/cockpit"},
        ],
    }
    volumes = [
        {"name": "profile", "configMap": {"name": name}},
        {"name": "home", "persistentVolumeClaim": {"claimName": "cockpit-home"}},
    ]
    pod = {"spec": {"containers": [container], "volumes": volumes}}
    documents = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"profile.yaml": LiteralScalarString(profile.to_yaml())},
        },
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": name},
            "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "Never", "template": pod}}},
        },
    ]
    head = (
        "# A Kubeflow PyTorchJob: name an image with cockpit, and a claim for COCKPIT_HOME. `kubectl apply -f FILE`.\n"
    )
    return head + "---\n".join(map(_dump, documents))


def _dump(document: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


SYSTEMS: dict[str, Callable[[Profile, str], str]] = {
    "slurm": _make_slurm,
    "skypilot": _make_skypilot,
    "kubeflow": _make_kubeflow,
}
