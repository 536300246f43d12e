"""The registry: an SQLite index of the run directories, which can be rebuilt from them at any time.

Metric points are stored by step; a later attempt replaces an earlier one. Two levels of summaries (of 64 and 4096
steps) let a curve of a million points be read as a few thousand rows. All calls come from one thread (the server's
single-worker executor), in order. The table `told` holds the journal entries that are not metrics.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.protocol.messages import Run, Series, Telemetry

LEVELS = (64, 4096)
"""Steps in a bucket of each summary level."""
HOUR = 3600.0
MINUTE = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, number INTEGER, summary BLOB, offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS names (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS points (
    run INTEGER, name INTEGER, step INTEGER, value REAL, PRIMARY KEY (run, name, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS buckets (
    run INTEGER, name INTEGER, span INTEGER, bucket INTEGER,
    first INTEGER, last INTEGER, low REAL, high REAL, final REAL, count INTEGER, sum REAL,
    PRIMARY KEY (run, name, span, bucket)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (run INTEGER, offset INTEGER, line BLOB, PRIMARY KEY (run, offset)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS telemetry (time REAL PRIMARY KEY, span REAL, sample BLOB) WITHOUT ROWID;
"""

_FROM_POINTS = """
INSERT OR REPLACE INTO buckets
SELECT :run, :name, :span, g.bucket, g.first, g.last, g.low, g.high, p.value, g.count, g.sum
FROM (SELECT step / :span AS bucket, min(step) AS first, max(step) AS last, min(value) AS low, max(value) AS high, \
count(*) AS count, total(value) AS sum
      FROM points WHERE run = :run AND name = :name AND step BETWEEN :first AND :last GROUP BY step / :span) AS g
JOIN points AS p ON p.run = :run AND p.name = :name AND p.step = g.last
"""
_FROM_BUCKETS = """
INSERT OR REPLACE INTO buckets
SELECT :run, :name, :span, g.bucket, g.first, g.last, g.low, g.high, b.final, g.count, g.sum
FROM (SELECT bucket * :below / :span AS bucket, min(first) AS first, max(last) AS last, min(low) AS low, \
max(high) AS high,
             sum(count) AS count, total(sum) AS sum, max(bucket) AS newest
      FROM buckets WHERE run = :run AND name = :name AND span = :below \
AND bucket BETWEEN :first / :below AND :last / :below
      GROUP BY bucket * :below / :span) AS g
JOIN buckets AS b ON b.run = :run AND b.name = :name AND b.span = :below AND b.bucket = g.newest
"""


class Registry:
    """Opens or creates the database. Where the file system cannot do WAL (NFS), SQLite uses its rollback journal
    instead. One of another version is emptied but for its telemetry, and a damaged one is set aside; where none can be
    written (a full or read-only disk), it is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.in_memory = False
        """Whether nothing of it is written to a disk."""
        self._db: sqlite3.Connection
        self._names: dict[str, int] = {}
        self._runs: dict[str, int] = {}
        self._behind: set[str] = set()
        """Runs of which a part could not be stored: their offsets stay before it, so that the next engine reads it."""
        try:
            self._open(path)
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            self.replace(error)

    def _open(self, path: Path | str) -> None:
        """Raises sqlite3.Error for a file that is not this database."""
        if isinstance(path, Path):
            _check_length(path)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        if isinstance(path, Path):
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA cache_size=-32000")
        wanted = _list_columns(_SCHEMA)
        self._empty_other_version(wanted)
        self._db.executescript(_SCHEMA)
        for table, found in self._read_columns(wanted).items():
            if found != wanted[table]:
                raise sqlite3.DatabaseError(f"its table {table} has the columns {', '.join(found)}")
        self._read_numbers()

    def _read_columns(self, tables: Iterable[str]) -> dict[str, list[str]]:
        """The columns of these tables; none of one that does not exist."""
        return {table: [row[1] for row in self._db.execute(f"PRAGMA table_info({table})")] for table in tables}

    def _empty_other_version(self, wanted: dict[str, list[str]]) -> None:
        """Empty an index that another version has made. The run directories hold all of it but the telemetry, which
        stays unless that table has changed, too."""
        found = self._read_columns(wanted)
        if found == wanted or not {"summary", "offset"} <= set(found["runs"]):
            return  # this version's, new, or no index of a cockpit
        print(f"{self.path.name} was made by another version of cockpit: its curves are read from the runs again")
        with self._transaction():
            for table in wanted:
                if table != "telemetry" or found[table] != wanted[table]:
                    self._db.execute(f"DROP TABLE IF EXISTS {table}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block, or nothing of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it
                self._db.execute("ROLLBACK")
            self._read_numbers()  # those that the block has given are not in the database
            raise

    def _read_numbers(self) -> None:
        self._names = {_text(name): number for name, number in self._db.execute("SELECT name, number FROM names")}
        self._runs = {_text(name): number for name, number in self._db.execute("SELECT id, number FROM runs")}

    def replace(self, error: Exception) -> None:
        """Set the database aside because of `error`, and begin an empty one."""
        self._names, self._runs, self._behind = {}, {}, set()
        if hasattr(self, "_db"):
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        try:
            if kept := _set_aside(self.path):
                print(f"{self.path.name} is damaged ({error}); it is kept as {kept.name} and rebuilt from the runs")
            self._open(self.path)
        except (sqlite3.Error, OSError) as refused:
            print(f"{self.path} cannot be written ({refused}): this engine keeps its index in memory", flush=True)
            self._names, self._runs = {}, {}
            self.in_memory = True
            self._open(":memory:")

    def close(self) -> None:
        self._db.close()

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self) -> dict[str, tuple[Run, int]]:
        """Every indexed run, and the offset in its journal up to which it is indexed."""
        found = {}
        unread = []
        for run_id, summary, offset in self._db.execute("SELECT id, summary, offset FROM runs"):
            try:
                run = msgspec.json.decode(summary, type=Run)
                if run.id != run_id or not isinstance(offset, int) or offset < 0:
                    raise ValueError
                msgspec.msgpack.encode(run)
                found[run_id] = run, offset
            except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
                unread.append(run_id)  # written by another version, or damaged: index that run again
        for run_id in unread:
            self.forget(run_id)
        return found

    def store(
        self,
        run: Run,
        offset: int,
        points: Iterable[tuple[str, int, float]] = (),
        entries: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        """Store in one transaction the run's summary, how far its journal is indexed, and the content of that part of
        the journal.

        `points` are (name, step, value); `entries` are (journal offset, line).
        """
        summary = msgspec.json.encode(run)
        try:
            with self._transaction():
                number = self._run_number(run.id)
                self._db.execute("UPDATE runs SET summary = ? WHERE number = ?", (summary, number))
                if run.id not in self._behind:
                    self._db.execute("UPDATE runs SET offset = ? WHERE number = ?", (offset, number))
                self._add_points(number, points)
                self._db.executemany(
                    "INSERT OR REPLACE INTO told VALUES (?, ?, ?)", [(number, at, line) for at, line in entries]
                )
        except sqlite3.Error:
            self._behind.add(run.id)
            raise

    def forget(self, run_id: str) -> None:
        number = self._runs.pop(run_id, None)
        if number is None:
            return
        with self._transaction():
            for table in ("points", "buckets", "told"):
                self._db.execute(f"DELETE FROM {table} WHERE run = ?", (number,))
            self._db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def read_ledger(self, run_id: str) -> list[dict[str, Any]]:
        """All ledger entries of a run, oldest first, however many entries came after them."""
        rows = self._db.execute(
            'SELECT line FROM told WHERE run = ? AND instr(line, CAST(\'"kind":"ledger"\' AS BLOB)) ORDER BY offset',
            (self._runs.get(run_id, -1),),
        )
        return _decode_lines(line for (line,) in rows)

    def read_entries(self, run_id: str, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` journal entries that are not metrics, oldest first."""
        rows = self._db.execute(
            "SELECT line FROM told WHERE run = ? ORDER BY offset DESC LIMIT ?", (self._runs.get(run_id, -1), limit)
        ).fetchall()
        return _decode_lines(line for (line,) in reversed(rows))

    def _run_number(self, run_id: str) -> int:
        if run_id not in self._runs:
            self._runs[run_id] = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM runs").fetchone()[0]
            self._db.execute("INSERT INTO runs VALUES (?, ?, x'', 0)", (run_id, self._runs[run_id]))
        return self._runs[run_id]

    def _name_number(self, name: str) -> int:
        if name not in self._names:
            self._db.execute("INSERT INTO names (name) VALUES (?)", (name,))
            self._names[name] = self._db.execute("SELECT number FROM names WHERE name = ?", (name,)).fetchone()[0]
        return self._names[name]

    # ── series ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_points(self, run: int, points: Iterable[tuple[str, int, float]]) -> None:
        rows = []
        touched: dict[int, tuple[int, int]] = {}
        for name, step, value in points:
            number = self._name_number(name)
            rows.append((run, number, step, value))
            first, last = touched.get(number, (step, step))
            touched[number] = min(first, step), max(last, step)
        self._db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)", rows)
        for number, (first, last) in touched.items():
            self._summarise(run, number, first, last)

    def _summarise(self, run: int, name: int, first: int, last: int) -> None:
        """Recompute the buckets that contain the steps first…last, from the level below."""
        below = 0
        for span in LEVELS:
            bounds = {"first": first // span * span, "last": last // span * span + span - 1}
            values = {"run": run, "name": name, "span": span, "below": below, **bounds}
            self._db.execute(_FROM_BUCKETS if below else _FROM_POINTS, values)
            below = span

    def read_series(self, run_id: str, name: str, points: int, first: int | None, last: int | None) -> Series:
        """At most `points` buckets of one metric between two steps, inclusive."""
        run, number = self._runs.get(run_id, -1), self._names.get(name, -1)
        # Two queries, each answered by the index: SQLite scans every row when min and max are asked for together.
        within = (run, number, first if first is not None else 0, last if last is not None else 2**62)
        lowest, highest = (
            self._db.execute(
                f"SELECT {end}(step) FROM points WHERE run = ? AND name = ? AND step BETWEEN ? AND ?", within
            ).fetchone()[0]
            for end in ("min", "max")
        )
        empty = Series(name=name, first_step=[], last_step=[], low=[], high=[], last=[])
        if lowest is None:
            return empty
        # The coarsest level that still has several buckets for each bucket of the result.
        width = (highest - lowest + 1) / max(points, 1)
        span = max((level for level in LEVELS if level * 4 <= width), default=0)
        if span:
            query = (
                "SELECT first, last, low, high, final, count, sum FROM buckets WHERE run = ? AND name = ? AND span = ? "
                "AND bucket BETWEEN ? AND ?"
            )
            rows = self._db.execute(query, (run, number, span, lowest // span, highest // span))
        else:
            query = (
                "SELECT step, step, value, value, value, 1, value FROM points WHERE run = ? AND name = ? "
                "AND step BETWEEN ? AND ?"
            )
            rows = self._db.execute(query, (run, number, lowest, highest))
        return _reduce(empty, rows.fetchall(), points)

    # ── telemetry ─────────────────────────────────────────────────────────────────────────────────────────────────

    def add_telemetry(self, sample: Telemetry) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO telemetry VALUES (?, 1, ?)", (sample.time, msgspec.json.encode(sample))
        )

    def thin_telemetry(self, now: float) -> None:
        """Keep every sample of the last hour, and before that the last sample of each minute."""
        self._db.execute(
            (
                "DELETE FROM telemetry WHERE time < ? AND time NOT IN "
                "(SELECT max(time) FROM telemetry WHERE time < ? GROUP BY cast(time / ? AS INTEGER))"
            ),
            (now - HOUR, now - HOUR, MINUTE),
        )

    def read_telemetry(self, since: float, until: float | None = None, points: int = 0) -> list[Telemetry]:
        """The samples between two moments, oldest first; with `points`, the last one in each of so many equal parts of
        the time."""
        query = "SELECT sample FROM telemetry WHERE time BETWEEN ? AND ?"
        within = [since, 1e300 if until is None else until]
        if points > 0:
            (newest,) = self._db.execute("SELECT max(time) FROM telemetry").fetchone()
            part = max((min(within[1], newest or since) - since) / points * (1 + 1e-9), 1e-3)
            query += (
                " AND time IN (SELECT max(time) FROM telemetry WHERE time BETWEEN ? AND ? "
                "GROUP BY CAST((time - ?) / ? AS INTEGER))"
            )
            within += [*within, since, part]
        rows = self._db.execute(f"{query} ORDER BY time", within).fetchall()
        found = []
        for (sample,) in rows:
            with contextlib.suppress(msgspec.MsgspecError, TypeError):
                found.append(msgspec.json.decode(sample, type=Telemetry))
        return found


def _check_length(path: Path) -> None:
    """Raises sqlite3.DatabaseError for a file that has been cut off: SQLite would notice when it comes to the gap."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    if header[:16] != b"SQLite format 3\0":
        if header:
            raise sqlite3.DatabaseError("it is no SQLite database")
        return
    page = int.from_bytes(header[16:18], "big")
    length = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if path.stat().st_size < length and not path.with_name(f"{path.name}-wal").exists():
        raise sqlite3.DatabaseError(f"it has {path.stat().st_size} bytes rather than {length}")


def _set_aside(path: Path) -> Path | None:
    """Rename the database and its journals with the date; returns its new name, or None when there was none."""
    kept = None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("-wal", "-shm", ""):
        each = path.with_name(path.name + suffix)
        if os.path.lexists(each):
            kept = path.with_name(f"{path.name}.damaged-{stamp}-{uuid.uuid4().hex[:4]}{suffix}")
            each.rename(kept)
    return kept


def _list_columns(schema: str) -> dict[str, list[str]]:
    """The columns of each table, from the schema's text."""
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(schema)
        tables = [name for (name,) in empty.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: [row[1] for row in empty.execute(f"PRAGMA table_info({table})")] for table in tables}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise sqlite3.DatabaseError(f"{value!r} is no name")
    return value


def _decode_lines(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Entries as JSON objects. A line that is none, or that no message could hold, is left out."""
    found = []
    for line in lines:
        try:
            entry = msgspec.json.decode(line)
            msgspec.msgpack.encode([[[[[[[[entry]]]]]]]])
        except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, ValueError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
            found.append(entry)
    return found


def _reduce(series: Series, rows: list[tuple[int, int, float, float, float, int, float]], points: int) -> Series:
    """Merge neighbouring rows into at most `points` buckets, each of about the same number of rows."""
    size = max(1, -(-len(rows) // max(points, 1)))
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        series.first_step.append(group[0][0])
        series.last_step.append(group[-1][1])
        series.low.append(min(row[2] for row in group))
        series.high.append(max(row[3] for row in group))
        series.last.append(group[-1][4])
        series.count.append(sum(row[5] for row in group))
        series.mean.append(sum(row[6] for row in group) / series.count[-1])
    series.total = sum(series.count)
    return series
