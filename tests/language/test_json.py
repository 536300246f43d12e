"""`--json` is for programs: it says the same in every language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import VERBS, main
from cockpit.command_line.options import Verb
from cockpit.language.translate import set_language
from engine.protocol import states
from engine.protocol.messages import Command
from tests.scripted.bench import Engine, wait_for

TEXT = {"completion", "logs", "man"}
"""Verbs that print no JSON."""
ELSEWHERE = {"engine connect"}
"""Reads requests."""
CHANGING = {"disk_free", "seconds", "uptime"}


@pytest.fixture(autouse=True)
def _english_again() -> Iterator[None]:
    yield
    set_language("en")


def name_verbs(verbs: tuple[Verb, ...], before: str = "") -> Iterator[str]:
    for verb in verbs:
        if verb.verbs:
            yield from name_verbs(verb.verbs, f"{before}{verb.name} ")
        elif not verb.function.startswith("tools:"):  # the engine's own, which speaks English
            yield before + verb.name


def without_clocks(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_clocks(value) for key, value in found.items() if key not in CHANGING}
    return [without_clocks(each) for each in found] if isinstance(found, list) else found


def test_json_is_the_same_in_chinese_and_in_english(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = engine.wait(engine.submit("generation.seed=3", steps=5), states.FAILED).id
    running = engine.wait(engine.submit(steps=100_000), states.RUNNING)
    engine.client.request("pause", Command(run=(busy := running.id)))
    engine.wait(running, states.PAUSED)  # its figures stay as they are
    queued = [engine.submit(steps=2) for _ in range(2)]
    first, second = (run.id for run in queued)
    wait_for(lambda: engine.show(queued[0]).run.holders and engine.show(queued[1]).run.position == 2, what="the queue")
    bad, foreign = tmp_path / "bad.yaml", tmp_path / "foreign.yaml"
    bad.write_text("training: {learning_rat: 1}\n")
    foreign.write_text("model_name_or_path: x\nstage: sft\nno_such_setting: 3\n")
    asked = [
        *(verb.split() for verb in ("runs", "queue", "grid", "clean", "profile list", "profile schema", "explain")),
        *(["engine", verb] for verb in ("status", "start", "reindex", "stop")),
        *([verb, ended] for verb in ("show", "watch", "metrics", "tag", "note", "why", "fork")),
        *([verb, ended] for verb in ("stop", "pause", "continue", "set", "profile-step", "pin")),
        ["show", first], ["show", "nothing"], ["runs", "--state", "x"], ["runs", "foo>3"], ["compare", ended, ended],
        ["compare", ended], ["group", first, "paper"], ["queue", second, "--first", "--last"], ["queue", "--first"],
        ["queue", busy, "--up"], ["set", busy, "nonsense=1"], ["delete", "last"], ["resume", f"{ended}@7"],
        ["grid", "none"], ["train", str(bad)], ["train", "triples-qlor"], ["prepare", str(bad)], ["forecast", "none"],
        ["train", "triples-qlora", "--grid", "training.nothing=1,2"], ["launch-file", "triples-qlora", "--for", "x"],
        ["launch-file", "triples-qlora", "--for", "slurm"], ["chat", "x"], ["chat", "x", "--prompt", "hello"],
        ["generate", "x"], ["eval"], ["serve", "--stop", "x"],
        ["export", "x", "--out", "out"], ["serve"], ["resume", busy], ["demo", "--steps"],
        ["profile", "check", str(bad)], ["profile", "check", "triples-qlora"], ["profile", "show", "triples-qlora"],
        ["profile", "show", "none"], ["profile", "import", str(foreign)], ["explain", "run.not_found"],
        ["explain", "nothing"], ["web", "--host", "0.0.0.0"], ["shwo"], ["runs", "--stat"], ["data", "inspect"],
    ]  # fmt: skip
    names = {" ".join(each[:count]) for each in asked for count in (1, 2)}
    assert set(name_verbs(VERBS)) - TEXT - ELSEWHERE <= names

    monkeypatch.setenv("COCKPIT_HOME", str(engine.home.root))
    monkeypatch.chdir(tmp_path)
    differing = []
    for arguments in asked:
        said = []
        for language in ("en", "zh"):
            (engine.home.root / "settings.yaml").write_text(f"language: {language}\n")
            main([*arguments, "--json"])
            said.append([without_clocks(json.loads(line)) for line in capsys.readouterr().out.splitlines()])
        differing += [(arguments, *said)] if said[0] != said[1] or not said[0] else []
    assert not differing, "\n".join(map(str, differing))
