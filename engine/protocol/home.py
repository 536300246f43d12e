"""Paths: COCKPIT_HOME, the directory of a run, and the engine's own folder.

    COCKPIT_HOME/
      runs/<id>/          a directory for each run, with everything about it
      models/             pulled and user-copied base models
      cache/              tokenised data by content hash
      evaluations/        evaluations of models that are no runs
      chats/              conversations that the app has saved
      votes.jsonl         votes and ratings of models that are no runs
      engine/<host>/      this host's supervisor: registry, connection file, lock, log

Sockets are not there, since the home may be on NFS, and the path of a Unix socket has at most 107 bytes. They are in a
short, owner-only directory on the local disk, whose name follows from the home, so that every process finds the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from engine.protocol.stages import RESULTS

_CHECKPOINT = re.compile(r"step-(\d{8})")


def host_name() -> str:
    """This host's name as it is used in paths: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"


@dataclass(frozen=True)
class Home:
    """A COCKPIT_HOME. The object only computes paths; `create` makes the directories."""

    root: Path

    @classmethod
    def locate(cls, explicit: str | os.PathLike[str] | None = None) -> Home:
        """The given home, else `COCKPIT_HOME`, else `~/.cockpit`; always absolute."""
        root = explicit or os.environ.get("COCKPIT_HOME") or Path.home() / ".cockpit"
        return cls(Path(os.path.abspath(Path(root).expanduser())))

    def create(self) -> Home:
        """Make the directories, accessible only to their owner, where they do not exist."""
        for folder in (self.root, self.runs, self.models, self.cache, self.engine):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def evaluations(self) -> Path:
        """Evaluations of models that are no runs, a folder each."""
        return self.root / "evaluations"

    @property
    def chats(self) -> Path:
        """Saved conversations, a JSON file each. The folder is made with the first."""
        return self.root / "chats"

    @property
    def votes(self) -> Path:
        """Votes and ratings of models that are no runs. Those of a run are in its directory."""
        return self.root / "votes.jsonl"

    @property
    def engine(self) -> Path:
        return self.root / "engine" / host_name()

    @property
    def registry(self) -> Path:
        return self.engine / "registry.db"

    @property
    def connection(self) -> Path:
        return self.engine / "connection.json"

    @property
    def lock(self) -> Path:
        return self.engine / "lock"

    @property
    def engine_log(self) -> Path:
        return self.engine / "engine.log"

    @property
    def sockets(self) -> Path:
        """The local directory of the sockets, the same for every process of this user, home and host."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:12]
        base = os.environ.get("XDG_RUNTIME_DIR") or ""
        # Only a short, existing, writable runtime directory will do; a cron job or container may name a missing one.
        if not base or len(base) > 60 or not os.access(base, os.W_OK):
            return Path("/tmp") / f"cockpit-{os.getuid()}" / digest
        return Path(base) / "cockpit" / digest

    def run(self, run_id: str) -> RunDirectory:
        return RunDirectory(self.runs / run_id)


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside `runs/<id>/`. The run's id is the directory's name."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def profile(self) -> Path:
        """The resolved, frozen profile."""
        return self.path / "profile.yaml"

    @property
    def events(self) -> Path:
        """Rank 0's journal."""
        return self.path / "events.jsonl"

    @property
    def lifecycle(self) -> Path:
        """The supervisor's journal."""
        return self.path / "lifecycle.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def votes(self) -> Path:
        """Votes and ratings of the run's replies, a `messages.Judgement` per line, written by the supervisor."""
        return self.path / "votes.jsonl"

    @property
    def evaluations(self) -> Path:
        """Evaluations of the run's checkpoints, a folder each."""
        return self.path / "evaluations"

    @property
    def prepared(self) -> Path:
        """The result of the prepare stage: the cache entries that the run trains on."""
        return self.path / "prepared.json"

    def result(self, stage: str) -> Path:
        """The result of a stage, see `stages.RESULTS`."""
        return self.path / RESULTS[stage]

    @property
    def exported(self) -> Path:
        """The folder of an export without `export.output`."""
        return self.path / "export"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. An incomplete checkpoint has a temporary name, and is not
        listed."""
        if not self.checkpoints.is_dir():
            return []
        named = ((entry, _CHECKPOINT.fullmatch(entry.name)) for entry in self.checkpoints.iterdir())
        return sorted(int(match[1]) for entry, match in named if match and entry.is_dir())


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, complete or not at all: temporary name, fsync, rename. Raises OSError,
    and then leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`: a disk that is nearly full takes a part of it first, and refuses the rest. Raises
    OSError."""
    while content:
        content = content[os.write(descriptor, content) :]


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
