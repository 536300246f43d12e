"""Hot chat: a run answers out of its own process, by its newest weights, a slice of a reply at each step boundary.

Rank 0 alone generates; the others go on to where they next meet it, and wait there. Between two boundaries nothing of a reply is on the
device: each slice reads prompt and reply so far with the weights as they are by then, so no memory is taken from a step, and no token
comes from weights that are gone. Generators, modes and weights are left as they were: the run's losses are bit for bit what they would
have been. A failure, out of memory too, is the question's answer and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.models.memory import is_out_of_memory
from engine.protocol.messages import Instruction, Problem
from engine.training import memory, resume
from engine.training.inbox import ARRIVED

if TYPE_CHECKING:
    from engine.inference.detokenizer import StreamedReply
    from engine.inference.request import Prompt
    from engine.inference.sampling import Row

SECONDS = 0.5
"""How long a boundary is held up: no token is begun after that. A long prompt may hold it for as long again as reading it took."""
SHARE = 0.25
"""Of a step's time, which may be held up instead where steps are long."""
READING = 3.0
"""Seconds that reading a prompt may take; a longer one is for a checkpoint in a worker of its own."""


@dataclass
class Talk:
    """One question on its way. Times are `perf_counter`'s; `began` is when it came."""

    instruction: Instruction
    row: Row
    telling: StreamedReply
    prompt_tokens: int
    limit: int
    """Tokens that the reply may have."""
    stops: frozenset[int]
    began: float
    first: float = 0.0
    steps: list[int] = field(default_factory=list)
    """The steps after which it has gone on, one a boundary."""
    held: float = 0.0
    longest: float = 0.0
    between: list[float] = field(default_factory=list)
    """Seconds between two boundaries: a step's, some with an evaluation or a save."""
    left: float = 0.0
    """When the boundary before was left."""

    @property
    def request(self) -> str:
        return str(self.instruction.arguments.get("request", ""))

    @property
    def step_seconds(self) -> float:
        """What a step takes without it; 0 before the second boundary."""
        return statistics.median_low(self.between) if self.between else 0.0

    @property
    def tokens(self) -> int:
        return len(self.row.history) - self.prompt_tokens


class HotChat:
    """On rank 0: `take` questions, `go_on` at each boundary, `end` when there are no more boundaries."""

    def __init__(self) -> None:
        self._waiting: deque[Instruction] = deque()
        self._talk: Talk | None = None
        self._compiler: Any = None

    def take(self, instruction: Instruction) -> None:
        self._waiting.append(instruction)

    def go_on(self, loop: Any) -> bool:
        """A slice of the present reply, on the weights of this step. False when nobody has asked anything."""
        if self._talk is None and not self._waiting:
            return False
        began, step = time.perf_counter(), loop.step
        state = resume.random_state()
        model = loop.model
        try:
            with loop.averaged():
                model.eval()
                loop.method.expect_plain_batches()
                if self._talk is None:
                    self._open(loop)
                else:
                    self._talk.between.append(began - self._talk.left)
                if self._talk is not None:
                    self._slice(loop, step, began)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            self._fail(loop, step, error)
        finally:
            model.train()
            resume.set_random_state(state)
        if loop.job.device.kind != "cpu":
            import torch

            torch.accelerator.empty_cache()  # what the slice took is a step's again
        return True

    def end(self, link: Any, step: int) -> None:
        """No boundary comes any more: answer what there is."""
        if self._talk is not None:
            self._answer(link, step, "cancelled")
        while self._waiting:
            problem = Problem(code="run.ended", title="The run has ended", hint="its last checkpoint answers")
            link.answer(self._waiting.popleft(), step=step, problem=problem)

    # ── one question ──────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, loop: Any) -> None:
        """Make the next question ready. Raises ValueError for what cannot be answered."""
        from engine.inference import generate
        from engine.inference.detokenizer import StreamedReply, find_stop_tokens, find_thinking_end
        from engine.inference.request import read_prompt, read_sampling
        from engine.inference.sampling import open_row

        instruction = self._waiting[0]
        model, tokenizer = loop.model, loop.job.tokenizer
        if model.get_output_embeddings() is None:
            raise ValueError("this run trains a reward model, which scores replies and writes none")
        asked = instruction.arguments
        sampling = read_sampling(asked)
        prompt = _prompt(tokenizer, read_prompt(asked))
        if not prompt or generate.room(model, len(prompt)) <= 0:
            raise ValueError(generate.describe_no_room(model, len(prompt)))
        ends = frozenset(loop.job.prepared["lock"]["eos_token_ids"])
        grammar = self._grammar(loop, ends, sampling.schema) if sampling.schema is not None else None
        self._talk = Talk(
            instruction,
            open_row(sampling, prompt, model.device, grammar, find_thinking_end(tokenizer, prompt) if grammar else ()),
            StreamedReply(tokenizer, prompt, sampling.stop),
            len(prompt),
            min(sampling.max_new_tokens, generate.room(model, len(prompt))),
            ends | find_stop_tokens(tokenizer, sampling.stop),
            asked.get(ARRIVED, time.perf_counter()),
        )
        self._waiting.popleft()

    def _grammar(self, loop: Any, ends: frozenset[int], schema: Mapping[str, Any]) -> Any:
        from engine.inference.constrained import SchemaCompiler

        if self._compiler is None:
            size = loop.model.get_output_embeddings().weight.shape[0]
            self._compiler = SchemaCompiler(loop.job.tokenizer, size, ends)
        return self._compiler.compile(schema)

    def _slice(self, loop: Any, step: int, began: float) -> None:
        """Go on with the reply for as long as a boundary may be held up."""
        talk, link, inbox = self._talk, loop.reporter.link, loop.job.inbox
        assert talk is not None
        said, finish = _generate(talk, loop, began, lambda: talk.request in inbox.cancelled)
        now = time.perf_counter()
        talk.steps.append(step)
        talk.held += now - began
        talk.longest = max(talk.longest, now - began)
        talk.left = now
        if said["text"] or said["thinking"]:
            link.send_event(talk.request, "tokens", **said, count=talk.tokens)
        if finish:
            inbox.cancelled.discard(talk.request)
            self._answer(link, step, finish)

    def _answer(self, link: Any, step: int, finish: str) -> None:
        talk, self._talk = self._talk, None
        assert talk is not None
        rest = talk.telling.finish()
        if rest.text or rest.thinking:
            link.send_event(talk.request, "tokens", text=rest.text, thinking=rest.thinking, count=talk.tokens)
        seconds = time.perf_counter() - talk.began
        decoding = seconds - talk.first
        link.answer(
            talk.instruction,
            step=step,
            result={
                "reply": talk.telling.text,
                "thinking": talk.telling.thinking,
                "tokens": talk.tokens,
                "prompt_tokens": talk.prompt_tokens,
                "seconds": seconds,
                "first_token_seconds": talk.first,
                "tokens_per_second": (talk.tokens - 1) / decoding if talk.tokens > 1 and decoding > 0 else 0.0,
                "finish": finish,
                "first_step": talk.steps[0] if talk.steps else step,
                "last_step": talk.steps[-1] if talk.steps else step,
                "boundaries": len(talk.steps),
                "held_seconds": talk.held,
                "longest_hold_seconds": talk.longest,
                "step_seconds": talk.step_seconds or None,
            },
        )
        steps = f"steps {talk.steps[0]} to {talk.steps[-1]}" if talk.steps else f"step {step}"
        print(f"hot chat: {talk.tokens} tokens at {steps}, held training up {talk.held:.2f} s", flush=True)

    def _fail(self, loop: Any, step: int, error: Exception) -> None:
        """The question's answer is what went wrong."""
        talk, self._talk = self._talk, None
        instruction = talk.instruction if talk else self._waiting.popleft()
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if is_out_of_memory(error):
            problem = Problem(
                code="memory.exhausted",
                title="Training leaves too little memory for this reply",
                cause=said,
                hint="the run goes on; ask with a shorter conversation, or a checkpoint of it",
            )
        elif isinstance(error, ValueError):
            problem = Problem(code="request.invalid", title="This cannot be answered", cause=said)
        else:
            problem = Problem(
                code="generation.failed",
                title=f"The reply failed: {type(error).__name__}",
                cause=said,
                hint="the run goes on",
            )
        del error, talk
        memory.release()
        loop.reporter.link.answer(instruction, step=step, problem=problem)


def _generate(talk: Talk, loop: Any, began: float, given_up: Callable[[], bool]) -> tuple[dict[str, str], str]:
    """Tokens into `talk`; what has become certain of the reply, and how it ended, or an empty text for one that goes on."""
    import torch

    from engine.inference import soft_prompt
    from engine.inference.prefill import CancellableForward, Cancelled
    from engine.inference.sampling import choose

    said = {"text": "", "thinking": ""}
    device = loop.job.device
    start = time.perf_counter()
    late = start + READING

    def cancelled() -> bool:
        return given_up() or time.perf_counter() > late

    # no_grad rather than inference_mode: tensors that the model keeps (rotary tables) must stay usable for a backward pass.
    with torch.no_grad(), device.autocast():
        model, cache, _ = soft_prompt.start_cache(loop.model)
        read = CancellableForward(model, cancelled)
        following = torch.tensor([talk.row.history], device=loop.model.device)
        until = 0.0
        while talk.tokens < talk.limit:
            try:
                output = read(following, cache)
            except Cancelled:
                if given_up():
                    return said, "cancelled"
                tokens = len(talk.row.history)
                raise ValueError(
                    f"reading {tokens} tokens takes more than {READING:g} s here, and training would wait: ask a checkpoint"
                ) from None
            cache = output.past_key_values
            following = choose(output.logits[:, -1], [talk.row]).view(1, 1)
            token = talk.row.history[-1]
            now = time.perf_counter()
            talk.first = talk.first or now - talk.began
            if token in talk.stops:
                return said, "stop"
            told = talk.telling.add(token)
            said["text"] += told.text
            said["thinking"] += told.thinking
            if talk.telling.stopped:
                return said, "stop"
            until = until or max(began + SECONDS, began + SHARE * talk.step_seconds, 2 * now - start)
            late = max(late, until + READING)
            if now >= until:
                return said, "" if talk.tokens < talk.limit else "length"
    return said, "length"


def _prompt(tokenizer: Any, asked: Prompt) -> list[int]:
    """Token ids; without a chat template the text as it stands. Raises ValueError for a conversation that the template refuses."""
    from jinja2 import TemplateError

    from engine.models.template_lock import render

    if isinstance(asked, str) or not tokenizer.chat_template:
        text = asked if isinstance(asked, str) else "\n".join(message["content"] for message in asked)
        ids: list[int] = tokenizer(text).input_ids
        return ids
    try:
        return render(tokenizer, asked, reply_follows=True)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from None
