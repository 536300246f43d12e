"""Positions and attention of the first generation.

A row is `context [gMASK] sop answer eop`, with `[MASK]` in the context for a blank to fill (GLM, arXiv:2103.10360). The
tokens before `sop` attend to each other in both directions; `sop` and the answer attend to all tokens before them. In
the first dimension, the position of a context token is its place, and that of all answer tokens the place of the mask;
in the second it is 0 for the context, and counts from 1 in the answer. Everything follows from the ids, for a cached
step from the ids of all tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Marks:
    """Token ids that structure a row."""

    sop: int
    gmask: int
    mask: int
    pad: int


def mark_tokens(ids: Tensor, marks: Marks) -> Tensor:
    """[batch, tokens] of bool, False for padding on the left. Padding on the right needs no mask: no token before
    attends to it."""
    return (ids != marks.pad).cumsum(-1) > 0


def compute_positions(ids: Tensor, held: Tensor, marks: Marks) -> tuple[Tensor, Tensor]:
    """Positions [batch, 2, tokens], and attention [batch, 1, tokens, tokens] (query, key; True where the query
    attends).

    `ids` are those of the whole rows; `held` is False for padding. A row without `sop` has no answer apart from its
    context: it attends from left to right, so that no token sees what it has to predict.
    """
    place = torch.arange(ids.shape[1], device=ids.device)
    padding = (held.cumsum(-1) == 0).sum(-1, keepdim=True)
    sop, answers = _find_first(ids, held, marks.sop)
    gmask, has_gmask = _find_first(ids, held, marks.gmask)
    mask, has_mask = _find_first(ids, held, marks.mask)
    blank = torch.where(has_gmask, gmask, torch.where(has_mask, mask, (sop - 1).clamp(min=0)))
    in_answer = answers & (place >= sop)
    own = (place - padding).clamp(min=0)
    first = torch.where(in_answer, blank - padding, own)
    second = torch.where(in_answer, place - sop + 1, torch.zeros_like(own))
    attends = (place[:, None] >= place) | (answers & (place < sop))[:, None, :]
    # Padding attends to itself: a row of a softmax needs at least one value.
    attends = (attends & held[:, None, :]) | (place[:, None] == place)
    return torch.stack((first, second), 1), attends[:, None]


def _find_first(ids: Tensor, held: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """The first place of `token` in each row [batch, 1], and whether it has one."""
    found = (ids == token) & held
    return found.int().argmax(-1, keepdim=True), found.any(-1, keepdim=True)


def compute_rotation(positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [batch, 2, tokens, width] of rotary positions (arXiv:2104.09864) [batch, 2, tokens].

    The frequencies are rounded to float16, and the angles too for float16, as the checkpoint was trained.
    """
    frequencies = 10000.0 ** -(torch.arange(0, width, 2, device=positions.device).float() / width)
    exact = torch.float16 if dtype == torch.float16 else torch.float32
    angles = positions[..., None].to(exact) * frequencies.half().to(exact)
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate [batch, heads, tokens, 2 × width]: the first half by the angles of the first dimension, the second by
    those of the second."""
    halves = []
    for half, cos, sin in zip(states.chunk(2, -1), cosine.unbind(1), sine.unbind(1), strict=True):
        left, right = half.chunk(2, -1)
        halves.append(half * cos[:, None] + torch.cat((-right, left), -1) * sin[:, None])
    return torch.cat(halves, -1)
