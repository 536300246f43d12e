"""Runs a verb of this or another cockpit in a process of its own, and reads the JSON that it prints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from typing import Any

from engine.protocol.client import build_engine_environment


async def read_json(command: Sequence[str]) -> Any:
    """The JSON that a command prints; None when it fails. The command ends with the task that waits for it."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,  # the terminal is the app's
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=build_engine_environment(),
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    try:
        return json.loads(output)
    except ValueError:
        return None
