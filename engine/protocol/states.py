"""The states of a run and the one table of moves between them. Pure: nothing here touches a process."""

from __future__ import annotations

QUEUED = "queued"
PREPARING = "preparing"
RUNNING = "running"
PAUSED = "paused"
STOPPING = "stopping"
STOPPED = "stopped"
COMPLETED = "completed"
FAILED = "failed"
LOST = "lost"

STATES = (QUEUED, PREPARING, RUNNING, PAUSED, STOPPING, STOPPED, COMPLETED, FAILED, LOST)
LIVE = frozenset({QUEUED, PREPARING, RUNNING, PAUSED, STOPPING})
"""States in which something is still to happen."""
STARTED = frozenset({PREPARING, RUNNING, PAUSED, STOPPING})
"""States in which a process of the run exists."""
ENDED = frozenset({STOPPED, COMPLETED, FAILED, LOST})

# (state, event) -> state. `None` is the state before the first.
TRANSITIONS: dict[tuple[str | None, str], str] = {
    (None, "submitted"): QUEUED,
    (QUEUED, "prepare"): PREPARING,
    (QUEUED, "start"): RUNNING,
    (PREPARING, "start"): RUNNING,
    (PREPARING, "requeue"): QUEUED,  # prepared, and the devices went to somebody else meanwhile
    (PREPARING, "done"): COMPLETED,  # a job that only prepares
    (RUNNING, "pause"): PAUSED,
    (PAUSED, "continue"): RUNNING,
    (RUNNING, "done"): COMPLETED,
    **{(state, "stop"): STOPPING for state in (QUEUED, PREPARING, RUNNING, PAUSED)},
    (STOPPING, "stopped"): STOPPED,
    (STOPPING, "done"): COMPLETED,  # the last step was done before the stop was taken
    **{(state, "failed"): FAILED for state in (QUEUED, PREPARING, RUNNING, PAUSED, STOPPING)},
    **{(state, "lost"): LOST for state in (QUEUED, PREPARING, RUNNING, PAUSED, STOPPING)},
    **{(state, "resume"): QUEUED for state in ENDED},
}


def move(state: str | None, event: str) -> str:
    """The state after `event`. Raises ValueError, in words for the user, when the table has no such move."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        allowed = sorted(name for (before, name) in TRANSITIONS if before == state)
        raise ValueError(
            f"a {state or 'new'} run cannot take '{event}' (it can take: {', '.join(allowed) or 'nothing'})"
        ) from None
