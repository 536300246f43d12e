"""Which devices a run gets: a real engine that sees made-up cards."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cockpit.verbs.runs import runs
from engine.config.profile import Profile, ProfileError, find, load
from engine.protocol import states
from engine.protocol.home import Home
from engine.protocol.messages import Device, DeviceProcess, OpenService, ProblemError, Run, Submit
from engine.supervisor.devices import Assigned, Devices
from tests.fake_nvml import FOLDER, GB, Cards, make_card
from tests.scripted.bench import Engine, wait_for

Start = Callable[..., tuple[Engine, Cards]]


@pytest.fixture
def start(bare_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts an engine on a host with these cards, from a shell with these variables."""
    engines: list[Engine] = []

    def begin(*cards: object, **variables: str) -> tuple[Engine, Cards]:
        shared = Cards(tmp_path)
        shared.write(*cards)
        monkeypatch.setenv("FAKE_NVML", str(shared.path))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        engines.append(Engine(bare_home, path=(FOLDER,)))
        return engines[-1], shared

    yield begin
    for engine in engines:
        engine.close()


def submit(engine: Engine, *overrides: str, **environment: str) -> Run:
    settings = ("training.max_steps=100000", "training.learning_rate=0.01", "logging.tensorboard=false")
    profile = load(find("triples-qlora"), (*settings, *overrides))
    sent = {"PATH": os.environ["PATH"], "FAKE_NVML": os.environ["FAKE_NVML"], **environment}
    run: Run = engine.client.request("submit", Submit(profile=profile.to_yaml(), directory="/", environment=sent))
    return run


def see(engine: Engine, run: Run) -> dict[str, str]:
    """The environment of a run's worker."""
    engine.wait(run, states.RUNNING)
    environment: dict[str, str] = wait_for(lambda: next((each.environ() for each in engine.processes(run)), None))
    return environment


def test_a_mask_of_the_engine_and_one_of_the_submitter_are_intersected(start: Start) -> None:
    engine, _ = start(*map(make_card, range(8)), CUDA_VISIBLE_DEVICES="4,5,6")
    first, second = submit(engine), submit(engine, CUDA_VISIBLE_DEVICES="GPU-00000007,GPU-00000006")
    assert see(engine, first)["CUDA_VISIBLE_DEVICES"] == "4"
    assert see(engine, first)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert see(engine, second)["CUDA_VISIBLE_DEVICES"] == "6"
    assert engine.show(first).run.devices == [4] and engine.show(second).run.devices == [6]
    with pytest.raises(ProblemError, match="asks for devices"):
        submit(engine, "launch.devices=[0]")
    with pytest.raises(ProblemError, match="asks for 4 processes"):
        submit(engine, "launch.processes=4")
    service = engine.client.request(
        "service_open",
        OpenService(kind="chat", environment={"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "5,6,7"}),
    )
    environment = wait_for(Path(f"/proc/{service.pid}/environ").read_bytes)
    assert environment.count(b"\0CUDA_VISIBLE_DEVICES=5,6\0") == 1


def test_cards_of_strangers_are_passed_over_and_waited_for(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        taken = make_card(0, used=22 * GB, processes=[{"pid": stranger.pid, "memory": 21 * GB}])
        engine, cards = start(taken, make_card(1))
        first = submit(engine)
        assert see(engine, first)["CUDA_VISIBLE_DEVICES"] == "1"
        second = submit(engine)
        waiting = wait_for(lambda: (now := engine.show(second).run).reason and now)
        assert waiting.state == states.QUEUED and waiting.code == "queue.devices_held"
        held = {holder.device: holder for holder in waiting.holders}
        assert held[1].job == first.id
        assert held[0].pid == stranger.pid and held[0].memory == 21 * GB and held[0].since > time.time() - 600
        assert "GPU 0" in waiting.reason and first.id in waiting.reason
        runs(argparse.Namespace(home=str(engine.home.root), state="", filter=[], json=False))
        assert "waits for GPU" in " ".join(capsys.readouterr())
        cards.write(make_card(0), make_card(1))
        assert see(engine, second)["CUDA_VISIBLE_DEVICES"] == "0"
        running = engine.show(second).run
        assert running.reason == running.code == "" and running.holders == []
    finally:
        stranger.kill()
        stranger.wait()


def test_a_card_that_is_taken_while_a_run_prepares_is_not_trained_on(start: Start) -> None:
    engine, cards = start(make_card(0), make_card(1))
    run = submit(engine, "generation.seed=22")
    assert engine.wait(run, states.PREPARING).devices == [0]
    cards.write(make_card(0, used=20 * GB), make_card(1))
    assert see(engine, run)["CUDA_VISIBLE_DEVICES"] == "1"
    assert engine.states(run) == ["queued", "preparing", "queued", "running"]
    assert engine.show(run).run.attempt == 1


def plan(*overrides: str) -> Profile:
    return load(find("triples-qlora"), overrides)


def make(
    index: int, *, used: int | None = GB, total: int | None = 24 * GB, processes: list[DeviceProcess] | None = None
) -> Device:
    return Device(index=index, ordinal=index, name="T", memory_total=total, memory_used=used, processes=processes)


class Host:
    """`Devices` over a list of made-up cards."""

    def __init__(self, *cards: Device, **own: str) -> None:
        self.cards = list(cards)
        self.devices = Devices(lambda: self.cards, own)

    def assign(self, profile: Profile, busy: Mapping[int, str] | None = None, /, **sent: str) -> Assigned:
        return self.devices.assign("run", profile, sent, busy or {})


def test_a_host_that_hides_its_cards_trains_on_the_cpu() -> None:
    host = Host(make(0), CUDA_VISIBLE_DEVICES="-1")
    assert host.assign(plan())[0] == []
    assert host.devices.restrict({}, [], 1)["CUDA_VISIBLE_DEVICES"] == "-1"


def test_masks_without_a_device_in_common_are_refused() -> None:
    """An engine that was started by the first shell keeps its mask; a second shell must not end up on the CPU."""
    host = Host(make(0), make(1), CUDA_VISIBLE_DEVICES="0")
    calls = (
        lambda sent: host.devices.check("", plan(), sent),
        lambda sent: host.assign(plan(), **sent),
        lambda sent: host.devices.restrict(sent),
    )
    for call in calls:
        with pytest.raises(ProblemError) as raised:
            call({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"})
        assert raised.value.problem.code == "device.masks_disjoint"
    assert host.assign(plan(), PATH="/bin", CUDA_VISIBLE_DEVICES="-1")[0] == [], "the CPU was asked for"
    assert host.assign(plan(), PATH="/bin", CUDA_VISIBLE_DEVICES="0,1")[0] == [0]


def test_a_card_without_kernels_is_passed_over_and_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.hardware.wheels.read_cuda_version", lambda: "13.0")
    old, new = make(0), make(1)
    old.capability, new.capability = "7.0", "9.0"
    assert Host(old, new).assign(plan())[0] == [1]
    for host, overrides in ((Host(old), ()), (Host(old, new), ("launch.processes=2",))):
        with pytest.raises(ProblemError) as raised:
            host.devices.check("", plan(*overrides), {})
        assert raised.value.problem.code == "device.no_kernels" and "cu126" in raised.value.problem.hint
    with pytest.raises(ProblemError, match="cannot compute on GPU 0"):
        Host(old, new).devices.check("", plan("launch.devices=[0]"), {})


def test_without_nvml_one_process_still_sees_one_device() -> None:
    host = Host()
    assert host.assign(plan())[0] == []
    assert host.devices.restrict({}, [], 1)["CUDA_VISIBLE_DEVICES"] == "0"


def test_more_devices_than_processes_are_refused() -> None:
    host = Host(make(0), make(1))
    with pytest.raises(ProblemError) as raised:
        host.devices.check("", plan("launch.devices=[0,1]", "launch.processes=1"), {})
    assert raised.value.problem.code == "launch.devices_unused"
    assert "launch.processes to 2" in raised.value.problem.hint and "[0]" in raised.value.problem.hint
    assert host.assign(plan("launch.devices=[1]", "launch.processes=1"))[0] == [1]
    assert host.assign(plan("launch.devices=[1,0]", "launch.processes=2"))[0] == [1, 0]
    assert host.assign(plan("launch.devices=[1,0]", "launch.processes=all"))[0] == [1, 0]


def test_memory_that_nobody_admits_to_counts_too() -> None:
    host = Host(make(0, used=10 * GB, processes=None))
    devices, holders, reason = host.assign(plan())
    assert devices is None and [(each.pid, each.memory) for each in holders] == [(0, 10 * GB)]
    assert "somebody holds 10.0 GB" in reason
    assert host.assign(plan("launch.devices=[0]"))[0] == [0], "a device that is named is the user's choice"


def test_what_a_screen_needs_does_not_count_and_what_is_not_known_is_free() -> None:
    screen = [DeviceProcess(pid=1, user="root", name="Xorg", memory=300_000_000)]
    assert Host(make(0, used=GB, processes=screen)).assign(plan())[0] == [0]
    assert Host(make(0, used=None, total=None, processes=None)).assign(plan())[0] == [0]
    hidden = [DeviceProcess(pid=77)]
    assert Host(make(0, used=None, total=None, processes=hidden)).assign(plan())[0] is None
    assert Host(make(0, processes=hidden)).assign(plan())[0] == [0], "the card's memory is known, and free"


def test_own_services_count_and_the_run_itself_does_not() -> None:
    chat = [DeviceProcess(pid=5, user="ada", name="python", memory=8 * GB, job="chat-1")]
    devices, holders, reason = Host(make(0, used=9 * GB, processes=chat)).assign(plan())
    assert devices is None and holders[0].job == "chat-1" and "chat-1 holds 8.0 GB" in reason
    mine = [DeviceProcess(pid=5, user="ada", name="python", memory=8 * GB, job="run")]
    assert Host(make(0, used=9 * GB, processes=mine)).assign(plan())[0] == [0]


def test_a_run_waits_until_its_device_has_been_free_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("engine.supervisor.devices.time.monotonic", lambda: now)
    profile = plan("launch.wait_for={free_memory: 20GB, idle: 1m}")
    host = Host(make(0, used=23 * GB), make(1, used=10 * GB))
    assert len(host.assign(profile)[1]) == 2
    host.cards[1] = make(1, used=4 * GB)
    assert host.assign(profile)[0] is None and "must stay so" in host.assign(profile)[2]
    now += 59
    assert host.assign(profile)[0] is None
    host.cards[1] = make(1, used=5 * GB)
    assert len(host.assign(profile)[1]) == 2
    host.cards[1] = make(1, used=4 * GB)
    now += 30
    assert host.assign(profile)[0] is None, "a card that was taken again starts anew"
    now += 60
    assert host.assign(profile)[0] == [1]
    named = plan("launch.wait_for={free_memory: 20GB}", "launch.devices=[0]")
    assert host.assign(named)[0] is None
    host.cards[0] = make(0)
    assert host.assign(named)[0] == [0]


def test_runs_do_not_start_on_the_cpu_when_the_devices_vanish() -> None:
    host = Host(make(0))
    assert host.assign(plan())[0] == [0]
    host.cards = []
    assert host.assign(plan())[0] is None and "do not answer" in host.assign(plan())[2]
    host.cards = [make(0), make(1)]
    assert host.assign(plan(), {0: "other"})[0] == [1]


def test_devices_that_were_taken_or_have_vanished_are_noticed() -> None:
    host, run = Host(make(0), make(1)), Run(id="run", devices=[0])
    assert host.devices.find_taken(run, plan()) == []
    host.cards[0] = make(0, used=20 * GB)
    assert [each.memory for each in host.devices.find_taken(run, plan())] == [20 * GB]
    assert host.devices.find_taken(run, plan("launch.devices=[0]")) == []
    host.cards = [make(1)]
    assert [each.device for each in host.devices.find_taken(run, plan("launch.devices=[0]"))] == [0]
    assert host.devices.find_taken(Run(id="run"), plan()) == [], "a run on the CPU has none"


@pytest.mark.parametrize("value", ["20", "GB", "-1GB", "20 TB", "60"])
def test_amounts_need_a_unit(value: str) -> None:
    with pytest.raises(ProfileError, match=r"launch\.wait_for"):
        plan(f"launch.wait_for={{free_memory: '{value}', idle: '{value}'}}")
    wait = plan("launch.wait_for={free_memory: 1.5 GiB, idle: 2m}").launch.wait_for
    assert wait is not None and (wait.free_bytes, wait.seconds) == (1.5 * 2**30, 120.0)
