"""The signal that makes a rank write its stacks ends none, whatever its threads are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.scripted.bench import ROOT

BUSY = """
import threading, time, sys, hashlib
from engine.training.inbox import Inbox

inbox = Inbox()

def nest(depth):
    return depth if depth == 0 else nest(depth - 1)

def work():
    while True:
        exec("def fresh(n): return n and fresh(n - 1)\\nfresh(40)", {})
        nest(90)
        thread = threading.Thread(target=nest, args=(5,))
        thread.start()
        thread.join()

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
data = bytes(1 << 26)
while True:
    hashlib.sha256(data)  # without the interpreter's lock, as a collective
"""


def test_a_process_whose_threads_are_busy_survives_many_signals() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            os.set_blocking(process.stderr.fileno(), False)
            written = b""
            for _ in range(1000):
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.003)
                written += process.stderr.read() or b""
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and b"in work" not in written:
                time.sleep(0.1)
                written += process.stderr.read() or b""
            assert process.poll() is None, written[-3000:]
            assert b"most recent call first" in written and b"in work" in written
        finally:
            process.kill()
