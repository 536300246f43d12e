"""A prepare worker that has nothing to do. `generation.seed` of the profile scripts it: 1 fails, 2 takes ten
seconds, 22 three."""

from __future__ import annotations

import json
import sys
import time

from engine.protocol.journal import End, Writer
from engine.protocol.messages import Problem
from tests.scripted.script import Script

script = Script()
if script.seed == 1:
    Writer(script.run.events).write(
        End(attempt=script.attempt, step=0, status="failed", problem=Problem(title="No row is usable", hint="look"))
    )
    sys.exit(1)
if script.seed == 2:
    time.sleep(10)
if script.seed == 22:
    time.sleep(3)
script.run.prepared.write_text(json.dumps({"rows": 1}))
