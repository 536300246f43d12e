"""The command line of service workers, and the loop in which they answer requests. Every request gets an answer,
whatever happens."""

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
    """The request was cancelled. The text, if there is one, says which results are kept."""


@dataclass(frozen=True)
class ErrorTexts:
    """Titles of the problems that a worker answers with: for a request that is `invalid`, and for one that `failed`.
    `hint` says what to do after a request has failed or was cancelled."""

    invalid: str
    failed: str
    hint: str = ""


def build_parser() -> argparse.ArgumentParser:
    """The command line that the supervisor starts a worker with."""
    parser = argparse.ArgumentParser()
    for name in ("--home", "--job", "--address"):
        parser.add_argument(name, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    return parser


def serve_requests(
    link: Link, cancelled: set[str], questions: Mapping[str, Callable[[dict[str, Any]], Any]], texts: ErrorTexts
) -> NoReturn:
    """Answer requests as they come. `questions` maps a name to the function that answers it. `cancelled` holds the ids
    of cancelled requests; a function that finds its own raises `Cancelled`."""
    link.send_status("ready")
    while True:
        link.instructions_arrived.wait()
        for instruction in link.take_instructions():
            link.send_status("busy", detail=instruction.name)
            result, problem = answer_request(instruction, questions, texts)
            cancelled.discard(instruction.arguments.get("request", ""))
            link.send_status("ready")
            link.answer(instruction, result=result, problem=problem)


def answer_request(
    instruction: Instruction, questions: Mapping[str, Callable[[dict[str, Any]], Any]], texts: ErrorTexts
) -> tuple[Any, Problem | None]:
    """The result, or the problem."""
    try:
        if instruction.name not in questions:
            raise ValueError(f"this service cannot answer {instruction.name!r}, only {', '.join(questions)}")
        return questions[instruction.name](instruction.arguments), None
    except Cancelled as error:
        return None, Problem(code="request.cancelled", title="Cancelled", cause=str(error), hint=texts.hint)
    except ProblemError as error:
        return None, error.problem
    except (ValueError, KeyError, TypeError) as error:
        return None, Problem(
            code="request.invalid", title=texts.invalid, cause=_describe(error), traceback=traceback.format_exc()
        )
    except Exception as error:  # noqa: BLE001 - every request gets an answer
        print(traceback.format_exc(), flush=True)
        return None, Problem(
            code="request.failed",
            title=texts.failed,
            cause=_describe(error),
            hint=texts.hint,
            traceback=traceback.format_exc(),
        )


def _describe(error: BaseException) -> str:
    """The first line of the error; that of a KeyError is only the key, so its class is added."""
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
