"""vLLM's own server as the backend: a child process whose metrics are read, and which ends with this one.

Tested: the refusal where vLLM is not installed. Not tested: everything that needs vLLM, since no machine with it has
been available. The command line and the metrics' names follow vLLM's documentation and were never run against vLLM
itself.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from engine.models import files, folders, targets, template_lock, tokenizers
from engine.models.targets import Target
from engine.models.template_metadata import choose_template
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.serving.metrics import RequestRecord
from engine.serving.settings import Settings

STARTING = 1800.0
"""Seconds within which it must answer; it compiles the model first."""
GRACE = 10.0
METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "queued",
    "vllm:request_success": "served",
    "vllm:generation_tokens": "tokens",
}


class VllmServer:
    """Serves from its creation until `close`. Raises ProblemError."""

    def __init__(
        self, target: Target, settings: Settings, home: Home, progress: Callable[[str, int, int], None]
    ) -> None:
        key = settings.read_key()
        if importlib.util.find_spec("vllm") is None:
            raise ProblemError(
                Problem(
                    code="package.missing",
                    title="vLLM is not installed here",
                    cause="--backend vllm starts vLLM's own server",
                    hint="pip install vllm (it needs a GPU), or leave --backend out",
                )
            )
        if settings.port == 0:
            raise ValueError("--backend vllm cannot choose a free port: name one with --port")
        refused = [name for name in ("task", "constrained", "preset") if getattr(settings, name)]
        if refused or settings.quantization == "int8":
            raise ValueError(f"{', '.join(refused) or 'int8'} cannot be used with --backend vllm")
        target = targets.fetch(target, home, progress)
        targets.check(target, folders.find_weights_problems)
        source = target.folder if not target.on_hub and folders.has_tokenizer(target.folder) else target.base
        tokenizer = tokenizers.load(source)
        if target.lock:
            template_lock.check(files.read_json(target.lock), tokenizer, target.lock.parent)
        self.label, self.device, self.template = target.label, "vllm", bool(choose_template(tokenizer.chat_template))
        self.address = f"http://{settings.host}:{settings.port}/v1"
        self.note = ""
        self._key = key
        self._before = (time.monotonic(), 0.0)
        environment = os.environ | ({"VLLM_API_KEY": key} if key else {})
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *build_arguments(target, settings, str(source)),
        ]
        self._process = subprocess.Popen(command, env=environment)
        try:
            self._wait(progress)
        except BaseException:
            self.close(0)
            raise

    def _wait(self, progress: Callable[[str, int, int], None]) -> None:
        """Wait until it answers. Raises ProblemError when it ends before that."""
        began = time.monotonic()
        while self._get("/health") is None:
            if self._process.poll() is not None or time.monotonic() - began > STARTING:
                raise ProblemError(
                    Problem(
                        code="serving.backend_failed",
                        title="vLLM did not start",
                        cause="its output is in the service's log",
                    )
                )
            progress("starting vLLM", 0, 0)
            time.sleep(1)

    def _get(self, path: str) -> str | None:
        """The answer of vLLM's server, None if there is none."""
        request = urllib.request.Request(self.address.removesuffix("/v1") + path)
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return str(answer.read().decode())
        except (OSError, urllib.error.URLError):
            return None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def figures(self) -> dict[str, Any]:
        """As `ServerMetrics.snapshot`; vLLM does not count errors."""
        figures = dict.fromkeys((*METRICS.values(), "errors"), 0.0)
        for family in text_string_to_metric_families(self._get("/metrics") or ""):
            if family.name in METRICS:
                figures[METRICS[family.name]] = sum(
                    sample.value for sample in family.samples if not sample.name.endswith("_created")
                )
        moment, (then, tokens) = time.monotonic(), self._before
        self._before = (moment, figures["tokens"])
        return figures | {"tokens_per_second": max(0.0, figures["tokens"] - tokens) / max(moment - then, 1e-3)}

    def requests(self, since: int) -> tuple[Sequence[RequestRecord], int]:
        """None: vLLM writes them to its own log."""
        return (), 0

    def close(self, seconds: float) -> None:
        """Ask vLLM to end; it finishes or cancels the running requests."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(seconds or GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()


def build_arguments(target: Target, settings: Settings, tokenizer: str) -> list[str]:
    """The arguments of vLLM's server."""
    given = ["--model", target.base, "--tokenizer", tokenizer, "--host", settings.host, "--port", str(settings.port)]
    given += ["--max-num-seqs", str(settings.slots)]
    if dtype := settings.dtype or target.dtype:
        given += ["--dtype", dtype]
    if (settings.quantization or target.quantization) == "nf4":
        given += ["--quantization", "bitsandbytes"]
    if target.adapter is None:
        return [*given, "--served-model-name", target.label]
    rank = files.read_json(target.adapter / folders.ADAPTER).get("r", 16)
    return [*given, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{target.label}={target.adapter}"]
