"""Rows that left a stage, for browsing: placed canonical rows, and the rows that the stages rejected."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.prep import readers
from engine.prep.row_index import BadRow
from engine.prep.rows import Row
from engine.prep.stages import row_files
from engine.prep.stages.pipeline import StageRows

MOST = 10_000
"""Rejected rows that are kept for display; all are counted."""


class StagedFile:
    """A part as it left a stage, with an index of its rows: 8 bytes per row."""

    def __init__(self, path: Path, files: list[str], progress: Callable[[int], object]) -> None:
        self._path, self._files = path, files
        self._offsets = array("Q")
        offset = 0
        with path.open("rb") as file:
            for line in file:
                self._offsets.append(offset)
                offset += len(line)
                progress(offset)

    def __len__(self) -> int:
        return len(self._offsets)

    def place(self, index: int) -> str:
        """The file that a row comes from, in lower case."""
        return self._files[self._placed(index).file].lower()

    def raw(self, index: int) -> bytes:
        return self._placed(index).raw

    def raws(self) -> Iterator[bytes]:
        """All rows as bytes; opens the file once."""
        return (row.raw for row in row_files.read_file(self._path))

    def row(self, index: int, _raw: bytes | None = None) -> Row:
        found = self._placed(index)
        return Row(self._files[found.file], found.line, found.offset, found.row())

    def _placed(self, index: int) -> row_files.PlacedRow:
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            return row_files.parse_line(file.readline())


def open_parts(rows: StageRows, progress: Callable[[int], object]) -> dict[str, StagedFile]:
    """Part -> its file; parts without rows are absent. `progress` gets the bytes read of the current file."""
    return {part: StagedFile(path, rows.files, progress) for part, path in rows.parts.items()}


def read_bad_rows(rows: StageRows) -> list[BadRow]:
    """The first `MOST` rows that the stages rejected, each with its stage and reason."""
    found: list[BadRow] = []
    in_place: dict[Path, bool] = {}
    for path in rows.rejects:
        with path.open("rb") as file:
            for line in file:
                if len(found) == MOST:
                    return found
                entry = row_files.decode(line)
                source, stage = Path(entry["file"]), entry.get("stage", "validate")
                if source not in in_place:
                    in_place[source] = _is_read_in_place(source)
                stored = source if in_place[source] else path
                reason = f"{stage}: {entry['reason']}"
                found.append(BadRow(source, stored, entry["line"], entry["offset"], None, reason))
    return found


def _is_read_in_place(path: Path) -> bool:
    """Whether the places of a file's rows are places in the file itself."""
    try:
        return readers.is_lines(path)
    except (ValueError, OSError):
        return False
