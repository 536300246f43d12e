"""From what a client asks to jobs: prompt, sampling, schema. Works on any thread but the device's."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError

from engine.inference.sampling import make_sampling
from engine.serving.request_schemas import Asked, ChatAsked, RequestError, TextAsked
from engine.serving.scheduler import Job
from engine.tasks.task import load_task

MOST_CHOICES = 16


@dataclass
class Served:
    """A loaded model and how its replies are made where a client does not say. `task`: what a bare text is wrapped in; `constrained`:
    every reply fits the task's schema unless the client has one of its own."""

    loaded: Any
    names: tuple[str, ...]
    """What clients may call it; the first is its own."""
    context: int
    defaults: dict[str, Any]
    longest: int
    """Tokens of a reply whose length the client leaves open."""
    seconds: float
    """That a request may take."""
    task: str | None = None
    constrained: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # The device's thread decodes with the other tokenizer: one is not to be used by two.
        self._own = copy.copy(self.loaded)
        self._own.tokenizer = copy.deepcopy(self.loaded.tokenizer)
        self._task = load_task(self.task) if self.task else None

    def check_name(self, name: str) -> None:
        """Raises RequestError for a model that is not served here."""
        if name and name not in self.names:
            raise RequestError(
                404,
                f"the model {name!r} is not served here, only {self.names[0]!r}",
                param="model",
                code="model_not_found",
            )

    def chat(self, asked: ChatAsked) -> list[Job]:
        """Raises RequestError."""
        self.check_name(asked.model)
        if not self.loaded.templated:
            raise RequestError(
                400,
                f"{self.names[0]} has no chat template: it continues texts, at /v1/completions",
                code="no_chat_template",
            )
        messages = self._wrapped(asked.conversation())
        if asked.max_tokens is None:
            asked.max_tokens = asked.max_completion_tokens
        return self._jobs(asked, [self._render(messages, asked)])

    def text(self, asked: TextAsked) -> list[Job]:
        """Raises RequestError."""
        self.check_name(asked.model)
        if asked.max_tokens is None:
            asked.max_tokens = 16  # as OpenAI's
        return self._jobs(asked, [self._encoded(prompt) for prompt in asked.prompts()])

    def _wrapped(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With a task, its prompt around a user's last text; a conversation that begins with a system message is left as it is."""
        last = messages[-1]
        if self._task is None or messages[0]["role"] == "system" or last["role"] != "user":
            return messages
        wrapped: list[dict[str, Any]] = self._task.messages(last["content"])
        return wrapped

    def _render(self, messages: list[dict[str, Any]], asked: ChatAsked) -> list[int]:
        """Raises RequestError."""
        try:
            with self._lock:
                if asked.tools and asked.tool_choice != "none":
                    return self._with_tools(messages, asked)
                ids: list[int] = self._own.prompt(messages)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RequestError(400, str(error), param="messages")
        return ids

    def _with_tools(self, messages: list[dict[str, Any]], asked: ChatAsked) -> list[int]:
        """For templates that take them; what the model says of them stays text. Raises RequestError."""
        if "tools" not in self._own.tokenizer.chat_template:
            raise RequestError(400, f"the chat template of {self.names[0]} takes no tools", param="tools")
        if asked.tool_choice not in (None, "auto"):
            raise RequestError(400, "tool_choice is served as auto or none", param="tool_choice")
        ids: list[int] = self._own.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, tools=asked.tools
        )
        return ids

    def _encoded(self, prompt: str | list[int]) -> list[int]:
        """Raises RequestError."""
        if isinstance(prompt, list):
            size = len(self._own.tokenizer)
            if not all(isinstance(token, int) and 0 <= token < size for token in prompt):
                raise RequestError(400, f"prompt holds what is no token of the vocabulary of {size}", param="prompt")
            return prompt
        with self._lock:
            ids: list[int] = self._own.prompt(prompt)
        if not ids:
            raise RequestError(400, "prompt is empty", param="prompt")
        return ids

    def _jobs(self, asked: Asked, prompts: list[list[int]]) -> list[Job]:
        """Each prompt `n` times, a seed of its own for each choice. Raises RequestError."""
        count = 1 if asked.n is None else asked.n
        if not 1 <= count * len(prompts) <= MOST_CHOICES:
            raise RequestError(
                400, f"n times prompts is from 1 to {MOST_CHOICES}, not {count * len(prompts)}", param="n"
            )
        if longest := next((len(prompt) for prompt in prompts if len(prompt) >= self.context), None):
            raise RequestError(
                400,
                f"the prompt has {longest} tokens: nothing is left of a context of {self.context}",
                param="messages" if isinstance(asked, ChatAsked) else "prompt",
                code="context_length_exceeded",
            )
        schema = asked.schema()
        if schema is None and self.constrained and self._task is not None and asked.response_format is None:
            schema = dict(self._task.schema)
        said = {name: value for name, value in asked.sampling().items() if value is not None}
        try:
            sampling = make_sampling({"max_new_tokens": self.longest} | self.defaults | said | {"schema": schema})
        except ValueError as error:
            raise RequestError(400, str(error))
        if len(sampling.stop) > 16 or any(len(stop) > 1000 for stop in sampling.stop):
            raise RequestError(400, "stop takes up to 16 texts of up to 1000 characters", param="stop")
        deadline = time.monotonic() + self.seconds
        jobs = []
        for prompt in prompts:
            for choice in range(count):
                seed = None if sampling.seed is None else (sampling.seed + choice) % (1 << 63)
                try:
                    with self._lock:
                        grammar = self._own.grammar(sampling)
                except ValueError as error:
                    raise RequestError(400, str(error), param="response_format")
                jobs.append(Job(prompt, replace(sampling, seed=seed), deadline, grammar))
        return jobs
