"""The chat service: a base loaded once, adapters and checkpoints changed on it, replies streamed and cancelled at any token.

Questions: `load {target, directory?, dtype?, quantization?}`, `generate {messages | text, task?, constrained?, preset?, …sampling}`, `unload {}`.
`text` is continued as it stands. What the model thinks comes apart from its reply, in the answer and in each word of the stream; with a task
the answer has the reply as the task reads it (`parsed`, null where it does not fit). It is its own process, so that running out of memory
here never hurts a run; after `idle_seconds` it gives the memory back and stays.
"""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from engine.models import targets
from engine.models.memory import is_out_of_memory
from engine.protocol.home import Home
from engine.protocol.messages import Instruction, Problem, ProblemError, Rank
from engine.protocol.text import first_line
from engine.protocol.worker_link import Link
from engine.workers.questions import parser

if TYPE_CHECKING:
    from engine.inference.generate import Reply
    from engine.inference.loaded_model import Loaded

COALESCE = 0.03
"""Seconds that pieces of text are gathered for before they are said."""
IDLE = 600.0


class Chat:
    """One model in memory, or none; `wanted` is what to load again when somebody asks after an idle time."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled
        self.loaded: Loaded | None = None
        self.wanted: dict[str, Any] | None = None

    def load(self, instruction: Instruction) -> dict[str, Any]:
        """Swap when the loaded base serves the target, else load. Raises ProblemError."""
        asked = {"dtype": None, "quantization": None, **instruction.arguments}
        began = time.perf_counter()
        target = targets.resolve(asked["target"], self.home, Path(asked.get("directory") or self.home.root))
        self.link.status("busy", target=target.label, detail="loading")
        if self.loaded and self.loaded.serves(target, asked["dtype"], asked["quantization"]):
            self.loaded.swap(target)
        else:
            self.release()
            from engine.inference.loaded_model import load

            self.loaded = load(
                target,
                home=self.home,
                dtype=asked["dtype"],
                quantization=asked["quantization"],
                progress=lambda stage, done, total: self.link.say(
                    asked["request"], "progress", stage=stage, done=done, total=total
                ),
            )
        self.wanted = asked
        return {
            "target": asked["target"],
            "label": target.label,
            "template": self.loaded.templated,
            "tokenizer": self.loaded.tokenizer is not None,
            "context": self.loaded.context,
            "note": self.loaded.note,
            "seconds": time.perf_counter() - began,
        }

    def generate(self, instruction: Instruction) -> dict[str, Any]:
        """Stream one reply. Raises ProblemError, or ValueError for a conversation that cannot be continued."""
        from engine.inference.request import parsed, prompt_of, settings_of

        asked = instruction.arguments
        if self.loaded is None:
            if self.wanted is None:
                raise ProblemError(Problem(title="No model is loaded", hint="choose a target first"))
            self.load(
                Instruction(id=instruction.id, name="load", arguments=self.wanted | {"request": asked["request"]})
            )
        assert self.loaded is not None
        prompt, sampling = prompt_of(asked), settings_of(asked)
        self.link.status("busy", target=self.loaded.target.label, device=self.loaded.device, detail="generating")
        reply = self._stream(prompt, sampling, asked["request"])
        return {
            "reply": reply.text,
            "thinking": reply.thinking,
            "tokens": reply.tokens,
            "prompt_tokens": reply.prompt_tokens,
            "seconds": reply.seconds,
            "first_token_seconds": reply.first_token_seconds,
            "tokens_per_second": reply.tokens_per_second,
            "finish": reply.finish,
            **parsed(asked, reply.text),
        }

    def unload(self, instruction: Instruction) -> dict[str, Any]:
        """Give the memory back; the next `generate` loads again."""
        self.release()
        return {}

    def release(self) -> None:
        """Drop the model and hand its memory to the system, not merely to the allocator."""
        if self.loaded is None:
            return
        on_cpu = self.loaded.device == "cpu"
        self.loaded = None
        gc.collect()
        if on_cpu:
            ctypes.CDLL(None).malloc_trim(0)
        else:
            import torch

            torch.accelerator.empty_cache()

    def rest(self, detail: str = "") -> None:
        """Say how we stand between questions."""
        target, device = (self.loaded.target.label, self.loaded.device) if self.loaded else ("", "")
        self.link.status("ready", target=target, device=device, detail=detail)

    def _stream(self, prompt: str | list[dict[str, str]], sampling: Any, request: str) -> Reply:
        assert self.loaded is not None
        text = thinking = ""
        said = 0.0
        for piece in self.loaded.stream(prompt, sampling, lambda: request in self.cancelled):
            text, thinking = text + piece.text, thinking + piece.thinking
            now = time.monotonic()
            if (text or thinking) and (piece.reply or now - said >= COALESCE):
                self.link.say(request, "tokens", text=text, thinking=thinking, count=piece.count)
                text, thinking, said = "", "", now
        assert piece.reply is not None
        return piece.reply


def answer(chat: Chat, instruction: Instruction) -> None:
    """Do what is asked and answer it, whatever happens."""
    questions = {"load": chat.load, "generate": chat.generate, "unload": chat.unload}
    result, problem = None, None
    try:
        if instruction.name not in questions:
            raise ValueError(f"chat does not know {instruction.name!r}, only {', '.join(questions)}")
        result = questions[instruction.name](instruction)
    except ProblemError as error:
        problem = error.problem
    except (ValueError, KeyError, TypeError) as error:
        problem = Problem(title="This cannot be answered", cause=str(error))
    except (RuntimeError, MemoryError) as error:
        problem = _failure(chat, error)
    chat.cancelled.discard(instruction.arguments.get("request", ""))
    chat.rest("" if chat.loaded else "no model loaded")
    chat.link.answer(instruction, result=result, problem=problem)


def _failure(chat: Chat, error: BaseException) -> Problem:
    """Out of memory in numbers; anything else as it is."""
    from engine.inference.loaded_model import out_of_memory

    text = first_line(error)
    if is_out_of_memory(error):
        device = chat.loaded.device if chat.loaded else "cpu"
        needed = chat.loaded.needed if chat.loaded else 0
        chat.release()
        return out_of_memory(device, needed, text)
    return Problem(title="The model failed", cause=text)


def memory(rank: Rank) -> None:
    """Fill in the memory figures of a heartbeat; called from the link's thread."""
    import sys

    rank.resident = psutil.Process().memory_info().rss
    torch = sys.modules.get("torch")  # not imported before the first load, and not from this thread
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        rank.device_used = torch.cuda.memory_allocated()
        rank.device_reserved = torch.cuda.memory_reserved()
        rank.device_peak = torch.cuda.max_memory_allocated()


def main() -> None:
    arguments = parser().parse_args()
    idle = float(arguments.options.get("idle_seconds", IDLE))
    cancelled: set[str] = set()
    link = Link(arguments.address, arguments.job, arguments.attempt, memory=memory, on_cancel=cancelled.add)
    chat = Chat(link, Home.locate(arguments.home), cancelled)
    chat.rest("no model loaded")
    while True:
        if not link.arrived.wait(idle if chat.loaded else None):
            chat.release()
            chat.rest(f"unloaded after {idle:.0f} s idle")
        for instruction in link.instructions():
            answer(chat, instruction)


if __name__ == "__main__":
    main()
