"""Commands that wait between their arrival from the supervisor and the next step boundary."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections import deque

from engine.protocol.messages import Instruction
from engine.protocol.worker_link import Link

STACKS = signal.SIGUSR1
"""Signal that makes a rank write the stacks of all its threads to its log."""
ARRIVED = "arrived"
"""Argument added to a hot-chat question: its arrival time by `perf_counter`."""


REPEATED = 5.0
"""Seconds after a SIGTERM from which on another one is somebody's who does not want to wait."""


class Terminated(BaseException):
    """SIGTERM came before the training loop, when there is nothing to save, or for the second time. Not an `Exception`,
    which a library might take for a failure of its own."""


class Inbox:
    """Filled by the link's thread, emptied by the training loop. `stacks` is carried out at once, without waiting for a
    step boundary."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.pids: list[int] = [os.getpid()]
        """The processes of all ranks on this host, once they are known."""
        self.step = 0
        """The last finished step, reported in answers."""
        self.looping = False
        """Whether the training loop runs, which looks at `terminated` at each step boundary."""
        self.terminated = False
        """Whether this rank got SIGTERM."""
        self._terminated_at = 0.0
        self.cancelled: set[str] = set()
        """Hot-chat requests that were cancelled; added by the link's thread."""
        self._waiting: deque[Instruction] = deque()
        self._link: Link | None = None
        _write_stacks_on_signal()

    def connect(self, link: Link) -> None:
        """Receive instructions from `link`, including those that arrived before this call."""
        self._link = link
        self.receive()

    def receive(self) -> None:
        """Queue the link's new instructions. Called by the link's thread."""
        if self._link is None:
            return
        for instruction in self._link.take_instructions():
            if instruction.name == "stacks":
                # Called here, it meets no thread that runs: this one has the interpreter's lock, which a signal's
                # handler has not.
                faulthandler.dump_traceback(all_threads=True)
                for pid in self.pids:
                    if pid != os.getpid() and not self._link.by_files:  # by files, every rank gets it
                        os.kill(pid, STACKS)
                self._link.answer(instruction, step=self.step)
            else:
                if instruction.name == "generate":
                    instruction.arguments[ARRIVED] = time.perf_counter()
                self._waiting.append(instruction)
                self.arrived.set()

    def end_on_sigterm(self) -> None:
        """From now on SIGTERM ends this rank in order: at the next step boundary, or by `Terminated` while there is
        none. One that follows within `REPEATED` changes nothing: the ranks get one from the launcher too. A later one
        ends the rank at once, without a checkpoint."""
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: object) -> None:
        if self.terminated:
            if time.monotonic() - self._terminated_at < REPEATED or not self.looping:
                return
            self.looping = False
            raise Terminated
        self._terminated_at = time.monotonic()
        self.terminated = True  # no lock may be taken here: the thread that was interrupted may hold it
        if not self.looping:
            raise Terminated

    def __len__(self) -> int:
        return len(self._waiting)

    def take_all(self) -> list[Instruction]:
        """Remove and return all waiting commands, in order of arrival."""
        self.arrived.clear()
        commands = []
        while self._waiting:
            commands.append(self._waiting.popleft())
        return commands


_writing_stacks = False


def _write_stacks_on_signal() -> None:
    """From now on `STACKS` makes this process write the stacks of all its threads to the log.

    The interrupted thread's is written by the signal's handler, also while another thread holds the interpreter's lock
    and does not let it go. The others are written by a thread that holds the lock: reading the stack of a thread that
    runs meanwhile, as a handler would, can end the process with SIGSEGV.
    """
    global _writing_stacks
    if _writing_stacks or threading.current_thread() is not threading.main_thread():
        return
    _writing_stacks = True
    arrived, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(STACKS, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    faulthandler.register(STACKS, all_threads=False, chain=True)
    threading.Thread(target=_write_stacks, args=(arrived,), name="stacks", daemon=True).start()


def _write_stacks(arrived: int) -> None:
    while numbers := os.read(arrived, 64):
        if STACKS in numbers:
            faulthandler.dump_traceback(all_threads=True)
