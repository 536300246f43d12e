"""The finished rows of a file of prompts, kept in `OUTPUT.partial/` beside the output until all are finished.

asked.json        the input, the target and the settings
replies.jsonl     {"row": number, "output": …} in the order in which they were finished
.lock             held by the working process, with its pid
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

WORKER = "engine.workers.generate"
_PATIENCE = 10.0
"""Seconds to wait until another process releases the lock."""


class Record:
    """Open in one process at a time, as a context manager. `done` maps the numbers of finished rows to their output."""

    def __init__(self, output: Path, identity: Mapping[str, Any], *, again: bool = False) -> None:
        """Continue with the rows that are there. Another worker that still writes here, because its client was killed,
        is ended.

        Raises ValueError where the rows there were generated from something else, unless `again`, which starts over.
        """
        self.output, self.folder = output, output.with_name(output.name + ".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.done: dict[int, dict[str, Any]] = {}
        try:
            self._take_over()
            self.seed = self._begin(json.loads(json.dumps(identity)), again)
        except BaseException:
            os.close(self._lock)
            raise
        self._replies = (self.folder / "replies.jsonl").open("ab")

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        os.close(self._lock)

    def add(self, row: int, output: Mapping[str, Any]) -> None:
        """Keep a finished row: it survives the end of the process once this has returned."""
        line = json.dumps({"row": row, "output": output}, ensure_ascii=False) + "\n"
        self._replies.write(line.encode())
        self._replies.flush()
        self.done[row] = dict(output)

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows to the output, complete or not at all, and remove what was kept."""
        whole = self.folder / "whole"
        with whole.open("w", encoding="utf-8") as file:
            if self.output.suffix.lower() == ".json":
                json.dump(list(rows), file, ensure_ascii=False, indent=1)
                file.write("\n")
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.output)
        for name in ("asked.json", "replies.jsonl", ".lock"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()

    def _take_over(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _end(os.pread(self._lock, 20, 0).decode())
                if time.monotonic() > deadline:
                    raise ValueError(f"another process is generating into {self.output}") from None
                time.sleep(0.1)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _begin(self, identity: dict[str, Any], again: bool) -> int:
        """Check or write the identity; returns the seed that the first call drew or was given."""
        path = self.folder / "asked.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if kept is not None and kept["identity"] != identity and not again:
            names = sorted(name for name in identity if kept["identity"].get(name) != identity[name])
            raise ValueError(
                f"{self.folder} holds unfinished replies with other {', '.join(names)}: "
                "name another output, or add --again"
            )
        if kept is None or kept["identity"] != identity or again:
            (self.folder / "replies.jsonl").unlink(missing_ok=True)
            seed = identity["sampling"]["seed"]
            kept = {"identity": identity, "seed": int.from_bytes(os.urandom(4)) if seed is None else seed}
            partial = path.with_suffix(".new")
            partial.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        self._read()
        return int(kept["seed"])

    def _read(self) -> None:
        """Read the rows that are kept; a last line that was cut off is removed."""
        path = self.folder / "replies.jsonl"
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            entry = json.loads(line)
            self.done[entry["row"]] = entry["output"]
        if len(whole) < len(content):
            os.truncate(path, len(whole))


def _end(pid: str) -> None:
    """End the process of that id if it is a worker of generation."""
    try:
        process = psutil.Process(int(pid))
        if WORKER in process.cmdline() and process.pid != os.getpid():
            process.send_signal(signal.SIGKILL)
    except (ValueError, psutil.Error):
        pass
