"""The stages after training, without a model. `generation.seed` scripts it: 5 ends the evaluation with status 7 in the
first attempt, 6 makes each stage take three seconds."""

from __future__ import annotations

import json
import sys
import time

from engine.protocol.journal import Phase, Writer
from engine.protocol.worker_link import Link
from tests.scripted.script import Script

script = Script()
link = Link(script.address, script.job, script.attempt, home=script.home)
journal = Writer(script.run.events)
link.announce_journal(journal.write(Phase(attempt=script.attempt, name=f"{script.stage} begins")))
if script.seed == 5 and script.stage == "evaluate" and script.attempt == 1:
    sys.exit(7)
if script.seed == 6:
    time.sleep(3)
script.run.result(script.stage).write_text(json.dumps({"attempt": script.attempt}))
link.close()
