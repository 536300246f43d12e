"""Time from the command to the first token of a chat, and what the worker that is kept ahead adds to it.

`cockpit chat MODEL --prompt …` with an engine that has a worker ahead, the same with an engine that keeps none, and a
bare transformers script (`bench.trainers.bare_chat`) that loads the same model and generates one token. In each round
every side runs once, one after the other; the time ends with the first byte on standard output.

    python -m bench.warm_start --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import save
from engine.protocol.home import Home

PROMPT = "What is the capital of France?"
COCKPIT = [sys.executable, "-m", "cockpit.cli", "--home"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = Home.locate(None).models / "smollm2-135m-instruct"
    sides: dict[str, list[float]] = {"cockpit, a worker ahead": [], "cockpit, none ahead": [], "bare transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder, "ahead"), Path(folder, "none")]
        for home, setting in zip(homes, ("always", "0"), strict=True):
            (Home(home).create().models / model.name).symlink_to(model)
            start(home, setting)
        for _ in range(arguments.rounds):
            wait_until_ready(homes[0])
            commands = [
                *([*COCKPIT, str(home), "chat", model.name, "--prompt", PROMPT] for home in homes),
                [sys.executable, "-m", "bench.trainers.bare_chat", str(model), PROMPT],
            ]
            for side, command in zip(sides, commands, strict=True):
                sides[side].append(measure(command))
                print(side, sides[side][-1], f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        for home in homes:
            subprocess.run([*COCKPIT, str(home), "engine", "stop", "--force"], check=True, stdout=subprocess.DEVNULL)
    medians = {side: statistics.median(seconds) for side, seconds in sides.items()}
    save(
        "warm_start",
        {
            "rounds": arguments.rounds,
            "load": os.getloadavg()[1],
            "first_token_seconds": medians,
            "all": sides,
            "ahead_to_bare": medians["cockpit, a worker ahead"] / medians["bare transformers"],
        },
    )


def start(home: Path, setting: str) -> None:
    environment = os.environ | {"COCKPIT_WARM": setting, "COCKPIT_COMPILE": "0"}
    subprocess.run([*COCKPIT, str(home), "engine", "start"], check=True, stdout=subprocess.DEVNULL, env=environment)


def wait_until_ready(home: Path) -> None:
    while True:
        told = subprocess.run([*COCKPIT, str(home), "engine", "status", "--json"], check=True, capture_output=True)
        if json.loads(told.stdout)["warm"]["state"] == "ready":
            return
        time.sleep(1)


def measure(command: list[str]) -> float:
    """Seconds until the first byte of output."""
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"COCKPIT_COMPILE": "0"}
    ) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        seconds = time.monotonic() - began
        child.stdout.read()
    assert first and child.returncode == 0, command
    return round(seconds, 2)


if __name__ == "__main__":
    main()
