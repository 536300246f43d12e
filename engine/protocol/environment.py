"""The environment of a job: built from the submitter's, never inherited from whoever started the engine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_LAUNCHER = re.compile(
    r"""
      (LOCAL_|GROUP_|ROLE_|NODE_|MACHINE_|CROSS_)?RANK
    | (LOCAL_|GROUP_|ROLE_)?WORLD_SIZE | ROLE_NAME
    | MASTER_(ADDR|PORT) | NNODES | NPROC(_PER_NODE)? | NODE_(COUNT|ID)
    | FORK_LAUNCHED | TORCH_DISABLE_SHARE_RDZV_TCP_STORE | TORCH_DIST_INIT_BARRIER
    | XLA_(USE|DOWNCAST)_BF16 | PJRT_DEVICE | TPU_NAME | TRAINING_JOB_ARN
    | (ACCELERATE|TORCHELASTIC|TORCH_ELASTIC|PET|FSDP|DEEPSPEED|PARALLELISM_CONFIG|MEGATRON_LM)_.*
    | (SM|SMDATAPARALLEL|SAGEMAKER|XRT|OMPI|PMI|PMIX|MPI|MV2|FLUX|PALS|JSM_NAMESPACE|HOROVOD)_.*
    | SLURM_(?!JOB_ID$|JOB_NAME$).* | SLURMD_.*
    """,
    re.VERBOSE,
)
"""Variables by which torch.distributed, accelerate, transformers and the starters of MPI, SLURM and SageMaker tell a
process that it is one of several, or how to compute. `TorchElastic`'s `PET_*` are torchrun's options."""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables that tune torch's allocator, the current one first."""
_SECRET = re.compile(
    r"(^|_)(API_?KEY|KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|PASSWD|PASS|CREDENTIALS?|AUTH)(_|$)"
)


def is_launcher_variable(name: str) -> bool:
    """Whether what launches a process's ranks sets the variable: a job's own launcher does, and nobody else."""
    return bool(_LAUNCHER.fullmatch(name))


def is_secret(name: str) -> bool:
    """Whether a variable is named like a key, a token or a password."""
    return bool(_SECRET.search(name.upper()))


def remove_launcher_variables(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not is_launcher_variable(name)}


def add_code_path(variables: Mapping[str, str]) -> dict[str, str]:
    """When cockpit runs from a checkout, make the checkout importable (-P removes the working directory from the
    path)."""
    environment = dict(variables)
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(package_root) != "site-packages":
        paths = [package_root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def build_job_environment(
    submitted: Mapping[str, str], profile: Mapping[str, str] | None = None, own: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a job or service: what its submitter sent, over what its `profile` gives.

    A submitted environment with a `PATH` is the whole of the submitter's. One without is from an older cockpit, or of a
    run that an earlier engine queued and whose environment went with it, since secrets are never written down: then the
    engine's `own` variables stand in, without its secrets.
    """
    base = {} if "PATH" in submitted else {name: value for name, value in own.items() if not is_secret(name)}
    return add_code_path(_tune_allocator(remove_launcher_variables(base | dict(profile or {}) | dict(submitted))))


def _tune_allocator(variables: dict[str, str]) -> dict[str, str]:
    """Let torch's allocator grow its segments, unless the user has tuned it: rows of many lengths would otherwise leave
    gaps that no later batch fits into. https://docs.pytorch.org/docs/stable/notes/cuda.html"""
    return variables if variables.keys() & ALLOCATOR else variables | {ALLOCATOR[0]: "expandable_segments:True"}
