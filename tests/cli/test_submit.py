from __future__ import annotations

from cockpit.submit import submission
from engine.protocol.profile import find, load


def test_a_job_gets_the_list_and_what_its_profile_names() -> None:
    overrides = ["launch.environment.MY_PATH=''", "launch.environment.HF_HOME=/given"]
    shell = {
        "HF_TOKEN": "t",
        "HF_HOME": "/shell",
        "WANDB_MODE": "offline",
        "https_proxy": "p",
        "CUDA_VISIBLE_DEVICES": "1",
        "MY_PATH": "/mine",
        "SECRET": "s",
        "PATH": "/bin",
    }
    assert submission(load(find("triples-qlora"), overrides), shell=shell).environment == {
        "HF_TOKEN": "t",
        "WANDB_MODE": "offline",
        "https_proxy": "p",
        "CUDA_VISIBLE_DEVICES": "1",
        "MY_PATH": "/mine",
    }
