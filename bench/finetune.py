"""Speed of LoRA and QLoRA on the embedded model, compared with the defaults of trl and LLaMA-Factory.

All sides have the same rows, model, adapter, learning rate and global batch; everything else is each one's default.
Measured are real (unpadded) tokens a second, without the first step, and then the held-out loss after the same rows, by
one plain evaluation. In each round every side runs once, in a process of its own, one after the other.

    python -m bench.finetune ROWS.json --llamafactory /path/to/its/bin/python --rounds 3 --count 96
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import save
from engine.protocol.home import Home
from engine.supervisor.processes import WORKER_DEFAULTS

ROOT = Path(__file__).parents[1]
HELD_OUT = 48
"""Rows that nobody trains on, from the end of the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="alpaca rows as a JSON list")
    parser.add_argument("--home", type=Path, help="a home that holds the embedded model (default: the user's)")
    parser.add_argument("--llamafactory", type=Path, help="the interpreter that has it; without, it is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=96, help="rows, seen once")
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out, such as trl")
    parser.add_argument("--quantization", nargs="*", choices=("none", "nf4"), default=["none", "nf4"])
    arguments = parser.parse_args()
    model = str(Home.locate(arguments.home).models / "smollm2-135m-instruct")
    interpreters = {"cockpit": sys.executable, "trl": sys.executable, "trl, float32": sys.executable}
    if arguments.llamafactory:
        interpreters["llamafactory"] = str(arguments.llamafactory)
    interpreters = {side: each for side, each in interpreters.items() if side not in arguments.without}
    rows = json.loads(arguments.rows.read_text())
    results: dict[str, Any] = {"rows": arguments.count, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "rows.json")
        given.write_text(json.dumps(rows[: arguments.count]))
        for quantization in arguments.quantization:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in interpreters}
            for number in range(arguments.rounds):
                for side, interpreter in interpreters.items():
                    place = Path(folder, f"{side}-{quantization}-{number}".replace(", ", "-"))
                    place.mkdir()
                    figures = run_side(side, interpreter, given, model, quantization, place)
                    del figures["first_step_from"], figures["first_step_at"]  # for `bench.launch`
                    if number == 0:
                        figures["held_out_loss"] = held_out_loss(model, place / "adapter", rows[-HELD_OUT:])
                    found[side].append(figures)
                    print(quantization, side, figures, file=sys.stderr)
            results["qlora" if quantization == "nf4" else "lora"] = _told(found)
    save("finetune", results)


def run_side(
    side: str,
    interpreter: str,
    rows: Path,
    model: str,
    quantization: str,
    folder: Path,
    changes: Sequence[str] = (),
) -> dict[str, float]:
    """Fine-tune with one side (`name` or `name, change`), in a process of its own; its figures. The adapter is then in
    `folder`/adapter."""
    side, *further = side.split(", ")
    command = [
        interpreter,
        str(ROOT / "bench" / "trainers" / f"{side}.py"),
        str(rows),
        model,
        quantization,
        str(folder),
        *further,
        *changes,
    ]
    # As the engine starts its workers; the others as their user's shell would.
    defaults = WORKER_DEFAULTS if side == "cockpit" else {}
    environment = defaults | os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COCKPIT_HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _told(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {
        side: {key: statistics.median(each[key] for each in figures if key in each) for key in figures[0]}
        for side, figures in found.items()
    }
    ratios = {
        f"times {side}": {
            key: statistics.median(
                ours[key] / theirs[key] for ours, theirs in zip(found["cockpit"], found[side], strict=True)
            )
            for key in ("tokens_per_second", "tokens_per_cpu_second")
        }
        for side in found
        if side != "cockpit"
    }
    return {"medians": medians, "ratios": ratios}


def held_out_loss(model: str, adapter: Path, rows: list[dict[str, str]]) -> float:
    """Mean cross entropy a reply token, float32, the adapter on the model as it is stored."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter).eval()
    total = count = 0.0
    for row in rows:
        asked = [{"role": "user", "content": "\n".join(filter(None, (row["instruction"], row["input"])))}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        reply = tokenizer(row["output"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *reply]])
        with torch.no_grad():
            logits = tuned(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()
        count += len(reply)
    return total / count


if __name__ == "__main__":
    main()
