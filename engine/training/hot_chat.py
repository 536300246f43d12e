"""Hot chat: a run answers questions in its own process with its newest weights, a few tokens at each step boundary.

Rank 0 alone generates; the other ranks wait for it in their next collective. Between two boundaries, no part of a reply
is on the device: each boundary reads the prompt and the reply so far again with the current weights. So a step has all
the memory, and no token depends on outdated weights. Random generators, modes and weights are restored: the run's
losses are bit for bit those of a run without questions. A failure, such as running out of memory, is returned as the
answer to the question and does not affect the run.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.models import accelerator
from engine.models.memory import is_out_of_memory
from engine.protocol.messages import Instruction, Problem
from engine.training import resume
from engine.training.inbox import ARRIVED

if TYPE_CHECKING:
    from engine.inference.detokenizer import StreamedReply
    from engine.inference.request import Prompt
    from engine.inference.sampling import Row

HOLD_SECONDS = 0.5
"""How long a boundary may be delayed: no further token is started afterwards. Reading a long prompt may double its own
time."""
HOLD_SHARE = 0.25
"""With long steps, a boundary may be delayed by this share of a step's time instead."""
PREFILL_SECONDS = 3.0
"""Seconds that reading a prompt may take; a longer prompt needs a checkpoint in a separate worker."""


@dataclass
class PendingReply:
    """A question whose reply is being generated. Times are by `perf_counter`."""

    instruction: Instruction
    row: Row
    stream: StreamedReply
    prompt_tokens: int
    limit: int
    """The greatest number of tokens of the reply."""
    stop_tokens: frozenset[int]
    arrived_at: float
    first_token_seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    """The steps at whose boundaries tokens were generated."""
    held_seconds: float = 0.0
    longest_hold_seconds: float = 0.0
    intervals: list[float] = field(default_factory=list)
    """Seconds between two boundaries: a step, sometimes with an evaluation or a save."""
    left_at: float = 0.0
    """When the last boundary ended."""

    @property
    def request(self) -> str:
        return str(self.instruction.arguments.get("request", ""))

    @property
    def step_seconds(self) -> float:
        """Typical seconds of a step without hot chat; 0 before the second boundary."""
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

    @property
    def busy(self) -> bool:
        """Whether there is anything to answer."""
        return self._reply is not None or bool(self._waiting)

    def add(self, instruction: Instruction) -> None:
        self._waiting.append(instruction)

    def advance(self, loop: Any) -> bool:
        """Continue the current reply with the model's weights, or start the next one. False when there is nothing to
        answer."""
        if not self.busy:
            return False
        began_at, step = time.perf_counter(), loop.step
        state = resume.get_random_state()
        model = loop.model
        try:
            model.eval()
            loop.method.expect_plain_batches()
            if self._reply is None:
                self._start(loop)
            else:
                self._reply.intervals.append(began_at - self._reply.left_at)
            if self._reply is not None:
                self._continue(loop, step, began_at)
        except Exception as error:  # noqa: BLE001 - the run continues whatever fails here
            self._fail(loop, step, error)
        finally:
            model.train()
            resume.set_random_state(state)
        if loop.job.device.kind != "cpu":
            accelerator.release()  # the next step needs the memory
        return True

    def close(self, link: Any, step: int) -> None:
        """Answer all open questions; the run has no more boundaries."""
        if self._reply is not None:
            self._answer(link, step, "cancelled")
        while self._waiting:
            problem = Problem(code="run.ended", title="The run has ended", hint="ask its last checkpoint instead")
            link.answer(self._waiting.popleft(), step=step, problem=problem)

    # ── one question ──────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, loop: Any) -> None:
        """Start the reply to the next question. Raises ValueError for a question that cannot be answered."""
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
        end_tokens = frozenset(loop.job.prepared["lock"]["eos_token_ids"])
        grammar = self._grammar(loop, end_tokens, sampling.schema) if sampling.schema is not None else None
        self._reply = PendingReply(
            instruction,
            open_row(sampling, prompt, grammar, find_thinking_end(tokenizer, prompt) if grammar else ()),
            StreamedReply(tokenizer, prompt, sampling.stop),
            len(prompt),
            min(sampling.max_new_tokens, generate.room(model, len(prompt))),
            end_tokens | find_stop_tokens(tokenizer, sampling.stop),
            arguments.get(ARRIVED, time.perf_counter()),
        )
        self._waiting.popleft()

    def _grammar(self, loop: Any, end_tokens: frozenset[int], schema: Mapping[str, Any]) -> Any:
        from engine.inference.constrained import SchemaCompiler

        if self._compiler is None:
            head = loop.model.get_output_embeddings()
            size = getattr(head, "out_features", 0) or head.weight.shape[0]
            self._compiler = SchemaCompiler(loop.job.tokenizer, size, end_tokens)
        return self._compiler.compile(schema)

    def _continue(self, loop: Any, step: int, began_at: float) -> None:
        """Generate tokens for as long as the boundary may be delayed, and answer when the reply is complete."""
        reply, link, inbox = self._reply, loop.reporter.link, loop.job.inbox
        assert reply is not None
        added, finish = _generate(reply, loop, began_at, lambda: reply.request in inbox.cancelled)
        now = time.perf_counter()
        reply.steps.append(step)
        reply.held_seconds += now - began_at
        reply.longest_hold_seconds = max(reply.longest_hold_seconds, now - began_at)
        reply.left_at = now
        if added["text"] or added["thinking"]:
            link.send_event(reply.request, "tokens", **added, count=reply.tokens)
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
        """Answer the current question with the error."""
        reply, self._reply = self._reply, None
        instruction = reply.instruction if reply else self._waiting.popleft()
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if is_out_of_memory(error):
            problem = Problem(
                code="memory.exhausted",
                title="Training leaves too little memory for this reply",
                cause=cause,
                hint="the run continues; shorten the conversation, or ask a checkpoint",
            )
        elif isinstance(error, ValueError):
            problem = Problem(code="request.invalid", title="This cannot be answered", cause=cause)
        else:
            problem = Problem(
                code="generation.failed",
                title=f"The reply failed: {type(error).__name__}",
                cause=cause,
                hint="the run continues",
            )
        del error, reply
        accelerator.release()
        loop.reporter.link.answer(instruction, step=step, problem=problem)


def _generate(
    reply: PendingReply, loop: Any, began_at: float, is_cancelled: Callable[[], bool]
) -> tuple[dict[str, str], str]:
    """Add tokens to `reply`. Returns the new text and thinking, and how the reply ended, or an empty text if it
    continues."""
    import torch

    from engine.inference import soft_prompt
    from engine.inference.prefill import CancellableForward, Cancelled
    from engine.inference.sampling import choose

    added = {"text": "", "thinking": ""}
    device = loop.job.device
    start = time.perf_counter()
    deadline = start + PREFILL_SECONDS

    def must_stop() -> bool:
        return is_cancelled() or time.perf_counter() > deadline

    # no_grad, not inference_mode: tensors that the model keeps (rotary tables) must stay usable in a backward pass.
    with torch.no_grad(), device.autocast():
        model, cache, _ = soft_prompt.start_cache(loop.model)
        # A pass that needs all ranks is not left in the middle.
        read = CancellableForward(model, (lambda: False) if loop.strategy.sharded else must_stop)
        following = torch.tensor([reply.row.history], device=loop.model.device)
        until = 0.0
        while reply.tokens < reply.limit:
            try:
                if must_stop():
                    raise Cancelled
                output = read(following, cache)
            except Cancelled:
                if is_cancelled():
                    return added, "cancelled"
                tokens = len(reply.row.history)
                raise ValueError(
                    f"reading {tokens} tokens takes more than {PREFILL_SECONDS:g} s, and would delay training: ask a "
                    "checkpoint instead"
                ) from None
            cache = output.past_key_values
            following = choose(output.logits[:, -1], [reply.row]).view(1, 1)
            token = reply.row.history[-1]
            now = time.perf_counter()
            reply.first_token_seconds = reply.first_token_seconds or now - reply.arrived_at
            if token in reply.stop_tokens:
                return added, "stop"
            delta = reply.stream.add(token)
            added["text"] += delta.text
            added["thinking"] += delta.thinking
            if reply.stream.stopped:
                return added, "stop"
            until = until or max(began_at + HOLD_SECONDS, began_at + HOLD_SHARE * reply.step_seconds, 2 * now - start)
            deadline = max(deadline, until + PREFILL_SECONDS)
            if now >= until:
                return added, "" if reply.tokens < reply.limit else "length"
    return added, "length"


def _encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt; without a chat template, of its plain text. Raises ValueError for a conversation that the
    template rejects."""
    from jinja2 import TemplateError

    from engine.models.template_lock import render
    from engine.models.template_metadata import choose_template

    if isinstance(prompt, str) or not choose_template(tokenizer.chat_template):
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        ids: list[int] = tokenizer(text).input_ids
        return ids
    try:
        return render(tokenizer, prompt, reply_follows=True)
    except TemplateError as error:
        raise ValueError(f"the model's chat template rejects this conversation: {error}") from None
