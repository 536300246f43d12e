"""Sixteen requests at a time to `cockpit serve`, compared with a loop of `model.generate` over the same prompts.

The embedded model replies greedily with 64 tokens, in float32 on both sides without a GPU, else in bfloat16. The server
is a process of its own, and the `openai` client streams from it over HTTP. While one side works the other is idle;
rounds alternate. transformers' own continuous batching (`generate_batch`) is measured beside both.

    python -m bench.serving
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from bench.report import save
from engine.models.catalogue import pull
from engine.protocol.home import Home

TOGETHER = 16
TOKENS = 64
MODEL = "smollm2-135m-instruct"
ASKED = [f"Write three sentences about {topic}." for topic in (
    "rain", "bridges", "bread", "the moon", "chess", "whales", "paper", "salt", "trains", "honey", "glass", "maps",
    "wool", "clocks",
    "rivers", "mountains and the people who live there",
)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    import torch

    folder = pull(MODEL, Home.locate().create(), lambda *_: None)
    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"
    plain = Plain(folder, dtype, "cuda" if on_gpu else "cpu")
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "models").mkdir()
        (Path(home) / "models" / MODEL).symlink_to(folder)
        address = json.loads(_cockpit(home, "serve", MODEL, "--dtype", dtype, "--port", "0", "--detach", "--json"))[
            "address"
        ]
        try:
            asyncio.run(_asked(address))  # what is done once: kernels, pages
            plain.loop(2)
            rounds = []
            for index in range(arguments.rounds):
                served, alone, batch = asyncio.run(_asked(address)), plain.loop(), plain.continuous()
                rounds.append((served, alone, batch))
                rates = " ".join(
                    f"{name} {side['tokens_per_second']:.1f}" for name, side in zip(NAMES, rounds[-1], strict=True)
                )
                print(f"round {index + 1}: tokens/s {rates}", file=sys.stderr)
        finally:
            _cockpit(home, "engine", "stop", "--force")
    told: dict[str, Any] = {"together": TOGETHER, "tokens_a_reply": TOKENS, "rounds": arguments.rounds}
    for index, name in enumerate(NAMES):
        told[f"{name}_tokens_per_second"] = statistics.median(each[index]["tokens_per_second"] for each in rounds)
    told["first_token_seconds_median"] = statistics.median(served["first"] for served, _, _ in rounds)
    told["served_over_loop"] = statistics.median(
        served["tokens_per_second"] / alone["tokens_per_second"] for served, alone, _ in rounds
    )
    told["served_over_generate_batch"] = statistics.median(
        served["tokens_per_second"] / batch["tokens_per_second"] for served, _, batch in rounds
    )
    told["same_replies"] = sum(
        ours == theirs for ours, theirs in zip(rounds[0][0]["replies"], rounds[0][1]["replies"], strict=True)
    )
    save("serving", told)


NAMES = ("served", "loop", "generate_batch")


class Plain:
    """The model in this process."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
        self.config = GenerationConfig(
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=self.model.generation_config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            for text in ASKED
        ]

    def loop(self, count: int = TOGETHER) -> dict[str, Any]:
        """One after the other."""
        import torch

        began, made = time.perf_counter(), []
        for prompt in self.prompts[:count]:
            ids = torch.tensor([prompt], device=self.model.device)
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=self.config)
            made.append(output[0, len(prompt) :].tolist())
        return self._told(made, time.perf_counter() - began)

    def continuous(self) -> dict[str, Any]:
        """Through transformers' own continuous batching."""
        began = time.perf_counter()
        output = self.model.generate_batch(inputs=self.prompts, generation_config=self.config, progress_bar=False)
        return self._told([each.generated_tokens for each in output.values()], time.perf_counter() - began)

    def _told(self, made: list[list[int]], seconds: float) -> dict[str, Any]:
        return {
            "tokens_per_second": sum(map(len, made)) / seconds,
            "replies": [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in made],
        }


async def _asked(address: str) -> dict[str, Any]:
    """All at once, over HTTP."""
    async with openai.AsyncOpenAI(base_url=address, api_key="none", timeout=600, max_retries=0) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(_one(client, text) for text in ASKED))
        seconds = time.perf_counter() - began
    return {
        "tokens_per_second": sum(tokens for tokens, _, _ in answers) / seconds,
        "first": statistics.median(first for _, first, _ in answers),
        "replies": [text for _, _, text in answers],
    }


async def _one(client: openai.AsyncOpenAI, text: str) -> tuple[int, float, str]:
    """Tokens, seconds until the first text, the reply."""
    began, first, tokens, said = time.perf_counter(), 0.0, 0, ""
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        elif chunk.choices[0].delta.content:
            first = first or time.perf_counter() - began
            said += chunk.choices[0].delta.content
    return tokens, first, said


def _cockpit(home: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "cockpit.cli", *arguments, "--home", home]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ)).stdout


if __name__ == "__main__":
    main()
