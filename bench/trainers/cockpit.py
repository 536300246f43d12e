"""Fine-tune here: `cockpit.py ROWS MODEL QUANTIZATION FOLDER [K=V | ungrouped | head …]`: the prepare and train stages
of a run.

`ungrouped` takes the rows of a global batch as they come rather than by length; `head` keeps the output layer to
trained positions where `training.optimizations` is false. Both are for `bench.ladder`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main() -> None:
    from bench.trainers.clock import SETTINGS, Clock

    rows, model, quantization, folder, *changes = sys.argv[1:]
    clock = Clock()
    sys.path[:] = [
        place for place in sys.path if Path(place) != Path(__file__).parent
    ]  # this file has the package's name
    from engine.config import profile
    from engine.models.loss import PickedHead
    from engine.prep.batching import GlobalBatches
    from engine.prep.prepare import prepare
    from engine.protocol.home import Home
    from engine.protocol.worker_link import Link
    from engine.training import session, supervised
    from engine.training.inbox import Inbox
    from engine.training.metrics import StepMetrics
    from engine.training.reporter import Reporter

    text = json.dumps(
        {
            "model": {"base": model, "quantization": quantization},
            "adapter": {"kind": "lora", "rank": SETTINGS["rank"], "alpha": SETTINGS["alpha"]},
            "data": {"train": [{"source": rows}], "max_length": SETTINGS["max_length"]},
            "training": {
                "micro_batch": SETTINGS["batch"],
                "learning_rate": SETTINGS["learning_rate"],
                "scheduler": "linear",
                "seed": SETTINGS["seed"],
            },
            "limits": {"disk_free_gb": 0},
        }
    )
    settings = profile.parse(text, "bench", Path(folder), [change for change in changes if "=" in change])
    if "ungrouped" in changes:
        GlobalBatches._by_length = lambda self, rows: rows  # type: ignore[method-assign]
    if "head" in changes:
        supervised.PickedHead = lambda model, segments, *_: PickedHead(model, segments)  # type: ignore[misc]
    run = Home(Path(folder)).create().run("bench")
    run.path.mkdir(parents=True)
    run.prepared.write_text(json.dumps(prepare(settings, Home(Path(folder)), lambda *_: None)))
    end_step = StepMetrics.end_step
    seen = 0

    def timed(self: StepMetrics, loss: float) -> None:
        nonlocal seen
        end_step(self, loss)
        tokens = self.tokens
        clock.step_ends(tokens - seen if tokens >= seen else tokens)
        seen = 0  # a report follows each step, and empties the tally

    StepMetrics.end_step = timed  # type: ignore[method-assign]
    link, inbox = Link(f"ipc://{folder}/none", "bench", 1), Inbox()
    inbox.connect(link)
    session.train(run, 1, settings, Path(folder), None, Reporter(run, 1, link, 0), inbox)
    told = clock.figures()
    shutil.copytree(run.checkpoint(run.checkpoint_steps()[-1]), f"{folder}/adapter")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
