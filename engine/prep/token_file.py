"""A flat token file with an index, for pretraining at scale: what many loaders want, and the smallest that there is.

A folder of three files, little-endian, each readable with `numpy.memmap` and nothing else:

    tokens.bin    the tokens of all documents end to end, uint16 when the vocabulary allows, else uint32
    offsets.bin   int64, one more than there are documents: document i is tokens[offsets[i]:offsets[i + 1]]
    flat.json     {"dtype", "tokens", "documents", "vocabulary"}; written last

Documents are whole, as the tokenizer made them: with the end token that `tokenize` puts behind a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from engine.prep.token_store import TokenSet
from engine.protocol.home import sync, write_private


class FlatTokens(NamedTuple):
    """`tokens` [tokens] and `offsets` [documents + 1]: arrays that lie in the files."""

    tokens: Any
    offsets: Any

    def document(self, number: int) -> Any:
        """The tokens of a document. Raises IndexError when there is none of that number."""
        if not 0 <= number < len(self.offsets) - 1:
            raise IndexError(f"there is no document {number} among {len(self.offsets) - 1}")
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


def write(plain: Path, folder: Path, vocabulary: int) -> dict[str, Any]:
    """The plain Arrow set `plain` as flat files in `folder`. `vocabulary`: one more than the largest token id. Returns flat.json's content."""
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
    """Map what `write` has written. Raises ValueError when the files are not complete."""
    import numpy

    try:
        content = json.loads((folder / "flat.json").read_text(encoding="utf-8"))
        dtype = numpy.dtype(content["dtype"]).newbyteorder("<")
        sizes = {"tokens.bin": content["tokens"] * dtype.itemsize, "offsets.bin": (content["documents"] + 1) * 8}
        wrong = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} holds no flat token file: {error}")
    if wrong:
        raise ValueError(f"{folder}: {', '.join(wrong)} is not as long as flat.json says: write the set again")
    offsets = numpy.memmap(folder / "offsets.bin", dtype="<i8", mode="r")
    if not content["tokens"]:
        return FlatTokens(numpy.zeros(0, dtype=dtype), offsets)  # an empty file cannot be mapped
    return FlatTokens(numpy.memmap(folder / "tokens.bin", dtype=dtype, mode="r"), offsets)
