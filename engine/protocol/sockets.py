"""Where the supervisor's sockets are, and whether they are really ours.

The supervisor chooses the directory and records the addresses in the home's connection file; everybody else reads them
there. Nobody computes an address, since what it would be computed from (`XDG_RUNTIME_DIR`, the way to the home) differs
between a login shell, cron and sudo.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import select
import shutil
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from engine.protocol.home import Home
from engine.protocol.problem import Problem, ProblemError

LONGEST_PATH = 107
"""Bytes of a Unix socket's path that the kernel takes."""
LONGEST_NAME = 24
"""Bytes that are kept free for a slash and the name of a socket."""
FULL = b"F"
"""What the supervisor sends to whom it has no room for. ZeroMQ's greeting begins otherwise."""
GREETING_TIMEOUT = 0.3
"""Seconds that are waited for the one or the other: a supervisor that is stopped sends neither."""
ELSEWHERE = (Path("/tmp"), Path("/var/tmp"))
"""Local file systems with room for a private directory."""
_locks: dict[Path, _Lock] = {}
"""The temporary directories of this process."""
_CREDENTIALS = struct.Struct("3i")
"""`struct ucred`: pid, uid, gid."""


def list_directories(home: Home) -> Iterator[Path]:
    """The places for the sockets' directory, the best first: in the home, which nothing empties behind the user's
    back, else a private one on the local disk."""
    yield home.sockets
    yield from list_spares(home)


def list_spares(home: Home) -> Iterator[Path]:
    """Private directories on the local disk, for what cannot be in the home."""
    digest = hashlib.sha256(str(home.root).encode()).hexdigest()[:12]
    for base in ELSEWHERE:
        yield base / f"cockpit-{os.getuid()}" / digest


def make_directory(home: Home) -> Path:
    """Make the first of `list_directories` that can hold sockets, accessible only to its owner.

    A path that is too long, a file system without sockets or owners, and a directory of another user are passed over.
    Raises ProblemError when nothing is left, or when a directory of our own is open to others.
    """
    causes = []
    for directory in list_directories(home):
        try:
            _check_length(directory)
            _make_private(directory, 1 if directory == home.sockets else 2)
            _try_socket(directory)
            return directory
        except OSError as error:
            causes.append(f"{directory}: {error.strerror or error}")
    raise ProblemError(
        Problem(
            code="engine.no_socket_directory",
            title="There is no place for the engine's sockets",
            cause="\n".join(causes),
            hint="make one of these directories usable, or set COCKPIT_HOME to a shorter path on a local disk",
        )
    )


def make_spare(home: Home) -> Path:
    """Make a spare directory; returns its path. Raises OSError, or ProblemError for one of ours that is open to
    others."""
    refused: OSError | None = None
    for directory in list_spares(home):
        try:
            _make_private(directory, 2)
            return directory
        except OSError as error:
            refused = error
    assert refused is not None
    raise refused


def make_temporary(purpose: str) -> Path:
    """Make a directory for sockets of this process alone; removes those that dead processes have left. The caller
    removes it with `remove_temporary`. Raises ProblemError when there is no place for it.

    A directory is locked for as long as it is in use: a process id says nothing where containers share /tmp.
    """
    causes = []
    for base in ELSEWHERE:
        directory = base / f"cockpit-{os.getuid()}" / f"{purpose}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _check_length(directory)
            _make_private(directory.parent, 1)
            with _open_locked(directory.parent):  # so that nobody finds a directory that is not locked yet
                _remove_stale(directory.parent, purpose)
                _make_private(directory, 1)
                _locks[directory] = _open_locked(directory)
            _try_socket(directory)
            return directory
        except OSError as error:
            remove_temporary(directory)
            causes.append(f"{directory}: {error.strerror or error}")
    raise ProblemError(
        Problem(
            code="engine.no_socket_directory",
            title="There is no place for a socket",
            cause="\n".join(causes),
            hint="make one of these directories usable",
        )
    )


def remove_temporary(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if lock := _locks.pop(directory, None):
        lock.close()


def _remove_stale(parent: Path, purpose: str) -> None:
    for other in parent.glob(f"{purpose}-*-*"):
        try:
            with _open_locked(other, wait=False):
                shutil.rmtree(other, ignore_errors=True)
        except OSError:
            continue  # it is in use


class _Lock:
    """An exclusive lock of a directory, which ends with this process at the latest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_locked(directory: Path, *, wait: bool = True) -> _Lock:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return _Lock(descriptor)


def is_ours(directory: Path) -> bool:
    """Whether a directory exists and belongs to us alone, and so does the one that it is in."""
    try:
        found = [part.lstat() for part in (directory, directory.parent)]
    except OSError:
        return False
    return all(stat.S_ISDIR(each.st_mode) and each.st_uid == os.getuid() and not each.st_mode & 0o077 for each in found)


def _make_private(directory: Path, levels: int) -> None:
    """Make the last `levels` directories of a path, with mode 700 whatever the umask. Raises OSError for a directory
    that is not ours, ProblemError for one of ours that is open to others."""
    for part in [directory, *directory.parents][levels - 1 :: -1]:
        try:
            part.mkdir(mode=0o700)
        except FileExistsError:
            pass
        found = part.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a directory")
        if found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, f"it belongs to the user {found.st_uid}")
        if found.st_mode & 0o077:
            raise ProblemError(
                Problem(
                    code="engine.socket_not_private",
                    title=f"The socket directory {part} is not private",
                    cause=f"mode {stat.S_IMODE(found.st_mode):o}; it must be yours alone (700)",
                    hint=f"chmod 700 {part}",
                )
            )


def _check_length(directory: Path) -> None:
    """Raises OSError for a directory whose path is too long for sockets."""
    if len(os.fsencode(directory)) + LONGEST_NAME > LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {LONGEST_PATH - LONGEST_NAME} bytes")


def _try_socket(directory: Path) -> None:
    """Bind a socket in the directory and connect to it. Raises OSError where that does not work."""
    path = directory / f"try-{os.getpid()}"
    try:
        with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as connected:
            bound.bind(str(path))
            bound.listen(1)
            connected.connect(str(path))
    finally:
        path.unlink(missing_ok=True)


def check_peer(address: str) -> bool:
    """Whether somebody listens at an `ipc://` address. Raises ProblemError when the directory, the socket or the
    process behind it belongs to another user (nothing must be sent there then), or when there is no room."""
    path = Path(address.removeprefix("ipc://"))
    try:
        directory, file = path.parent.lstat(), path.lstat()
    except OSError:
        return False
    for place, found in ((path.parent, directory), (path, file)):
        if found.st_uid != os.getuid():
            raise _other_user_error(f"{place} belongs to the user {found.st_uid}")
    if not stat.S_ISDIR(directory.st_mode) or directory.st_mode & 0o077:
        raise _other_user_error(f"{path.parent} is open to others (mode {stat.S_IMODE(directory.st_mode):o})")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # many others are connecting just now
        except OSError:
            return False
        uid = read_peer_uid(probe)
        full = _is_refused(probe)
    if uid not in (None, os.getuid()):
        raise _other_user_error(f"the process that listens at {path} belongs to the user {uid}")
    if full:
        raise ProblemError(
            Problem(
                code="engine.full",
                title="The engine has too many clients",
                cause="it may not open enough files for another one (`ulimit -n`)",
                hint="close some cockpits, or stop the engine and start it with a higher `ulimit -n`; jobs go on",
            )
        )
    return True


def _is_refused(connected: socket.socket) -> bool:
    """Whether the supervisor has no room for another connection, which it says instead of ZeroMQ's greeting."""
    poll = select.poll()  # select() refuses descriptors from 1024 on
    poll.register(connected, select.POLLIN)
    readable = poll.poll(GREETING_TIMEOUT * 1000)
    if not readable:
        return False
    try:
        return connected.recv(1) == FULL
    except OSError:
        return False


def read_peer_uid(connected: socket.socket) -> int | None:
    """The user of the process at the other end; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    uid: int = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


def _other_user_error(cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="engine.other_user",
            title="The engine is not yours",
            cause=f"{cause}; you are the user {os.getuid()}, and nothing was sent",
            hint="run cockpit as the user who started the engine, or set COCKPIT_HOME to a home of your own",
        )
    )
