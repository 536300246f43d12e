"""Figures of a host and its devices beside the journal of a run that is not on the engine's host."""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec

from engine.protocol import file_channel
from engine.protocol.home import RunDirectory, make_private
from engine.supervisor.telemetry import Sampler

PERIOD = 5.0
"""Seconds between two samples."""


def keep(run: RunDirectory) -> None:
    """Replace this host's file every `PERIOD` seconds from now on, in a thread."""
    threading.Thread(target=_keep, args=(run,), name="host samples", daemon=True).start()


def _keep(run: RunDirectory) -> None:
    sampler = Sampler(run.path, lambda sample: None)
    while True:
        with contextlib.suppress(OSError):
            sample = sampler.sample()
            path = file_channel.host_file(make_private(run.control), sample.host.name)
            file_channel.replace(path, msgspec.json.encode(sample))
        time.sleep(PERIOD)
