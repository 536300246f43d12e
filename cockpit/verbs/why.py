"""`cockpit why`: what a run's metrics say about it, read from its journal. This needs no engine."""

from __future__ import annotations

import argparse
from typing import Any

from cockpit.language.translate import tr, tr_engine
from cockpit.state.formatting import counted, format_number
from cockpit.verbs import run_files
from cockpit.verbs.output import emit, say
from engine.config import diagnosis
from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory

SPLIT = "time/"


def why(options: argparse.Namespace) -> int:
    """Print the findings, what to change first at the top. Returns 1 if there are any."""
    run = run_files.find_run(Home.locate(options.home), options.run)
    evidence = diagnosis.read_evidence((entry for entry, _ in journal.read(run.events)), _read_profile(run))
    found = diagnosis.diagnose(evidence)
    split = {name: value for name, value in evidence.latest.items() if name.startswith(SPLIT)}
    if options.json:
        emit({"run": run.id, "step": evidence.steps, "findings": [each._asdict() for each in found], "split": split})
        return 1 if found else 0
    for number, each in enumerate(found, 1):
        print(f"{number}. {tr_engine(each.message)}  ({each.code})")
        print(f"   → {tr_engine(each.hint)}")
    if not found:
        print(
            tr("{id}: nothing stands out in {steps}", id=run.id, steps=counted(evidence.steps, "step"))
            if evidence.steps
            else tr("{id}: no steps yet", id=run.id)
        )
    shares = sorted(((value, name) for name, value in split.items() if value and "slowest" not in name), reverse=True)
    if shares:
        print("time: " + "  ".join(f"{name.removeprefix(SPLIT)} {100 * value:.0f} %" for value, name in shares[:8]))
    mfu = evidence.latest.get("train/mfu")
    if mfu:
        print(tr("mfu: {mfu} of the cards' peak", mfu=format_number(mfu)))
    if found:
        say(tr("cockpit explain {code} says more", code=found[0].code), "dim")
    return 1 if found else 0


def _read_profile(run: RunDirectory) -> dict[str, Any]:
    """The settings; none if the profile cannot be read."""
    from ruamel.yaml import YAML, YAMLError

    try:
        found = YAML(typ="safe").load(run.profile.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
