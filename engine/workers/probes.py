"""Probes try out what works on this machine, in processes of their own, so that a crash is a result too.

`python -P -m engine.workers.probes NAME…` prints `NAME: DETAIL` for each that passes. It ends at the first that fails,
with the reason on stderr: what that may have left behind must not decide on the next.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

SECONDS = 60
"""Time-out of one collective: a blocked port or a wrong network interface leads to it."""


def choose_device() -> str:
    """The device that probes compute on: the first GPU, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def probe_torch() -> str:
    """Describe torch as JSON: `text` has its version, build and devices, `cuda` its CUDA version, and `architectures`
    what it has kernels for."""
    import torch

    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    seen = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    text = f"{torch.__version__}; built for {build}; sees {', '.join(seen) or 'no GPU'}"
    architectures = torch.cuda.get_arch_list() if torch.version.cuda else []
    return json.dumps({"text": text, "cuda": torch.version.cuda or "", "architectures": architectures})


def probe_bfloat16() -> str:
    """Compare a bfloat16 matrix product and its backward pass with float32."""
    import torch

    where = choose_device()
    torch.manual_seed(0)
    exact = torch.randn(512, 512, device=where)
    rounded = exact.bfloat16().requires_grad_()
    product = rounded @ rounded
    product.float().square().mean().backward()
    error = ((product.float() - exact @ exact).norm() / (exact @ exact).norm()).item()
    assert error < 0.02, f"a bfloat16 product is wrong by {error:.1%}"
    assert rounded.grad is not None and bool(rounded.grad.isfinite().all())
    ratio = _measure_seconds(lambda: exact @ exact) / _measure_seconds(lambda: rounded.detach() @ rounded.detach())
    speed = (
        f"{ratio:.1f} times as fast as float32" if ratio > 1 else "emulated, slower than float32, which is used instead"
    )
    return f"works on {where}; {speed}"


def _measure_seconds(compute: Callable[[], object]) -> float:
    import torch

    best = 1e9
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(4):
            compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def probe_nf4() -> str:
    """Compare the forward and backward pass of a 4-bit layer of bitsandbytes with the weights that it dequantises
    to."""
    import bitsandbytes
    import torch
    from bitsandbytes.functional import dequantize_4bit

    where = choose_device()
    layer = bitsandbytes.nn.Linear4bit(256, 256, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16).to(where)
    row = torch.randn(4, 256, device=where, dtype=torch.bfloat16, requires_grad=True)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.bfloat16)
    output = layer(row)
    output.float().sum().backward()
    assert row.grad is not None
    for name, found, expected in (
        ("product", output, row @ weight.T),
        ("gradient", row.grad, weight.sum(0).expand_as(row)),
    ):
        error = ((found - expected).float().norm() / expected.float().norm()).item()
        assert error < 0.05, f"the NF4 {name} is wrong by {error:.1%}"
    return f"bitsandbytes {bitsandbytes.__version__}: an NF4 product and its gradient are right on {where}"


def probe_collectives() -> str:
    """Add numbers across two processes through gloo, and through NCCL with one process per GPU where there are GPUs."""
    import torch

    backends = {"gloo": 2} | ({"nccl": min(2, torch.cuda.device_count())} if torch.cuda.is_available() else {})
    for backend, world in backends.items():
        _all_reduce(backend, world)
    return ", ".join(f"{backend} with {world} processes" for backend, world in backends.items())


def _all_reduce(backend: str, world: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.workers.probes", "rank", backend, str(rank), str(world), folder],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            errors = [rank.communicate(timeout=SECONDS)[1] for rank in ranks]
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{backend}: no answer within {SECONDS} s") from None
        finally:
            for rank in ranks:
                rank.kill()
        for rank, error in zip(ranks, errors, strict=True):
            if rank.returncode:
                raise RuntimeError(f"{backend}: {last_line(error)}")


def run_rank(backend: str, rank: int, world: int, folder: str) -> None:
    """One process of `probe_collectives`."""
    import torch
    import torch.distributed as distributed

    distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=SECONDS / 2),
    )
    number = torch.tensor([rank + 1.0], device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    distributed.all_reduce(number)
    assert number.item() == world * (world + 1) / 2, f"the sum of {world} ranks came out as {number.item()}"
    distributed.destroy_process_group()


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "there is no output")


PROBES: dict[str, Callable[[], str]] = {
    "torch": probe_torch,
    "bfloat16": probe_bfloat16,
    "nf4": probe_nf4,
    "collectives": probe_collectives,
}


_tried: dict[str, tuple[bool, str]] = {}
"""The results of this process, by the name of the probe."""


def try_on_device(name: str) -> tuple[bool, str]:
    """The result of a probe that computes in its own process, which is run at the first call."""
    if name not in _tried:
        try_together([name])
    return _tried[name]


def try_together(names: Iterable[str]) -> None:
    """Run these probes in one process."""
    _tried.update(run_probes([name for name in names if name not in _tried]))


def forget() -> None:
    """Run each probe again when it is asked for next."""
    _tried.clear()


def run_probes(names: Sequence[str]) -> dict[str, tuple[bool, str]]:
    """Run probes one after the other: whether each passed, and its line of detail. After one that fails, the others are
    run in another process."""
    results: dict[str, tuple[bool, str]] = {}
    while waiting := [name for name in names if name not in results]:
        output, problem = _run(waiting)
        for name in waiting:
            passed = next((line for line in output.splitlines() if line.startswith(f"{name}: ")), "")
            results[name] = (True, passed.removeprefix(f"{name}: ")) if passed else (False, problem)
            if not passed:
                break
    return results


def _run(names: Sequence[str]) -> tuple[str, str]:
    """What a process with these probes writes to stdout, and why it ended at the first that is missing there."""
    command = [sys.executable, "-P", "-m", "engine.workers.probes", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=4 * SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0], f"no answer within {4 * SECONDS} s"
    if process.returncode < 0:
        return output, f"the process was ended by signal {-process.returncode}"
    return output, last_line(errors)


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        run_rank(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        for asked in sys.argv[1:]:
            print(f"{asked}: {PROBES[asked]()}", flush=True)
