"""Paths: COCKPIT_HOME, the directory of a run, and the engine's own folder.

    COCKPIT_HOME/
      runs/<id>/          a directory for each run, with everything about it
      models/             pulled and user-copied base models
      cache/              tokenised data by content hash
      evaluations/        evaluations of models that are no runs
      forecasts/          what profiles were forecast to take, and how runs compared with it
      chats/              conversations that the app has saved
      charts.json         how the app's panels of metrics are arranged, for each profile
      drafts/             what the app has not saved yet: profiles, conversations, prompts
      settings.yaml       theme, columns, filters, notices
      app.log             exceptions of the app
      votes.jsonl         votes and ratings of models that are no runs
      engine/<host>/      this host's supervisor: registry, connection file, lock, log

The sockets are in the engine's folder too, where its file system and the length of its path allow; else in an
owner-only directory on the local disk. The connection file names them, see `sockets`.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.protocol import attempt_fence
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
        """The given home, else `COCKPIT_HOME`, else `~/.cockpit`; always absolute and without symbolic links, so that
        every way to one home is one home."""
        root = explicit or os.environ.get("COCKPIT_HOME") or Path.home() / ".cockpit"
        return cls(Path(os.path.realpath(Path(root).expanduser())))

    def create(self) -> Home:
        """Make the directories, accessible only to their owner, where they do not exist."""
        for folder in (self.root, self.runs, self.models, self.cache, self.engine):
            make_private(folder)
        for folder in (self.engine.parent, self.engine):  # an older version obeyed the umask
            if folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
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
    def charts(self) -> Path:
        return self.root / "charts.json"

    @property
    def drafts(self) -> Path:
        """What was typed in the app and is not saved, a JSON file each. The folder is made with the first."""
        return self.root / "drafts"

    @property
    def settings(self) -> Path:
        """The user's settings of the app, and where the engine sends its notices."""
        return self.root / "settings.yaml"

    @property
    def app_log(self) -> Path:
        """Exceptions of the app, see `cockpit.fault_guard`."""
        return self.root / "app.log"

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
        """The best directory for the sockets; `sockets.list_directories` has the others."""
        return self.engine / "sockets"

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
    def traces(self) -> Path:
        """Traces of steps, see `engine.training.step_trace`. The folder is made with the first."""
        return self.path / "traces"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def row_losses(self) -> Path:
        """Each training row's loss in each epoch, see `engine.storage.row_losses`."""
        return self.path / "row_losses"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def votes(self) -> Path:
        """Votes and ratings of the run's replies, a `messages.Judgement` per line, written by the supervisor."""
        return self.path / "votes.jsonl"

    @property
    def labels(self) -> Path:
        """The user's tags, note and pin, see `engine.supervisor.labels`."""
        return self.path / "labels.json"

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

    def exhausted(self, attempt: int) -> Path:
        """The note of an attempt that ended for lack of memory and asks for another one."""
        return self.path / f"exhausted-{attempt}.json"

    @property
    def control(self) -> Path:
        """Files by which the supervisor and a run on other hosts talk, see `file_channel`."""
        return self.path / "control"

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


def write_private(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file that only its owner can read, complete or not at all: temporary name, fsync, rename. Raises OSError,
    and then leaves nothing behind. Without `durable`, a power cut may lose it: for what means nothing after one."""
    attempt_fence.check()
    temporary = path.with_name(f".{path.name}.{attempt_fence.mark()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            write_all(descriptor, content)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        attempt_fence.check(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`: a disk that is nearly full takes a part of it first, and refuses the rest. Raises
    OSError."""
    while content:
        content = content[os.write(descriptor, content) :]


def open_private(path: Path) -> BinaryIO:
    """Open a file to append to, readable by its owner alone, whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return open(descriptor, "ab")


def make_private(folder: Path) -> Path:
    """Make a folder and those above it that do not exist, accessible only to their owner, whatever the umask."""
    missing = []
    for part in (folder, *folder.parents):
        if part.is_dir():
            break
        missing.append(part)
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)
    return folder


def restrict(folder: Path) -> None:
    """Make everything in a folder, and the folder, accessible only to the owner, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
