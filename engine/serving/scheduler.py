"""Continuous batching: one thread owns the device, and jobs join and leave its batch at any token.

Each round processes a chunk of the waiting prompts, so that a long one delays nobody for long, then decodes one token
of every row. Each row has its own settings and seed: no reply depends on its neighbours, except for the rounding
of 16 bits.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.inference import soft_prompt
from engine.inference.detokenizer import StreamedReply, find_stop_tokens, find_thinking_end
from engine.inference.generate import context_length
from engine.inference.sampling import Row, choose, open_row
from engine.inference.token_scores import ScoredToken, TokenScorer
from engine.models import accelerator
from engine.serving.jobs import Figures, Job, JobEnd, JobEvent, JobText, Rejection, choose_adapters
from engine.serving.kv_cache import SlotCache, count_bytes

PREFILL_SECONDS = 0.1
"""Longest time of a chunk of a prompt, in seconds, before the active rows get their next token."""
CHUNK_SIZES = (32, 4096)
"""Least and greatest number of tokens of a chunk."""
FIRST_CHUNK = 128
SCORED_CHUNK = 256
"""Greatest number of tokens of a chunk whose logits are all kept."""
FAILURES = Exception
"""Whatever a model, its tokenizer or a grammar raises ends the replies concerned, not the server."""


@dataclass
class _ActiveRow:
    """A row whose prompt is being processed, with its own `cache`, or that is being decoded, in the slots."""

    job: Job
    row: Row
    reply: StreamedReply
    stops: frozenset[int]
    limit: int
    cache: Any = None
    read: int = 0


class Scheduler:
    """`run` is called in its own thread, everything else from any thread. `deliver` is called from that thread with the
    events of a round; it must not block."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stop_ids: frozenset[int],
        deliver: Callable[[list[JobEvent]], None],
        *,
        slots: int = 16,
        queue: int = 128,
        room: int | None = None,
    ) -> None:
        """`model` is in eval mode. `slots`: rows decoded together; `queue`: jobs that may wait; `room`: bytes for the
        cache (None: half of the free memory)."""
        import torch

        self.model, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids
        self.most, self.queue = slots, queue
        with torch.inference_mode():
            decoder, _, before = soft_prompt.start_cache(model)
        self.context = context_length(decoder) - before
        """The greatest number of tokens of prompt and reply together."""
        self.figures = Figures()
        self.alive = True
        """False once the thread has ended."""
        self._deliver = deliver
        self._room = room if room is not None else accelerator.free_bytes(model.device) // 2
        self._token_bytes = 0.0
        self._waiting: deque[Job] = deque()
        self._reading: _ActiveRow | None = None
        self._rows: list[_ActiveRow] = []
        self._slots = SlotCache()
        self._following: Any = None
        self._events: list[JobEvent] = []
        self._chunk = FIRST_CHUNK
        self._scorer = TokenScorer(tokenizer)
        self._wake = threading.Condition()
        self._closing = self._ending = False

    # ── from any thread ───────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, jobs: Sequence[Job]) -> None:
        """Accept all of the jobs, or none. Raises Rejection."""
        with self._wake:
            if self._closing:
                raise Rejection(full=False)
            if len(self._waiting) + len(jobs) > self.queue + max(0, self.most - len(self._rows)):
                raise Rejection(full=True)
            self._waiting.extend(jobs)
            self.figures.waiting = len(self._waiting)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """End a job before its next token."""
        job.cancelled = True
        with self._wake:
            self._wake.notify()

    def drain(self) -> None:
        """Accept no more jobs."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def close(self) -> None:
        """End the remaining jobs, and the thread."""
        with self._wake:
            self._closing = self._ending = True
            self._wake.notify()

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._rows or self._reading)

    # ── the device's thread ───────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Work until `close`."""
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
            self._deliver_events()

    def _round(self) -> None:
        self._drop_ended()
        self._prefill()
        if self._rows:
            try:
                self._decode()
            except FAILURES as error:
                self._fail([live.job for live in self._rows], error)
                self._rows, self._slots, self._following = [], SlotCache(), None
        self.figures.running = len(self._rows) + (self._reading is not None)
        self.figures.waiting = len(self._waiting)
        self._deliver_events()

    def _drop_ended(self) -> None:
        """Remove jobs that are cancelled or past their deadline."""
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
        self._remove(gone)

    # ── reading prompts ───────────────────────────────────────────────────────────────────────────────────────────

    def _prefill(self) -> None:
        """Process at most `_chunk` tokens of prompts; a prompt that is complete gets its first token and a place among
        the rows."""
        left = self._chunk
        while left > 0:
            job = self._reading.job if self._reading else self._next()
            if job is None:
                return
            try:
                self._reading = self._reading or self._open(job)
                left -= self._prefill_chunk(self._reading, left)
            except FAILURES as error:
                self._reading = None
                self._fail([job], error)

    def _next(self) -> Job | None:
        """The job that has waited longest, if there is a place and room for it."""
        with self._wake:
            if not self._waiting or len(self._rows) >= self.most or self._slots.exclusive:
                return None
            if self._rows and not self._has_room(self._waiting[0]):
                return None
            return self._waiting.popleft()

    def _has_room(self, job: Job) -> bool:
        """Whether the cache has room for all rows at the greatest length of any, twice, since it grows by copying."""
        jobs = [job, *(live.job for live in self._rows)]
        longest = max(min(self.context, len(each.prompt) + each.sampling.max_new_tokens) for each in jobs)
        return 2 * self._token_bytes * longest * (len(self._rows) + 1) <= self._room

    def _open(self, job: Job) -> _ActiveRow:
        """Begin to process a job's prompt."""
        job.started = time.monotonic()
        model, cache, _ = soft_prompt.start_cache(self.model)
        assert 0 < len(job.prompt) < self.context
        self._decoder = model
        return _ActiveRow(
            job,
            open_row(
                job.sampling,
                job.prompt,
                job.grammar,
                find_thinking_end(self.tokenizer, job.prompt) if job.grammar else (),
            ),
            StreamedReply(self.tokenizer, job.prompt, job.sampling.stop, continues=job.continues, shown=job.shown),
            self.stop_ids | find_stop_tokens(self.tokenizer, job.sampling.stop),
            min(job.sampling.max_new_tokens, self.context - len(job.prompt)),
            cache,
        )

    def _prefill_chunk(self, live: _ActiveRow, most: int) -> int:
        """Process up to `most` tokens of a prompt; returns how many."""
        import torch

        scores_prompt = live.job.echo is not None and live.job.alternatives is not None
        most = min(most, SCORED_CHUNK) if scores_prompt else most
        # A prompt with bidirectional attention cannot be processed in chunks.
        end = len(live.job.prompt) if getattr(self._decoder, "reads_both_ways", False) else live.read + most
        piece = live.job.prompt[live.read : end]
        began = time.perf_counter()
        output = self._decoder(
            input_ids=torch.tensor([piece], device=self._decoder.device),
            past_key_values=live.cache,
            use_cache=True,
            logits_to_keep=0 if scores_prompt else 1,
            **choose_adapters([live.job]),
        )
        live.cache = output.past_key_values
        if live.job.echo is not None:
            self._echo(live, output.logits[0] if scores_prompt else None, len(piece))
        live.read += len(piece)
        if live.read == len(live.job.prompt):
            self._begin_reply(live, output.logits[:, -1])
        if len(piece) >= CHUNK_SIZES[0]:
            accelerator.synchronize(self._decoder.device)  # else the time would be that of handing out the work
            fitting = int(len(piece) * PREFILL_SECONDS / (time.perf_counter() - began))
            self._chunk = max(CHUNK_SIZES[0], min(CHUNK_SIZES[1], (self._chunk + fitting) // 2))
        return len(piece)

    def _echo(self, live: _ActiveRow, logits: Any, count: int) -> None:
        """Deliver the prompt's text with its first piece, and the scores of the tokens that the `logits` of this piece
        of `count` tokens predict."""
        text, scored, job = "", [], live.job
        if live.read == 0:
            text = job.echo or ""
            scored = [ScoredToken(self._scorer.first_text(job.prompt[0]), None)] if logits is not None else []
        if logits is not None:
            predicted = job.prompt[live.read + 1 : live.read + count + 1]
            scored += self._scorer.score(logits[-count:][: len(predicted)], predicted, job.alternatives or 0)
        if text or scored:
            self._events.append((job, JobText(text, "", tuple(scored))))

    def _begin_reply(self, live: _ActiveRow, logits: Any) -> None:
        """Choose the first token of a reply whose prompt has been processed; `logits` is [1, vocabulary]."""
        self._reading = None
        self.figures.prompt_tokens += len(live.job.prompt)
        self._token_bytes = count_bytes(live.cache) / live.cache.get_seq_length()
        if not live.job.generates:
            self._finish(live, "length")
            return
        token = int(choose(logits, [live.row]))
        if self._take(live, token, self._score_chosen([live], logits, [token]).get(0)):
            self._add_row(live, token)

    def _score_chosen(self, rows: list[_ActiveRow], logits: Any, tokens: list[int]) -> dict[int, ScoredToken]:
        """The scores of the chosen tokens, by place, of the rows that ask for them. `logits` is [rows, vocabulary]."""
        places = [place for place, live in enumerate(rows) if live.job.alternatives is not None]
        if not places:
            return {}
        most = max(rows[place].job.alternatives or 0 for place in places)
        scored = self._scorer.score(logits[places], [tokens[place] for place in places], most)
        found = {}
        for place, each in zip(places, scored, strict=True):
            top, shown = each.top[: rows[place].job.alternatives], self._scorer.is_shown(tokens[place])
            found[place] = replace(each, top=top, shown=shown)
        return found

    def _add_row(self, live: _ActiveRow, token: int) -> None:
        import torch

        self._slots.join(live.cache)
        live.cache = None
        new = torch.tensor([token], device=self._decoder.device)
        self._following = torch.cat([self._following, new]) if self._rows else new
        self._rows.append(live)

    # ── decoding ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _decode(self) -> None:
        """Decode one token of every row."""
        mask, positions = self._slots.step(self._decoder.device)
        output = self._decoder(
            input_ids=self._following[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._slots.cache,
            use_cache=True,
            logits_to_keep=1,
            **choose_adapters(live.job for live in self._rows),
        )
        failed: dict[int, Exception] = {}
        self._following = choose(output.logits[:, -1], [live.row for live in self._rows], failed)
        tokens = self._following.tolist()
        scored = self._score_chosen(self._rows, output.logits[:, -1], tokens)
        ended = []
        for place, live in enumerate(self._rows):
            try:
                if place in failed:
                    raise failed[place]
                goes_on = self._take(live, tokens[place], scored.get(place))
            except FAILURES as error:
                goes_on = False
                self._fail([live.job], error)
            if not goes_on:
                ended.append(place)
        self._remove(ended)

    def _take(self, live: _ActiveRow, token: int, scored: ScoredToken | None) -> bool:
        """Deliver the text that this token adds. Returns whether the reply goes on."""
        scores = (scored,) if scored else ()
        live.job.tokens += 1
        self.figures.tokens += 1
        live.job.first = live.job.first or time.monotonic()
        if token in live.stops:
            if scores:
                self._events.append((live.job, JobText("", "", scores)))
            self._finish(live, "stop")
            return False
        delta = live.reply.add(token)
        if delta.text or delta.thinking or scores:
            self._events.append((live.job, JobText(delta.text, delta.thinking, scores)))
        if live.reply.stopped or live.job.tokens >= live.limit:
            self._finish(live, "stop" if live.reply.stopped else "length")
            return False
        return True

    def _remove(self, places: list[int]) -> None:
        """Remove rows; the last ones fill their places."""
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

    def _finish(self, live: _ActiveRow, finish: str) -> None:
        """End a reply that had begun, delivering the text that was held back."""
        rest = live.reply.finish()
        if rest.text or rest.thinking:
            self._events.append((live.job, JobText(rest.text, rest.thinking)))
        self._end(live.job, finish)

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        """End jobs that cannot continue; the server can."""
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
        self._rows, self._reading, self._slots = [], None, SlotCache()
        self.figures.running = self.figures.waiting = 0

    def _end(self, job: Job, finish: str, cause: str = "") -> None:
        self.figures.ended[finish] = self.figures.ended.get(finish, 0) + 1
        self._events.append((job, JobEnd(finish, cause)))

    def _deliver_events(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._deliver(events)
