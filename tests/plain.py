"""A process that has the libraries and nothing of ours, in which tests do what a user of an export would.

Importing transformers and torch takes eight seconds of a core, so the process is kept for the tests that follow.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys

LOOP = """
import contextlib, io, json, sys, traceback

for line in sys.stdin:
    asked = json.loads(line)
    sys.argv = ["-c", *asked["arguments"]]
    told, failed = io.StringIO(), ""
    with contextlib.redirect_stdout(told):
        try:
            exec(asked["program"], {"__name__": "__main__"})
        except BaseException:
            failed = traceback.format_exc()
    ours = sorted({name.partition(".")[0] for name in sys.modules} & {"engine", "cockpit", "tests"})
    print(json.dumps({"told": told.getvalue(), "failed": failed, "ours": ours}), flush=True)
"""


@functools.cache
def _process() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    atexit.register(process.kill)
    return process


def run(program: str, *arguments: object) -> str:
    """What the program writes to stdout, with these arguments as its `sys.argv[1:]`. Fails the test when it raises, and
    when it has loaded a module of ours."""
    process = _process()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps({"program": program, "arguments": list(map(str, arguments))}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the process ended with {process.wait()}"
    done = json.loads(answer)
    assert not done["failed"], done["failed"]
    assert not done["ours"]
    told: str = done["told"]
    return told
