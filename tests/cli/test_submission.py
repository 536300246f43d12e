from __future__ import annotations

from pathlib import Path

from cockpit.connection.submission import build_submission, resume_environment
from engine.config.profile import find, load


def test_a_job_gets_its_shell_without_secrets_and_what_its_profile_names(tmp_path: Path) -> None:
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
        "RANK": "3",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "AWS_SECRET_ACCESS_KEY": "s",
        "OMP_NUM_THREADS": "2",
    }
    profile = load(find("triples-qlora"), overrides)
    passed = {
        "HF_TOKEN": "t",
        "WANDB_MODE": "offline",
        "https_proxy": "p",
        "CUDA_VISIBLE_DEVICES": "1",
        "MY_PATH": "/mine",
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
    }
    assert build_submission(profile, shell=shell).environment == passed
    (tmp_path / "profile.yaml").write_text(profile.to_yaml())
    assert resume_environment(str(tmp_path), shell) == passed, "a resumed run gets what a submitted one got"


def test_the_key_that_a_profile_names_goes_with_a_resume(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("data: {expand: {api_key_env: MY_KEY}}")
    assert resume_environment(str(tmp_path), {"MY_KEY": "k", "OTHER_KEY": "o"}) == {"MY_KEY": "k"}
    assert resume_environment(str(tmp_path / "gone"), {"MY_KEY": "k", "HF_TOKEN": "t"}) == {"HF_TOKEN": "t"}
