"""Requests to an OpenAI-compatible service over HTTP, one attempt at a time, with an exception for each kind of
failure.

The retries of the `openai` package are off; see `retries`. All requests share the rate limits that the service's
headers state (`Retry-After`, `x-ratelimit-reset-*`).
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engine.llm_api.budget import Usage
from engine.options.data import ServiceOptions
from engine.protocol.messages import Problem, ProblemError

LONGEST_WAIT = 600.0
"""Seconds to wait for a rate limit at most; if the service asks for more, the work ends."""
NO_KEY = "none"
"""The key for a service on this machine without one: the `openai` package requires a key."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SPENT = re.compile(r"insufficient.?(quota|balance|funds|credit)|quota.?exceeded|billing", re.IGNORECASE)
_STOPS = {401: "refuses the key", 402: "has no balance left", 403: "forbids this", 404: "has no such address or model"}


class Reply(NamedTuple):
    text: str
    finish: str
    """`stop`, `length` if the reply was cut off at max_tokens, or another value of the service."""
    usage: Usage | None
    """None if the service does not report it."""


class RateLimitError(Exception):
    """Too many requests. `wait` is the pause in seconds that the service asks for, None if it does not."""

    def __init__(self, wait: float | None) -> None:
        super().__init__("rate limit")
        self.wait = wait


class TransientError(Exception):
    """An attempt failed, and another may succeed. `billed` is whether the service may charge for this one."""

    def __init__(self, reason: str, billed: bool) -> None:
        super().__init__(reason)
        self.billed = billed


class RefusedError(Exception):
    """The service will not answer this request, however often it is repeated."""


def api_key(options: ServiceOptions) -> str:
    """The key in the variable that the options name. Raises ProblemError if there is none, unless the service is on
    this machine."""
    if not VARIABLE.fullmatch(options.api_key_env):
        raise ProblemError(
            Problem(
                code="expand.key_name",
                title=f"{options.SECTION}.api_key_env is not the name of a variable",
                hint="put the key into a variable of the environment and name that; a key itself is never written down",
            )
        )
    key = os.environ.get(options.api_key_env, "").strip()
    if not key and not on_loopback(options.base_url):
        raise ProblemError(
            Problem(
                code="expand.key_missing",
                title=f"There is no key for {options.base_url}",
                cause=f"the variable {options.api_key_env} is not set",
                hint=f"export {options.api_key_env}=…, or name another variable in {options.SECTION}.api_key_env",
            )
        )
    return key or NO_KEY


def on_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def describe_plain_http(options: ServiceOptions) -> str:
    """A warning for a service that is asked over plain HTTP on another machine, else an empty string."""
    if urlsplit(options.base_url).scheme != "http" or on_loopback(options.base_url):
        return ""
    return (
        f"{options.SECTION}.base_url is {options.base_url}: the key in {options.api_key_env} and all rows travel "
        "unencrypted, for everybody on the way to read; use https://, or an SSH tunnel and http://localhost"
    )


class Service:
    """A connection to a service, an asynchronous context manager."""

    def __init__(self, options: ServiceOptions, key: str) -> None:
        """Raises ValueError for an invalid address."""
        import httpx2
        import openai

        if urlsplit(options.base_url).scheme not in ("http", "https"):
            raise ValueError(f"{options.SECTION}.base_url: {options.base_url} is not an address; write https://…")
        self._options, self._key = options, key
        limits = httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=options.base_url,
            max_retries=0,
            timeout=options.timeout,
            # Do not use the environment's proxy for a service on this machine.
            http_client=openai.DefaultAsyncHttpx2Client(limits=limits, trust_env=not on_loopback(options.base_url)),
        )
        self._client.organization = self._client.project = (
            None  # the environment's values are meant for another service
        )
        self._not_before = 0.0

    async def __aenter__(self) -> Service:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    @property
    def wait(self) -> float:
        """Seconds until the rate limits allow another request."""
        return max(0.0, self._not_before - time.monotonic())

    def pause(self, wait: float) -> None:
        """Send no request for this many seconds. Raises ProblemError if the wait is too long."""
        if wait > LONGEST_WAIT:
            raise ProblemError(
                Problem(
                    code="expand.rate_limit",
                    title=f"{self._options.base_url} asks for a pause of {wait:.0f} seconds",
                    cause="its rate limit is used up",
                    hint="the same command goes on from here later",
                )
            )
        self._not_before = max(self._not_before, time.monotonic() + wait)

    async def ask(self, text: str) -> Reply:
        """One attempt. Raises RateLimitError, TransientError, RefusedError; ProblemError if all work must end: a wrong
        key, no balance …"""
        import openai

        try:
            async with asyncio.timeout(self._options.timeout):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._options.model,
                    messages=[{"role": "user", "content": text}],
                    temperature=self._options.temperature,
                    max_tokens=self._options.max_tokens,
                )
        except (openai.APITimeoutError, TimeoutError):
            raise TransientError(f"no answer within {self._options.timeout:g} seconds", billed=True)
        except openai.APIConnectionError as error:
            unreached = "connect" in type(error.__cause__).__name__.lower()
            raise TransientError(f"the connection failed: {self._safe(error.__cause__ or error)}", billed=not unreached)
        except openai.APIStatusError as error:
            raise self._refusal(error.status_code, error.response.headers, self._message(error))
        wait = limit_wait(raw.http_response.headers)
        if wait:
            self.pause(min(wait, LONGEST_WAIT))
        return _parse_reply(raw.http_response.content)

    def _refusal(self, status: int, headers: Mapping[str, str], answer: str) -> Exception:
        spent = status == 429 and _SPENT.search(answer)
        if status in _STOPS or spent:
            what = _STOPS[402] if spent else _STOPS[status]
            hints = {
                401: f"look at the variable {self._options.api_key_env}",
                404: f"look at {self._options.SECTION}.base_url and {self._options.SECTION}.model",
            }
            hint = hints.get(status, "what was made is kept; the same command goes on from here")
            return ProblemError(
                Problem(
                    code="expand.refused",
                    title=f"{self._options.base_url} {what}",
                    cause=f"{status}: {answer}",
                    hint=hint,
                )
            )
        if status == 429:
            return RateLimitError(retry_after(headers))
        if status >= 500 or status in (408, 409, 425):
            wait = retry_after(headers)
            if wait:
                self.pause(min(wait, LONGEST_WAIT))
            return TransientError(f"status {status}", billed=False)
        return RefusedError(f"status {status}: {answer}")

    def _message(self, error: Any) -> str:
        body = error.body
        message = body.get("message") if isinstance(body, dict) else body
        code = body.get("code") if isinstance(body, dict) else None
        return self._safe(" ".join(str(part) for part in (message, code) if part) or "no reason given")

    def _safe(self, error: object) -> str:
        """The text of an error, shortened and without the key, which some services repeat."""
        text = " ".join(str(error).split()) or type(error).__name__
        return (text if self._key == NO_KEY else text.replace(self._key, "…"))[:300]


def _parse_reply(content: bytes) -> Reply:
    """The first choice of a completion. Raises TransientError for anything else."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text = choice["message"]["content"] or ""
        finish = choice.get("finish_reason") or "stop"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TransientError("the answer is no completion", billed=True)
    if not isinstance(text, str):
        raise TransientError("the answer is no completion", billed=True)
    return Reply(text, str(finish), _parse_usage(body.get("usage")))


def _parse_usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(reply, int) or prompt < 0 or reply < 0:
        return None
    return Usage(prompt, reply)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until another request is allowed, by the headers; None if they do not say."""
    milliseconds, after = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if after is not None and (date := _parse_date(after)) is not None:
            return max(0.0, date - time.time())
        if after is not None:
            return max(0.0, float(after))
    except ValueError:
        pass
    return limit_wait(headers) or None


def limit_wait(headers: Mapping[str, str]) -> float:
    """Seconds until an exhausted limit is reset; 0 if none is exhausted."""
    waits = [0.0]
    for kind in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0":
            waits.append(_parse_duration(headers.get(f"x-ratelimit-reset-{kind}", "")))
    return max(waits)


def _parse_duration(text: str) -> float:
    """`1m30s`, `250ms` or a plain number; 0 for anything else."""
    text = text.strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        found = _DURATION.fullmatch(text)
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups()) if found else (0.0,) * 4
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _parse_date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
