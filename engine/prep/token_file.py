"""A flat token file with an index, the compact form that many pretraining loaders read.

A folder of three files, little-endian; `numpy.memmap` alone can read them:

    tokens.bin    the tokens of all documents end to end, uint16 if the vocabulary fits, else uint32
    offsets.bin   int64, one more than there are documents: document i is tokens[offsets[i]:offsets[i + 1]]
    flat.json     {"dtype", "tokens", "documents", "vocabulary"}; written last

Each document is whole and ends with the end token that `tokenize` adds to a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from engine.prep.token_store import TokenSet
from engine.protocol.home import sync, write_private


class FlatTokens(NamedTuple):
    """`tokens` [tokens] and `offsets` [documents + 1], arrays mapped from the files."""

    tokens: Any
    offsets: Any

    def document(self, number: int) -> Any:
        """The tokens of a document. Raises IndexError if there is no such document."""
        if not 0 <= number < len(self.offsets) - 1:
            raise IndexError(f"there is no document {number} among {len(self.offsets) - 1}")
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


def write(plain: Path, folder: Path, vocabulary: int) -> dict[str, Any]:
    """Write the plain Arrow set `plain` as flat files into `folder`. `vocabulary` is one more than the largest token
    id. Returns the content of flat.json."""
    import numpy

    dtype = "uint16" if vocabulary <= 2**16 else "uint32"
    folder.mkdir(parents=True, exist_ok=True)
    total = documents = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "offsets.bin").open("wb") as offsets:
        offsets.write(numpy.zeros(1, dtype="<i8").tobytes())
        for lengths, ids, _ in TokenSet(plain).batches():
            assert not len(ids) or 0 <= ids.min() <= ids.max() < vocabulary, (ids.min(), ids.max(), vocabulary)
            tokens.write(ids.astype(numpy.dtype(dtype).newbyteorder("<")).tobytes())
            offsets.write((total + numpy.cumsum(lengths, dtype="<i8")).tobytes())
            total += len(ids)
            documents += len(lengths)
    for name in ("tokens.bin", "offsets.bin"):
        sync(folder / name)
    content = {"dtype": dtype, "tokens": total, "documents": documents, "vocabulary": vocabulary}
    write_private(folder / "flat.json", json.dumps(content).encode())
    return content


def read(folder: Path) -> FlatTokens:
    """Map the files that `write` has written. Raises ValueError if they are incomplete."""
    import numpy

    try:
        content = json.loads((folder / "flat.json").read_text(encoding="utf-8"))
        dtype = numpy.dtype(content["dtype"]).newbyteorder("<")
        sizes = {"tokens.bin": content["tokens"] * dtype.itemsize, "offsets.bin": (content["documents"] + 1) * 8}
        wrong = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} has no flat token file: {error}")
    if wrong:
        raise ValueError(f"{folder}: {', '.join(wrong)} does not have the length in flat.json: write the set again")
    offsets = numpy.memmap(folder / "offsets.bin", dtype="<i8", mode="r")
    if not content["tokens"]:
        return FlatTokens(numpy.zeros(0, dtype=dtype), offsets)  # an empty file cannot be mapped
    return FlatTokens(numpy.memmap(folder / "tokens.bin", dtype=dtype, mode="r"), offsets)
