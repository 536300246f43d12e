"""A chat worker without a model: it answers with all that was said so far, a word at a time.

The target `broken` cannot be loaded, and the message `long` is answered until it is cancelled.
"""

from __future__ import annotations

import argparse
import time

from engine.protocol.messages import Instruction, Problem
from engine.workers.link import Link

parser = argparse.ArgumentParser()
for name in ("home", "job", "attempt", "address", "options"):
    parser.add_argument(f"--{name}")
arguments = parser.parse_args()
cancelled: set[str] = set()
link = Link(arguments.address, arguments.job, int(arguments.attempt), on_cancel=cancelled.add)
link.status("ready")


def load(question: Instruction) -> None:
    target = question.arguments["target"]
    if target == "broken":
        link.answer(question, problem=Problem(title="broken is no model", hint="cockpit model find"))
        return
    link.answer(question, result={"target": target, "label": target, "template": True, "context": 64, "seconds": 0.1})


def generate(question: Instruction) -> None:
    messages, request = question.arguments["messages"], question.arguments["request"]
    text = " | ".join(message["content"] for message in messages)
    words = ["more "] * 10_000 if messages[-1]["content"] == "long" else [f"{word} " for word in text.split()]
    spoken = []
    for word in words:
        if request in cancelled:
            break
        spoken.append(word)
        link.say(request, "tokens", text=word, count=len(spoken))
        time.sleep(0.02)
    result = {
        "reply": "".join(spoken),
        "tokens": len(spoken),
        "prompt_tokens": 1,
        "seconds": 0.5,
        "first_token_seconds": 0.1,
        "tokens_per_second": len(spoken) / 0.5,
        "finish": "cancelled" if request in cancelled else "stop",
    }
    link.answer(question, result=result)


ANSWERS = {"load": load, "generate": generate}

while True:
    link.arrived.wait()
    for question in link.instructions():
        ANSWERS[question.name](question)
