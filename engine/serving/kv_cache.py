"""One key-value cache for rows that join and leave at any token.

All rows end at the same column, so that a step is one forward pass that writes one column; a shorter row is padded on
the left, and masked there. transformers' `DynamicCache` would copy its whole content at every token, and cannot take a
new row.
"""

from __future__ import annotations

from typing import Any

from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

_JOINABLE = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    getattr(cache_utils, "DummyLayer", DynamicLayer),  # transformers 5.17 has none
)
COLUMNS = 64
"""The least capacity of a layer, in tokens; it doubles when it is full."""


def is_joinable(cache: Any) -> bool:
    """Whether rows of this kind of cache can be combined: those of attention over all tokens or a window can, the
    states of linear attention and other kinds cannot."""
    return isinstance(cache, Cache) and bool(cache.layers) and all(type(layer) in _JOINABLE for layer in cache.layers)


def count_bytes(cache: Any) -> int:
    """The bytes of a cache's keys and values."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class SlotCache:
    """The cache of the rows that are being decoded. `cache` is passed to the model's forward pass, which adds one
    column."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.exclusive = False
        """Whether it holds a row that is not joinable, and so accepts no other."""
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def width(self) -> int:
        """The number of columns: the length of the longest row."""
        return max(self._lengths, default=0)

    def join(self, cache: Any) -> None:
        """Add a cache of one row after the others. One that is not joinable is taken as it is, as the only one."""
        length = cache.get_seq_length()
        if not is_joinable(cache):
            assert not self._lengths
            self.cache, self.exclusive, self._lengths = cache, True, [length]
            return
        if self.cache is None:
            self.cache = Cache(layers=[_empty_layer(layer) for layer in cache.layers])
        width = max(self.width, length)
        for ours, theirs in zip(self.cache.layers, cache.layers, strict=True):
            if isinstance(ours, _FullLayer | _SlidingLayer) and theirs.is_initialized:
                ours.join(theirs, len(self), width)
        self._lengths.append(length)

    def leave(self, places: list[int]) -> None:
        """Remove rows. For each place, from the highest on, the last row moves there."""
        assert places == sorted(places, reverse=True)
        for place in places:
            last = len(self) - 1
            for layer in self._layers():
                layer.move(last, place)
            self._lengths[place] = self._lengths[last]
            self._lengths.pop()
        if not self._lengths:
            self.cache, self.exclusive = None, False  # which frees the capacity that many rows had needed
            return
        for layer in self._layers():
            layer.trim(len(self), self.width)

    def step(self, device: Any) -> tuple[Any, Any]:
        """The mask `[rows, columns + 1]` and the positions `[rows, 1]` of the next column, by which the rows become
        longer."""
        import torch

        lengths = torch.tensor(self._lengths, device=device)
        columns = self.width + 1
        mask = torch.arange(columns, device=device) >= (columns - 1 - lengths)[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        return mask.long(), lengths[:, None]

    def _layers(self) -> list[_FullLayer | _SlidingLayer]:
        """The layers with content: some models have layers that use another's."""
        return [
            layer
            for layer in self.cache.layers
            if isinstance(layer, _FullLayer | _SlidingLayer) and layer.is_initialized
        ]


def _empty_layer(layer: Any) -> Any:
    """An empty layer of the same kind."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return _SlidingLayer(layer.sliding_window)
    return _FullLayer() if isinstance(layer, DynamicLayer) else layer


class _FullLayer(DynamicLayer):
    """All tokens, in larger buffers: rows `[0, rows)`, columns `[start, end)`."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Any, Any] | None = None
        self._start = self._end = 0

    def join(self, theirs: Any, rows: int, width: int) -> None:
        length = theirs.keys.shape[-2]
        if self._buffers is None:
            self._buffers = tuple(_allocate(tensor, 1, length) for tensor in (theirs.keys, theirs.values))
            self.is_initialized, self.dtype, self.device = True, theirs.keys.dtype, theirs.keys.device
        self._make_room(rows, rows + 1, width)
        for buffer, new in zip(self._buffers, (theirs.keys, theirs.values), strict=True):
            buffer[rows, :, self._start : self._end - length] = 0
            buffer[rows, :, self._end - length : self._end] = new[0]
        self._set_views(rows + 1)

    def move(self, source: int, place: int) -> None:
        assert self._buffers is not None
        if source != place:
            for buffer in self._buffers:
                buffer[place, :, self._start : self._end] = buffer[source, :, self._start : self._end]

    def trim(self, rows: int, width: int) -> None:
        self._start = self._end - width
        self._set_views(rows)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        rows, more = key_states.shape[0], key_states.shape[-2]
        assert self._buffers is not None
        if self._end + more > self._buffers[0].shape[-2]:
            self._reallocate(rows, self._end - self._start, 2 * (self._end - self._start + more))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, self._end : self._end + more] = new
        self._end += more
        self._set_views(rows)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._end - self._start

    def _set_views(self, rows: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[:rows, :, self._start : self._end] for buffer in self._buffers)

    def _make_room(self, rows: int, needed: int, width: int) -> None:
        """Capacity for `needed` rows, and for `width` columns up to the end."""
        assert self._buffers is not None
        held = self._buffers[0]
        if needed > held.shape[0] or width > self._end:
            more_rows = 2 * held.shape[0] if needed > held.shape[0] else 0
            self._reallocate(rows, width, max(2 * width, held.shape[-2]), more_rows)
        for buffer in self._buffers:  # NaN would pass through any mask
            buffer[:needed, :, self._end - width : self._start] = 0
        self._start = self._end - width

    def _reallocate(self, rows: int, end: int, columns: int, needed: int = 0) -> None:
        """Move the content into new buffers, so that it ends at column `end`."""
        assert self._buffers is not None
        width = self._end - self._start
        moved = []
        for old in self._buffers:
            new = _allocate(old, max(needed, old.shape[0]), columns)
            new[:rows, :, end - width : end] = old[:rows, :, self._start : self._end]
            moved.append(new)
        self._buffers = tuple(moved)
        self._start, self._end = end - width, end


class _SlidingLayer(DynamicSlidingWindowLayer):
    """The last tokens of each row. A window is short, so it is copied, as in transformers."""

    keys: Any
    values: Any

    def join(self, theirs: Any, rows: int, width: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(theirs.keys, theirs.values)
        kept = min(width, self.sliding_window - 1)
        ours: list[Any] = [self.keys, self.values] if rows else [None, None]
        self.keys, self.values = (
            _stack(held, new, kept) for held, new in zip(ours, (theirs.keys, theirs.values), strict=True)
        )
        self.cumulative_length = width

    def move(self, source: int, place: int) -> None:
        if source != place:
            self.keys[place], self.values[place] = self.keys[source], self.values[source]

    def trim(self, rows: int, width: int) -> None:
        kept = min(width, self.sliding_window - 1)
        self.keys, self.values = (held[:rows, :, held.shape[-2] - kept :].clone() for held in (self.keys, self.values))
        self.cumulative_length = width


def _allocate(like: Any, rows: int, columns: int) -> Any:
    """A buffer of zeros for keys or values `like` these."""
    return like.new_zeros((rows, like.shape[1], max(columns, COLUMNS), like.shape[-1]))


def _stack(held: Any, new: Any, columns: int) -> Any:
    """The rows of both, each cut to the last `columns` or padded with zeros on the left. `held` may be None."""
    both = [new] if held is None else [held, new]
    stacked = new.new_zeros((sum(map(len, both)), new.shape[1], columns, new.shape[-1]))
    rows = 0
    for each in both:
        kept = min(columns, each.shape[-2])
        stacked[rows : rows + len(each), :, columns - kept :] = each[:, :, each.shape[-2] - kept :]
        rows += len(each)
    return stacked
