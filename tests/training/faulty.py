"""The training worker with a fault in it: `python -m tests.training.faulty`, what `FAULT` names goes wrong; several
are joined by `+`.

`oom:N`    each pass over more than N tokens runs out of memory, in the model's forward pass
`oom:N:R`  the same on rank R alone
`weigh`    nothing goes wrong; each rank leaves the number of elements that its optimiser holds in the run's
           `weighed-RANK.json`
`slate:L`  nothing goes wrong; the ranks train on the test back end of the library L
`save:S`, `evaluate:S`, `compute:S`, `boundary:S`   kill -9 in the middle of saving, evaluating or
           computing after step S, or at that boundary
`beside:`  nothing goes wrong; all checkpoints of all weights are written beside training
`prompted:`   nothing goes wrong; the replies to a prompt are drawn by numbers of its own, so that they are the same on
           whichever rank
`dtype:NAME`   nothing goes wrong; what this CPU computes faster is not measured: it is NAME
`background:S`   kill -9 while the checkpoint of step S is written beside training, a second after it began
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from typing import Any

from engine.training import background_writer
from engine.workers import train

GENERATIONS = 4
"""Replies to a prompt, with `prompted`."""


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_out(tokens: int, rank: int | None = None) -> None:
    """Put a limit on how many tokens a forward pass of any model built from now on may have."""
    import torch

    from engine.training import model, ranks

    build = model.build

    def refuse(module: Any, args: Any, named: dict[str, Any]) -> None:
        if named["input_ids"].numel() > tokens and rank in (None, ranks.read_place()[0]):
            raise torch.OutOfMemoryError(f"a fault of the test: more than {tokens} tokens")

    def faulty(*arguments: Any) -> Any:
        made = build(*arguments)
        made.register_forward_pre_hook(refuse, with_kwargs=True)
        return made

    model.build = faulty


def weigh() -> None:
    from engine.training.loop import TrainingLoop

    end = TrainingLoop.end_if_finished

    def weighed(self: Any) -> None:
        states = self.optimizer.state.values()
        held = sum(value.numel() for state in states for value in state.values())
        (self.job.run.path / f"weighed-{self.ranks.rank}.json").write_text(str(held))
        end(self)

    TrainingLoop.end_if_finished = weighed  # type: ignore[method-assign]


def kill(where: str, step: int) -> None:
    from engine.storage import atomic, manifest
    from engine.training.evaluator import Evaluator
    from engine.training.run_control import RunControl

    if where == "save":
        sync = atomic._sync
        atomic._sync = lambda folder: _die() if f"step-{step:08d}" in folder.name else sync(folder)
    elif where == "background":
        background_writer.SMALLEST = 1
        write = manifest.write

        def dies_late(folder: Any, **facts: Any) -> None:
            if f"step-{step:08d}" in folder.name:
                time.sleep(1)
                _die()
            write(folder, **facts)

        manifest.write = dies_late
    elif where == "evaluate":
        loss = Evaluator._held_out_loss
        Evaluator._held_out_loss = lambda self, batches: (  # type: ignore[method-assign]
            _die() if self._loop.step == step else loss(self, batches)
        )
    elif where == "boundary":
        take = RunControl.take_commands
        RunControl.take_commands = lambda self: _die() if self._loop.step == step else take(self)  # type: ignore[method-assign]
    else:
        from engine.training.loop import TrainingLoop

        compute = TrainingLoop.compute_gradients

        def second_dies(self: Any, micro_batches: Any, units: float, **named: Any) -> Any:
            if self.step == step and len(micro_batches) > 1:
                compute(self, micro_batches[:1], units)
                _die()
            return compute(self, micro_batches, units, **named)

        TrainingLoop.compute_gradients = second_dies  # type: ignore[method-assign]


def compute_in(name: str) -> None:
    import torch

    from engine.models import devices

    devices.choose_cpu_dtype = lambda _: getattr(torch, name)


def draw_by_prompt() -> None:
    """Seed each reply by its prompt and its place among the prompt's replies."""
    from dataclasses import replace

    from engine.inference import generate
    from engine.training.online import method

    sample, open_row = method.sample_batch, generate.open_row

    def open_prompted(sampling: Any, prompt: Any) -> Any:
        seed = zlib.crc32(repr((sampling.seed % GENERATIONS, *prompt)).encode())
        return open_row(replace(sampling, seed=seed), prompt)

    def sample_prompted(model: Any, tokenizer: Any, prompts: Any, sampling: Any, *more: Any) -> Any:
        return sample(model, tokenizer, prompts, replace(sampling, seed=0), *more)

    generate.open_row, method.sample_batch = open_prompted, sample_prompted


def install(what: str, *numbers: str) -> None:
    if what == "oom":
        run_out(*map(int, numbers))
    elif what == "slate":
        from tests.training.backend import slate

        slate.register(numbers[0])
        slate.register_collectives()
    elif what == "beside":
        background_writer.SMALLEST = 1
    elif what == "weigh":
        weigh()
    elif what == "prompted":
        draw_by_prompt()
    elif what == "dtype":
        compute_in(numbers[0])
    else:
        kill(what, int(numbers[0]))


if __name__ == "__main__":
    for fault in os.environ["FAULT"].split(";"):
        install(*fault.split(":"))
    os._exit(train.main())
