"""A job's environment is built from its submitter's: no launcher's variables, and no keys of whoever started the
engine."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.profile import ProfileError, find, load
from engine.protocol import states
from engine.protocol.environment import build_job_environment, is_launcher_variable, is_secret
from engine.protocol.messages import Submit
from tests.scripted.bench import Engine

LIBRARIES = ("torch/distributed", "accelerate", "transformers")
READ = re.compile(
    r"""(?:environ(?:\.get|\.pop)?|getenv|_from_env|_flag|env_int)\s*[\(\[]\s*\[?["']([A-Z][A-Z0-9_]+)["']"""
)
LISTED = re.compile(r"""get_int_from_env\(\s*\[([^\]]*)\]""")
LAUNCHING = re.compile(
    r"(^|_)(RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|NPROC|NODES?|PROCID|LOCALID)(_|$)"
    r"|^(ACCELERATE|TORCHELASTIC|TORCH_ELASTIC|PET|FSDP|DEEPSPEED|MEGATRON_LM|PARALLELISM_CONFIG|SM|SMDATAPARALLEL)_"
    r"|^(OMPI|PMI|MPI|MV2|SLURM)_|^XLA_"
)
OTHER = {"TORCH_DISTRIBUTED_COMPILE_ON_ONE_RANK"}
"""They look like it, and only say how to compile."""
SCENE = {
    **{"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1"},
    **{"MASTER_PORT": "29500", "GROUP_RANK": "1", "ROLE_RANK": "3", "ROLE_WORLD_SIZE": "8", "NODE_RANK": "1"},
    **{"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "TORCHELASTIC_RUN_ID": "x"},
    **{"TORCHELASTIC_USE_AGENT_STORE": "True", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3"},
    **{"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "PMI_RANK": "3", "PMI_SIZE": "8", "PET_NNODES": "2"},
}
KEYS = {"HF_TOKEN": "starter", "WANDB_API_KEY": "starter", "OPENAI_API_KEY": "starter", "MY_PASSWORD": "starter"}


def list_read() -> set[str]:
    """Every environment variable that the libraries read by a literal name."""
    found: set[str] = set()
    for library in LIBRARIES:
        package, _, inner = library.partition("/")
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        for path in (Path(spec.submodule_search_locations[0]) / inner).rglob("*.py"):
            text = path.read_text(errors="replace")
            found |= set(READ.findall(text))
            for names in LISTED.findall(text):
                found |= set(re.findall(r"[A-Z][A-Z0-9_]+", names))
    return found


def test_every_variable_that_the_libraries_read_for_launching_is_known() -> None:
    read = {name for name in list_read() if LAUNCHING.search(name)} - OTHER
    assert {"RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "MASTER_PORT", "PMI_RANK"} <= read and len(read) > 50
    assert sorted(name for name in read if not is_launcher_variable(name)) == []
    assert [name for name in SCENE if not is_launcher_variable(name)] == []


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "TORCH_HOME", "SLURM_JOB_ID"],
)
def test_other_variables_are_left_alone(name: str) -> None:
    assert not is_launcher_variable(name) and not is_secret(name)
    assert build_job_environment({"PATH": "/bin", name: "x"}, own={})[name] == "x"


def test_secrets_are_told_from_names_that_only_look_alike() -> None:
    assert all(is_secret(name) for name in (*KEYS, "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "db_password", "APIKEY"))
    assert not any(is_secret(name) for name in ("TOKENIZERS_PARALLELISM", "KEYBOARD", "PASSIVE", "MONKEY", "AUTHOR"))


def test_a_whole_environment_is_used_alone_and_a_partial_one_over_the_engines_without_its_secrets() -> None:
    own = {"PATH": "/engine", "OMP_NUM_THREADS": "7", "LANG": "C"} | KEYS | SCENE
    whole = build_job_environment({"PATH": "/mine", "HF_TOKEN": "mine"}, {"GIVEN": "1"}, own)
    added = {"PYTHONPATH", "PYTORCH_ALLOC_CONF"}
    assert {name: whole[name] for name in whole if name not in added} == {
        **{"PATH": "/mine", "HF_TOKEN": "mine", "GIVEN": "1"}
    }
    partial = build_job_environment({"HF_TOKEN": "mine"}, {"GIVEN": "1"}, own)
    assert {name: partial[name] for name in partial if name not in added} == {
        **{"PATH": "/engine", "OMP_NUM_THREADS": "7", "LANG": "C", "HF_TOKEN": "mine", "GIVEN": "1"}
    }


def test_a_profile_cannot_name_a_launchers_variable() -> None:
    with pytest.raises(ProfileError, match=r"launch\.environment\.WORLD_SIZE"):
        load(find("triples-qlora"), ["launch.environment.WORLD_SIZE=8"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_job_gets_its_submitters_environment(bare_home, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """The engine was started inside a job of SLURM, by a user with keys; the run is submitted from another shell."""
    for name, value in (SCENE | KEYS | {"STARTER": "1"}).items():
        monkeypatch.setenv(name, value)
    engine = Engine(bare_home, cold=True)
    try:
        profile = load(find("triples-qlora"), ("training.max_steps=100000", "training.learning_rate=0.01"))
        sent = {"HF_TOKEN": "mine"} | SCENE | ({"PATH": os.environ["PATH"], "MINE": "1"} if whole else {})
        run = engine.client.request("submit", Submit(profile=profile.to_yaml(), directory="/", environment=sent))
        engine.wait(run, states.RUNNING)
        (worker,) = engine.processes(run)
        environment = worker.environ()
        assert sorted(name for name in environment if is_launcher_variable(name)) == []
        assert environment["HF_TOKEN"] == "mine"
        assert not {"WANDB_API_KEY", "OPENAI_API_KEY", "MY_PASSWORD"} & set(environment)
        assert ("STARTER" in environment) == (not whole)
        assert environment.get("MINE") == ("1" if whole else None)
        worker.kill()
    finally:
        engine.close()


def test_a_verb_in_the_foreground_is_no_rank_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SCENE.items():
        monkeypatch.setenv(name, value)
    from engine.protocol.client import build_engine_environment

    code = "import engine.training.ranks as ranks; print(*ranks.read_place())"
    done = subprocess.run([sys.executable, "-c", code], env=build_engine_environment(), capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0", "1"], done.stderr
