"""One cache for rows that come and go: what was read of a prompt alone joins, what has ended leaves, at any token.

All rows end at one column, so that a step is one forward pass over them and writes one column; a shorter row has padding on its left,
which the mask hides. transformers' `DynamicCache` would copy all it holds at every token, and knows no row that comes later.
"""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

COLUMNS = 64
"""The least room of a layer, in tokens; it doubles when it is full."""


def joinable(cache: Any) -> bool:
    """Whether rows of this kind of cache can be put together: attention over all tokens or over a window, not the states of linear
    attention or what a library keeps in a way of its own."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return isinstance(cache, Cache) and bool(cache.layers) and all(type(layer) in kinds for layer in cache.layers)


def bytes_of(cache: Any) -> int:
    """What the keys and values of a cache take."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Slots:
    """The cache of the rows that are being decoded. `cache` goes into the model's forward pass and grows by one column with it."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.alone = False
        """It holds a row of a kind that is not `joinable`, and takes no other."""
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def width(self) -> int:
        """Columns: the length of the longest row."""
        return max(self._lengths, default=0)

    def join(self, cache: Any) -> None:
        """Put a cache of one row behind the others. One that is not `joinable` is taken as it is, alone."""
        length = cache.get_seq_length()
        if not joinable(cache):
            assert not self._lengths
            self.cache, self.alone, self._lengths = cache, True, [length]
            return
        if self.cache is None:
            self.cache = Cache(layers=[_emptied(layer) for layer in cache.layers])
        width = max(self.width, length)
        for ours, theirs in zip(self.cache.layers, cache.layers, strict=True):
            if isinstance(ours, _Full | _Sliding) and theirs.is_initialized:
                ours.join(theirs, len(self), width)
        self._lengths.append(length)

    def leave(self, places: list[int]) -> None:
        """Take rows out, the last one filling the gap: for each place, from the highest on, the last row moves there."""
        assert places == sorted(places, reverse=True)
        for place in places:
            last = len(self) - 1
            for layer in self._layers():
                layer.move(last, place)
            self._lengths[place] = self._lengths[last]
            self._lengths.pop()
        if not self._lengths:
            self.cache, self.alone = None, False  # and with it goes what a crowd had made it grow to
            return
        for layer in self._layers():
            layer.trim(len(self), self.width)

    def step(self, device: Any) -> tuple[Any, Any]:
        """For the next column: the mask `[rows, columns + 1]` and the positions `[rows, 1]`. From now on the rows count as longer by it."""
        import torch

        lengths = torch.tensor(self._lengths, device=device)
        columns = self.width + 1
        mask = torch.arange(columns, device=device) >= (columns - 1 - lengths)[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        return mask.long(), lengths[:, None]

    def _layers(self) -> list[_Full | _Sliding]:
        """Those that hold something: some models have layers that read another's."""
        return [layer for layer in self.cache.layers if isinstance(layer, _Full | _Sliding) and layer.is_initialized]


def _emptied(layer: Any) -> Any:
    """A layer of its kind without content."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return _Sliding(layer.sliding_window)
    return _Full() if isinstance(layer, DynamicLayer) else layer


class _Full(DynamicLayer):
    """All tokens, in room that is larger than what it holds: rows `[0, rows)`, columns `[start, end)`."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Any, Any] | None = None
        self._start = self._end = 0

    def join(self, theirs: Any, rows: int, width: int) -> None:
        length = theirs.keys.shape[-2]
        if self._room is None:
            self._room = tuple(_room(tensor, 1, length) for tensor in (theirs.keys, theirs.values))
            self.is_initialized, self.dtype, self.device = True, theirs.keys.dtype, theirs.keys.device
        self._make_room(rows, rows + 1, width)
        for room, new in zip(self._room, (theirs.keys, theirs.values), strict=True):
            room[rows, :, self._start : self._end - length] = 0
            room[rows, :, self._end - length : self._end] = new[0]
        self._look(rows + 1)

    def move(self, source: int, place: int) -> None:
        assert self._room is not None
        if source != place:
            for room in self._room:
                room[place, :, self._start : self._end] = room[source, :, self._start : self._end]

    def trim(self, rows: int, width: int) -> None:
        self._start = self._end - width
        self._look(rows)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        rows, more = key_states.shape[0], key_states.shape[-2]
        assert self._room is not None
        if self._end + more > self._room[0].shape[-2]:
            self._place(rows, self._end - self._start, 2 * (self._end - self._start + more))
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:rows, :, self._end : self._end + more] = new
        self._end += more
        self._look(rows)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._end - self._start

    def _look(self, rows: int) -> None:
        assert self._room is not None
        self.keys, self.values = (room[:rows, :, self._start : self._end] for room in self._room)

    def _make_room(self, rows: int, wanted: int, width: int) -> None:
        """Room for `wanted` rows, and for `width` columns up to the end."""
        assert self._room is not None
        held = self._room[0]
        if wanted > held.shape[0] or width > self._end:
            more_rows = 2 * held.shape[0] if wanted > held.shape[0] else 0
            self._place(rows, width, max(2 * width, held.shape[-2]), more_rows)
        for room in self._room:  # what is not a number would show through any mask
            room[:wanted, :, self._end - width : self._start] = 0
        self._start = self._end - width

    def _place(self, rows: int, end: int, columns: int, wanted: int = 0) -> None:
        """Move what is held into new room, so that it ends at column `end`."""
        assert self._room is not None
        width = self._end - self._start
        moved = []
        for old in self._room:
            new = _room(old, max(wanted, old.shape[0]), columns)
            new[:rows, :, end - width : end] = old[:rows, :, self._start : self._end]
            moved.append(new)
        self._room = tuple(moved)
        self._start, self._end = end - width, end


class _Sliding(DynamicSlidingWindowLayer):
    """The last tokens of each row. A window is short: it is copied, as transformers does."""

    keys: Any
    values: Any

    def join(self, theirs: Any, rows: int, width: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(theirs.keys, theirs.values)
        kept = min(width, self.sliding_window - 1)
        ours: list[Any] = [self.keys, self.values] if rows else [None, None]
        self.keys, self.values = (
            _stacked(held, new, kept) for held, new in zip(ours, (theirs.keys, theirs.values), strict=True)
        )
        self.cumulative_length = width

    def move(self, source: int, place: int) -> None:
        if source != place:
            self.keys[place], self.values[place] = self.keys[source], self.values[source]

    def trim(self, rows: int, width: int) -> None:
        kept = min(width, self.sliding_window - 1)
        self.keys, self.values = (held[:rows, :, held.shape[-2] - kept :].clone() for held in (self.keys, self.values))
        self.cumulative_length = width


def _room(like: Any, rows: int, columns: int) -> Any:
    """Zeros for rows and columns of such keys."""
    return like.new_zeros((rows, like.shape[1], max(columns, COLUMNS), like.shape[-1]))


def _stacked(held: Any, new: Any, columns: int) -> Any:
    """The last `columns` of both, one behind the other, with zeros before what is shorter. `held` is None for none."""
    both = [new] if held is None else [held, new]
    stacked = new.new_zeros((sum(map(len, both)), new.shape[1], columns, new.shape[-1]))
    rows = 0
    for each in both:
        kept = min(columns, each.shape[-2])
        stacked[rows : rows + len(each), :, columns - kept :] = each[:, :, each.shape[-2] - kept :]
        rows += len(each)
    return stacked
