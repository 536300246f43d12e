"""The token loops: one reply streamed and cancellable at any token, and a batch of replies.

Both call `model.forward` themselves. `transformers.generate` yields nothing between tokens except through a second
thread, and its overhead for each token exceeds a small model's arithmetic. Greedy replies equal its replies token for
token (tested).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from engine.inference import soft_prompt
from engine.inference.detokenizer import StreamedReply, find_stop_tokens, find_thinking_end
from engine.inference.prefill import CancellableForward, Cancelled
from engine.inference.sampling import Grammar, Row, Sampling, choose, open_row
from engine.models.placement import is_spread

BATCH = 32
"""Rows decoded together: bounds the cache's memory."""


@dataclass(frozen=True)
class Reply:
    """A finished reply. `tokens` counts what was generated, the stop token included; times are in seconds."""

    text: str
    ids: list[int]
    prompt_tokens: int
    seconds: float
    first_token_seconds: float
    finish: str
    """`stop`: a stop token or a stop text; `length`: the limit or the end of the context; `cancelled`."""
    thinking: str = ""
    """The thinking before the reply, without its marks; not part of `text`."""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def tokens_per_second(self) -> float:
        """Over the tokens after the first; the time of the prompt is in `first_token_seconds`."""
        decoding = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / decoding if self.tokens > 1 and decoding > 0 else 0.0


@dataclass(frozen=True)
class Piece:
    """One step of a stream: text to append (empty while a character is incomplete), and the `count` of tokens so far.
    The last piece has the `reply`."""

    text: str
    count: int
    reply: Reply | None = None
    thinking: str = ""
    """Thinking to append."""


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    cancelled: Callable[[], bool] = lambda: False,
    grammar: Grammar | None = None,
    open_forward: Callable[[Any, Callable[[], bool]], Callable[..., Any]] = CancellableForward,
) -> Iterator[Piece]:
    """Generate one reply to the token ids of `prompt`; the last piece carries the `Reply`.

    `model` is in eval mode; `cancelled` is called before every token, and between layers. `grammar` keeps the reply to
    a schema. `open_forward` makes the forward pass. Raises ValueError for an empty prompt and for one that fills the
    model's context.
    """
    import torch

    with torch.inference_mode():
        model, cache, before = soft_prompt.start_cache(model)
    limit = min(sampling.max_new_tokens, room(model, len(prompt), before))
    if not prompt or limit <= 0:
        raise ValueError(describe_no_room(model, len(prompt)))
    row = open_row(sampling, prompt, grammar, find_thinking_end(tokenizer, prompt) if grammar else ())
    stops = {*stop_ids} | find_stop_tokens(tokenizer, sampling.stop)
    streamed = StreamedReply(tokenizer, prompt, sampling.stop)
    began = time.perf_counter()
    first = 0.0
    finish = "length"
    tokens: list[int] = []
    following, forward = torch.tensor([[*prompt]], device=model.device), open_forward(model, cancelled)
    while len(tokens) < limit:
        if cancelled():
            finish = "cancelled"
            break
        # Entered anew for each token: a generator must not hold a thread-wide mode while its caller runs.
        with torch.inference_mode():
            try:
                output = forward(following, cache)
            except Cancelled:
                finish = "cancelled"
                break
            cache = output.past_key_values
            following = choose(output.logits[:, -1], [row]).view(1, 1)
        token = row.history[-1]
        tokens.append(token)
        first = first or time.perf_counter() - began
        if token in stops:
            finish = "stop"
            break
        delta = streamed.add(token)
        yield Piece(delta.text, len(tokens), thinking=delta.thinking)
        if streamed.stopped:
            finish = "stop"
            break
    rest = streamed.finish()
    seconds = time.perf_counter() - began
    reply = Reply(streamed.text, tokens, len(prompt), seconds, first, finish, streamed.thinking)
    yield Piece(rest.text, len(tokens), reply, rest.thinking)


def context_length(model: Any) -> int:
    """The greatest number of tokens of prompt and reply together."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def room(model: Any, prompt: int, before: int = 0) -> int:
    """The greatest number of tokens of a reply to a prompt of `prompt` tokens, behind `before` positions of a soft
    prompt."""
    return context_length(model) - before - prompt


def describe_no_room(model: Any, prompt: int) -> str:
    """Why a prompt of `prompt` tokens cannot be answered."""
    return f"a prompt of {prompt} tokens leaves no room in a context of {context_length(model)}: shorten or clear it"


def reply_batch(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    stop_ids: Collection[int],
    on_reply: Callable[[int, Reply], None] = lambda index, reply: None,
    cancelled: Callable[[], bool] = lambda: False,
    size: int = BATCH,
) -> list[Reply]:
    """The replies to many prompts, in the order of `rows`, each by its own settings and the same as from `stream`.

    `rows` are fresh from `open_row`. At most `size` of about the same length are decoded together; rows that have ended
    leave the batch. `on_reply` is called with each reply and its place as soon as it is finished. `cancelled` is called
    before every token; after it returns true, unfinished replies end where they are. Raises ValueError for a prompt
    without room, before anything is generated.
    """
    prompts = [row.history[:] for row in rows]
    for prompt in prompts:
        if not prompt or room(model, len(prompt)) <= 0:
            raise ValueError(describe_no_room(model, len(prompt)))
    streamed = [StreamedReply(tokenizer, row.history, row.sampling.stop) for row in rows]
    stops = [{*stop_ids} | find_stop_tokens(tokenizer, row.sampling.stop) for row in rows]
    replies: list[Reply | None] = [None] * len(rows)
    firsts = [0.0] * len(rows)
    began = 0.0

    def conclude(index: int, finish: str) -> None:
        text, seconds = streamed[index], time.perf_counter() - began
        text.finish()
        ids = rows[index].history[len(prompts[index]) :]
        reply = Reply(text.text, ids, len(prompts[index]), seconds, firsts[index], finish, text.thinking)
        replies[index] = reply
        on_reply(index, reply)

    def take_token(index: int, token: int, full: bool) -> bool:
        firsts[index] = firsts[index] or time.perf_counter() - began
        if token not in stops[index]:
            streamed[index].add(token)
        over = token in stops[index] or streamed[index].stopped
        if over or full:
            conclude(index, "stop" if over else "length")
        return over

    for together in _group_by_length(prompts, size):
        began = time.perf_counter()
        if not cancelled():
            batch = [rows[index] for index in together]

            def take_in_batch(place: int, token: int, full: bool, indices: Sequence[int] = together) -> bool:
                return take_token(indices[place], token, full)

            _decode(model, tokenizer, batch, take_in_batch, cancelled=cancelled)
        for index in together:
            if replies[index] is None:
                conclude(index, "cancelled" if cancelled() else "length")
    return [reply for reply in replies if reply is not None]


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Collection[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """Greedy replies to many prompts: token ids without the stop token, in the order of `prompts`.

    `model` is in eval mode; it may be one that is being trained, nothing in it changes. Prompts of about the same
    length are decoded together, padded on the left; rows that have ended leave the batch. In float32 each reply equals
    that of the prompt alone; in 16 bits the rounding of padded rows may change a close decision. `progress` is called
    after each token with the numbers of finished replies and of all.
    """
    sampling = Sampling(max_new_tokens)
    replies = sample_batch(model, tokenizer, prompts, sampling, eos_ids, progress=progress)
    return [reply[:-1] if reply and reply[-1] in eos_ids else reply for reply in replies]


def sample_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Collection[int],
    rows: int = BATCH,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """As `generate_batch`, sampled: token ids with the stop token, if there is one. At most `rows` are decoded
    together.

    With a seed each row has its own: the first seed plus its place. Without one, tokens are drawn from torch's
    default generator of the model's device, whose state a training run saves.
    """
    drawing = [
        Row(sampling, [*prompt])
        if sampling.seed is None
        else open_row(replace(sampling, seed=sampling.seed + index), prompt)
        for index, prompt in enumerate(prompts)
    ]
    done = 0
    for together in _group_by_length(prompts, rows):

        def report(count: int, before: int = done) -> None:
            progress(before + count, len(prompts))

        batch = [drawing[index] for index in together]
        _decode(model, tokenizer, batch, lambda place, token, full: token in eos_ids, report)
        done += len(together)
    return [row.history[len(prompt) :] for row, prompt in zip(drawing, prompts, strict=True)]


def _group_by_length(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The places of prompts, in groups of about the same length."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """The number of first tokens that all prompts share (a system prompt, a task's instruction), which are processed
    once. At least one token of each prompt is left."""
    if len(prompts) < 2:
        return 0
    least = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((place for place in range(least) if any(row[place] != first[place] for row in prompts)), least)


def _pad_left(
    prompts: Sequence[list[int]], shared: int, before: int, padding: int
) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids after the first `shared`, padded to one length, and the attention mask of all positions, of which
    the first `before` are a soft prompt's."""
    longest = max(map(len, prompts))
    pads = [longest - len(row) for row in prompts]
    ids = [[padding] * pad + row[shared:] for pad, row in zip(pads, prompts, strict=True)]
    mask = [[1] * (before + shared) + [0] * pad + [1] * (longest - shared - pad) for pad in pads]
    return ids, mask


def _decode(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    take_token: Callable[[int, int, bool], bool],
    report: Callable[[int], None] = lambda count: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Generate until every row has ended; the histories of `rows`, which are their prompts, grow.

    `take_token` is called with a row's place, its new token, and whether that reached the row's limit; it returns
    whether the reply ends with the token. `report` is called after each token with the number of rows that have ended.
    """
    import torch

    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    # no_grad rather than inference_mode: tensors that the model keeps (rotary tables) must stay usable in training.
    with torch.no_grad(), suppress(Cancelled):
        model, cache, before = soft_prompt.start_cache(model)
        forward = CancellableForward(model, cancelled)
        begun = [len(row.history) for row in rows]
        limits = [min(row.sampling.max_new_tokens, room(model, len(row.history), before)) for row in rows]
        live = [place for place, limit in enumerate(limits) if limit > 0]
        if not live:
            return
        prompts = [rows[place].history for place in live]
        # A prompt with bidirectional attention cannot be processed in two parts.
        shared = 0 if getattr(model, "reads_both_ways", False) else _common_prefix(prompts)
        if shared:
            cache = forward(torch.tensor([prompts[0][:shared]], device=model.device), cache).past_key_values
        if cache is not None:
            cache.batch_repeat_interleave(len(prompts))
        following, mask = (
            torch.tensor(each, device=model.device) for each in _pad_left(prompts, shared, before, padding)
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, before + shared :]
        while not cancelled():
            output = forward(following, cache, mask, positions)
            cache = output.past_key_values
            chosen = choose(output.logits[:, -1], [rows[place] for place in live])
            going = []
            for index, place in enumerate(live):
                history = rows[place].history
                full = len(history) - begun[place] >= limits[place]
                if not take_token(place, history[-1], full) and not full:
                    going.append(index)
            report(len(rows) - len(going))
            if not going:
                return
            if len(going) < len(live):
                keep = torch.tensor(going, device=model.device)
                # The layers of a model that is spread over cards have their parts there.
                cache.batch_select_indices(keep.cpu() if is_spread(model) else keep)
                chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
                live = [live[index] for index in going]
            following = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], -1)
            positions = positions[:, -1:] + 1
