"""Speed of generation: one stream, a batch, the path of a token to the terminal, and a change of adapters.

The embedded model replies greedily, with a fixed number of tokens, so that no reply ends early. One stream, as it is
and with the compiled step, is compared with `model.generate` with default settings in each dtype, and with
llama-cpp-python if an interpreter that has it is given; a batch is compared with a loop of `model.generate`. Sides
alternate, and medians are reported. The GGUF file is the one from which the embedded model was dequantised: the same
numbers in 4 bits.

    python -m bench.inference --llama PYTHON --gguf FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import save
from engine.inference.sampling import Sampling
from engine.models.catalogue import pull
from engine.protocol.home import Home
from engine.protocol.messages import Ask, OpenService, ServiceEvent, ServiceRef
from tests.scripted.bench import Engine

MODEL = "smollm2-135m-instruct"
TOKENS = 64
ROWS = 32
SWAPS = 5
WORDS = 400
TOPICS = (
    "rain", "bridges", "bread", "the moon", "chess", "whales", "paper", "salt", "trains", "honey", "glass", "maps",
    "wool", "clocks", "rivers", "ink",
)  # fmt: skip
ASKED = [
    [{"role": "user", "content": f"Write {count} sentences about {topic}."}]
    for count in ("two", "five")
    for topic in TOPICS
]
LLAMA = """
import json, sys, time
from llama_cpp import Llama
file, threads, tokens, rounds = sys.argv[1], *map(int, sys.argv[2:5])
model = Llama(file, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
ids = json.loads(sys.argv[5])
rates = []
for _ in range(rounds + 1):
    model.reset()
    began = time.perf_counter()
    for count, token in enumerate(model.generate(ids, temp=0.0), 1):
        if count == 1:
            first = time.perf_counter()
        if count == tokens:
            break
    rates.append((tokens - 1) / (time.perf_counter() - first))
print(json.dumps(rates[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter with llama-cpp-python")
    parser.add_argument("--gguf", metavar="FILE", help="the embedded model as GGUF, for it")
    arguments = parser.parse_args()
    folder = pull(MODEL, Home.locate().create(), lambda *_: None)
    results: dict[str, Any] = {"tokens": TOKENS, "rounds": arguments.rounds}
    for dtype in ("bfloat16", "float32"):
        results[f"one stream, {dtype}"] = one_stream(folder, dtype, arguments.rounds)
    if arguments.llama:
        results["one stream, llama.cpp"] = llama(arguments.llama, arguments.gguf, folder, arguments.rounds)
    results["batch"] = batch(folder, max(1, arguments.rounds - 1))
    results["adapters"] = adapters(folder)
    results["token path"] = token_path() | through_the_engine(folder)
    save("inference", results)


def _sides(folder: Path, dtype: str) -> tuple[Any, Any, Any]:
    """The end tokens, our model, that never stops, and transformers' own, in the same dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    from engine.inference.loaded_model import load

    ours = load(str(folder), dtype=dtype)
    ends, ours.stop_ids = ours.stop_ids, frozenset()
    return ends, ours, AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(ours.device).eval()


def _compile(ours: Any, folder: Path) -> Any:
    """The compiled step of `ours`, as the home has it or made now."""
    from engine.inference.compiled_step import Compilation

    ours.compilation = Compilation(Home.locate(), str(folder), lambda line: print(line, flush=True))
    ours.generate(ASKED[0], Sampling(TOKENS))
    ours.compilation.wait()
    compilation, ours.compilation = ours.compilation, None
    return compilation


def by_library(model: Any, ids: list[int], tokens: int) -> list[int]:
    import torch

    row = torch.tensor([ids], device=model.device)
    named = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    made: list[int] = model.generate(row, attention_mask=torch.ones_like(row), **named)[0, len(ids) :].tolist()
    return made


def one_stream(folder: Path, dtype: str, rounds: int) -> dict[str, Any]:
    """Tokens a second after the first, of a reply alone. What reading the prompt takes is taken from both."""
    ends, ours, library = _sides(folder, dtype)
    ids = ours.prompt(ASKED[0])
    compilation = _compile(ours, folder)
    mine, compiled, theirs, same, swapped = [], [], [], True, True
    for _ in range(rounds + 1):
        reply = ours.generate(ASKED[0], Sampling(TOKENS))
        mine.append(reply.tokens_per_second)
        ours.compilation = compilation
        fast = ours.generate(ASKED[0], Sampling(TOKENS))
        compiled.append(fast.tokens_per_second)
        swapped = swapped and fast.ids == reply.ids
        ours.compilation = None
        first = _timed(lambda: by_library(library, ids, 1))
        began = time.perf_counter()
        made = by_library(library, ids, TOKENS)
        theirs.append((TOKENS - 1) / (time.perf_counter() - began - first))
        # The library may not end at all: what comes behind our first end token is another reply.
        until = next((place for place, token in enumerate(reply.ids) if token in ends), TOKENS)
        same = same and made[:until] == reply.ids[:until]
    found = {"ours": statistics.median(mine[1:]), "generate": statistics.median(theirs[1:])}
    if compilation.find(ours.decoder):
        found["compiled"] = statistics.median(compiled[1:])
        found |= {"compiled, ratio": found["compiled"] / found["generate"], "compiled, same tokens as ours": swapped}
    return found | {
        "ratio": found["ours"] / found["generate"],
        "computed in": str(ours.model.dtype).removeprefix("torch."),
        "same tokens": same,
    }


def llama(python: str, gguf: str, folder: Path, rounds: int) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        ASKED[0], add_generation_prompt=True, return_dict=False
    )
    numbers = [str(number) for number in (torch.get_num_threads(), TOKENS, rounds)]
    command = [python, "-c", LLAMA, gguf, *numbers, json.dumps(ids)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return {"llama-cpp-python": statistics.median(json.loads(told)), "file": Path(gguf).name}


def batch(folder: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of many replies, prompts read included, against a loop over them."""
    found: dict[str, Any] = {}
    _, ours, library = _sides(folder, "float32" if _is_cpu() else "bfloat16")
    prompts = [ours.prompt(each) for each in ASKED]
    for rows in (ROWS // 2, ROWS):
        mine, theirs = [], []
        for _ in range(rounds):
            mine.append(rows * TOKENS / _timed(lambda rows=rows: ours.batch(ASKED[:rows], Sampling(TOKENS))))
            alone = _timed(lambda rows=rows: [by_library(library, ids, TOKENS) for ids in prompts[: rows // 4]])
            theirs.append(rows // 4 * TOKENS / alone)
        ratio = statistics.median(mine) / statistics.median(theirs)
        found[f"{rows} rows"] = {"ours": statistics.median(mine), "loop": statistics.median(theirs), "ratio": ratio}
    return found


def _is_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def adapters(folder: Path) -> dict[str, float]:
    """Milliseconds of a change, by what changes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from engine.inference.loaded_model import load
    from engine.models import targets

    with tempfile.TemporaryDirectory() as place:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name, rank in (("first", 8), ("second", 8), ("wider", 16)):
            config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
            wrapped = get_peft_model(base, config)
            wrapped.save_pretrained(Path(place, name))
            base = wrapped.unload()
        home = Home(Path(place))
        named = {
            name: targets.resolve(str(Path(place, name)), home, home.root) for name in ("first", "second", "wider")
        }
        named["base"] = targets.resolve(str(folder), home, home.root)
        loaded = load(str(folder), home=home)
        found = {"the first on a base": _timed(lambda: loaded.swap(named["first"])) * 1e3}
        found["merging it, before its first reply"] = _timed(lambda: loaded.decoder) * 1e3
        for label, before, after in (
            ("of one shape", "first", "second"),
            ("of another rank", "first", "wider"),
            ("to the base alone", "first", "base"),
            ("from the base alone", "base", "first"),
        ):
            times = []
            for _ in range(SWAPS):
                loaded.swap(named[before])
                times.append(_timed(lambda after=after: loaded.swap(named[after])) * 1e3)
            found[label] = statistics.median(times)
        return found


def token_path() -> dict[str, float]:
    """Milliseconds from a worker's word to the client that shows it, through the supervisor."""
    late: list[float] = []

    def said(event: ServiceEvent) -> None:
        late.append((time.time() - event.data["said"]) * 1e3)

    _in_engine("bench.saying", lambda client, service: client.ask(_asking(service, "say", words=WORDS), said))
    late.sort()
    return {"median_ms": statistics.median(late), "p99_ms": late[int(len(late) * 0.99)]}


def through_the_engine(folder: Path) -> dict[str, float]:
    """What chatting through the engine adds to a token of the real model, over the same stream in one process."""
    from engine.inference.loaded_model import load

    loaded = load(str(folder))
    settings = {
        "messages": [{"role": "user", "content": "Count from one to a hundred in words."}],
        "max_new_tokens": TOKENS,
    }
    alone, engine = [], []

    def work(client: Any, service: str) -> None:
        client.ask(_asking(service, "load", target=str(folder)), lambda _: None)
        for _ in range(4):
            reply = loaded.generate(settings["messages"], Sampling(TOKENS))
            alone.append(reply.seconds / reply.tokens * 1e3)
            began = time.perf_counter()
            answer = client.ask(_asking(service, "generate", **settings), lambda _: None)
            engine.append((time.perf_counter() - began) / answer["tokens"] * 1e3)

    _in_engine("engine.workers", work)
    found = {"alone_ms_a_token": statistics.median(alone[1:]), "engine_ms_a_token": statistics.median(engine[1:])}
    return found | {"added_ms_a_token": found["engine_ms_a_token"] - found["alone_ms_a_token"]}


def _in_engine(workers: str, work: Callable[[Any, str], object]) -> None:
    with tempfile.TemporaryDirectory() as place:
        engine = Engine(Home(Path(place, "home")).create(), workers)
        try:
            service = engine.client.request("service_open", OpenService(kind="chat")).id
            work(engine.client, service)
            engine.client.request("service_close", ServiceRef(service=service))
        finally:
            engine.close()


def _asking(service: str, question: str, **arguments: Any) -> Ask:
    return Ask(service=service, request=uuid.uuid4().hex, question=question, arguments=arguments)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
