"""A worker that says what it is, as the kernel and Python see it, and ends with the status that its options name."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

SHOWN = ("SigBlk", "SigIgn", "SigCgt", "Umask", "Threads", "NoNewPrivs", "CapEff", "Cpus_allowed")


def describe() -> dict[str, object]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    known = "decimal" in sys.modules
    import tests.scripted_ahead.library as library

    return {
        "warm": known,
        "library": library.FOUND,
        "line": Path("/proc/self/cmdline").read_text(),
        "variables": sorted(os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0")),
        "environ": dict(os.environ),
        "argv": sys.argv,
        "original": sys.orig_argv,
        "path": sys.path,
        "name": __spec__.name,
        "main": sys.modules["__main__"].__dict__ is globals(),
        "folder": str(Path.cwd()),
        "files": {name: str(Path("/proc/self/fd", name).readlink()) for name in ("0", "1", "2")},
        "open": len(list(Path("/proc/self/fd").iterdir())),
        "session": (os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.getppid()),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT" in name},
        "nice": os.nice(0),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "comm": Path("/proc/self/comm").read_text(),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        **{name: status[name].strip() for name in SHOWN},
    }


if __name__ == "__main__":
    print(json.dumps(describe()), flush=True)
    if "--wait" in sys.argv:
        time.sleep(60)
    sys.exit(7)
