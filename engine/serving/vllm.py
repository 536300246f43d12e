"""vLLM's own server as the backend: a child process whose metrics are read, and which ends with this one.

Tested with a stand-in whose parser has vLLM's options, and which does not listen to SIGTERM. Not tested: everything
that needs vLLM, since no machine with it has been available. The command line and the metrics' names follow vLLM's
documentation and source and were never run against vLLM itself.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from engine.hardware import masks
from engine.hardware.listing import Listing, measure_free
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
"""Seconds that vLLM takes to end its own processes after SIGTERM."""
KILLED = 5.0
"""Seconds within which the kernel ends what was killed: it frees a card's memory first."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `--max-lora-rank` can take."""
REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole layers that are saved with it (modules_to_save)",
    "trainable_token_indices": "single tokens that were trained",
    "target_parameters": "adapters on parameters that are no layers, such as fused experts",
    "rank_pattern": "ranks that differ between layers: vLLM would scale them wrongly",
    "alpha_pattern": "scales that differ between layers: vLLM would ignore them",
    "lora_bias": "a bias of its own",
}
"""Settings of an adapter that vLLM does not serve."""
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
        if target.adapter:
            check_adapter(target.adapter)
        source = target.folder if not target.on_hub and folders.has_tokenizer(target.folder) else target.base
        tokenizer = tokenizers.load(source)
        if target.lock:
            template_lock.check(files.read_json(target.lock), tokenizer, target.lock.parent)
        self.label, self.template = target.label, bool(choose_template(tokenizer.chat_template))
        self.address = f"http://{settings.host}:{settings.port}/v1"
        self.note = ""
        self._key = key
        self._before = (time.monotonic(), 0.0)
        devices, environment = choose_devices(settings.devices)
        self.device = f"vllm on GPU {', '.join(map(str, devices))}" if devices else "vllm"
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *build_arguments(target, settings, str(source), max(1, len(devices))),
        ]
        environment |= {"VLLM_API_KEY": key} if key else {}
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
        """Ask vLLM to end; it finishes or cancels the running requests, and ends its own processes. Those that are left
        after `GRACE` are killed."""
        family = self._list_processes()
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, GRACE))
        left = list({*family, *self._list_processes()})
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED)
        psutil.wait_procs(left, KILLED)

    def _list_processes(self) -> list[psutil.Process]:
        """vLLM's process and those that it has started: its engine, and one for each device."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def choose_devices(requested: Sequence[int] | None) -> tuple[list[int], dict[str, str]]:
    """The devices, and an environment that shows vLLM those alone. Raises ProblemError for devices that this process
    does not see. Where nobody lists devices, the environment is left as it is."""
    cards = Listing().sample_devices()
    visible = masks.find_visible(cards, os.environ)
    by_index = {card.index: card for card in cards}
    if requested is None:
        best = sorted(visible, key=lambda index: -(measure_free(by_index[index]) or 0))[:1]
        return best, masks.restrict(os.environ, os.environ, cards, best) if best else dict(os.environ)
    unknown = [index for index in requested if index not in visible]
    if unknown or len(set(requested)) < len(requested):
        raise ProblemError(
            Problem(
                code="profile.host",
                title=f"There is no device {', '.join(map(str, unknown))}" if unknown else "A device is named twice",
                cause=f"this server may use: {', '.join(map(str, visible)) or 'none'}",
                hint="name other devices: --devices",
            )
        )
    return list(requested), masks.restrict(os.environ, os.environ, cards, requested)


def check_adapter(folder: Path) -> None:
    """Raises ProblemError for an adapter that vLLM does not serve, or would serve wrongly."""
    settings = files.read_json(folder / folders.ADAPTER)
    kind = str(settings.get("peft_type") or "LORA")
    lacking = [text for key, text in REFUSED.items() if settings.get(key)]
    if settings.get("bias", "none") not in (None, "none"):
        lacking.append("trained biases")
    if kind != "LORA":
        lacking = [f"adapters of the kind {kind}"]
    elif (rank := _read_rank(settings)) > RANKS[-1]:
        lacking.append(f"a rank above {RANKS[-1]} (it is {rank})")
    if lacking:
        raise ProblemError(
            Problem(
                code="serving.adapter_unsupported",
                title="vLLM does not serve this adapter",
                cause=f"it serves plain LoRA, without {'; '.join(lacking)}",
                hint="serve the merged folder that `cockpit export` makes of it, or leave --backend out",
            )
        )


def _read_rank(settings: Mapping[str, Any]) -> int:
    rank = settings.get("r")
    return rank if isinstance(rank, int) else 16


def build_arguments(target: Target, settings: Settings, tokenizer: str, devices: int) -> list[str]:
    """The arguments of vLLM's server. The user's own come last, and win."""
    given = ["--model", target.base, "--tokenizer", tokenizer, "--host", settings.host, "--port", str(settings.port)]
    given += ["--max-num-seqs", str(settings.slots), "--tensor-parallel-size", str(devices)]
    if settings.context is not None:
        given += ["--max-model-len", str(settings.context)]
    if settings.memory_share is not None:
        given += ["--gpu-memory-utilization", f"{settings.memory_share:g}"]
    if dtype := settings.dtype or target.dtype:
        given += ["--dtype", dtype]
    if (settings.quantization or target.quantization) == "nf4":
        given += ["--quantization", "bitsandbytes"]
    if target.adapter is None:
        return [*given, "--served-model-name", target.label, *settings.arguments]
    rank = _read_rank(files.read_json(target.adapter / folders.ADAPTER))
    most = next(each for each in RANKS if each >= rank)
    given += ["--enable-lora", "--max-lora-rank", str(most), "--lora-modules", f"{target.label}={target.adapter}"]
    return [*given, *settings.arguments]
