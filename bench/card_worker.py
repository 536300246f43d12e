"""A process that measures for `bench.card`: a request in JSON on each line of stdin, figures on each line of stdout.

It stays, so that the seconds of the imports are spent once; what it made for a measurement is gone before the next.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from bench.card_models import LLAMA_8B, TINY, Shape, build, count_operations, make_folder, make_rows

ADAPTER = {"rank": 16, "alpha": 32}
RATE = 1e-4


class Clock:
    """Seconds and tokens of the steps after the first, the device's work included."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.seconds = self._before = 0.0

    def step_ends(self, tokens: float) -> None:
        synchronize()
        now = time.perf_counter()
        if self.steps:
            self.tokens += int(tokens)
            self.seconds += now - self._before
        self._before = now
        self.steps += 1

    @property
    def rate(self) -> float:
        if self.steps < 2:
            raise RuntimeError(f"only {self.steps} steps were made")
        return self.tokens / self.seconds


def find_device() -> str:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return f"{found.type}:0" if found else "cpu"


def synchronize() -> None:
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def measure_peak(shape: Shape, folder: Path, **_: Any) -> dict[str, Any]:
    """Operations a second of the product of two square matrices in bfloat16: the median of twenty."""
    import torch

    size = shape.square
    left, right = (torch.randn(size, size, device=find_device(), dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _number in range(25):
        synchronize()
        began = time.perf_counter()
        torch.matmul(left, right)
        synchronize()
        seconds.append(time.perf_counter() - began)
    return {"tflops": 2 * size**3 / statistics.median(seconds[5:]) / 1e12, "size": size}


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_training(
    shape: Shape, folder: Path, side: str, quantization: str, length: int, more: list[str], **_: Any
) -> dict[str, Any]:
    """Tokens a second and peak memory of one side."""
    import torch

    rows = make_rows(shape, length)
    clock = Clock()
    notes: dict[str, Any] = {}
    if side == "cockpit":
        train_here(shape, folder, quantization, rows, length, clock, more)
    else:
        notes = train_with_trl(shape, folder, quantization, rows, length, clock, packing="packing" in side)
    figures: dict[str, Any] = {
        "tokens_per_second": clock.rate,
        "steps": clock.steps - 1,
        "tflops": clock.rate * count_operations(shape, rows, weights=4) / 1e12,
        "tflops_palm": clock.rate * count_operations(shape, rows, weights=6) / 1e12,
    }
    if torch.cuda.is_available():
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return figures | notes


def build_base(folder: Path, device: str, quantization: str, attention: str | None) -> Any:
    """The base, made on the device. What making it takes does not count in the peak: a run reads it, and packs each
    weight as it is read."""
    import torch

    made = build(folder, device, quantization, attention)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return made


def read_profile(shape: Shape, folder: Path, quantization: str, length: int, more: list[str], place: Path) -> Any:
    """The profile of a measurement, whose base has no files of weights."""
    from engine.config import profile
    from engine.models import folders

    text = json.dumps(
        {
            "model": {"base": str(folder), "quantization": quantization},
            "adapter": {"kind": "lora", **ADAPTER},
            "data": {"train": [{"source": "triples/train.jsonl"}], "max_length": length},
            "training": {
                "micro_batch": shape.tokens // length,
                "max_steps": shape.steps,
                "learning_rate": RATE,
                "rehearsal": False,
            },
            "checkpoint": {"every_steps": 100_000},
            "logging": {"tensorboard": False, "plots": False},
            "limits": {"disk_free_gb": 0},
        }
    )
    with mock.patch.object(folders, "find_weights_problems", lambda *_: []):
        return profile.parse(text, "bench", place, more)


def save_rows(folder: Path, rows: list[list[int]], place: Path) -> dict[str, Any]:
    """Save the rows, and return the content of prepared.json."""
    from datasets import Dataset

    Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]).save_to_disk(f"{place}/rows")
    tokens = sum(map(len, rows))
    return {
        "train": f"{place}/rows", "validation": None, "validation_rows": None, "rows": len(rows),
        "tokens": tokens, "trained_tokens": tokens, "rejected": 0, "hash": "0", "base": str(folder),
        "lock": {"template_sha256": "", "eos_token_ids": [1], "golden": []}, "stats": {},
    }  # fmt: skip


def forecast_training(
    shape: Shape, folder: Path, quantization: str, length: int, more: list[str], **_: Any
) -> dict[str, Any]:
    """What the forecast says of the training that `measure_training` measures on our side: the bytes that are
    allocated on a card, without what its allocator and its context hold besides."""
    from engine.models.base import load_tokenizer
    from engine.protocol.home import Home
    from engine.training.forecast import estimate
    from engine.training.forecast.hosts import Host

    with tempfile.TemporaryDirectory() as place, sent_to_stderr():
        settings = read_profile(shape, folder, quantization, length, more, Path(place))
        prepared = save_rows(folder, make_rows(shape, length), Path(place))
        tokenizer = load_tokenizer(str(folder), False, None)
        given = estimate.Given(Home(Path(place)), prepared, tokenizer, True, 0)
        found = estimate.estimate(settings, Host("cuda", "card", 1, None, None), given)
    return {"forecast_gb": found["allocated_bytes"] / 2**30}


def train_here(
    shape: Shape, folder: Path, quantization: str, rows: list[list[int]], length: int, clock: Clock, more: list[str]
) -> None:
    """The training session itself, on a base that is made rather than read; its checkpoint is not read back."""
    from engine.models import base
    from engine.protocol.home import Home
    from engine.protocol.worker_link import Link
    from engine.training import checkpoints, session
    from engine.training.inbox import Inbox
    from engine.training.metrics import StepMetrics
    from engine.training.reporter import Reporter

    with tempfile.TemporaryDirectory() as place:
        settings = read_profile(shape, folder, quantization, length, more, Path(place))
        run = Home(Path(place)).create().run("bench")
        run.path.mkdir(parents=True)
        run.prepared.write_text(json.dumps(save_rows(folder, rows, Path(place))))
        end_step = StepMetrics.end_step

        def timed(self: StepMetrics, loss: float) -> None:
            end_step(self, loss)
            clock.step_ends(self.tokens)  # a report follows each step, and empties the tally

        def make(name: str, **arguments: Any) -> Any:
            device, attention = arguments["device_map"][""], arguments.get("attn_implementation")
            return build_base(Path(name), device, quantization, attention)

        link, inbox = Link(f"ipc://{place}/none", "bench", 1), Inbox()
        inbox.connect(link)
        with (
            mock.patch.object(StepMetrics, "end_step", timed),
            mock.patch.object(base, "load_model", make),
            mock.patch.object(checkpoints, "read_back", lambda *_: None),
            sent_to_stderr(),
        ):
            try:
                session.train(run, 1, settings, Path(place), None, Reporter(run, 1, link, 0), inbox)
            finally:
                link.close()


def train_with_trl(
    shape: Shape, folder: Path, quantization: str, rows: list[list[int]], length: int, clock: Clock, packing: bool
) -> dict[str, Any]:
    """`SFTTrainer` with its defaults, or with packing and flash attention where that is installed."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.utils import is_flash_attn_2_available
    from trl import SFTConfig, SFTTrainer

    attention = "flash_attention_2" if packing and is_flash_attn_2_available() else "sdpa"

    class Timed(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            if packing and mask is None and "labels" in inputs:
                tokens = int((inputs["labels"] != -100).sum())
            loss = super().training_step(model, inputs, *rest, **named)
            clock.step_ends(tokens)
            return loss

    with tempfile.TemporaryDirectory() as place, sent_to_stderr():
        trainer = Timed(
            model=build_base(folder, find_device(), quantization, attention),
            args=SFTConfig(
                output_dir=place,
                per_device_train_batch_size=shape.tokens // length,
                max_length=length,
                max_steps=shape.steps,
                learning_rate=RATE,
                packing=packing,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.accelerator.is_available(),
            ),
            train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(
                r=ADAPTER["rank"], lora_alpha=ADAPTER["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        trainer.train()
    return {"attention": attention}


# ── decoding ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_decoding(shape: Shape, folder: Path, adapter: bool, rows: int, rounds: int = 2, **_: Any) -> dict[str, Any]:
    """Tokens a second of replies to prompts of one length, each prompt's reading included, against `generate` on the
    same model."""
    import random

    from engine.inference.sampling import Sampling

    with tempfile.TemporaryDirectory() as place:
        ours = load_for_inference(folder, Path(place), adapter)
    numbers = random.Random(0)
    asked = [" ".join(f"w{numbers.randrange(60)}" for _ in range(shape.prompt)) for _ in range(rows)]
    prompts = [ours.prompt(each) for each in asked]
    rates: dict[str, list[float]] = {"ours": [], "generate": []}
    for _number in range(rounds + 1):
        began = time.perf_counter()
        if rows == 1:
            made = len(ours.generate(asked[0], Sampling(shape.decoded)).ids)
        else:
            made = sum(len(reply.ids) for reply in ours.batch(asked, Sampling(shape.decoded)))
        synchronize()
        rates["ours"].append(made / (time.perf_counter() - began))
        if made != rows * shape.decoded:
            raise RuntimeError(f"{made} tokens instead of {rows * shape.decoded}")
        began = time.perf_counter()
        generate(ours.model, prompts, shape.decoded)
        synchronize()
        rates["generate"].append(rows * shape.decoded / (time.perf_counter() - began))
    medians: dict[str, Any] = {side: statistics.median(each[1:]) for side, each in rates.items()}
    pairs = zip(rates["ours"][1:], rates["generate"][1:], strict=True)
    return medians | {"ratio": statistics.median(mine / theirs for mine, theirs in pairs)}


def load_for_inference(folder: Path, place: Path, adapter: bool) -> Any:
    """`engine.inference.load` on a base that is made rather than read. Its replies never end early."""
    from peft import LoraConfig, get_peft_model

    from engine.inference import loaded_model
    from engine.models import folders
    from engine.protocol.home import Home

    device, target = find_device(), str(folder)
    made = build(folder, device)
    if adapter:
        config = LoraConfig(
            r=ADAPTER["rank"], lora_alpha=ADAPTER["alpha"], target_modules="all-linear", init_lora_weights=False,
            task_type="CAUSAL_LM", base_model_name_or_path=target,
        )  # fmt: skip
        wrapped = get_peft_model(made, config)
        wrapped.save_pretrained(place / "adapter")
        made, target = wrapped.unload(), str(place / "adapter")
    with (
        mock.patch.object(loaded_model, "load_model", lambda *_, **__: made),
        mock.patch.object(folders, "find_weights_problems", lambda *_: []),
    ):
        loaded = loaded_model.load(target, home=Home(place), dtype="bfloat16", device=device)
    loaded.stop_ids = frozenset()
    return loaded


def generate(model: Any, prompts: list[list[int]], tokens: int) -> None:
    """transformers' own decoding with its default settings, of prompts of one length."""
    import torch

    ids = torch.tensor(prompts, device=model.device)
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
        do_sample=False,
    )  # fmt: skip
    if made.shape[1] != ids.shape[1] + tokens:
        raise RuntimeError(f"generate made {made.shape[1] - ids.shape[1]} tokens instead of {tokens}")


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "peak": measure_peak,
    "training": measure_training,
    "forecast": forecast_training,
    "decoding": measure_decoding,
}


@contextmanager
def sent_to_stderr() -> Iterator[None]:
    """Context in which what libraries print is not taken for figures."""
    from contextlib import redirect_stdout

    with redirect_stdout(sys.stderr):
        yield


def main() -> None:
    from engine.models import accelerator
    from engine.training import compiling

    shape = LLAMA_8B
    if "--cpu" in sys.argv:
        shape, compiling.BACKEND = TINY, "aot_eager"  # inductor's C++ takes minutes
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place, "base"), shape)
        accelerator.choose(find_device())
        for line in sys.stdin:
            request = json.loads(line)
            try:
                found = MEASURES[request.pop("measure")](shape, folder, **request)
            except Exception as error:  # noqa: BLE001 - the other measurements go on
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            accelerator.release()
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
