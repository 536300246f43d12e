"""The stages of a run, by name, and the file that each leaves when it is done.

A run that died goes on at the stage whose result is missing. Checking and expanding leave no result of their own: the one is done before a
run exists, the other is the first part of preparing.
"""

from __future__ import annotations

CHECK, EXPAND, PREPARE, TRAIN, EVALUATE, EXPORT = "check", "expand", "prepare", "train", "evaluate", "export"
STAGES = (CHECK, EXPAND, PREPARE, TRAIN, EVALUATE, EXPORT)
"""All there are, in their order."""
AFTER = (EVALUATE, EXPORT)
"""What is done with a trained checkpoint."""
RESULTS = {
    PREPARE: "prepared.json",
    TRAIN: "trained.json",
    EVALUATE: "evaluated.json",
    EXPORT: "exported.json",
}
"""Stage -> its result in the run's directory, written last."""
