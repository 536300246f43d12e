"""From a client's request to jobs: prompt, sampling, schema. Works on any thread but the device's."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from engine.inference.sampling import SettingError, make_sampling
from engine.models import template_lock
from engine.models.template_metadata import takes_tools
from engine.protocol.text import first_line
from engine.serving.jobs import Job
from engine.serving.request_schemas import ChatRequest, CompletionRequest, RequestError, TextRequest
from engine.serving.tool_calls import REQUIRED, Family, find_family
from engine.tasks.task import load_task

MOST_CHOICES = 16


@dataclass
class RequestBuilder:
    """Builds jobs for a loaded model, with defaults for what a client leaves open."""

    loaded: Any
    names: tuple[str, ...]
    """The names that clients may use; the first is the model's own."""
    context: int
    defaults: dict[str, Any]
    longest: int
    """Longest reply in tokens, where the client leaves it open."""
    seconds: float
    """Longest time of a request."""
    task: str | None = None
    """The task whose prompt is put around a bare text."""
    constrained: bool = False
    """Whether every reply fits the task's schema, unless the client gives its own."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Where several adapters are served: name of each model -> peft's name."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Adapters as they were typed -> their names."""
    created: int = field(default_factory=lambda: int(time.time()))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # The device's thread decodes with the other tokenizer: one tokenizer is not safe in two threads.
        self._own = copy.copy(self.loaded)
        self._own.tokenizer = copy.deepcopy(self.loaded.tokenizer)
        self._task = load_task(self.task) if self.task else None

    @property
    def models(self) -> list[str]:
        """The names of all models that are served."""
        return [*self.adapters] or [self.names[0]]

    def choose_name(self, name: str) -> str:
        """The name of the model that answers a request for `name`."""
        name = self.aliases.get(name, name) if name not in self.names else name
        return name if name in self.adapters else self.names[0]

    def check_name(self, name: str) -> None:
        """Raises RequestError for a model that is not served here."""
        if name and name not in (*self.names, *self.adapters, *self.aliases):
            served = ", ".join(repr(each) for each in self.models)
            raise RequestError(
                404,
                f"the model {name!r} is not served here, only {served}",
                param="model",
                code="model_not_found",
            )

    def chat(self, request: ChatRequest) -> list[Job]:
        """The jobs of a chat completion. Raises RequestError."""
        self.check_name(request.model)
        if not self.loaded.templated:
            raise RequestError(
                400,
                f"{self.names[0]} has no chat template: it continues texts, at /v1/completions",
                code="no_chat_template",
            )
        messages = self._wrap(request.conversation())
        family = self.find_family(request)
        jobs = self._make_jobs(request, [self._render(messages, request)])
        for job in jobs:
            job.shown = family.marks if family else ()
        return jobs

    def find_family(self, request: ChatRequest) -> Family | None:
        """How the tool calls of the reply are written; None where there are none, or where the template's marks are
        unknown. Raises RequestError."""
        if not request.uses_tools():
            return None
        return REQUIRED if request.requires_call() else find_family(self.loaded.tokenizer.chat_template)

    def text(self, request: TextRequest) -> list[Job]:
        """The jobs of a text completion. Raises RequestError."""
        self.check_name(request.model)
        if request.max_tokens is None:
            request.max_tokens = 16  # OpenAI's default
        only_score = bool(request.echo) and request.max_tokens == 0
        if only_score:
            request.max_tokens = 1
        prompts = request.prompts()
        jobs = self._make_jobs(request, [self._encode(prompt) for prompt in prompts])
        for job in jobs:
            job.continues = True
        if request.echo:
            if request.logprobs is not None and getattr(self.loaded.model, "reads_both_ways", False):
                why = f"every token of a prompt of {self.names[0]} sees all others, so it has no log-probability"
                raise RequestError(400, f"echo is not served with logprobs: {why}", param="echo")
            each = len(jobs) // len(prompts)
            for place, job in enumerate(jobs):
                job.echo, job.generates = self._read(prompts[place // each]), not only_score
        return jobs

    def _read(self, prompt: str | list[int]) -> str:
        """A prompt as text."""
        if isinstance(prompt, str):
            return prompt
        with self._lock:
            text: str = self._own.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        return text

    def _wrap(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With a task, put its prompt around the user's last text; a conversation that begins with a system message is
        unchanged."""
        last = messages[-1]
        if self._task is None or messages[0]["role"] == "system" or last["role"] != "user":
            return messages
        return [*self._task.messages(last["content"])]

    def _render(self, messages: list[dict[str, Any]], request: ChatRequest) -> list[int]:
        """Raises RequestError."""
        try:
            with self._lock:
                if request.uses_tools():
                    return self._render_with_tools(messages, request)
                ids: list[int] = self._own.prompt(messages)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - a template raises anything for messages that it does not expect
            raise RequestError(
                400, f"the chat template cannot render these messages: {first_line(error)}", param="messages"
            )
        return ids

    def _render_with_tools(self, messages: list[dict[str, Any]], request: ChatRequest) -> list[int]:
        """Render the tools, for a template that takes them. Raises RequestError."""
        if not takes_tools(self._own.tokenizer.chat_template):
            raise RequestError(400, f"the chat template of {self.names[0]} takes no tools", param="tools")
        return template_lock.render(self._own.tokenizer, messages, request.tools, reply_follows=True)

    def _encode(self, prompt: str | list[int]) -> list[int]:
        """Raises RequestError."""
        if isinstance(prompt, list):
            size = len(self._own.tokenizer)
            if not all(isinstance(token, int) and 0 <= token < size for token in prompt):
                raise RequestError(
                    400, f"prompt has a number that is no token id: they are from 0 to {size - 1}", param="prompt"
                )
            return prompt
        try:
            with self._lock:
                ids: list[int] = self._own.prompt(prompt)
        except Exception as error:  # noqa: BLE001 - a text that the tokenizer cannot take, such as half a character
            raise RequestError(400, f"prompt cannot be tokenized: {first_line(error)}", param="prompt")
        if not ids:
            raise RequestError(400, "prompt is empty", param="prompt")
        return ids

    def _make_jobs(self, request: CompletionRequest, prompts: list[list[int]]) -> list[Job]:
        """`n` jobs for each prompt, each with its own seed. Raises RequestError."""
        count = 1 if request.n is None else request.n
        if not 1 <= count * len(prompts) <= MOST_CHOICES:
            raise RequestError(
                400,
                f"n times the number of prompts must be from 1 to {MOST_CHOICES}, not {count * len(prompts)}",
                param="n",
            )
        if longest := next((len(prompt) for prompt in prompts if len(prompt) >= self.context), None):
            raise RequestError(
                400,
                f"the prompt has {longest} tokens, which leaves no room in a context of {self.context}",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
        schema = request.schema()
        if schema is None and self.constrained and self._task is not None and request.response_format is None:
            schema = dict(self._task.schema)
        given = {name: value for name, value in request.sampling().items() if value is not None}
        try:
            sampling = make_sampling({"max_new_tokens": self.longest} | self.defaults | given | {"schema": schema})
        except SettingError as error:
            field = request.field_of(error.setting)
            raise RequestError(400, f"{field} {error.reason}", param=field)
        except ValueError as error:
            raise RequestError(400, str(error))
        if len(sampling.stop) > 16 or any(len(stop) > 1000 for stop in sampling.stop):
            raise RequestError(400, "stop takes up to 16 texts of up to 1000 characters", param="stop")
        deadline, alternatives = time.monotonic() + self.seconds, request.alternatives()
        jobs = []
        for prompt in prompts:
            for choice in range(count):
                seed = None if sampling.seed is None else (sampling.seed + choice) % (1 << 63)
                try:
                    with self._lock:
                        grammar = self._own.grammar(sampling)
                except (ValueError, RecursionError) as error:
                    param = "response_format" if request.response_format else "tools"
                    raise RequestError(400, first_line(error), param=param)
                job = Job(prompt, replace(sampling, seed=seed), deadline, grammar, alternatives)
                job.adapter = self.adapters.get(self.choose_name(request.model), "")
                jobs.append(job)
        return jobs
