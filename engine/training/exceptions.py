"""Exceptions that end the training loop before its last step."""

from __future__ import annotations

from engine.config.profile import Profile


class StopTraining(Exception):
    """The run was stopped while a batch was held back; its checkpoint is written."""


class RestartFrom(Exception):
    """Model and loop must be built again with `profile`, resuming the checkpoint of `step`; None starts from the
    beginning."""

    def __init__(self, profile: Profile, step: int | None) -> None:
        super().__init__(step)
        self.profile, self.step = profile, step
