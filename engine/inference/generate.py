"""The token loops: one reply streamed and cancellable at any token, and a batch, greedy or sampled.

Both run `model.forward` themselves. `transformers.generate` yields nothing between tokens except through a second thread,
and costs more host time a token than this model's arithmetic. Greedy replies equal its replies token for token (tested).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.inference import soft_prompt
from engine.inference.replies import Growing

BATCH = 32
"""Rows decoded together by `generate_batch`: bounds the cache's memory."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy, and then nothing else matters."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """A finished reply. `tokens` counts what was generated, the stop token included; times are in seconds."""

    text: str
    ids: list[int]
    prompt_tokens: int
    seconds: float
    first_token_seconds: float
    finish: str
    """`stop`: a stop token; `length`: the limit or the end of the context; `cancelled`."""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first: what reading the prompt took is in `first_token_seconds`."""
        decoding = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / decoding if self.tokens > 1 and decoding > 0 else 0.0


@dataclass(frozen=True)
class Piece:
    """One step of a stream: text that may be appended as it is (empty while a character is incomplete), `count` tokens so far.
    The last piece has the `reply`."""

    text: str
    count: int
    reply: Reply | None = None


@dataclass
class Detokenizer:
    """Turns growing ids into growing text, never half a character.

    A token may end inside a UTF-8 character, which decodes to U+FFFD, and may look different without its predecessor: so it
    decodes from a few tokens back, and holds back what ends in U+FFFD.
    """

    tokenizer: Any
    ids: list[int] = field(default_factory=list)
    text: str = ""
    _start: int = 0
    _told: int = 0

    def add(self, token: int) -> str:
        """The text that has become certain with this token."""
        self.ids.append(token)
        before = self._decode(self.ids[self._start : self._told])
        now = self._decode(self.ids[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start, self._told = self._told, len(self.ids)
        piece = now[len(before) :]
        self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """Generate one reply to the token ids of `prompt`; the last piece carries the `Reply`.

    `model` is in eval mode; `cancelled` is asked before every token. Raises ValueError for an empty prompt and for one that
    fills the model's context.
    """
    import torch

    with torch.inference_mode():
        model, cache, before = soft_prompt.opened(model)
    limit = min(sampling.max_new_tokens, context_length(model) - before - len(prompt))
    if not prompt or limit <= 0:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens leaves no room in a context of {context_length(model)}: shorten or clear it"
        )
    choose = _chooser(sampling, _generator(sampling.seed, model.device))
    detokenizer, growing = Detokenizer(tokenizer), Growing(tokenizer)
    began = time.perf_counter()
    first = 0.0
    finish = "length"
    tokens: list[int] = []
    following = torch.tensor([list(prompt)], device=model.device)
    while len(tokens) < limit:
        if cancelled():
            finish = "cancelled"
            break
        # Entered anew for each token: a generator must not hold a thread-wide mode while its caller runs.
        with torch.inference_mode():
            output = model(input_ids=following, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            following = choose(output.logits[:, -1].float())
        token = int(following)
        following = following.view(1, 1)
        tokens.append(token)
        first = first or time.perf_counter() - began
        if token in stop_ids:
            finish = "stop"
            break
        yield Piece(growing.add(detokenizer.add(token)), len(tokens))
    rest = growing.finish()
    reply = Reply(growing.text, tokens, len(prompt), time.perf_counter() - began, first, finish)
    yield Piece(rest, len(tokens), reply)


def context_length(model: Any) -> int:
    """The most tokens that prompt and reply may have together."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _generator(seed: int | None, device: Any) -> Any:
    """A generator of its own for one reply; without a seed no two are alike."""
    import torch

    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _chooser(sampling: Sampling, generator: Any) -> Callable[[Any], Any]:
    """`[rows, vocabulary]` float logits -> `[rows]` token ids, by the laws of transformers' own `generate`. A `generator` of None is torch's."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
        return lambda logits: logits.argmax(-1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))

    def sample(logits: Any) -> Any:
        probabilities = warpers(None, logits).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)

    return sample


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Collection[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """Greedy replies to many prompts: token ids without the stop token, in the order of `prompts`.

    `model` is loaded and in eval mode (a model that is being trained may be passed; nothing of it is changed). Prompts of
    about one length are decoded together, padded on the left; rows that have ended leave the batch. In float32 each reply
    equals that of the prompt alone; in 16 bits the padding's rounding may turn a close decision. `progress` hears, after
    each token, how many replies are finished.
    """
    replies = _decode_all(
        model, tokenizer, prompts, max_new_tokens, eos_ids, lambda logits: logits.argmax(-1), BATCH, progress
    )
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
    """As `generate_batch`, sampled: with the token that ended a reply, where one did. At most `rows` are decoded together. Without a
    seed torch's own generator of the model's device is drawn from, whose state a training run keeps."""
    generator = None if sampling.seed is None else _generator(sampling.seed, model.device)
    choose = _chooser(sampling, generator)
    return _decode_all(
        model,
        tokenizer,
        prompts,
        sampling.max_new_tokens,
        eos_ids,
        lambda logits: choose(logits.float()),
        rows,
        progress,
    )


def _decode_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Collection[int],
    choose: Callable[[Any], Any],
    rows: int,
    progress: Callable[[int, int], None],
) -> list[list[int]]:
    """Replies with their stop tokens, in the order of `prompts`; those of about one length go together."""
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        batch = [prompts[index] for index in indices]

        def finished(in_batch: int, before: int = start) -> None:
            progress(before + in_batch, len(prompts))

        decoded = _decode(model, tokenizer, batch, max_new_tokens, eos_ids, choose, finished)
        for index, reply in zip(indices, decoded, strict=True):
            replies[index] = reply
    return replies


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with (a system prompt, a task's instruction), which are then read once; each keeps one
    of its own."""
    if len(prompts) < 2:
        return 0
    least = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((place for place in range(least) if any(row[place] != first[place] for row in prompts)), least)


def _decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Collection[int],
    choose: Callable[[Any], Any],
    finished: Callable[[int], None],
) -> list[list[int]]:
    import torch

    longest = max(map(len, prompts))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids, default=0)
    replies: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    # no_grad rather than inference_mode: tensors that the model keeps (rotary tables) must stay usable for a backward pass.
    with torch.no_grad():
        model, cache, before = soft_prompt.opened(model)
        # What attends both ways cannot be read in two parts.
        shared = 0 if getattr(model, "reads_both_ways", False) else _shared(prompts)
        if shared:
            prefix = torch.tensor([list(prompts[0][:shared])], device=model.device)
            cache = model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        if cache is not None:
            cache.batch_repeat_interleave(len(prompts))
        pads = [longest - len(row) for row in prompts]
        following = torch.tensor(
            [[padding] * pad + list(row[shared:]) for pad, row in zip(pads, prompts, strict=True)], device=model.device
        )
        mask = torch.tensor(
            [[1] * (before + shared) + [0] * pad + [1] * (longest - shared - pad) for pad in pads], device=model.device
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, before + shared :]
        for _ in range(min(max_new_tokens, context_length(model) - before - longest)):
            output = model(
                input_ids=following,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            chosen = choose(output.logits[:, -1])
            tokens = chosen.tolist()
            going = [place for place, token in enumerate(tokens) if token not in eos_ids]
            for place, token in enumerate(tokens):
                replies[live[place]].append(token)
            finished(len(prompts) - len(going))
            if not going:
                break
            if len(going) < len(tokens):
                keep = torch.tensor(going, device=model.device)
                cache.batch_select_indices(keep)
                chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
                live = [live[place] for place in going]
            following = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], -1)
            positions = positions[:, -1:] + 1
    return replies
