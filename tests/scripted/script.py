"""What the scripted workers share: their arguments and the run's profile."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from engine.config.profile import parse
from engine.protocol.home import Home


class Script:
    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--home", type=Path, required=True)
        parser.add_argument("--job", required=True)
        parser.add_argument("--attempt", type=int, required=True)
        parser.add_argument("--address", required=True)
        parser.add_argument("--from-step", type=int)
        parser.add_argument("--stage", default="")
        arguments = parser.parse_args()
        self.home = Home(arguments.home)
        self.job, self.attempt, self.address = arguments.job, arguments.attempt, arguments.address
        self.from_step, self.stage = arguments.from_step, arguments.stage
        self.rank = int(os.environ.get("RANK", 0))
        self.run = self.home.run(self.job)
        self.profile = parse(self.run.profile.read_text(), "profile", Path("/"), prepared=True)
        self.seed = self.profile.generation.seed or 0
