"""An engine in the same process for tests of the screens: the `AsyncClient` interface over the events of a real demo
run."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from engine.protocol.messages import (
    CheckpointInfo,
    Device,
    DeviceProcess,
    Host,
    LogReply,
    Message,
    Nothing,
    Points,
    Problem,
    ProblemError,
    Rank,
    Ranks,
    Run,
    RunDetail,
    RunList,
    Series,
    SeriesReply,
    Snapshot,
    Taken,
    Telemetry,
    TelemetryHistory,
)

GIGA = 1 << 30


def demo_run(**changes: Any) -> Run:
    """The demo at step 31 of 50."""
    now = time.time()
    fields: dict[str, Any] = {
        "id": "triples-qlora-1121-0526-0caf",
        "name": "triples-qlora",
        "state": "running",
        "directory": "/home/ada/.cockpit/runs/triples-qlora-1121-0526-0caf",
        "base": "smollm2-135m-instruct",
        "method": "sft",
        "adapter": "lora",
        "attempt": 1,
        "step": 31,
        "max_steps": 50,
        "epoch": 0.62,
        "epochs": 1.0,
        "created": now - 100,
        "started": now - 90,
        "phase": "training",
        "global_batch": 8,
        "parameters": 139_400_000,
        "trainable_parameters": 4_884_480,
        "metrics": {
            "train/loss": 0.3124,
            "train/learning_rate": 1.23e-4,
            "train/grad_norm": 0.872,
            "train/tokens_per_second": 412.0,
            "train/samples_per_second": 3.1,
            "eval/loss": 0.4512,
        },
    }
    return Run(**(fields | changes))


def entries() -> list[dict[str, Any]]:
    """Journal entries other than metrics."""
    now = time.time()
    start = {
        "kind": "start",
        "time": now - 80,
        "attempt": 1,
        "step": 0,
        "max_steps": 50,
        "rows": 400,
        "trained_tokens": 48_200,
    }
    first = {"eval/loss": 2.31, "eval/json_validity": 0.0, "eval/schema_validity": 0.0, "eval/triples_f1": 0.0}
    second = {"eval/loss": 0.4512, "eval/json_validity": 0.97, "eval/schema_validity": 0.94, "eval/triples_f1": 0.81}
    facts = {
        "dtype": "bfloat16",
        "quantization": "nf4",
        "device": "cpu",
        "torch": "2.13.0",
        "settings": {
            "training.learning_rate": 3e-4,
            "training.max_grad_norm": 1.0,
            "training.max_steps": None,
            "evaluation.every_steps": 25,
            "checkpoint.every_steps": 25,
        },
        "thresholds": [["eval/loss", "<", 1.2], ["eval/schema_validity", ">=", 0.95], ["eval/rouge", ">", 0.5]],
    }
    return [
        start | {"facts": facts},
        {"kind": "evaluation", "time": now - 79, "attempt": 1, "step": 0, "values": first},
        {"kind": "evaluation", "time": now - 30, "attempt": 1, "step": 25, "values": second},
        {"kind": "checkpoint", "time": now - 29, "attempt": 1, "step": 25, "path": "/x/step-00000025"},
        *[sample(step, reply, now) for step, reply in ((0, "I am a language model."), (25, '[{"subject": "Ada"}]'))],
    ]


def sample(step: int, reply: str, now: float) -> dict[str, Any]:
    """A sampled reply to a held-out row."""
    reference = '[{"subject": "Ada", "object": "London"}]'
    entry = {"kind": "sample", "time": now - 28, "attempt": 1, "step": step, "prompt": "Ada lived in London."}
    return entry | {"reply": reply, "reference": reference, "scores": {"f1": 0.5}}


def ledger(step: int, name: str, old: Any = None, new: Any = None, *, code: str = "") -> dict[str, Any]:
    told = {"kind": "ledger", "time": time.time(), "attempt": 1, "step": step, "name": name, "old": old, "new": new}
    return told | ({"code": code} if code else {})


def bad_batch() -> dict[str, Any]:
    """Step 32 is held back."""
    rows = [
        {"row": 7, "text": "Ada lived in London.", "tokens": 12, "loss": 0.4, "file": "/data/train.jsonl", "line": 8},
        {"row": 41, "text": "%%%% %%%% broken row", "tokens": 96, "loss": 9.5, "file": "/data/train.jsonl", "line": 42},
        {"row": 3, "text": "抽取三元组 第三行", "tokens": 30, "file": "/data/train.jsonl", "line": 4},
        {"row": 9, "text": "no file known", "tokens": 1_200, "loss": 5.25},
    ]
    reason = "loss spike: 5.12, 3.4 times the usual 1.5 (limits.loss_spike is 3)"
    entry = {"kind": "bad_batch", "time": time.time(), "attempt": 1, "step": 31, "reason": reason, "rows": rows}
    return entry | {"total": 8, "code": "pause.loss_spike"}


def loss(step: int) -> float:
    return 2.2 * math.exp(-step / 9) + 0.3 + random.Random(step).gauss(0, 0.09) * (0.3 + math.exp(-step / 12))


CURVES = {
    "train/loss": loss,
    "train/learning_rate": lambda step: (
        3e-4 * (step / 5 if step < 5 else 0.5 + 0.5 * math.cos(math.pi * (step - 5) / 45))
    ),
    "train/grad_norm": lambda step: 0.8 + 3 * math.exp(-step / 6) + random.Random(step).random() * 0.3,
    "train/tokens_per_second": lambda step: 412 * (1 - math.exp(-step)) + random.Random(step).gauss(0, 6),
    "train/samples_per_second": lambda step: 3.1 * (1 - math.exp(-step)) + random.Random(step).gauss(0, 0.05),
}
LIFTS = {"completed": 0.8, "failed": 1.3}
"""So that the curves of two runs differ."""
EVALUATIONS = {0: 2.31, 25: 0.4512}
LOG = "loading shard 1 of 1\n抽取三元组：训练集 400 行，验证集 64 行\n\x1b[32mstep 30\x1b[0m\rstep 31 loss 0.3124\n"


def telemetry(devices: int = 0, cpu: float = 93.0) -> Telemetry:
    host = Host(
        name="gpu7",
        cpu_percent=cpu,
        cpu_count=2,
        load=[2.1, 1.8, 1.2],
        memory_used=4 * GIGA,
        memory_total=24 * GIGA,
        disk_free=73 * GIGA,
        disk_total=100 * GIGA,
    )
    cards = [
        Device(
            index=index,
            name="NVIDIA H200",
            memory_used=(60 + index) * GIGA,
            memory_total=140 * GIGA,
            utilisation=90.0 - 9 * index,
            temperature=60.0 + index,
            power=500.0,
            processes=[DeviceProcess(pid=1, user="ada", name="python", memory=60 * GIGA)],
        )
        for index in range(devices)
    ]
    note = "" if devices else "no NVIDIA driver: NVML Shared Library Not Found"
    return Telemetry(time=time.time(), host=host, devices=cards, backend="nvidia" if devices else "cpu", note=note)


RANKS = [Rank(rank=0, pid=7, phase="training", step=31, resident=2 * GIGA)]


class FakeEngine:
    """Give it to the app as `connect=fake.connect`. `say` publishes a body; `requests` holds the requests in order."""

    warning: Problem | None = None

    def __init__(self, *runs: Run, devices: int = 0) -> None:
        self.runs = {run.id: run for run in runs}
        self.devices = devices
        self.requests: list[tuple[str, Message]] = []
        self.problems: dict[str, Problem] = {}
        """Operation -> the problem to answer it with."""
        self.delay = 0.0
        """Seconds until a command is taken."""
        self.period = 1.0
        """Seconds between its telemetry."""
        self.log = LOG
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    async def connect(self, home: object) -> FakeEngine:
        return self

    async def close(self) -> None:
        pass

    def say(self, *bodies: object) -> None:
        for body in bodies:
            self._events.put_nowait(body)

    def step(self, run: Run, step: int) -> None:
        """What a training step publishes."""
        self.say(
            Points(run=run.id, attempt=run.attempt, values={name: [(step, f(step))] for name, f in CURVES.items()})
        )

    async def follow(self) -> AsyncIterator[Any]:
        yield Snapshot(session="s", seq=0, runs=list(self.runs.values()), telemetry=telemetry(self.devices))
        for run in self.runs.values():
            if run.state == "running":
                yield Ranks(run=run.id, ranks=RANKS)
        while True:
            try:
                yield await asyncio.wait_for(self._events.get(), self.period)
            except TimeoutError:
                yield telemetry(self.devices)

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        self.requests.append((operation, message or Nothing()))
        if operation in self.problems:
            raise ProblemError(self.problems[operation])
        run = self.runs.get(getattr(message, "run", ""))
        match operation:
            case "show":
                return RunDetail(
                    run=run,
                    told=entries() if run.step else [],
                    checkpoints=[CheckpointInfo(step=25, path="/x")],
                    ranks=RANKS if run.state == "running" else [],
                )
            case "series":
                return SeriesReply(
                    run=run.id,
                    series=[self._series(name, run.step, LIFTS.get(run.state, 1.0)) for name in message.names],
                )
            case "log":
                text = self.log if message.offset is None else self.log[message.offset :]
                return LogReply(text=text, offset=len(self.log))
            case "telemetry":
                cpu = [60 + 35 * math.sin(at / 9) for at in range(120)]
                return TelemetryHistory(samples=[telemetry(self.devices, value) for value in cpu])
            case "runs":
                return RunList(runs=list(self.runs.values()))
            case "resume":
                return run
            case "delete":
                return Nothing()
            case "service_open":
                raise ProblemError(Problem(code="service.unknown_kind", title="There are no services here"))
        await asyncio.sleep(self.delay)
        return Taken(run=run.id, state=run.state, step=run.step)

    def _series(self, name: str, last: int, lift: float) -> Series:
        points = {step: value for step, value in EVALUATIONS.items() if step <= last}
        if name in CURVES:
            points = {step: CURVES[name](step) * lift for step in range(1, last + 1)}
        steps, values = list(points), list(points.values())
        return Series(
            name=name, first_step=steps, last_step=steps, low=values, high=values, last=values, total=len(steps)
        )
