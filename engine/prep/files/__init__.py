"""Kinds of files. One row a kind: a "module:function" that yields the `Record`s of an open file, `(stream, path) -> Iterator[Record]`.

The stream is binary, stands at the file's first byte and holds it unpacked; `path` is for names. A function yields a record with a
reason for a row that cannot be read, and raises ValueError for a file of which nothing more can be read.
"""

KINDS = {
    ".jsonl": "engine.prep.files.jsonl:read",
    ".json": "engine.prep.files.json_document:read",
    ".csv": "engine.prep.files.delimited:read_csv",
    ".tsv": "engine.prep.files.delimited:read_tsv",
    ".parquet": "engine.prep.files.parquet:read",
    ".arrow": "engine.prep.files.arrow:read",
    ".txt": "engine.prep.files.plain:read",
}
SEEKING = (".parquet", ".arrow")
"""Kinds that are not read from front to back: packed ones are unpacked to a temporary file first."""
PACKINGS = {".gz": "engine.prep.files.packed:gunzip", ".zst": "engine.prep.files.packed:unzstd"}
"""Endings that any kind may have behind its own: a "module:function" that gives the unpacked stream of a packed one."""
