"""What the workers that answer questions share: their command line, and a loop in which every question gets an answer, whatever happens."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.protocol.messages import Instruction, Problem, ProblemError
from engine.protocol.text import first_line
from engine.protocol.worker_link import Link


class Cancelled(Exception):
    """The question is given up. Its text, if it has one, says what is kept."""


@dataclass(frozen=True)
class Wording:
    """How a worker says that a question was wrong, or that it failed on the way; `hint` is what to do when it was given up or has failed."""

    wrong: str
    failed: str
    hint: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line that the supervisor starts a worker with."""
    made = argparse.ArgumentParser()
    for name in ("--home", "--job", "--address"):
        made.add_argument(name, required=True)
    made.add_argument("--attempt", type=int, required=True)
    made.add_argument("--options", type=json.loads, default={})
    return made


def attend(
    link: Link, cancelled: set[str], questions: Mapping[str, Callable[[dict[str, Any]], Any]], wording: Wording
) -> NoReturn:
    """Answer questions as they come. `cancelled` has the requests that were given up; whoever notices raises `Cancelled`."""
    link.status("ready")
    while True:
        link.arrived.wait()
        for instruction in link.instructions():
            link.status("busy", detail=instruction.name)
            result, problem = answered(instruction, questions, wording)
            cancelled.discard(instruction.arguments.get("request", ""))
            link.status("ready")
            link.answer(instruction, result=result, problem=problem)


def answered(
    instruction: Instruction, questions: Mapping[str, Callable[[dict[str, Any]], Any]], wording: Wording
) -> tuple[Any, Problem | None]:
    """The answer, or what was wrong."""
    try:
        if instruction.name not in questions:
            raise ValueError(f"there is no question {instruction.name!r}, only {', '.join(questions)}")
        return questions[instruction.name](instruction.arguments), None
    except Cancelled as told:
        return None, Problem(title="Cancelled", cause=str(told), hint=wording.hint)
    except ProblemError as error:
        return None, error.problem
    except (ValueError, KeyError, TypeError) as error:
        return None, Problem(title=wording.wrong, cause=_said(error), traceback=traceback.format_exc())
    except (OSError, RuntimeError, MemoryError) as error:
        print(traceback.format_exc(), flush=True)
        return None, Problem(
            title=wording.failed, cause=_said(error), hint=wording.hint, traceback=traceback.format_exc()
        )


def _said(error: BaseException) -> str:
    """Its first line; a key that is missing is named as such."""
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
