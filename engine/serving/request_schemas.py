"""The requests of clients of the OpenAI API, and the errors they understand.

Fields follow the API reference of OpenAI's chat completions and completions; `top_k`, `min_p` and `repetition_penalty`
are vLLM's. Unknown fields are ignored, as clients expect; those that would change the reply and are not supported are
refused by name.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from engine.serving import tool_calls
from engine.serving.logprobs import MOST_ALTERNATIVES

NOT_SERVED = {
    "logit_bias": "logits are not biased here",
    "presence_penalty": "repetition_penalty is served instead",
    "frequency_penalty": "repetition_penalty is served instead",
    "functions": "tools took its place",
    "function_call": "tool_choice took its place",
    "audio": "only text is served",
    "suffix": "text is not filled in between",
    "best_of": "n is served instead",
}
"""Field -> why it is refused unless it is empty."""


class RequestError(Exception):
    """An error to answer a request with, and its HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """In OpenAI's format."""
        kind = (
            "invalid_request_error"
            if self.status < 429
            else "rate_limit_error"
            if self.status == 429
            else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Part(msgspec.Struct):
    type: str
    text: str = ""


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | None = None
    name: str = ""


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class CompletionRequest(msgspec.Struct, kw_only=True):
    """The fields that both kinds of completion share."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    best_of: int | None = None

    def sampling(self) -> dict[str, Any]:
        """The settings by the names of `Sampling`, None for those that are absent."""
        return {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": 1e-6 if self.top_p == 0 else self.top_p,  # 0 is allowed by OpenAI: only the likeliest
            "top_k": None if self.top_k in (0, -1) else self.top_k,  # vLLM's values for none
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": None if self.seed is None else self.seed & ((1 << 63) - 1),
            "stop": self.stop,
        }

    def field_of(self, setting: str) -> str:
        """The client's field that a setting of `Sampling` comes from."""
        return "max_tokens" if setting == "max_new_tokens" else setting

    def alternatives(self) -> int | None:
        """The number of likeliest tokens to report beside each token; None: no log-probabilities. Raises
        RequestError."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any] | None:
        """The schema that the reply must fit. Raises RequestError."""
        response_format = self.response_format
        if response_format is None or response_format.type == "text":
            return None
        if response_format.type == "json_object":
            return {"type": "object"}
        if response_format.type != "json_schema":
            raise RequestError(
                400, f"response_format.type {response_format.type!r} is not served", param="response_format"
            )
        if response_format.json_schema is None or response_format.json_schema.schema is None:
            raise RequestError(400, "response_format.json_schema.schema is missing", param="response_format")
        return response_format.json_schema.schema


class ChatRequest(CompletionRequest, kw_only=True):
    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None

    def sampling(self) -> dict[str, Any]:
        settings = super().sampling()
        return settings if self.max_tokens is not None else settings | {"max_new_tokens": self.max_completion_tokens}

    def field_of(self, setting: str) -> str:
        if setting == "max_new_tokens" and self.max_tokens is None:
            return "max_completion_tokens"
        return super().field_of(setting)

    def alternatives(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")
        return _check_alternatives("top_logprobs", self.top_logprobs or 0) if self.logprobs else None

    def uses_tools(self) -> bool:
        """Whether the reply may call tools. Raises RequestError for tools that are not described as OpenAI's API
        wants."""
        if not self.tools:
            if self.requires_call():
                raise RequestError(400, "tool_choice goes with tools", param="tool_choice")
            return False
        if wrong := tool_calls.check_tools(self.tools):
            raise RequestError(400, wrong, param="tools")
        return self.tool_choice != "none"

    def requires_call(self) -> bool:
        """Whether the reply is a call. Raises RequestError for an unknown `tool_choice`."""
        if self.tool_choice in (None, "auto", "none", "required"):
            return self.tool_choice == "required"
        if not isinstance(self.tool_choice, dict) or not self._chosen_tool():
            raise RequestError(
                400,
                'tool_choice is auto, none, required, or {"type": "function", "function": {"name": NAME}}',
                param="tool_choice",
            )
        return True

    def _chosen_tool(self) -> str | None:
        function = self.tool_choice.get("function") if isinstance(self.tool_choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        return name if isinstance(name, str) else None

    def parameters(self) -> dict[str, dict[str, Any]]:
        """The JSON schema of each tool's parameters."""
        functions = [tool["function"] for tool in self.tools or []]
        return {function["name"]: function.get("parameters") or {} for function in functions}

    def schema(self) -> dict[str, Any] | None:
        given = super().schema()
        if not (self.uses_tools() and self.requires_call()):
            return given
        if given is not None:
            raise RequestError(
                400, "response_format does not go with a tool_choice that requires a call", param="response_format"
            )
        try:
            return tool_calls.require(self.tools or [], self._chosen_tool())
        except ValueError as error:
            raise RequestError(400, str(error), param="tool_choice")

    def conversation(self) -> list[dict[str, Any]]:
        """The messages in the form that chat templates take. Raises RequestError."""
        if not self.messages:
            raise RequestError(400, "messages is empty", param="messages")
        return [_for_template(message, index) for index, message in enumerate(self.messages)]


class TextRequest(CompletionRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    def alternatives(self) -> int | None:
        return None if self.logprobs is None else _check_alternatives("logprobs", self.logprobs)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or token ids. Raises RequestError."""
        given: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if given and all(isinstance(each, int) for each in given):
            given = [given]
        if any(isinstance(each, int) for each in given):
            raise RequestError(400, "prompt mixes tokens with texts", param="prompt")
        if not given or not all(given):
            raise RequestError(400, "prompt is empty", param="prompt")
        return given


def _check_alternatives(name: str, count: int) -> int:
    if not 0 <= count <= MOST_ALTERNATIVES:
        raise RequestError(400, f"{name} must be from 0 to {MOST_ALTERNATIVES}, not {count}", param=name)
    return count


def parse_body(body: bytes, kind: type[ChatRequest] | type[TextRequest]) -> Any:
    """Raises RequestError for a body that is not JSON, for a field of another type, and for one that is not
    supported."""
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        _, _, where = str(error).partition(" - at `$")
        raise RequestError(400, str(error), param=where.strip(".`") or None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {error}")
    for name, why in NOT_SERVED.items():
        if getattr(request, name, None) not in (None, False, 0, 0.0, "", {}, []) and (name, request.best_of) != (
            "best_of",
            1,
        ):
            raise RequestError(400, f"{name} is not served: {why}", param=name, code="unsupported_parameter")
    return request


def _for_template(message: Message, index: int) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        if other := next((part.type for part in content if part.type not in ("text", "input_text")), None):
            raise RequestError(
                400, f"content of type {other!r} is not served: only text", param=f"messages[{index}].content"
            )
        content = "".join(part.text for part in content)
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": content or ""}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls is not None:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments, which are JSON in a string, as the object that templates expect."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    except (ValueError, RecursionError):  # the model gets what the client sent
        return call
