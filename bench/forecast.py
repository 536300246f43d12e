"""How well forecasts match what runs take: the resident memory of ten different runs on a CPU.

    python -m bench.forecast [OUTPUT.json] [NUMBER …]

Each run is prepared, forecast and then trained for two steps with the embedded model, by the commands that a user
types. The result has, for each, the forecast and the actual peak of the rank's resident memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHORT = (
    "training.max_steps=2",
    "evaluation.every_steps=2",
    "evaluation.task=null",
    "evaluation.probes=[]",
    "checkpoint.every_steps=2",
    "logging.plots=false",
    "logging.tensorboard=false",
    "data.split=null",
    "data.validation=[]",
    "training.rehearsal=false",
    "limits.disk_free_gb=0",
)
RUNS: dict[str, tuple[str, ...]] = {
    "lora, 4 rows": ("sft-lora", "training.micro_batch=4", "training.accumulation=1"),
    "lora, 1 row": ("sft-lora", "training.micro_batch=1", "training.accumulation=2"),
    "lora, checkpointing": ("sft-lora", "training.micro_batch=4", "training.gradient_checkpointing=true"),
    "full": ("sft-full", "training.micro_batch=1", "training.accumulation=1"),
    "full, checkpointing": ("sft-full", "training.micro_batch=2", "training.gradient_checkpointing=true"),
    "dora": ("sft-lora", "adapter={kind: dora, rank: 8}", "training.micro_batch=2"),
    "full, adafactor": ("sft-full", "training.optimizer=adafactor", "training.micro_batch=1"),
    "reward": ("reward", "training.micro_batch=1", "training.accumulation=1"),
    "dpo": ("dpo", "training.micro_batch=1", "training.accumulation=1"),
    "full, sgd": ("sft-full", "training.optimizer=sgd", "training.micro_batch=2"),
}


def run_cockpit(home: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", "cockpit.cli", *arguments, "--home", home, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}") from None


def measure(home: str, profile: str, changes: tuple[str, ...]) -> dict[str, Any]:
    settings = [part for change in (*SHORT, *changes) for part in ("--set", change)]
    run_cockpit(home, "prepare", profile, *settings)
    forecast = run_cockpit(home, "forecast", profile, *settings)
    trained = run_cockpit(home, "train", profile, *settings)
    report = json.loads((Path(home) / "runs" / trained["run"] / "report.json").read_text())
    actual = report["memory"]["actual"]["host_bytes"]
    return {
        "forecast_bytes": forecast["host_bytes"],
        "actual_bytes": actual,
        "error_percent": round((forecast["host_bytes"] / actual - 1) * 100, 1),
        "terms": {term["name"]: term["bytes"] for term in forecast["terms"] if term["place"] == "host"},
    }


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("bench/results/forecast.json")
    chosen = [int(number) for number in sys.argv[2:]] or range(len(RUNS))
    found: dict[str, Any] = json.loads(output.read_text())["runs"] if sys.argv[2:] and output.is_file() else {}
    for number in chosen:
        name = list(RUNS)[number]
        profile, *changes = RUNS[name]
        with tempfile.TemporaryDirectory() as home:  # of its own: forecasts must not learn from the runs before
            models = Path(home) / "models"
            models.mkdir()
            for folder in (Path.home() / ".cockpit" / "models").iterdir():
                (models / folder.name).symlink_to(folder)
            found[name] = measure(home, profile, tuple(changes))
            subprocess.run(
                [sys.executable, "-m", "cockpit.cli", "engine", "stop", "--force", "--home", home],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        print(name, found[name], flush=True)
        output.write_text(json.dumps({"runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
