"""A chat worker whose every word is the moment at which it was said, one each 5 ms."""

from __future__ import annotations

import argparse
import time

from engine.protocol.worker_link import Link

PACE = 0.005

parser = argparse.ArgumentParser()
for name in ("home", "job", "attempt", "address", "options"):
    parser.add_argument(f"--{name}")
arguments = parser.parse_args()
link = Link(arguments.address, arguments.job, int(arguments.attempt))
link.send_status("ready")
while True:
    link.instructions_arrived.wait()
    for question in link.take_instructions():
        for count in range(question.arguments["words"]):
            time.sleep(PACE)
            link.send_event(question.arguments["request"], "tokens", text="", count=count, said=time.time())
        link.answer(question, result={})
