"""Which rows are decoded next: one thread owns the device, requests join and leave at any token.

Each round reads a piece of what waits (a prompt is read in parts, so that a long one holds nobody up for long), then decodes one token
of every row. A row is told by its own settings and its own generator: no reply hangs on its neighbours, but for the rounding of 16 bits.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.inference import soft_prompt
from engine.inference.detokenizer import StreamedReply, find_stop_tokens, find_thinking_end
from engine.inference.generate import context_length
from engine.inference.sampling import Row, Sampling, choose, open_row
from engine.serving.kv_cache import Slots, bytes_of

READING = 0.1
"""Seconds that a piece of a prompt may take before the rows in flight have their next token."""
PIECES = (32, 4096)
"""Least and most tokens of such a piece."""
FIRST_PIECE = 128
FAILURES = (RuntimeError, MemoryError, ValueError, IndexError, TypeError, KeyError, AssertionError)
"""What a model, its template or a grammar may raise: it costs the replies concerned, not the server."""


class Refused(Exception):
    """Not taken in. `full`: the queue is; else the server is about to end."""

    def __init__(self, *, full: bool) -> None:
        super().__init__("the queue is full" if full else "the server is about to end")
        self.full = full


@dataclass(eq=False)
class Job:
    """A reply that somebody waits for, to a prompt that is not empty and leaves room in the context. `deadline` is on the monotonic clock.
    `grammar` keeps the reply within a schema."""

    prompt: list[int]
    sampling: Sampling
    deadline: float
    grammar: Any = None
    cancelled: bool = False
    accepted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Said:
    """What a job's next token made certain."""

    text: str
    thinking: str


@dataclass(frozen=True)
class Ended:
    """A job is done. `finish`: `stop`, `length`, `cancelled`, `late` (its deadline), `closing`, or `failed`, and then `cause` says why."""

    finish: str
    cause: str = ""


Told = tuple[Job, Said | Ended]


@dataclass
class Figures:
    """Since the start. Running and waiting are of now."""

    running: int = 0
    waiting: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """Finish -> jobs."""
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass
class _Live:
    """A row that is being read (`cache`) or decoded (in the slots)."""

    job: Job
    row: Row
    telling: StreamedReply
    stops: frozenset[int]
    limit: int
    cache: Any = None
    read: int = 0


class Scheduler:
    """`run` in a thread of its own; everything else from any thread. `deliver` hears, from that thread, what has come of a round, and
    must not block."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stop_ids: frozenset[int],
        deliver: Callable[[list[Told]], None],
        *,
        slots: int = 16,
        queue: int = 128,
        room: int | None = None,
    ) -> None:
        """`model` is in eval mode. `slots`: rows decoded together; `queue`: jobs that may wait; `room`: bytes for their cache (None: half of
        what is free)."""
        import torch

        self.model, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids
        self.most, self.queue = slots, queue
        with torch.inference_mode():
            decoder, _, before = soft_prompt.start_cache(model)
        self.context = context_length(decoder) - before
        """The most tokens that prompt and reply may have together."""
        self.figures = Figures()
        self.alive = True
        """False once the thread has ended."""
        self._deliver = deliver
        self._room = room if room is not None else _free(model.device) // 2
        self._token_bytes = 0.0
        self._waiting: deque[Job] = deque()
        self._reading: _Live | None = None
        self._rows: list[_Live] = []
        self._slots = Slots()
        self._following: Any = None
        self._told: list[Told] = []
        self._piece = FIRST_PIECE
        self._wake = threading.Condition()
        self._closing = self._ending = False

    # ── from any thread ───────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of them in, or none. Raises Refused."""
        with self._wake:
            if self._closing:
                raise Refused(full=False)
            if len(self._waiting) + len(jobs) > self.queue + max(0, self.most - len(self._rows)):
                raise Refused(full=True)
            self._waiting.extend(jobs)
            self.figures.waiting = len(self._waiting)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Its place is free before the next token."""
        job.cancelled = True
        with self._wake:
            self._wake.notify()

    def drain(self) -> None:
        """Take nothing more in."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def close(self) -> None:
        """End what is still there, telling it, and the thread."""
        with self._wake:
            self._closing = self._ending = True
            self._wake.notify()

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._rows or self._reading)

    # ── the device's thread ───────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Until `close`."""
        import torch

        try:
            with torch.inference_mode():
                while not self._ending:
                    with self._wake:
                        while self.idle and not self._ending:
                            self._wake.wait()
                    self._round()
        finally:
            self.alive = False
            with self._wake:
                self._closing = True
            self._end_all("closing")
            self._tell()

    def _round(self) -> None:
        self._weed()
        self._read()
        if self._rows:
            try:
                self._decode()
            except FAILURES as error:
                self._fail([live.job for live in self._rows], error)
                self._rows, self._slots, self._following = [], Slots(), None
        self.figures.running = len(self._rows) + (self._reading is not None)
        self.figures.waiting = len(self._waiting)
        self._tell()

    def _weed(self) -> None:
        """Take out who has gone, or has waited too long."""
        now = time.monotonic()
        with self._wake:
            for job in [job for job in self._waiting if job.cancelled or job.deadline <= now]:
                self._waiting.remove(job)
                self._end(job, "cancelled" if job.cancelled else "late")
        reading = self._reading
        if reading and (reading.job.cancelled or reading.job.deadline <= now):
            self._reading = None
            self._finish(reading, "cancelled" if reading.job.cancelled else "late")
        gone = [place for place, live in enumerate(self._rows) if live.job.cancelled or live.job.deadline <= now]
        for place in gone:
            self._finish(self._rows[place], "cancelled" if self._rows[place].job.cancelled else "late")
        self._leave(gone)

    # ── reading prompts ───────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        """At most `_piece` tokens of prompts; who is read whole has its first token, and a place among the rows."""
        left = self._piece
        while left > 0:
            job = self._reading.job if self._reading else self._next()
            if job is None:
                return
            try:
                self._reading = self._reading or self._opened(job)
                left -= self._read_piece(self._reading, left)
            except FAILURES as error:
                self._reading = None
                self._fail([job], error)

    def _next(self) -> Job | None:
        """Who waits longest, if there is a place and room for it."""
        with self._wake:
            if not self._waiting or len(self._rows) >= self.most or self._slots.alone:
                return None
            if self._rows and not self._fits(self._waiting[0]):
                return None
            return self._waiting.popleft()

    def _fits(self, job: Job) -> bool:
        """Whether the cache has room when all rows are as long as the longest may become, twice over: it grows by copying."""
        jobs = [job, *(live.job for live in self._rows)]
        longest = max(min(self.context, len(each.prompt) + each.sampling.max_new_tokens) for each in jobs)
        return 2 * self._token_bytes * longest * (len(self._rows) + 1) <= self._room

    def _opened(self, job: Job) -> _Live:
        """Begin to read."""
        job.started = time.monotonic()
        model, cache, _ = soft_prompt.start_cache(self.model)
        assert 0 < len(job.prompt) < self.context
        self._decoder = model
        return _Live(
            job,
            open_row(
                job.sampling,
                job.prompt,
                model.device,
                job.grammar,
                find_thinking_end(self.tokenizer, job.prompt) if job.grammar else (),
            ),
            StreamedReply(self.tokenizer, job.prompt, job.sampling.stop),
            self.stop_ids | find_stop_tokens(self.tokenizer, job.sampling.stop),
            min(job.sampling.max_new_tokens, self.context - len(job.prompt)),
            cache,
        )

    def _read_piece(self, live: _Live, most: int) -> int:
        """Returns how many tokens were read."""
        import torch

        # What attends both ways cannot be read in parts.
        end = len(live.job.prompt) if getattr(self._decoder, "reads_both_ways", False) else live.read + most
        piece = live.job.prompt[live.read : end]
        began = time.perf_counter()
        output = self._decoder(
            input_ids=torch.tensor([piece], device=self._decoder.device),
            past_key_values=live.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        live.cache = output.past_key_values
        live.read += len(piece)
        if live.read == len(live.job.prompt):
            token = int(choose(output.logits[:, -1], [live.row]))
            self._reading = None
            self.figures.prompt_tokens += len(live.job.prompt)
            self._token_bytes = bytes_of(live.cache) / live.cache.get_seq_length()
            if self._take(live, token):
                self._join(live, token)
        if len(piece) >= PIECES[0]:
            fitting = int(len(piece) * READING / (time.perf_counter() - began))
            self._piece = max(PIECES[0], min(PIECES[1], (self._piece + fitting) // 2))
        return len(piece)

    def _join(self, live: _Live, token: int) -> None:
        import torch

        self._slots.join(live.cache)
        live.cache = None
        new = torch.tensor([token], device=self._decoder.device)
        self._following = torch.cat([self._following, new]) if self._rows else new
        self._rows.append(live)

    # ── decoding ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _decode(self) -> None:
        """One token of every row."""
        mask, positions = self._slots.step(self._decoder.device)
        output = self._decoder(
            input_ids=self._following[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._slots.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._following = choose(output.logits[:, -1], [live.row for live in self._rows])
        tokens = self._following.tolist()
        self._leave([place for place, live in enumerate(self._rows) if not self._take(live, tokens[place])])

    def _take(self, live: _Live, token: int) -> bool:
        """Tell what this token makes certain. Returns whether the reply goes on."""
        live.job.tokens += 1
        self.figures.tokens += 1
        live.job.first = live.job.first or time.monotonic()
        if token in live.stops:
            self._finish(live, "stop")
            return False
        told = live.telling.add(token)
        if told.text or told.thinking:
            self._told.append((live.job, Said(told.text, told.thinking)))
        if live.telling.stopped or live.job.tokens >= live.limit:
            self._finish(live, "stop" if live.telling.stopped else "length")
            return False
        return True

    def _leave(self, places: list[int]) -> None:
        """Take rows out; the last ones fill their places."""
        if not places:
            return
        places = sorted(places, reverse=True)
        self._slots.leave(places)
        order = list(range(len(self._rows)))
        for place in places:
            order[place] = order[-1]
            order.pop()
        self._rows = [self._rows[place] for place in order]
        self._following = self._following[order] if order else None

    # ── endings ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, live: _Live, finish: str) -> None:
        """Of a reply that had begun: what was held back is told first."""
        rest = live.telling.finish()
        if rest.text or rest.thinking:
            self._told.append((live.job, Said(rest.text, rest.thinking)))
        self._end(live.job, finish)

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        """These cannot go on; the server can."""
        traceback.print_exception(error)
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        for job in jobs:
            self._end(job, "failed", cause)

    def _end_all(self, finish: str) -> None:
        with self._wake:
            while self._waiting:
                self._end(self._waiting.popleft(), finish)
        for live in [*self._rows, *([self._reading] if self._reading else [])]:
            self._finish(live, finish)
        self._rows, self._reading, self._slots = [], None, Slots()
        self.figures.running = self.figures.waiting = 0

    def _end(self, job: Job, finish: str, cause: str = "") -> None:
        self.figures.ended[finish] = self.figures.ended.get(finish, 0) + 1
        self._told.append((job, Ended(finish, cause)))

    def _tell(self) -> None:
        if self._told:
            told, self._told = self._told, []
            self._deliver(told)


def _free(device: Any) -> int:
    """Bytes that are free where the cache will lie."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
