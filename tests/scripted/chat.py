"""A chat worker without a model: it answers with all that was said so far, a word at a time.

The target `broken` cannot be loaded, the message `long` is answered until it is cancelled, `fail` is not answered but
by `model-2`, `fill` takes more memory than there is, and a message of `SHAPES` with what it names. Every other target
than the first answers `other` where it said `said`.
"""

from __future__ import annotations

import argparse
import json
import math
import time

from engine.protocol.home import Home
from engine.protocol.messages import Instruction, Problem
from engine.protocol.worker_link import Link

parser = argparse.ArgumentParser()
for name in ("home", "job", "attempt", "address", "options"):
    parser.add_argument(f"--{name}")
arguments = parser.parse_args()
cancelled: set[str] = set()
link = Link(
    arguments.address, arguments.job, int(arguments.attempt), home=Home.locate(arguments.home), on_cancel=cancelled.add
)
link.send_status("ready")


SHAPES = {
    "triples": json.dumps(
        [
            {"subject": "Marie Curie", "subject_type": "person", "predicate": "discovered",
             "object": "polonium", "object_type": "element"},
            {"subject": "居里夫人", "subject_type": "人物", "predicate": "studied at",
             "object": "the University of Paris", "object_type": "school"},
        ],
        ensure_ascii=False,
    ),
    "graph": json.dumps(
        {
            "question": "Should cities ban cars?",
            "standpoints": [
                {"id": "s1", "text": "Yes, in the centre.", "arguments": [
                    {"id": "a1", "text": "The air is cleaner, and children can walk to school by themselves."},
                ]},
                {"id": "s2", "text": "No.", "arguments": [
                    {"id": "a2", "text": "Not everybody can walk."},
                    {"id": "a3", "text": "Shops need deliveries."},
                ]},
            ],
            "counter_questions": [{"id": "q1", "text": "Who pays for the buses?"}],
        }
    ),
    "json": '{"name": "Ada", "born": 1815, "known": {"for": ["notes", "a program"]}, "text": "'
            + "a long line of words " * 8 + '"}',
    "think": "<think>First I think about it.</think>\n\nThen I *answer*.",
}  # fmt: skip
target = ""


def load(question: Instruction) -> None:
    global target
    target = question.arguments["target"]
    if target == "broken":
        link.answer(question, problem=Problem(title="broken is no model", hint="cockpit model find"))
        return
    link.answer(question, result={"target": target, "label": target, "template": True, "context": 64, "seconds": 0.1})


def generate(question: Instruction) -> None:
    messages, request = question.arguments["messages"], question.arguments["request"]
    if messages[-1]["content"] == "fail" and target != "model-2":
        link.answer(question, problem=Problem(title="The model failed", cause="as it was told to"))
        return
    if messages[-1]["content"] == "fill":
        bytearray(1 << 60)
    text = " | ".join(message["content"] for message in messages)
    text = SHAPES.get(messages[-1]["content"], " ".join(text.split()))
    if target.endswith("-2"):
        text = text.replace("said", "other")
    words = ["more "] * 10_000 if messages[-1]["content"] == "long" else [f"{word} " for word in text.split(" ")]
    spoken = []
    for word in words:
        if request in cancelled:
            break
        spoken.append(word)
        link.send_event(request, "tokens", text=word, count=len(spoken))
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


def score(question: Instruction) -> None:
    """The last word is a surprise."""
    words = (question.arguments.get("reply") or question.arguments["text"]).split()
    tokens = [[f" {word}", -0.1, [[f" {word}", -0.1]]] for word in words]
    tokens[-1] = [f" {words[-1]}", -7.0, [[" other", -0.1]]]
    nats = (7.0 + 0.1 * (len(words) - 1)) / len(words)
    link.answer(
        question,
        result={"tokens": tokens, "scored": len(words), "nats": nats, "perplexity": math.exp(nats), "own": False},
    )


ANSWERS = {"load": load, "generate": generate, "score": score}

while True:
    link.instructions_arrived.wait()
    for question in link.take_instructions():
        ANSWERS[question.name](question)
