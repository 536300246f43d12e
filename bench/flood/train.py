"""A train worker that only writes: `training.max_steps` metric events of three values each, as fast as it can."""

from __future__ import annotations

from engine.protocol.journal import End, Metrics, Start, Writer
from engine.protocol.worker_link import Link
from tests.scripted.script import Script

script = Script()
link = Link(script.address, script.job, 1)
journal = Writer(script.run.events)
last = script.profile.training.max_steps or 0
journal.write(
    Start(
        attempt=1, max_steps=last, epochs=1.0, steps_per_epoch=last, processes=1, global_batch=8,
        parameters=1, trainable_parameters=1, rows=1, trained_tokens=1,
    )
)  # fmt: skip
for step in range(1, last + 1):
    values: dict[str, float | None] = {"train/loss": 2.0 / step, "train/learning_rate": 1e-4, "train/grad_norm": 1.0}
    link.announce_journal(journal.write(Metrics(attempt=1, step=step, epoch=step / last, values=values)))
link.announce_journal(journal.write(End(attempt=1, step=last, status="completed")))
link.close()
