"""Kinds of files. Each has an entry in `KINDS`: the "module:function" of a reader, `(stream, path) ->
Iterator[Record]`.

The stream is binary, uncompressed, and at the file's first byte; `path` is only for messages. The reader yields a
record with a reason for a row that cannot be read, and raises ValueError if it cannot read on.
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
"""Kinds that are not read sequentially: compressed files of these kinds are unpacked to a temporary file first."""
PACKINGS = {".gz": "engine.prep.files.packed:gunzip", ".zst": "engine.prep.files.packed:unzstd"}
"""Suffix of a compression -> the "module:function" that unpacks a stream. Any kind may be compressed."""
