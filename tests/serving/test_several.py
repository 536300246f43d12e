"""Several adapters on one base: each answers as it does alone, whatever is decoded beside it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from engine.inference.loaded_model import LoadedModel
from engine.inference.sampling import Sampling
from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.serving import several
from engine.serving.jobs import Job, JobText
from engine.serving.request_builder import RequestBuilder
from engine.serving.request_schemas import RequestError, TextRequest
from engine.serving.scheduler import Scheduler
from tests.serving.conftest import Kitchen
from tests.training.harness import make_model

PROMPTS = ["w1 w2 w3", "w9", "w4 w5 w6 w7 w8"]
LENGTH = 12


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    """A base, two LoRAs of different ranks and layers, and an adapter of another kind."""
    folder = tmp_path_factory.mktemp("several")
    base = make_model(folder / "base")
    kinds: dict[str, Any] = {
        "one": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "two": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        "other": IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    }
    for seed, (name, config) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for parameter in made.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        made.save_pretrained(folder / name)
    return Home(folder / "home").create(), folder


def resolve(scene: tuple[Home, Path], name: str) -> targets.Target:
    return targets.resolve(str(scene[1] / name), scene[0], Path("/"))


def load(scene: tuple[Home, Path], name: str) -> LoadedModel:
    return LoadedModel(resolve(scene, name), "float32", "none", "cpu")


def find(scene: tuple[Home, Path], served: str, *names: str) -> list[Any]:
    return several.resolve([str(scene[1] / name) for name in names], resolve(scene, served), scene[0], Path("/"))


@pytest.mark.parametrize(("served", "beside"), [("base", ("one", "two")), ("one", ("two",))])
def test_each_adapter_answers_as_alone(scene: Any, served: str, beside: tuple[str, ...]) -> None:
    sampling = Sampling(max_new_tokens=LENGTH)
    alone = {name: [load(scene, name).generate(text, sampling).text for text in PROMPTS] for name in (served, *beside)}
    assert len({tuple(replies) for replies in alone.values()}) == len(alone), "the adapters change the replies"
    loaded = load(scene, served)
    model, names = several.load(loaded, find(scene, served, *beside))
    texts: dict[Job, str] = {}

    def deliver(events: list[Any]) -> None:
        for job, event in events:
            texts[job] = texts.get(job, "") + (event.text if isinstance(event, JobText) else "\n")

    scheduler = Scheduler(model, loaded.tokenizer, loaded.stop_ids, deliver, slots=4)
    builder = RequestBuilder(loaded, (served,), scheduler.context, {"temperature": 0.0}, 9, 60.0, adapters=names)
    builder.aliases = {"as-typed": beside[-1]}
    assert builder.choose_name("as-typed") == beside[-1] and builder.choose_name("") == served
    builder.check_name("as-typed")
    assert builder.models == [served, *beside]
    jobs = {}
    for text in PROMPTS:
        for name in alone:
            request = TextRequest(model=name, prompt=text, max_tokens=LENGTH)
            (jobs[name, text],) = builder.text(request)
            jobs[name, text].continues = False
    with pytest.raises(RequestError, match=f"only '{served}', '{beside[0]}'"):
        builder.text(TextRequest(model="unknown", prompt="w1"))
    scheduler.submit(list(jobs.values()))
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    deadline = time.monotonic() + 60
    while sum(text.endswith("\n") for text in texts.values()) < len(jobs) and time.monotonic() < deadline:
        time.sleep(0.01)
    scheduler.close()
    thread.join()
    replies = {name: [texts[jobs[name, text]].removesuffix("\n") for text in PROMPTS] for name in alone}
    assert replies == alone


def test_what_cannot_be_mixed_is_refused(scene: Any, tmp_path: Path) -> None:
    loaded = load(scene, "base")
    changed = shutil.copytree(scene[1] / "base", tmp_path / "changed", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(scene[1] / "two", changed, dirs_exist_ok=True)
    (changed / "config.json").unlink()
    (changed / "chat_template.jinja").write_text("{{ messages[0].content }}")
    biased = shutil.copytree(scene[1] / "two", tmp_path / "biased")
    config = json.loads((biased / "adapter_config.json").read_text())
    (biased / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    for names, why in (
        (["other"], "ia3"),
        (["base"], "it is no adapter"),
        ([str(biased)], "bias"),
        (["one", "one"], "served already"),
        ([str(changed)], "template"),
    ):
        with pytest.raises(ProblemError, match=why) as caught:
            several.load(loaded, find(scene, "base", *names))
        assert caught.value.problem.code == "serving.adapter_refused"


@pytest.mark.slow
def test_over_http_each_name_is_a_model_of_its_own(kitchen: Kitchen, tmp_path: Path) -> None:
    adapters = []
    for seed, name in enumerate(("red", "blue")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(kitchen.model), config)
        for parameter in made.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        made.save_pretrained(tmp_path / name)
        adapters.append(str(tmp_path / name))
    refused = kitchen.cockpit("serve", str(kitchen.model), "--port", "0", "--detach", "--adapter", str(kitchen.model))
    assert refused.returncode == 2 and "it is no adapter" in refused.stderr
    beside = [part for adapter in adapters for part in ("--adapter", adapter)]
    server = kitchen.serve(*beside, "--dtype", "float32")
    talks: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS]
    alone = {}
    for name in (str(kitchen.model), *adapters):
        loaded = LoadedModel(targets.resolve(name, kitchen.home, Path("/")), "float32", "none", "cpu")
        alone[Path(name).name] = [loaded.generate(talk, Sampling(max_new_tokens=LENGTH)).text for talk in talks]
    assert len({tuple(replies) for replies in alone.values()}) == 3
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "red", "blue"]

        def ask(name: str, talk: Any) -> str:
            fields: Any = {"model": name, "messages": talk, "temperature": 0, "max_tokens": LENGTH}
            reply = client.chat.completions.create(**fields)
            assert reply.model == Path(name).name
            return reply.choices[0].message.content or ""

        with ThreadPoolExecutor(9) as threads:  # rows of all three are decoded together
            asked = {name: [threads.submit(ask, name, talk) for talk in talks] for name in alone}
            assert {name: [each.result() for each in replies] for name, replies in asked.items()} == alone
        assert ask(adapters[1], talks[0]) == alone["blue"][0], "as it was typed"
        with pytest.raises(openai.NotFoundError, match="only 'tiny', 'red', 'blue'"):
            ask("green", talks[0])
    assert server.stop().returncode == 0
