"""The training worker with a fault in it: `python -m tests.training.faulty`, what `FAULT` names goes wrong.

`oom:N`    each pass over more than N tokens runs out of memory, in the model's forward pass
`oom:N:R`  the same on rank R alone
`weigh`    nothing goes wrong; each rank leaves the number of elements that its optimiser holds in the run's `weighed-RANK.json`
`save:S`, `evaluate:S`, `window:S`, `boundary:S`   kill -9 in the middle of saving, evaluating or computing after step S, or right at that boundary
"""

from __future__ import annotations

import os
import signal
from typing import Any

from engine.workers import train


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_out(tokens: int, rank: int | None = None) -> None:
    """Put a limit on how many tokens a forward pass of any model built from now on may have."""
    import torch

    from engine.training import model, ranks

    build = model.build

    def refuse(module: Any, args: Any, named: dict[str, Any]) -> None:
        if named["input_ids"].numel() > tokens and rank in (None, ranks.place()[0]):
            raise torch.OutOfMemoryError(f"a fault of the test: more than {tokens} tokens")

    def faulty(*arguments: Any) -> Any:
        made = build(*arguments)
        made.register_forward_pre_hook(refuse, with_kwargs=True)
        return made

    model.build = faulty


def weigh() -> None:
    from engine.training.trainer import Steered

    end = Steered._end_if_done

    def weighed(self: Any, step: int) -> None:
        states = self.optimizer.state.values()
        held = sum(value.numel() for state in states for value in state.values())
        (self.job.run.path / f"weighed-{self.ranks.rank}.json").write_text(str(held))
        end(self, step)

    Steered._end_if_done = weighed  # type: ignore[method-assign]


def kill(where: str, step: int) -> None:
    from engine.training import checkpoints
    from engine.training.evaluator import HeldOut
    from engine.training.trainer import Steered

    if where == "save":
        sync = checkpoints._sync
        checkpoints._sync = lambda folder: _die() if f"step-{step:08d}" in folder.name else sync(folder)
    elif where == "evaluate":
        loss = HeldOut._loss
        HeldOut._loss = lambda self, trainer, batches: (  # type: ignore[method-assign]
            _die() if trainer.state.global_step == step else loss(self, trainer, batches)
        )
    elif where == "boundary":
        obey = Steered._obey
        Steered._obey = lambda self, now: _die() if now == step else obey(self, now)  # type: ignore[method-assign]
    else:
        pass_ = Steered.training_step
        seen: list[int] = []

        def second_dies(self: Any, *arguments: Any) -> Any:
            seen.append(self.state.global_step)
            if seen[-2:] == [step, step]:
                _die()
            return pass_(self, *arguments)

        Steered.training_step = second_dies  # type: ignore[method-assign]


if __name__ == "__main__":
    what, *numbers = os.environ["FAULT"].split(":")
    if what == "oom":
        run_out(*map(int, numbers))
    elif what == "weigh":
        weigh()
    else:
        kill(what, int(numbers[0]))
    os._exit(train.main())
