"""What a server is told when it is started. Free of torch."""

from __future__ import annotations

import ipaddress
import os

import msgspec

from engine.config.sampling import find_preset
from engine.protocol.messages import Problem, ProblemError
from engine.tasks import TASKS

BACKENDS = {
    "transformers": "engine.serving.server:Running",
    "vllm": "engine.serving.vllm:Vllm",
}
"""Name -> what serves: opened with (target, settings, progress), it has `address`, `label`, `device`, `template`, `note`, `alive`, `figures()`,
`requests(since)` and `close(seconds)`."""


class Settings(msgspec.Struct, kw_only=True):
    target: str
    directory: str = ""
    """That a relative target is meant from."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    key_env: str = ""
    """The variable that holds the key which clients must show."""
    task: str | None = None
    constrained: bool = False
    preset: str | None = None
    """How replies are sampled where clients do not say; None: greedily with a task, else at temperature 1, as OpenAI's."""
    slots: int = 16
    """Replies made at a time."""
    queue: int = 128
    """Replies that may wait for a place."""
    most_bytes: int = 1 << 20
    """Of a request's body."""
    seconds: float = 600.0
    """That a request may take."""
    longest: int = 1024
    """Tokens of a reply whose length the client leaves open."""
    dtype: str | None = None
    quantization: str | None = None
    backend: str = "transformers"

    def check(self) -> None:
        """Raises ValueError for what makes no sense, before anything is loaded."""
        for name in ("slots", "queue", "most_bytes", "seconds", "longest"):
            least = 0 if name == "queue" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, not {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"a port is a number from 0 to 65535, not {self.port}")
        if self.backend not in BACKENDS:
            raise ValueError(f"there is no backend {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"there is no task {self.task!r}: choose one of {', '.join(TASKS)}")
        if self.constrained and self.task is None:
            raise ValueError("constrained needs a task, whose schema replies are to fit")
        if self.preset is not None:
            find_preset(self.preset)

    def key(self) -> str:
        """What clients must show; empty when they need nothing. Raises ProblemError for an address that others reach without one."""
        if not self.key_env:
            if not is_loopback(self.host):
                raise ProblemError(
                    Problem(
                        code="serving.key_required",
                        title=f"{self.host} is reached from other machines: a key is needed",
                        cause="without one everybody there could use this model",
                        hint="put a key into a variable and name it: --api-key-env NAME",
                    )
                )
            return ""
        key = os.environ.get(self.key_env, "")
        if not key:
            raise ProblemError(
                Problem(
                    code="serving.key_missing",
                    title=f"The variable {self.key_env} holds no key",
                    hint=f"export {self.key_env}=… and serve again",
                )
            )
        return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
