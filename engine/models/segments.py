"""Attention over rows that are concatenated into one sequence, each of which attends only to itself.

Concatenated rows need no padding, and packed rows need this anyway. Where the device has a kernel for sequences of
several lengths (see `varlen`), one call computes a layer. Elsewhere each row (segment) goes through the attention that
the model had before, so no products between rows are computed, and a mask is built only for rows that are longer than a
sliding window.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.models.varlen import Boundaries, Varlen
from engine.protocol.text import first_line

NAME = "segments"
"""The name of the attention implementation in transformers' registry."""
_KINDS = {"full_attention", "sliding_attention"}
"""The layer types of transformers whose attention is causal, within a window or not."""


@dataclass(frozen=True)
class Window:
    """Takes the place of a mask: how many tokens back a token attends, itself included; None: to its row's beginning.

    The models of transformers give each layer the mask of its type, so the window reaches the attention of every
    architecture, whether or not it passes `sliding_window` on.
    """

    tokens: int | None


class Segments:
    """Lengths in tokens of the rows in the current sequence; None for an ordinary batch, as in generation.

    They are stored here rather than passed through `forward`, since not every architecture passes unknown arguments on.
    A backward pass recomputes the latest forward pass, so the lengths stay until the next one.
    """

    def __init__(self, varlen: Varlen | None = None) -> None:
        """`varlen` is the kernel for all rows at once, where one has proved itself on this device."""
        self.varlen = varlen
        self._lengths: Sequence[int] | None = None
        self._boundaries: Boundaries | None = None
        self._masks: dict[Any, Any] = {}
        """Those of the current lengths, which all layers share."""
        self._before = "sdpa"
        self._model: Any = None

    @property
    def lengths(self) -> Sequence[int] | None:
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: Sequence[int] | None) -> None:
        self._lengths, self._boundaries = lengths, None
        self._masks.clear()

    def install(self, model: Any) -> None:
        """Make `model` attend in segments whenever lengths are set."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        self._model, self._before = model, model.config._attn_implementation
        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, self._mask)
        model.set_attn_implementation(NAME)

    def uninstall(self) -> None:
        """Give the model the attention that it had before."""
        self._model.set_attn_implementation(self._before)

    def mask(self, inputs: Any) -> Any:
        """The attention mask [1, tokens] to pass to the model with `inputs` [1, tokens]; None for an ordinary batch.

        It says that nothing is padding. Without a mask, transformers would look in the positions for rows that are
        joined, and wait for the device in every forward pass.
        """
        import torch

        return None if self._lengths is None else torch.ones_like(inputs, dtype=torch.bool)

    def _attend(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **arguments: Any
    ) -> tuple[Any, Any]:
        """query, key, value: [1, heads, tokens, width]; returns [1, tokens, heads, width]."""
        attend = self._find_plain(module)
        if self._lengths is None:
            whole: tuple[Any, Any] = attend(module, query, key, value, attention_mask, **arguments)
            return whole
        if not isinstance(attention_mask, Window):
            raise RuntimeError(f"{type(module).__name__} makes its own attention mask, so rows cannot be joined")
        window = attention_mask.tokens
        if self._before.startswith("flash"):
            arguments |= {"sliding_window": window, **self._find_boundaries(query.device).flash_arguments()}
            return attend(module, query, key, value, None, **arguments)[0], None
        if self.varlen is not None and self.varlen.takes(module, query, value, arguments):
            boundaries = self._find_boundaries(query.device)
            return self.varlen.attend(query, key, value, boundaries, window, arguments.get("scaling")), None
        return self._attend_by_row(attend, module, (query, key, value), window, arguments), None

    def _find_boundaries(self, device: Any) -> Boundaries:
        """Those of the current lengths; they are sent to the device once."""
        if self._boundaries is None:
            assert self._lengths is not None
            self._boundaries = Boundaries.of(self._lengths, device)
        return self._boundaries

    def _attend_by_row(
        self, attend: Callable[..., Any], module: Any, tensors: Sequence[Any], window: int | None, arguments: Any
    ) -> Any:
        import torch

        found = []
        for part in zip(*(tensor.split(self._lengths, dim=2) for tensor in tensors), strict=True):
            found.append(attend(module, *part, self._mask_row(part[0], window), **arguments)[0])
        return torch.cat(found, dim=1)

    def _mask_row(self, query: Any, window: int | None) -> Any:
        """The mask of one row; None where the attention itself masks the future and nothing else is masked."""
        import torch

        tokens = query.shape[2]
        window = None if window is None or tokens <= window else window
        eager = self._before.startswith("eager")
        if window is None and not eager:
            return None
        made = (tokens, window, query.dtype if eager else torch.bool)
        if made not in self._masks:
            self._masks[made] = _make_mask(*made, query.device)
        return self._masks[made]

    def _find_plain(self, module: Any) -> Callable[..., Any]:
        """The attention that the model had before."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if self._before in ALL_ATTENTION_FUNCTIONS:
            plain: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[self._before]
        else:  # each model's file has its own
            plain = sys.modules[type(module).__module__].eager_attention_forward
        return plain

    def _mask(self, *arguments: Any, **named: Any) -> Any:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        if self._lengths is None:
            return ALL_MASK_ATTENTION_FUNCTIONS[self._before](*arguments, **named)
        if named.get("use_vmap"):
            raise RuntimeError("this model changes the causal mask, so rows cannot be joined")
        return _window(named.get("local_size"))


@lru_cache(maxsize=64)
def _window(tokens: int | None) -> Window:
    """Always the same object, which compiled layers take for a constant."""
    return Window(tokens)


def _make_mask(tokens: int, window: int | None, dtype: Any, device: Any) -> Any:
    """The causal mask [1, 1, tokens, tokens] of one row: True where a token attends, or for a floating-point dtype 0
    there and its lowest number elsewhere."""
    import torch

    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    if dtype != torch.bool:
        seen = torch.zeros(tokens, tokens, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return seen[None, None]


def can_use_segments(model: Any) -> bool:
    """Whether `model` may be able to use segments: its attention is causal, and comes through transformers' registry.
    `prove` shows whether it is."""
    config = model.config.get_text_config()
    known = set(getattr(config, "layer_types", None) or ["full_attention"]) <= _KINDS
    return (
        model._can_set_attn_implementation()
        and str(model.config._attn_implementation).split("_")[0] in ("sdpa", "eager", "flash")
        and known
        and getattr(config, "is_causal", True)
        and not getattr(config, "use_bidirectional_attention", False)
        and not getattr(model, "reads_both_ways", False)
    )


def prove(model: Any, segments: Segments, tolerance: float = 0.03) -> str:
    """Try segments on a few tokens: joined, two rows must have the outputs that they have alone. Returns what went
    wrong; empty when nothing did. `tolerance` is relative, to the norm of all outputs."""
    import torch

    table = model.get_input_embeddings()
    vocabulary = getattr(table, "num_embeddings", 0) or table.weight.shape[0]
    ids = torch.arange(3, 12, device=model.device)[None] % vocabulary
    rows = ids.split([5, 4], dim=1)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([_outputs(model, row) for row in rows], dim=1)
            segments.lengths = [5, 4]
            positions = torch.cat([torch.arange(row.shape[1], device=ids.device) for row in rows])[None]
            joined = _outputs(model, ids, position_ids=positions, attention_mask=segments.mask(ids))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        return first_line(error)
    finally:
        segments.lengths = None
        model.train(training)
    difference = float((joined - alone).norm() / alone.norm())
    return "" if difference <= tolerance else f"joined rows differ from rows alone by {difference:.2g}"


def _outputs(model: Any, ids: Any, **arguments: Any) -> Any:
    """The outputs of the last layer, [1, tokens, width], in float32."""
    found = model(input_ids=ids, use_cache=False, output_hidden_states=True, **arguments)
    return (found.hidden_states[-1] if getattr(found, "hidden_states", None) else found.logits).float()
