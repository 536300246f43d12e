"""An export service without a model: it tells how far it is, and answers when it is not given up before."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from engine.protocol.home import Home
from engine.protocol.messages import Problem
from engine.protocol.worker_link import Link

parser = argparse.ArgumentParser()
for name in ("--home", "--job", "--address", "--options", "--attempt"):
    parser.add_argument(name)
arguments = parser.parse_args()
cancelled: set[str] = set()
link = Link(arguments.address, arguments.job, 1, home=Home.locate(arguments.home), on_cancel=cancelled.add)
link.send_status("ready")
while True:
    link.instructions_arrived.wait()
    for instruction in link.take_instructions():
        asked = instruction.arguments
        slow = asked["out"] == "slow"
        for done in range(100 if slow else 5):
            link.send_status("busy", detail=f"asking the export {done}%")
            time.sleep(0.1)
            if asked["request"] in cancelled:
                link.answer(instruction, problem=Problem(title="Cancelled"))
                break
        else:
            figures = {"kl": 0.0123, "top1": 0.98, "golden": 3, "golden_equal": 2, "base": "dequantised"}
            folder = str(Path(asked["directory"], asked["out"]))
            link.answer(instruction, result={"directory": folder, "kind": "merged", "agreement": figures})
