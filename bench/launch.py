"""Time from the command to the end of the first step: `cockpit train` compared with a bare `SFTTrainer` script.

QLoRA of the embedded model on the same rows, each side with its defaults. cockpit runs two processes one after the
other (rows are tokenised before any rank starts), checks the profile, and rehearses the longest batch; the script is
one process. cockpit is measured with an engine that is already running, and without one. In each round every side runs
once, one after the other. The first step is reported separately, since on a CPU it is most of the wait.

    python -m bench.launch ROWS.json --rounds 3 --count 32
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.finetune import run_side
from bench.report import save
from bench.trainers.clock import SETTINGS
from engine.protocol import journal
from engine.protocol.home import Home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="alpaca rows as a JSON list")
    parser.add_argument("--home", type=Path, help="a home that holds the embedded model (default: the user's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=16, help="rows; two steps of 8")
    parser.add_argument("--against", nargs="*", default=["trl", "trl, float32"])
    arguments = parser.parse_args()
    model = str(Home.locate(arguments.home).models / "smollm2-135m-instruct")
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "rows.json")
        given.write_text(json.dumps(json.loads(arguments.rows.read_text())[: arguments.count]))
        for number in range(arguments.rounds):
            home = Home(Path(folder, f"home-{number}")).create()
            for side in ("cockpit, no engine yet", "cockpit", *arguments.against):
                if side.startswith("cockpit"):
                    figures = ours(home, given, model)
                else:
                    place = Path(folder, f"{side}-{number}".replace(", ", "-"))
                    place.mkdir()
                    began = time.time()
                    told = run_side(side, sys.executable, given, model, "nf4", place)
                    figures = {
                        "first_step_done": told["first_step_at"] - began,
                        "first_step_begun": told["first_step_from"] - began,
                    }
                found.setdefault(side, []).append(figures)
                print(side, figures, file=sys.stderr)
            subprocess.run(
                [sys.executable, "-m", "cockpit.cli", "--home", str(home.root), "engine", "stop", "--force"], check=True
            )
    save(
        "launch",
        {
            "rows": arguments.count,
            "rounds": arguments.rounds,
            "medians": {
                side: {key: statistics.median(each[key] for each in figures) for key in figures[0]}
                for side, figures in found.items()
            },
        },
    )


def ours(home: Home, rows: Path, model: str) -> dict[str, float]:
    """Seconds from the command to the first step's beginning and end, by the run's own journal."""
    profile: dict[str, Any] = {
        "model": {"base": model, "quantization": "nf4"},
        "adapter": {"kind": "lora", "rank": SETTINGS["rank"], "alpha": SETTINGS["alpha"]},
        "data": {"train": [{"source": str(rows)}], "max_length": SETTINGS["max_length"]},
        "training": {
            "micro_batch": SETTINGS["batch"],
            "learning_rate": SETTINGS["learning_rate"],
            "scheduler": "linear",
        },
        "limits": {"disk_free_gb": 0},
    }
    file = rows.with_name(f"profile-{time.time_ns()}.yaml")
    profile["training"]["seed"] = time.time_ns() % 1000
    profile["data"]["max_length"] -= time.time_ns() % 50  # nothing tokenised before may be taken
    file.write_text(json.dumps(profile))
    began = time.time()
    command = [sys.executable, "-m", "cockpit.cli", "--home", str(home.root), "train", str(file)]
    subprocess.run([*command, "--detach"], check=True, capture_output=True)
    (run,) = sorted(home.runs.iterdir(), key=lambda path: path.stat().st_mtime)[-1:]
    while True:
        events = run / "events.jsonl"
        entries = [entry for entry, _ in journal.read(events)] if events.exists() else []
        steps = [entry for entry in entries if isinstance(entry, journal.Metrics)]
        assert not any(isinstance(entry, journal.End) for entry in entries) or steps, entries[-1]
        if steps:
            break
        time.sleep(0.05)
    first = steps[0]
    seconds = first.values["train/step_seconds"]
    assert seconds is not None
    subprocess.run(
        [sys.executable, "-m", "cockpit.cli", "--home", str(home.root), "stop", "last", "--now"], check=False
    )
    return {"first_step_done": first.time - began, "first_step_begun": first.time - seconds - began}


if __name__ == "__main__":
    main()
