"""The stages of a run by name, and the file that each writes when it is done.

A run that was interrupted goes on at the first stage without a result. `check` and `expand` write no result of their
own: the profile is checked before the run exists, and expanding is the first part of `prepare`.
"""

from __future__ import annotations

CHECK, EXPAND, PREPARE, TRAIN, EVALUATE, EXPORT = "check", "expand", "prepare", "train", "evaluate", "export"
STAGES = (CHECK, EXPAND, PREPARE, TRAIN, EVALUATE, EXPORT)
"""All stages, in order."""
AFTER = (EVALUATE, EXPORT)
"""The stages after training."""
RESULTS = {
    PREPARE: "prepared.json",
    TRAIN: "trained.json",
    EVALUATE: "evaluated.json",
    EXPORT: "exported.json",
}
"""Stage -> the file in the run's directory that it writes when it is done."""
