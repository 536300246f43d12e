"""A train worker without a model: a loss that falls, real journal, real link, every command. No torch.

Steps and pace come from the profile: `training.max_steps`, and `training.learning_rate` as seconds a step.
`generation.seed` scripts an end: 3 raises, 4 ends with status 7 and no word, and so does 50 twice,
after a note of a rank that ran out of memory.
"""

from __future__ import annotations

import signal
import sys
import threading
import time

from engine.protocol.journal import Checkpoint, End, Ledger, Metrics, Phase, Start, Writer, read
from engine.protocol.messages import Instruction
from engine.protocol.worker_link import Link
from tests.scripted.script import Script

script = Script()
cancelled: set[str] = set()
link = Link(
    script.address,
    script.job,
    script.attempt,
    script.rank,
    home=script.home,
    on_cancel=cancelled.add,
    die_with_parent=script.profile.launch.processes != 1 or script.address.startswith("file:"),
)


def idle_rank() -> None:
    """Ranks beyond the first only live, until rank 0 has ended."""
    deadline = time.monotonic() + 60
    end = b'"kind":"end"'
    while time.monotonic() < deadline:
        last = script.run.events.read_bytes().splitlines()[-1:] if script.run.events.exists() else []
        if last and end in last[0] and f'"attempt":{script.attempt},'.encode() in last[0]:
            return
        link.report_progress(phase="training")
        time.sleep(0.1)


if script.rank:
    idle_rank()
    sys.exit(0)

journal = Writer(script.run.events)
attempt, pace, last = script.attempt, script.profile.training.learning_rate, script.profile.training.max_steps or 10


def tell(entry: object) -> None:
    link.announce_journal(journal.write(entry))  # type: ignore[arg-type]


def finish(step: int, status: str) -> None:
    if status == "completed":
        script.run.result("train").write_text("{}")
    tell(End(attempt=attempt, step=step, status=status))
    link.close()
    sys.exit(0)


step = max((e.step for e, _ in read(script.run.events) if isinstance(e, Checkpoint)), default=0)
step = step if script.from_step is None else script.from_step
tell(Phase(attempt=attempt, name="loading"))
tell(
    Start(
        attempt=attempt, step=step, max_steps=last, epochs=1.0, steps_per_epoch=last, processes=1,
        global_batch=8, parameters=1000, trainable_parameters=10, rows=80, trained_tokens=800,
    )
)  # fmt: skip
paused = False
terminated = threading.Event()
if script.address.startswith("file:"):
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())


def save() -> None:
    folder = script.run.checkpoint(step)
    folder.mkdir(parents=True, exist_ok=True)
    tell(Checkpoint(attempt=attempt, step=step, path=str(folder), metrics={"eval/loss": 1.0}))


def speak(instruction: Instruction) -> None:
    """Says what was said, as of this step; `long` until it is given up."""
    text, request = instruction.arguments["messages"][-1]["content"], instruction.arguments["request"]
    words = [f"{word} " for word in (["more"] * 10_000 if text == "long" else text.split())]
    spoken = 0
    for spoken, word in enumerate(words, 1):
        if request in cancelled:
            break
        link.send_event(request, "tokens", text=word, thinking="", count=spoken)
        time.sleep(0.01)
    result = {
        "reply": "".join(words[:spoken]), "thinking": "", "tokens": spoken, "seconds": 0.5, "first_token_seconds": 0.1,
        "tokens_per_second": 9.0, "finish": "cancelled" if request in cancelled else "stop",
        "first_step": step, "last_step": step, "boundaries": 1, "held_seconds": 0.25, "step_seconds": None,
    }  # fmt: skip
    link.answer(instruction, step=step, result=result)


def take(instruction: Instruction) -> None:
    global paused, last
    match instruction.name:
        case "generate":
            speak(instruction)
            return
        case "pause":
            paused = True
            tell(Ledger(attempt=attempt, step=step, name="pause", new="asked"))
        case "continue":
            paused = False
            tell(Ledger(attempt=attempt, step=step, name="continue", new=instruction.arguments.get("choice")))
        case "save":
            save()
        case "set":
            last = instruction.arguments.get("training.max_steps", last)
            for name, value in instruction.arguments.items():
                tell(Ledger(attempt=attempt, step=step, name=name, old=None, new=value))
        case "stop":
            save()
            link.answer(instruction, step=step)
            finish(step, "stopped")
    link.answer(instruction, step=step)


while step < last:
    if terminated.is_set():
        save()
        finish(step, "stopped")
    for instruction in link.take_instructions():
        take(instruction)
    if paused:
        link.instructions_arrived.wait(0.2)
        continue
    step += 1
    time.sleep(pace)
    link.report_progress(phase="training", step=step)
    tell(
        Metrics(
            attempt=attempt,
            step=step,
            epoch=step / last,
            values={"train/loss": 2.0 / step, "train/learning_rate": 1e-4},
        )
    )
    if script.seed == 3 and step == 3:
        raise RuntimeError("the data is cursed")
    if script.seed == 4 and step == 3:
        sys.exit(7)
    if script.seed == 50 and step == 3 and attempt < 3:
        script.run.exhausted(attempt).write_text('{"rank": 1, "cause": "2 GiB wanted, 1 free"}')
        sys.exit(7)
save()
finish(step, "completed")
