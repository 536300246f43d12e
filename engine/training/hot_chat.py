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

HOLD_SECONDS = 0.5
"""How long a boundary is held up: no token is begun after that. A long prompt may hold it for as long again as reading it took."""
HOLD_SHARE = 0.25
"""Of a step's time, which may be held up instead where steps are long."""
PREFILL_SECONDS = 3.0
"""Seconds that reading a prompt may take; a longer one is for a checkpoint in a worker of its own."""


@dataclass
class PendingReply:
    """One question on its way. Times are `perf_counter`'s; `began` is when it came."""

    instruction: Instruction
    row: Row
    stream: StreamedReply
    prompt_tokens: int
    limit: int
    """Tokens that the reply may have."""
    stop_tokens: frozenset[int]
    arrived_at: float
    first_token_seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    """The steps after which it has gone on, one a boundary."""
    held_seconds: float = 0.0
    longest_hold_seconds: float = 0.0
    intervals: list[float] = field(default_factory=list)
    """Seconds between two boundaries: a step's, some with an evaluation or a save."""
    left_at: float = 0.0
    """When the boundary before was left."""

    @property
    def request(self) -> str:
        return str(self.instruction.arguments.get("request", ""))

    @property
    def step_seconds(self) -> float:
        """What a step takes without it; 0 before the second boundary."""
        return statistics.median_low(self.intervals) if self.intervals else 0.0

    @property
    def tokens(self) -> int:
        return len(self.row.history) - self.prompt_tokens


class HotChat:
    """On rank 0: `add` questions, `advance` at each boundary, `close` when there are no more boundaries."""

    def __init__(self) -> None:
        self._waiting: deque[Instruction] = deque()
        self._reply: PendingReply | None = None
        self._compiler: Any = None

    def add(self, instruction: Instruction) -> None:
        self._waiting.append(instruction)

    def advance(self, loop: Any) -> bool:
        """A slice of the present reply, on the weights of this step. False when there is nothing to answer."""
        if self._reply is None and not self._waiting:
            return False
        began, step = time.perf_counter(), loop.step
        state = resume.get_random_state()
        model = loop.model
        try:
            with loop.averaged_weights():
                model.eval()
                loop.method.expect_plain_batches()
                if self._reply is None:
                    self._start(loop)
                else:
                    self._reply.intervals.append(began - self._reply.left_at)
                if self._reply is not None:
                    self._continue(loop, step, began)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            self._fail(loop, step, error)
        finally:
            model.train()
            resume.set_random_state(state)
        if loop.job.device.kind != "cpu":
            import torch

            torch.accelerator.empty_cache()  # what the slice took is a step's again
        return True

    def close(self, link: Any, step: int) -> None:
        """No boundary comes any more: answer what there is."""
        if self._reply is not None:
            self._answer(link, step, "cancelled")
        while self._waiting:
            problem = Problem(code="run.ended", title="The run has ended", hint="its last checkpoint answers")
            link.answer(self._waiting.popleft(), step=step, problem=problem)

    # ── one question ──────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, loop: Any) -> None:
        """Make the next question ready. Raises ValueError for what cannot be answered."""
        from engine.inference import generate
        from engine.inference.detokenizer import StreamedReply, find_stop_tokens, find_thinking_end
        from engine.inference.request import read_prompt, read_sampling
        from engine.inference.sampling import open_row

        instruction = self._waiting[0]
        model, tokenizer = loop.model, loop.job.tokenizer
        if model.get_output_embeddings() is None:
            raise ValueError("this run trains a reward model, which scores replies and writes none")
        arguments = instruction.arguments
        sampling = read_sampling(arguments)
        prompt = _encode_prompt(tokenizer, read_prompt(arguments))
        if not prompt or generate.room(model, len(prompt)) <= 0:
            raise ValueError(generate.describe_no_room(model, len(prompt)))
        ends = frozenset(loop.job.prepared["lock"]["eos_token_ids"])
        grammar = self._grammar(loop, ends, sampling.schema) if sampling.schema is not None else None
        self._reply = PendingReply(
            instruction,
            open_row(sampling, prompt, model.device, grammar, find_thinking_end(tokenizer, prompt) if grammar else ()),
            StreamedReply(tokenizer, prompt, sampling.stop),
            len(prompt),
            min(sampling.max_new_tokens, generate.room(model, len(prompt))),
            ends | find_stop_tokens(tokenizer, sampling.stop),
            arguments.get(ARRIVED, time.perf_counter()),
        )
        self._waiting.popleft()

    def _grammar(self, loop: Any, ends: frozenset[int], schema: Mapping[str, Any]) -> Any:
        from engine.inference.constrained import SchemaCompiler

        if self._compiler is None:
            size = loop.model.get_output_embeddings().weight.shape[0]
            self._compiler = SchemaCompiler(loop.job.tokenizer, size, ends)
        return self._compiler.compile(schema)

    def _continue(self, loop: Any, step: int, began: float) -> None:
        """Go on with the reply for as long as a boundary may be held up."""
        reply, link, inbox = self._reply, loop.reporter.link, loop.job.inbox
        assert reply is not None
        said, finish = _generate(reply, loop, began, lambda: reply.request in inbox.cancelled)
        now = time.perf_counter()
        reply.steps.append(step)
        reply.held_seconds += now - began
        reply.longest_hold_seconds = max(reply.longest_hold_seconds, now - began)
        reply.left_at = now
        if said["text"] or said["thinking"]:
            link.send_event(reply.request, "tokens", **said, count=reply.tokens)
        if finish:
            inbox.cancelled.discard(reply.request)
            self._answer(link, step, finish)

    def _answer(self, link: Any, step: int, finish: str) -> None:
        reply, self._reply = self._reply, None
        assert reply is not None
        rest = reply.stream.finish()
        if rest.text or rest.thinking:
            link.send_event(reply.request, "tokens", text=rest.text, thinking=rest.thinking, count=reply.tokens)
        seconds = time.perf_counter() - reply.arrived_at
        decoding = seconds - reply.first_token_seconds
        link.answer(
            reply.instruction,
            step=step,
            result={
                "reply": reply.stream.text,
                "thinking": reply.stream.thinking,
                "tokens": reply.tokens,
                "prompt_tokens": reply.prompt_tokens,
                "seconds": seconds,
                "first_token_seconds": reply.first_token_seconds,
                "tokens_per_second": (reply.tokens - 1) / decoding if reply.tokens > 1 and decoding > 0 else 0.0,
                "finish": finish,
                "first_step": reply.steps[0] if reply.steps else step,
                "last_step": reply.steps[-1] if reply.steps else step,
                "boundaries": len(reply.steps),
                "held_seconds": reply.held_seconds,
                "longest_hold_seconds": reply.longest_hold_seconds,
                "step_seconds": reply.step_seconds or None,
            },
        )
        steps = f"steps {reply.steps[0]} to {reply.steps[-1]}" if reply.steps else f"step {step}"
        print(f"hot chat: {reply.tokens} tokens at {steps}, held training up {reply.held_seconds:.2f} s", flush=True)

    def _fail(self, loop: Any, step: int, error: Exception) -> None:
        """The question's answer is what went wrong."""
        reply, self._reply = self._reply, None
        instruction = reply.instruction if reply else self._waiting.popleft()
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
        del error, reply
        memory.release()
        loop.reporter.link.answer(instruction, step=step, problem=problem)


def _generate(
    reply: PendingReply, loop: Any, began: float, is_cancelled: Callable[[], bool]
) -> tuple[dict[str, str], str]:
    """Tokens into `reply`; what has become certain of the reply, and how it ended, or an empty text for one that goes on."""
    import torch

    from engine.inference import soft_prompt
    from engine.inference.prefill import CancellableForward, Cancelled
    from engine.inference.sampling import choose

    said = {"text": "", "thinking": ""}
    device = loop.job.device
    start = time.perf_counter()
    late = start + PREFILL_SECONDS

    def is_over() -> bool:
        return is_cancelled() or time.perf_counter() > late

    # no_grad rather than inference_mode: tensors that the model keeps (rotary tables) must stay usable for a backward pass.
    with torch.no_grad(), device.autocast():
        model, cache, _ = soft_prompt.start_cache(loop.model)
        read = CancellableForward(model, is_over)
        following = torch.tensor([reply.row.history], device=loop.model.device)
        until = 0.0
        while reply.tokens < reply.limit:
            try:
                output = read(following, cache)
            except Cancelled:
                if is_cancelled():
                    return said, "cancelled"
                tokens = len(reply.row.history)
                raise ValueError(
                    f"reading {tokens} tokens takes more than {PREFILL_SECONDS:g} s here, and training would wait: ask a checkpoint"
                ) from None
            cache = output.past_key_values
            following = choose(output.logits[:, -1], [reply.row]).view(1, 1)
            token = reply.row.history[-1]
            now = time.perf_counter()
            reply.first_token_seconds = reply.first_token_seconds or now - reply.arrived_at
            if token in reply.stop_tokens:
                return said, "stop"
            told = reply.stream.add(token)
            said["text"] += told.text
            said["thinking"] += told.thinking
            if reply.stream.stopped:
                return said, "stop"
            until = until or max(began + HOLD_SECONDS, began + HOLD_SHARE * reply.step_seconds, 2 * now - start)
            late = max(late, until + PREFILL_SECONDS)
            if now >= until:
                return said, "" if reply.tokens < reply.limit else "length"
    return said, "length"


def _encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids; without a chat template the text as it stands. Raises ValueError for a conversation that the template refuses."""
    from jinja2 import TemplateError

    from engine.models.template_lock import render

    if isinstance(prompt, str) or not tokenizer.chat_template:
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        ids: list[int] = tokenizer(text).input_ids
        return ids
    try:
        return render(tokenizer, prompt, reply_follows=True)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from None
