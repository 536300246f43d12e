"""Limits on tokens and money. The worst case is reserved before a request is sent, so no limit is ever exceeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.options.data import PriceOptions, ServiceOptions

_AROUND = 64
"""Tokens that a chat template adds around a message, at most."""


class Usage(NamedTuple):
    """Tokens of a prompt and its reply."""

    prompt: int
    reply: int

    def cost(self, price: PriceOptions) -> float:
        """In the price's currency."""
        return (self.prompt * price.input + self.reply * price.output) / 1e6


def worst_case(text: str, options: ServiceOptions) -> Usage:
    """The usage of a request at most: a token is at least one byte of the prompt."""
    return Usage(len(text.encode("utf-8", "surrogatepass")) + _AROUND, options.max_tokens)


@dataclass
class Budget:
    """The tokens used so far, and those reserved for pending requests."""

    options: ServiceOptions
    prompt: int = 0
    reply: int = 0
    reserved_prompt: int = 0
    reserved_reply: int = 0

    def __post_init__(self) -> None:
        if self.options.cost_limit is not None and not (self.options.price.input or self.options.price.output):
            section = self.options.SECTION
            raise ValueError(f"{section}.cost_limit needs {section}.price: what a million tokens cost")

    def shortage(self, usage: Usage) -> str:
        """The reason why a request with this worst case must not be sent; empty if it may."""
        prompt = self.prompt + self.reserved_prompt + usage.prompt
        reply = self.reply + self.reserved_reply + usage.reply
        limit, cost_limit = self.options.token_limit, self.options.cost_limit
        if limit is not None and prompt + reply > limit:
            return f"{self.options.SECTION}.token_limit of {limit} leaves no room for another request"
        if cost_limit is not None and Usage(prompt, reply).cost(self.options.price) > cost_limit:
            return f"{self.options.SECTION}.cost_limit of {cost_limit:g} leaves no room for another request"
        return ""

    def reserve(self, usage: Usage) -> None:
        self.reserved_prompt += usage.prompt
        self.reserved_reply += usage.reply

    def settle(self, reserved: Usage, used: Usage) -> None:
        """Release the reservation of a request and count what it used."""
        self.reserve(Usage(-reserved.prompt, -reserved.reply))
        self.spend(used)

    def spend(self, used: Usage) -> None:
        self.prompt += used.prompt
        self.reply += used.reply

    @property
    def used(self) -> Usage:
        return Usage(self.prompt, self.reply)
