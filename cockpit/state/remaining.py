"""How long a run will still take: its steps, the evaluations between them, and what follows the training. Pure."""

from __future__ import annotations

import time

from cockpit.state.app_state import RunHistory
from cockpit.state.run_history import current_settings
from engine.protocol.messages import Run
from engine.protocol.stages import AFTER


def remaining_seconds(run: Run, history: RunHistory) -> float | None:
    """Seconds until training ends: by the time of recent steps, else by the average of this attempt, with the
    evaluations that are due until then; None when it cannot be estimated."""
    if run.state != "running" or not history.start or not run.max_steps or run.stage in AFTER:
        return None
    each = [float(entry["seconds"]) for entry in history.evaluations if entry.get("seconds")]
    evaluating = count_evaluations(run, history) * each[-1] if each else 0.0
    left = max(0, run.max_steps - run.step)
    if step_seconds := run.metrics.get("train/step_seconds"):
        return step_seconds * left + evaluating
    begin, step = history.start.get("time", time.time()), history.start.get("step", 0)
    spent = time.time() - begin
    spent -= sum(float(entry.get("seconds", 0.0)) for entry in history.evaluations if entry.get("time", 0.0) >= begin)
    done = run.step - step
    return max(0.0, spent) / done * left + evaluating if done > 0 else None


def count_evaluations(run: Run, history: RunHistory) -> int:
    """The evaluations that are due after the present step, the one at the end included."""
    every = current_settings(run, history).get("evaluation.every_steps")
    if run.step >= run.max_steps:
        return 0
    if not isinstance(every, int) or every <= 0:
        return 1
    return run.max_steps // every - run.step // every + (run.max_steps % every != 0)


def list_following(run: Run) -> list[str]:
    """The stages that follow the present one, of those after training."""
    here = AFTER.index(run.stage) + 1 if run.stage in AFTER else 0
    return [stage for stage in AFTER[here:] if stage in run.stages]
