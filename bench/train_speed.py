"""Real (unpadded) tokens a second of the demo's training, compared with trl's `SFTTrainer` with its defaults.

Both sides have the same rows, model, NF4 base, adapter and global batch. In each round every side runs once, in a
process of its own; the first step is not counted. CPU time is reported beside wall time, because it is steadier on a
shared machine.

    python -m bench.train_speed --rounds 3 --steps 4
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
from typing import Any

from bench.report import save
from engine.config import profile
from engine.protocol.home import Home
from engine.supervisor.processes import WORKER_DEFAULTS

SIDES = ("cockpit", "trl", "trl_float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="a home that holds the embedded model (default: the user's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--against", nargs="*", choices=SIDES[1:], default=list(SIDES[1:]))
    parser.add_argument("--side", choices=SIDES, help="run one side and print its figures (used by the rounds)")
    parser.add_argument("--prepared", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        prepared = json.loads(arguments.prepared.read_text())
        measure = measure_ours if arguments.side == "cockpit" else measure_trl
        print(json.dumps(measure(arguments.side, prepared, arguments.steps, arguments.threads)))
        return
    home = Home.locate(arguments.home)
    with tempfile.TemporaryDirectory() as folder:
        prepared_path = Path(folder, "prepared.json")
        prepared_path.write_text(json.dumps(_prepare(home)))
        sides = ("cockpit", *arguments.against)
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side in sides:
                rounds[side].append(_in_process(side, prepared_path, arguments.steps, arguments.threads))
                print(side, rounds[side][-1], file=sys.stderr)
    medians = {
        side: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for side, found in rounds.items()
    }
    ratios = {
        f"times_{side}": statistics.median(
            ours["tokens_per_cpu_second"] / theirs["tokens_per_cpu_second"]
            for ours, theirs in zip(rounds["cockpit"], rounds[side], strict=True)
        )
        for side in sides[1:]
    }
    save("train_speed", {"rounds": arguments.rounds, "medians": medians, "ratios": ratios})


def _prepare(home: Home) -> dict[str, Any]:
    from engine.prep.prepare import prepare

    return prepare(profile.load(profile.find("triples-qlora"), home=home), home, lambda *_: None)


def _in_process(side: str, prepared: Path, steps: int, threads: int | None) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "bench.train_speed",
        "--side",
        side,
        "--prepared",
        str(prepared),
        "--steps",
        str(steps),
    ]
    command += ["--threads", str(threads)] if threads else []
    # As the engine starts its workers; the other side as its user's shell would.
    defaults = WORKER_DEFAULTS if side == "cockpit" else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=defaults | os.environ)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Clock:
    """Tokens, wall and CPU seconds of the steps after the first."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.steps = 0

    def step_ends(self, tokens: float) -> None:
        if self.steps == 0:
            self.wall, self.cpu = time.perf_counter(), time.process_time()
        else:
            self.tokens += tokens
        self.steps += 1

    def figures(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        steps = self.steps - 1
        return {
            "tokens_per_second": self.tokens / wall,
            "tokens_per_cpu_second": self.tokens / cpu,
            "step_seconds": wall / steps,
            "step_cpu_seconds": cpu / steps,
        }


def measure_ours(_: str, prepared: dict[str, Any], steps: int, threads: int | None) -> dict[str, float]:
    """The training session itself, journal and all, evaluation and checkpoints out of the way."""
    from engine.protocol.worker_link import Link
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.loop import TrainingLoop
    from engine.training.metrics import StepMetrics
    from engine.training.reporter import Reporter
    from engine.training.run_control import RunControl

    clock = Clock()
    end_step = StepMetrics.end_step

    def timed(self: StepMetrics, loss: float) -> None:
        end_step(self, loss)
        clock.step_ends(self.tokens)

    StepMetrics.end_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        run = Home(Path(folder)).run("bench")
        run.path.mkdir(parents=True)
        run.prepared.write_text(json.dumps({**prepared, "validation": None}))
        changes = [
            f"training.max_steps={steps}",
            "evaluation={}",
            "checkpoint.every_steps=1000",
            "limits.disk_free_gb=0",
        ]
        changes += [f"training.threads={threads}"] if threads else []
        settings = profile.load(profile.find("triples-qlora"), changes)
        link, inbox = Link(f"ipc://{folder}/none", "bench", 1), Inbox()
        inbox.connect(link)
        figures: dict[str, float] = {}
        finish = TrainingLoop.end_if_finished

        def ending(self: TrainingLoop) -> None:
            if self.step >= steps:
                figures.update(clock.figures())  # before the last checkpoint
            finish(self)

        TrainingLoop.end_if_finished = ending  # type: ignore[method-assign]
        RunControl.save = lambda self: None  # type: ignore[method-assign]
        session.checkpoints.read_back = lambda *_: None  # type: ignore[attr-defined]
        session.train(run, 1, settings, Path(folder), None, Reporter(run, 1, link, 0), inbox)
    return figures


def measure_trl(side: str, prepared: dict[str, Any], steps: int, threads: int | None) -> dict[str, float]:
    """`SFTTrainer` as it comes; `trl_float32` with everything in float32, for a CPU without bfloat16 arithmetic."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from engine.config.bundled import find_bundled
    from engine.models.quantization import quantization_config

    if threads:
        torch.set_num_threads(threads)
    clock = Clock()

    class Timed(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            tokens = int(inputs["attention_mask"].sum())
            loss = super().training_step(model, inputs, *rest, **named)
            clock.step_ends(tokens)
            return loss

    kinds: dict[str, Any] = {
        "use_cpu": not torch.accelerator.is_available()
    }  # it refuses bf16 on a CPU without being told
    dtype = "float32" if side == "trl_float32" else "bfloat16"
    kinds |= {"bf16": False} if side == "trl_float32" else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=AutoModelForCausalLM.from_pretrained(
                prepared["base"], dtype=getattr(torch, dtype), quantization_config=quantization_config("nf4", dtype)
            ),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                max_steps=steps,
                report_to="none",
                save_strategy="no",
                **kinds,
            ),
            train_dataset=load_dataset(
                "json", data_files=str(find_bundled("data") / "triples/train.jsonl"), split="train"
            ),
            processing_class=AutoTokenizer.from_pretrained(prepared["base"]),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        trainer.train()
        return clock.figures()


if __name__ == "__main__":
    main()
