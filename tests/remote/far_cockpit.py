"""`cockpit` on the far side, for the script that a `Loopback` writes: forked where tests fork (see
`tests.warm_engine`), else started. Imports as little as can be, since every call of the far side begins with it."""

from __future__ import annotations

import json
import os
import socket
import sys


def main(arguments: list[str]) -> int:
    line = [sys.executable, "-m", "cockpit.cli", *arguments]
    address = os.environ.get("TESTS_WARM_LIGHT")
    if not address:
        os.execv(sys.executable, line)
    request = {
        "module": "cockpit.cli",
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": "/",
        "line": line,
    }
    status, write = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(address)
        socket.send_fds(asked, [json.dumps(request).encode()], [0, 1, 2, write])
        asked.recv(16)
    for descriptor in (0, 1, 2, write):
        os.close(descriptor)
    return int(os.read(status, 16) or 255) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
