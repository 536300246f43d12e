"""Finds equal and similar rows: a hash and a MinHash signature of each row, on disk, and clusters of these.

Signatures are rensa's R-MinHash (https://github.com/beowolx/rensa; Dahlgaard, Knudsen, Thorup, Fast Similarity
Sketching, 2017) over character shingles, which also suit languages without blanks between words. Candidates share a
band of the signature (locality-sensitive hashing; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3); they
are similar if the share of equal slots in their signatures reaches the threshold (standard error 0.03 at 0.8). Memory
is about 20 bytes per row plus at most a few hundred megabytes; larger files are read in parts.

Shingles that many rows share, such as those of an instruction that all rows begin with, say nothing about whether two
rows are alike: they are left out. They are found in a sample of the rows, which depends on their content alone.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engine.prep import chunks
from engine.prep.chunks import Span
from engine.prep.stages import row_files, row_text
from engine.prep.stages.context import Context
from engine.prep.stages.row_files import PlacedRow

SLOTS = 128
"""Numbers in a signature, 16 bits each."""
HASH = 16
"""Bytes of the hash of a whole row."""
WORK = "engine.prep.stages.fingerprints:fingerprint_span"
SIGN = "engine.prep.stages.fingerprints:sign_span"

_SEED = 42
_BATCH = 2**20
"""Characters whose shingles are hashed together."""
_LONGEST = 2**20
"""Characters of a row that are compared; only the beginning of longer rows counts."""
_PART = 2**22
"""Rows whose keys are sorted together."""
_PAIRS = 2**15
"""Pairs compared together."""
_SAMPLE = 1024
"""Rows in which shared shingles are counted: those with the lowest hashes."""
_SAMPLED = 2**15
"""Characters of such a row, from its beginning."""
_SHARED, _SHARED_ROWS = 0.1, 10
"""A shingle is shared if more than this share of the rows, and more than this number of them, have it."""
_RECALL = 0.99
"""Minimum probability that two rows exactly at the threshold become candidates."""


@dataclass(frozen=True)
class Fingerprints:
    """Files with an entry per row, in the rows' order: `hashes` of 16 bytes, `signatures` of 128 uint16, `places`
    (file, line)."""

    folder: Path
    rows: int

    @property
    def hashes(self) -> Path:
        return self.folder / "hashes.bin"

    @property
    def signatures(self) -> Path:
        return self.folder / "signatures.bin"

    @property
    def places(self) -> Path:
        return self.folder / "places.bin"


def take_fingerprints(paths: Sequence[Path], shingle: int, near: bool, context: Context, phase: str) -> Fingerprints:
    """Compute the fingerprints of all rows of these files in `context.folder`. Without `near`, the signatures stay
    empty."""
    context.folder.mkdir(parents=True, exist_ok=True)
    settings = context.settings(shingle=shingle, near=near)
    results = context.work_through(paths, WORK, settings, phase)
    prints = Fingerprints(context.folder, 0)
    into = {"hashes": prints.hashes, "signatures": prints.signatures, "places": prints.places}
    sample = context.folder / "sample.jsonl"
    counts = chunks.gather(results, {**into, "sample": sample})
    if near and (shared := find_shared(sample, shingle)):
        listed = context.folder / "shared.bin"
        listed.write_bytes(shared)
        results = context.within("unshared").work_through(paths, SIGN, {**settings, "shared": str(listed)}, phase)
        chunks.gather(results, {"signatures": prints.signatures})
    return Fingerprints(context.folder, sum(each["rows"] for each in counts))


def find_shared(sample: Path, shingle: int) -> bytes:
    """The hashes (uint64, ascending) of the shingles that many of the sampled rows have; empty if there are none."""
    import numpy as np

    with sample.open("rb") as file:
        known = {entry[0]: entry[1] for entry in map(row_files.decode, file)}
    texts = [known[key] for key in sorted(known)[:_SAMPLE]]
    if len(texts) <= _SHARED_ROWS:
        return b""
    hashes, offsets = hash_shingles(texts, shingle)
    borders = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    found, counts = np.unique(
        np.concatenate([np.unique(hashes[start:end]) for start, end in borders]), return_counts=True
    )
    return bytes(found[counts > max(_SHARED_ROWS, _SHARED * len(texts))].tobytes())


def find_equal(prints: Fingerprints) -> Any:
    """int64[rows]: for each row the first one with the same hash, which may be the row itself."""
    import numpy as np

    first = np.arange(prints.rows, dtype=np.int64)
    parts = math.ceil(prints.rows / _PART)
    for part in range(parts):
        mine = [
            (start + np.flatnonzero(block[:, 0] % parts == part), block[block[:, 0] % parts == part])
            for start, block in _read_blocks(prints.hashes, "<u8", 2)
        ]
        index = np.concatenate([rows for rows, _ in mine])
        keys = np.concatenate([hashes for _, hashes in mine])
        order = np.lexsort((index, keys[:, 1], keys[:, 0]))
        index, keys = index[order], keys[order]
        begins = np.ones(len(index), dtype=bool)
        begins[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        first[index] = index[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def cluster_near(prints: Fingerprints, among: Any, threshold: float) -> Any:
    """int64[rows]: for each row the first row of its cluster. Rows whose similarity reaches `threshold` are in the same
    cluster.

    `among` (bool[rows]) selects the rows to compare; each other row is its own cluster. Rows are compared in the order
    of their hashes, so the result does not depend on their order.
    """
    import numpy as np

    label = np.arange(prints.rows, dtype=np.int64)
    rank = np.concatenate([block[:, 0] for _, block in _read_blocks(prints.hashes, "<u8", 2)] or [label.astype("<u8")])
    with Signatures(prints) as table:
        for key, index in _read_bands(prints, among, choose_bands(threshold)):
            order = np.lexsort((rank[index], key))
            key, index = key[order], index[order]
            again = np.zeros(len(key), dtype=bool)
            again[1:] = key[1:] == key[:-1]
            here = np.flatnonzero(again)
            begins = np.flatnonzero(~again)
            firsts = begins[np.cumsum(~again) - 1]
            for other in (index[here - 1], index[firsts[here]]):
                _link(label, index[here], other, table, threshold)
    return label


def choose_bands(threshold: float) -> list[tuple[int, int]]:
    """The slots [start, end) of each band: the widest bands of which rows at the threshold still share one (see
    `_RECALL`)."""
    for width in range(SLOTS, 1, -1):
        count = SLOTS // width
        if 1 - (1 - threshold**width) ** count >= _RECALL:
            return [(start, start + width) for start in range(0, count * width, width)]
    return [(start, start + 1) for start in range(SLOTS)]


class Signatures:
    """Random access to the file of signatures. It is not mapped into memory, because most of its pages would become
    resident."""

    def __init__(self, prints: Fingerprints) -> None:
        self._file = prints.signatures.open("rb", buffering=0)

    def __enter__(self) -> Signatures:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, rows: Any) -> Any:
        """The signatures of these rows, uint16 [len(rows), SLOTS]."""
        import numpy as np

        wanted, place = np.unique(rows, return_inverse=True)
        file, size = self._file.fileno(), 2 * SLOTS
        content = b"".join([os.pread(file, size, size * row) for row in wanted.tolist()])
        return np.frombuffer(content, dtype="<u2").reshape(-1, SLOTS)[place]


def _read_blocks(path: Path, kind: str, width: int) -> Iterator[tuple[int, Any]]:
    """Reads a file of rows of `width` numbers in parts; yields (number of the first row, rows)."""
    import numpy as np

    start = 0
    with path.open("rb") as file:
        while len(block := np.fromfile(file, dtype=kind, count=2**18 * width)):
            block = block.reshape(-1, width)
            yield start, block
            start += len(block)


def _read_bands(prints: Fingerprints, among: Any, cuts: list[tuple[int, int]]) -> Iterator[tuple[Any, Any]]:
    """Yields (uint64 keys, row numbers) of each band, in parts that fit into memory; equal keys are in the same
    part."""
    import numpy as np

    parts = max(1, math.ceil(prints.rows / _PART))
    together = max(1, _PART // max(1, prints.rows // parts))
    for at in range(0, len(cuts), together):
        group = cuts[at : at + together]
        for part in range(parts):
            found: list[list[Any]] = [[] for _ in group]
            rows: list[list[Any]] = [[] for _ in group]
            for start, block in _read_blocks(prints.signatures, "<u2", SLOTS):
                taking = among[start : start + len(block)]
                for number, (low, high) in enumerate(group):
                    keys = _mix_columns(block[:, low:high])
                    mine = np.flatnonzero(taking & (keys % np.uint64(parts) == part))
                    found[number].append(keys[mine])
                    rows[number].append(start + mine)
            for keys_of, rows_of in zip(found, rows, strict=True):
                if keys_of:
                    yield np.concatenate(keys_of), np.concatenate(rows_of)


def _link(parent: Any, left: Any, right: Any, table: Signatures, threshold: float) -> None:
    """Join the clusters of the pairs that are similar. `parent` leads from each row to the first one of its cluster."""
    import numpy as np

    for at in range(0, len(left), _PAIRS):
        ours, theirs = left[at : at + _PAIRS], right[at : at + _PAIRS]
        apart = _roots(parent, ours) != _roots(parent, theirs)
        ours, theirs = ours[apart], theirs[apart]
        if not len(ours):
            continue
        alike = (table.read(ours) == table.read(theirs)).mean(axis=1) >= threshold
        edges = np.stack([_roots(parent, ours[alike]), _roots(parent, theirs[alike])], axis=1)
        for one, two in np.unique(edges, axis=0).tolist():
            while parent[one] != one:
                one = parent[one]
            while parent[two] != two:
                two = parent[two]
            parent[max(one, two)] = min(one, two)
    parent[:] = _roots(parent, parent)


def _roots(parent: Any, rows: Any) -> Any:
    found = parent[rows]
    while ((further := parent[found]) != found).any():
        found = further
    return found


# ── in the worker processes ────────────────────────────────────────────────────────────────────────────────────────


def fingerprint_span(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    rows = 0
    sample: dict[str, str] = {}

    def read(hashes: BinaryIO, places: BinaryIO) -> Iterator[tuple[str, int]]:
        nonlocal rows, sample
        for row, content in _read_rows(span, settings):
            text = row_files.encode_sorted([{key: each[key] for key in each if key != "columns"} for each in content])
            digest = hashlib.blake2b(text, digest_size=HASH).digest()
            hashes.write(digest)
            places.write(np.array([row.file, row.line], dtype="<i8").tobytes())
            rows += 1
            if settings["near"]:
                compared = row_text.comparable_text(content)[:_LONGEST]
                sample[digest.hex()] = compared[:_SAMPLED]
                if len(sample) >= 2 * _SAMPLE:
                    sample = {key: sample[key] for key in sorted(sample)[:_SAMPLE]}
                yield compared, _label_hash(content)

    with (folder / "hashes").open("wb") as hashes, (folder / "places").open("wb") as places:
        _write_signatures(read(hashes, places), folder / "signatures", settings["shingle"])
    entries = (row_files.encode([key, sample[key]]) + b"\n" for key in sorted(sample)[:_SAMPLE])
    (folder / "sample").write_bytes(b"".join(entries))
    return {"rows": rows}


def sign_span(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The signatures alone, without the shingles in the file `shared`."""
    import numpy as np

    compared = (
        (row_text.comparable_text(content)[:_LONGEST], _label_hash(content))
        for _, content in _read_rows(span, settings)
    )
    shared = np.fromfile(settings["shared"], dtype=np.uint64)
    _write_signatures(compared, folder / "signatures", settings["shingle"], shared)
    return {}


def _read_rows(span: Span, settings: dict[str, Any]) -> Iterator[tuple[PlacedRow, list[dict[str, Any]]]]:
    """The rows of a span, with their canonical rows."""
    for row in row_files.read_span(span):
        yield row, row_text.to_canonical(row.row(), settings["formats"][row.file] if settings["formats"] else None)


def _write_signatures(compared: Iterable[tuple[str, int]], path: Path, shingle: int, shared: Any = None) -> None:
    """Write the signature of each (text, hash of the labels)."""
    waiting: list[tuple[str, int]] = []
    size = 0
    with path.open("wb") as kept:
        for each in compared:
            waiting.append(each)
            size += len(each[0])
            if size >= _BATCH:
                kept.write(_compute_signatures(waiting, shingle, shared))
                waiting, size = [], 0
        if waiting:
            kept.write(_compute_signatures(waiting, shingle, shared))


def _label_hash(content: list[dict[str, Any]]) -> int:
    """A hash of the labels, so that the same reply judged good and judged bad counts as two different rows."""
    labels = [each["label"] for each in content if "label" in each]
    return zlib.crc32(repr(labels).encode()) if labels else 0


def _compute_signatures(compared: list[tuple[str, int]], size: int, shared: Any = None) -> bytes:
    import numpy as np
    from rensa import RMinHash  # type: ignore[import-untyped]

    hashes, offsets = hash_shingles([text for text, _ in compared], size)
    if shared is not None:
        hashes, offsets = _leave_out(hashes, offsets, shared)
    hashes ^= np.repeat(np.array([apart for _, apart in compared], dtype=np.uint64), np.diff(offsets))
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, SLOTS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).astype("<u2").tobytes()


def _leave_out(hashes: Any, offsets: Any, shared: Any) -> tuple[Any, Any]:
    """The hashes and offsets without the shared shingles. A text that has no others keeps them."""
    import numpy as np

    place = np.minimum(np.searchsorted(shared, hashes), len(shared) - 1)
    own = shared[place] != hashes
    left = np.add.reduceat(own.astype(np.int64), offsets[:-1])
    own |= np.repeat(left == 0, np.diff(offsets))
    left = np.where(left == 0, np.diff(offsets), left)
    return hashes[own], np.concatenate([[0], np.cumsum(left)])


def hash_shingles(compared: list[str], size: int) -> tuple[Any, Any]:
    """Hashes (uint64) of all runs of `size` characters, text after text, and the offset of each text's first hash and
    the end (int64).

    A text shorter than `size` is a single shingle.
    """
    import numpy as np

    padded = [text.ljust(size, "\0") for text in compared]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    ends = np.cumsum(lengths)
    rolled = np.zeros(len(points), dtype=np.uint64)
    for place in range(size):
        rolled *= np.uint64(0x9E3779B97F4A7C15)
        rolled[: len(points) - place] += points[place:] + np.uint64(1)
    whole = np.ones(len(points), dtype=bool)
    for place in range(1, size):
        whole[ends - place] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - size + 1)])
    return mix(rolled[whole]), offsets


def _mix_columns(columns: Any) -> Any:
    """A hash (uint64) of each row of numbers."""
    import numpy as np

    key = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        key = (key + column.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return mix(key)


def mix(values: Any) -> Any:
    """SplitMix64's finaliser (Steele, Lea, Flood, 2014): every bit of the result depends on every bit of the value."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
