"""The settings of a server. Torch-free."""

from __future__ import annotations

import ipaddress
import os

import msgspec

from engine.config.sampling import find_preset
from engine.protocol.messages import Problem, ProblemError
from engine.tasks.task import load_task

BACKENDS = {
    "transformers": "engine.serving.server:TransformersServer",
    "vllm": "engine.serving.vllm:VllmServer",
}
"""Name -> the server's class. It is called with (target, settings, home, progress), and has `address`, `label`,
`device`, `template`, `note`, `alive`, `figures()`, `requests(since)` and `close(seconds)`."""


class Settings(msgspec.Struct, kw_only=True):
    target: str
    directory: str = ""
    """The folder against which a relative target is resolved."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    key_env: str = ""
    """The environment variable that holds the key for clients."""
    task: str | None = None
    constrained: bool = False
    preset: str | None = None
    """How replies are sampled by default; None: greedily with a task, else at temperature 1, like OpenAI."""
    slots: int = 16
    """Replies that are decoded together."""
    queue: int = 128
    """Replies that may wait."""
    most_bytes: int = 1 << 20
    """Largest body of a request, in bytes."""
    seconds: float = 600.0
    """Longest time of a request."""
    longest: int = 1024
    """Longest reply in tokens, where the client leaves it open."""
    dtype: str | None = None
    quantization: str | None = None
    adapters: list[str] = []
    """Targets of further adapters of the same base, each served under its own name."""
    backend: str = "transformers"
    devices: list[int] | None = None
    """vLLM's: devices that share the model; None: the one with most free memory."""
    context: int | None = None
    """vLLM's: tokens of prompt and reply together; None: as many as the model has."""
    memory_share: float | None = None
    """vLLM's: the share of each device's memory that it takes; None: its own default."""
    arguments: list[str] = []
    """vLLM's: arguments that are added to its command line as they are."""

    def check(self) -> None:
        """Raises ValueError for invalid settings, before anything is loaded."""
        for name in ("slots", "queue", "most_bytes", "seconds", "longest"):
            least = 0 if name == "queue" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"a port must be from 0 to 65535, not {self.port}")
        if self.backend not in BACKENDS:
            raise ValueError(f"there is no backend {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        alone = [name for name in ("devices", "context", "memory_share", "arguments") if getattr(self, name)]
        if alone and self.backend != "vllm":
            raise ValueError(f"{', '.join(alone)} can only be set with --backend vllm")
        if self.adapters and self.backend == "vllm":
            raise ValueError("--adapter is not served with --backend vllm: name it in --vllm-arguments")
        if self.context is not None and self.context < 1:
            raise ValueError(f"context must be at least 1, not {self.context}")
        if self.memory_share is not None and not 0 < self.memory_share <= 1:
            raise ValueError(f"the share of memory must be above 0 and at most 1, not {self.memory_share}")
        if self.task is not None:
            load_task(self.task)
        if self.constrained and self.task is None:
            raise ValueError("constrained needs a task, whose schema replies are to fit")
        if self.preset is not None:
            find_preset(self.preset)

    def read_key(self) -> str:
        """The key for clients; empty if they need none. Raises ProblemError for a public address without a key, and for
        an empty variable."""
        if not self.key_env:
            if not is_loopback(self.host):
                raise ProblemError(
                    Problem(
                        code="serving.key_required",
                        title=f"{self.host} can be reached from other machines: a key is needed",
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
                    title=f"The variable {self.key_env} is empty or not set",
                    hint=f"export {self.key_env}=… and serve again",
                )
            )
        return key


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
