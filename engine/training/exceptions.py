"""Ways out of the training loop other than its last step."""

from __future__ import annotations

from engine.config.profile import Profile


class StopTraining(Exception):
    """The run was told to stop while a step was held back; its checkpoint is written."""


class RestartFrom(Exception):
    """Build model and loop anew with `profile`, and go on from the checkpoint of `step`; from the very start where it is None."""

    def __init__(self, profile: Profile, step: int | None) -> None:
        super().__init__(step)
        self.profile, self.step = profile, step
