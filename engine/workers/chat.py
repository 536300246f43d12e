"""The chat service: it loads a base once, swaps adapters and checkpoints on it, and streams replies that can be
cancelled at any token.

Requests: `load {target, directory?, dtype?, quantization?}`, `generate {messages | text, task?, constrained?, preset?,
…sampling}`, `score {text | messages, reply, thinking?, task?; alternatives?}`, `unload {}`. `text` is continued as it
is. The model's thinking is separate from its reply, in the result and in each event of the stream. With a task the
result also has the reply as the task parses it (`parsed`, null where it does not fit the task's schema). `score`
returns the tokens of a text, or of a reply to a conversation, with the probabilities that the model gives them (see
`engine.inference.token_scores.summarize_scores`; `own`: they are those that it has generated itself). The service is a
process of its own, so that running out of memory in it never harms a run. After `idle_seconds` without a request it
unloads the model, and stays.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.hardware import host_memory
from engine.models import accelerator, libraries, targets
from engine.models.memory import is_out_of_memory
from engine.protocol.home import Home
from engine.protocol.messages import Instruction, Problem, ProblemError
from engine.protocol.text import first_line
from engine.protocol.worker_link import Link
from engine.workers import service_lease
from engine.workers.service_loop import build_parser

if TYPE_CHECKING:
    from engine.inference.generate import Reply
    from engine.inference.loaded_model import LoadedModel

COALESCE = 0.03
"""Seconds for which pieces of text are collected before they are sent."""
IDLE = 600.0
ALTERNATIVES, MOST_ALTERNATIVES = 5, 20
"""Likeliest tokens that are returned beside each: unless the request says how many, and at most."""
REMEMBERED = 64
"""Replies whose tokens are remembered: the text alone may be split into others."""


class Chat:
    """One model in memory, or none. `last_load` are the arguments to load it again with when it is needed after an idle
    time."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled
        self.loaded: LoadedModel | None = None
        self.last_load: dict[str, Any] | None = None
        self._replies: dict[bytes, list[int]] = {}
        """The newest replies (see `_name_reply`) -> their tokens."""

    def load(self, instruction: Instruction) -> dict[str, Any]:
        """Swap the adapter when the loaded base serves the target, else load. Raises ProblemError."""
        arguments = {"dtype": None, "quantization": None, **instruction.arguments}
        began = time.perf_counter()
        target = targets.resolve(arguments["target"], self.home, Path(arguments.get("directory") or self.home.root))
        self.link.send_status("busy", target=target.label, detail="loading")
        if self.loaded and self.loaded.serves(target, arguments["dtype"], arguments["quantization"]):
            self.loaded.swap(target)
        else:
            self.release()
            libraries.import_all()
            from engine.inference.loaded_model import load

            self.loaded = load(
                target,
                home=self.home,
                dtype=arguments["dtype"],
                quantization=arguments["quantization"],
                progress=lambda stage, done, total: self.link.send_event(
                    arguments["request"], "progress", stage=stage, done=done, total=total
                ),
                compiling=True,
            )
        self.last_load = arguments
        return {
            "target": arguments["target"],
            "label": target.label,
            "template": self.loaded.templated,
            "tokenizer": self.loaded.tokenizer is not None,
            "context": self.loaded.context,
            "note": self.loaded.note,
            "seconds": time.perf_counter() - began,
        }

    def generate(self, instruction: Instruction) -> dict[str, Any]:
        """Stream one reply. Raises ProblemError, or ValueError for a conversation that cannot be continued."""
        from engine.inference.request import parse_reply, read_prompt, read_sampling

        arguments = instruction.arguments
        loaded = self._require_model(instruction)
        prompt, sampling = read_prompt(arguments), read_sampling(arguments)
        self.link.send_status("busy", target=loaded.target.label, device=loaded.device, detail="generating")
        reply = self._stream(prompt, sampling, arguments["request"])
        self._replies[_name_reply(loaded, prompt, reply.thinking, reply.text)] = list(reply.ids)
        while len(self._replies) > REMEMBERED:
            del self._replies[next(iter(self._replies))]
        return {
            "reply": reply.text,
            "thinking": reply.thinking,
            "tokens": reply.tokens,
            "prompt_tokens": reply.prompt_tokens,
            "seconds": reply.seconds,
            "first_token_seconds": reply.first_token_seconds,
            "tokens_per_second": reply.tokens_per_second,
            "finish": reply.finish,
            **parse_reply(arguments, reply.text),
        }

    def score(self, instruction: Instruction) -> dict[str, Any]:
        """The probabilities of the tokens of a text or of a reply. Raises ProblemError, ValueError."""
        from engine.inference.prefill import Cancelled
        from engine.inference.request import read_prompt
        from engine.inference.token_scores import ScoredToken, TokenScorer, score_tokens, summarize_scores

        arguments = instruction.arguments
        loaded = self._require_model(instruction)
        self.link.send_status("busy", target=loaded.target.label, device=loaded.device, detail="scoring")
        given = read_prompt(arguments)
        prompt, own = loaded.prompt(given), None
        if (reply := arguments.get("reply")) is not None:
            thinking = arguments.get("thinking", "")
            own = self._replies.get(_name_reply(loaded, given, thinking, reply))
            begin, ids = len(prompt), [*prompt, *(own or loaded.encode_reply(prompt, thinking, reply))]
        elif isinstance(given, str):
            begin, ids = loaded.find_text(prompt, given)
        else:
            raise ValueError("give a text, or messages and a reply to them")
        scores_first = begin > 0
        begin = max(begin, 1)
        if len(ids) <= begin:
            raise ValueError("there is no token to score: the first one has nothing before it")
        scorer = TokenScorer(loaded.tokenizer)
        alternatives = min(max(int(arguments.get("alternatives", ALTERNATIVES)), 0), MOST_ALTERNATIVES)
        try:
            scored = score_tokens(
                loaded.decoder, scorer, ids, begin, alternatives, lambda: arguments["request"] in self.cancelled
            )
        except Cancelled:
            raise ProblemError(Problem(code="request.cancelled", title="Stopped")) from None
        if not scores_first:
            scored.insert(0, ScoredToken(scorer.first_text(ids[0]), None))
        return {**summarize_scores(scored), "own": bool(own)}

    def _require_model(self, instruction: Instruction) -> LoadedModel:
        """The model, loaded again if it was idle for long. Raises ProblemError."""
        if self.loaded is None:
            if self.last_load is None:
                raise ProblemError(
                    Problem(code="service.nothing_open", title="No model is loaded", hint="choose a target first")
                )
            again = self.last_load | {"request": instruction.arguments["request"]}
            self.load(Instruction(id=instruction.id, name="load", arguments=again))
        assert self.loaded is not None
        return self.loaded

    def unload(self, instruction: Instruction) -> dict[str, Any]:
        """Unload the model; the next `generate` loads it again."""
        self.release()
        return {}

    def release(self) -> None:
        """Unload the model and return its memory to the system, not only to the allocator."""
        if self.loaded is None:
            return
        on_cpu = self.loaded.device == "cpu"
        self.loaded.drop_decoder()  # a thread that compiles would keep it
        self.loaded = None
        gc.collect()
        if on_cpu:
            host_memory.give_back()
        else:
            accelerator.release()

    def report_status(self, detail: str = "") -> None:
        """Send the status between two requests."""
        target, device = (self.loaded.target.label, self.loaded.device) if self.loaded else ("", "")
        self.link.send_status("ready", target=target, device=device, detail=detail)

    def _stream(self, prompt: str | list[dict[str, str]], sampling: Any, request: str) -> Reply:
        assert self.loaded is not None
        text = thinking = ""
        sent = 0.0
        for piece in self.loaded.stream(prompt, sampling, lambda: request in self.cancelled):
            text, thinking = text + piece.text, thinking + piece.thinking
            now = time.monotonic()
            if (text or thinking) and (piece.reply or now - sent >= COALESCE):
                self.link.send_event(request, "tokens", text=text, thinking=thinking, count=piece.count)
                text, thinking, sent = "", "", now
        assert piece.reply is not None
        return piece.reply


def _name_reply(loaded: LoadedModel, prompt: Any, thinking: str, text: str) -> bytes:
    """What tells a reply apart from others: a digest, for a conversation may be long."""
    said = json.dumps([loaded.target.label, prompt, thinking, text], sort_keys=True).encode()
    return hashlib.sha256(said).digest()


def answer_request(chat: Chat, instruction: Instruction) -> None:
    """Handle a request and answer it, whatever happens."""
    questions = {"load": chat.load, "generate": chat.generate, "score": chat.score, "unload": chat.unload}
    result, problem = None, None
    try:
        if instruction.name not in questions:
            raise ValueError(f"chat cannot answer {instruction.name!r}, only {', '.join(questions)}")
        result = questions[instruction.name](instruction)
    except ProblemError as error:
        problem = error.problem
    except (ValueError, KeyError, TypeError) as error:
        problem = Problem(code="request.invalid", title="This cannot be answered", cause=str(error))
    except Exception as error:  # noqa: BLE001 - a model's code may raise anything, and the worker must live on
        print(traceback.format_exc(), flush=True)
        problem = _describe_failure(chat, error)
    chat.cancelled.discard(instruction.arguments.get("request", ""))
    chat.report_status("" if chat.loaded else "no model loaded")
    chat.link.answer(instruction, result=result, problem=problem)


def _describe_failure(chat: Chat, error: BaseException) -> Problem:
    """The problem for an error of the model; out of memory comes with figures."""
    from engine.inference.loaded_model import out_of_memory

    text = first_line(error)
    if is_out_of_memory(error):
        device = chat.loaded.device if chat.loaded else "cpu"
        needed = chat.loaded.needed if chat.loaded else 0
        chat.release()
        return out_of_memory(device, needed, text)
    return Problem(code="generation.failed", title="The model failed", cause=text)


def main() -> None:
    arguments = build_parser().parse_args()
    idle = float(arguments.options.get("idle_seconds", IDLE))
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(
        arguments.address,
        arguments.job,
        arguments.attempt,
        home=home,
        memory=accelerator.measure_memory,
        on_cancel=cancelled.add,
    )
    if link.by_files:
        service_lease.watch(arguments.address)
    chat = Chat(link, home, cancelled)
    chat.report_status("no model loaded")
    while True:
        if not link.instructions_arrived.wait(idle if chat.loaded else None):
            chat.release()
            chat.report_status(f"unloaded after {idle:.0f} s idle")
        for instruction in link.take_instructions():
            answer_request(chat, instruction)


if __name__ == "__main__":
    main()
