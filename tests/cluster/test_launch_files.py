"""What a profile may say of hosts, the batch script, and the files for other systems."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from engine.config import launch_files
from engine.config.batch_script import make_script
from engine.config.profile import ProfileError, find, load
from engine.protocol.messages import Problem
from engine.workers import meeting
from engine.workers.meeting import Interface, Node


def plan(*overrides: str):
    return load(find("triples-qlora"), overrides)


@pytest.mark.parametrize(
    ("launch", "key"),
    [
        ("{nodes: 2}", "launch.nodes"),
        ("{via: ssh}", "launch.hosts"),
        ("{via: ssh, hosts: [a, a]}", "launch.hosts"),
        ("{via: ssh, hosts: [a, b], nodes: 3}", "launch.nodes"),
        ("{via: ssh, hosts: [a, b], min_nodes: 3}", "launch.min_nodes"),
        ("{via: ssh, hosts: ['-oProxyCommand=x']}", "launch.hosts"),
        ("{via: slurm, min_nodes: 1}", "launch.min_nodes"),
        ("{via: slurm, devices: [0]}", "launch.devices"),
        ("{via: slurm, wait_for: {idle: 5m}}", "launch.wait_for"),
        ("{via: slurm, nodes: 2, slurm: {nodes: 3}}", "launch.slurm.nodes"),
        ("{via: slurm, slurm: {time: '1'}}", "launch.slurm.save_before"),
        ("{via: slurm, slurm: {partition: 'a b'}}", "launch.slurm.partition"),
        ('{via: slurm, slurm: {extra: ["--mem=1G\\nrm -rf x"]}}', "launch.slurm.extra"),
        ("{via: ssh, hosts: [a, b], strategy: fsdp}", ""),
        ("{via: slurm, slurm: {time: 1-00:00:00, extra: ['--mem=4G']}}", ""),
    ],
)
def test_what_cannot_work_is_refused_by_name(launch: str, key: str) -> None:
    if not key:
        plan(f"launch={launch}")
        return
    with pytest.raises(ProfileError) as raised:
        plan(f"launch={launch}")
    assert any(issue.key.startswith(key) for issue in raised.value.issues), raised.value


def test_weights_are_checked_as_divided_when_one_process_runs_on_each_of_several_nodes() -> None:
    with pytest.raises(ProfileError, match=r"adapter.kind"):
        plan("launch={via: ssh, hosts: [a, b], strategy: fsdp}", "adapter={kind: prefix}", "model.quantization=none")


@pytest.mark.parametrize("system", sorted(launch_files.SYSTEMS))
def test_files_for_other_systems_say_how_to_train(system: str, tmp_path: Path) -> None:
    text = launch_files.make(system, plan("launch.processes=2", "launch.slurm={time: '1:00:00'}"), "my profile.yaml")
    assert "cockpit" in text and "launch.via=local" in text
    if system == "slurm":
        assert "#SBATCH --time=1:00:00" in text and "--gres=gpu:2" in text and "'my profile.yaml'" in text
        (tmp_path / "script").write_text(text)
        subprocess.run(["bash", "-n", tmp_path / "script"], check=True)
    else:
        assert len(list(YAML(typ="safe").load_all(text))) == {"skypilot": 1, "kubeflow": 2}[system]
    with pytest.raises(ValueError, match="2 nodes"):
        launch_files.make(system, plan("launch={via: none, nodes: 2}"), "p")


def test_the_batch_script_is_valid_and_quotes_what_it_is_given(tmp_path: Path) -> None:
    launch = plan("launch={via: slurm, slurm: {extra: ['--comment=it is \"mine\"']}}").launch
    text = make_script(
        launch, name="n", nodes=1, log=tmp_path / "a log", control=tmp_path / "c d", attempt=3, result=tmp_path / "r",
        environment={"X": "it's $HOME"}, worker=["python", "-m", "w", "--home", str(tmp_path / "a b")],
        first=["--from-step", "7"],
    )  # fmt: skip
    script = tmp_path / "script"
    script.write_text(text)
    stub = tmp_path / "bin"
    stub.mkdir()
    (stub / "srun").write_text('#!/bin/bash\nprintf "%s|" "$X" "$@"\n')
    (stub / "srun").chmod(0o755)
    path = f"{stub}:{Path(shutil.which('bash') or '/bin/bash').parent}:/usr/bin:/bin"
    for restarts, attempt, step in ((0, 3, "--from-step|7|"), (2, 5, "")):
        environment = {"PATH": path, "SLURM_RESTART_COUNT": str(restarts)}
        done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
        asked = f"it's $HOME|--kill-on-bad-exit=1|python|-m|w|--home|{tmp_path / 'a b'}|--attempt|{attempt}|{step}"
        assert done.stdout == asked, done


def node(index: int, *interfaces: Interface, **versions: str) -> Node:
    return Node(attempt=1, node=index, host=f"h{index}", pid=1, interfaces=list(interfaces), versions=versions)


def test_nodes_meet_on_the_network_that_they_share() -> None:
    docker = Interface("br0", "172.17.0.1", "172.17.0.0/16")  # the same address on every host leads nowhere
    first = node(
        0, docker, Interface("eth0", "192.168.1.5", "192.168.1.0/24"), Interface("ib0", "10.0.0.5", "10.0.0.0/8")
    )
    second = node(1, docker, Interface("ib0", "10.0.0.6", "10.0.0.0/8"))
    assert meeting.choose_address([first, second]) == "10.0.0.5"
    assert meeting.choose_address([first, second], "eth0") == "192.168.1.5"
    assert meeting.choose_address([first, first]) == "127.0.0.1"
    same = Interface("eth0", "10.0.2.15", "10.0.2.0/24")  # of two machines behind the same kind of gateway
    apart = [node(0, same), node(1, same)]
    assert meeting.choose_address(apart) == "" and meeting.choose_address(apart, "ib7") == ""
    assert meeting.choose_address([node(0), node(1, docker)]) == ""


def test_different_versions_are_named() -> None:
    found = meeting.find_difference([node(0, torch="2.13"), node(1, torch="2.13"), node(2, torch="2.11")])
    assert isinstance(found, Problem) and found.code == "launch.versions_differ"
    assert "h2" in found.title and "torch" in found.title
    assert meeting.find_difference([node(0, torch="2.13"), node(1, torch="2.13")]) is None
