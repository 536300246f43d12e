"""What is refused before it starts: only what could not run, also where much of its memory is guessed."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from engine.config import forecasts
from engine.config.profile import Profile, find, load, parse
from engine.protocol.messages import Device, ProblemError
from engine.supervisor import room
from engine.training.forecast import estimate, hosts, terms, verdict
from engine.training.forecast.hosts import Host
from engine.training.forecast.trace import Trace
from engine.workers import forecast as worker
from tests.training.harness import PROFILE, make_model

GB = 10**9
CARD = Device(index=0, kind="nvidia", name="Fake", memory_total=24 * GB, memory_used=0)


@pytest.fixture(scope="module")
def eight_billion(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Llama 3 8B with a small vocabulary's tokenizer, and no weights."""
    folder = tmp_path_factory.mktemp("large") / "base"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=128_256, num_key_value_heads=8, architectures=["LlamaForCausalLM"], **sizes)
    config.save_pretrained(folder)
    return folder


def _check(profile: Profile, home: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forecast the profile as the Profile screen does, then submit it."""
    monkeypatch.setattr(hosts, "list_visible", lambda _: [CARD])
    worker.make(profile, home, hosts.find(profile, None, None, {}), lambda *_: False)
    return room.check_memory(profile, home, [CARD], idle=True)


@pytest.mark.slow
def test_full_tuning_of_a_large_model_is_refused_on_a_small_card_and_an_adapter_is_not(
    bare_home, eight_billion, monkeypatch
):
    base = f"model.base={eight_billion}"
    with pytest.raises(ProblemError) as refused:
        _check(load(find("sft-full"), [base], forecast=True), bare_home, monkeypatch)
    problem = refused.value.problem
    assert problem.code == "memory.will_not_fit"
    assert "alone take 128.5 GB, and there are 24.0 GB" in problem.cause  # 16 bytes for each of 8.03 billion weights
    _check(load(find("sft-lora"), [base], forecast=True), bare_home, monkeypatch)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("wide") / "model", 256)


FULL = "adapter={kind: none}"


@pytest.mark.parametrize(
    ("changes", "cards"),
    [
        ((), 1),
        ((FULL, "training.ema={}"), 1),
        ((FULL, "training.optimizer=paged_adamw_8bit"), 1),
        ((FULL, "method={kind: dpo}"), 1),
        (("model.quantization=nf4", "model.dtype=bfloat16"), 1),
        ((FULL, "launch.strategy=fsdp"), 2),
        ((FULL, "launch.strategy=zero1"), 2),
    ],
)
def test_the_floor_is_the_part_of_a_forecast_that_no_batch_and_no_kernel_changes(changes, cards, wide, bare_home):
    def count(*further: str) -> dict[str, Any]:
        settings = (*changes, *further, f"launch.processes={cards}", "training.micro_batch=4")
        profile = parse(PROFILE.format(base=wide), "test", Path("/"), settings, forecast=True)
        with ExitStack() as stack:
            given = estimate.gather(profile, bare_home, stack, ranks=cards)
            return estimate.estimate(profile, Host("cuda", "a card", cards, None, None), given)

    found = count()
    parts = {term["name"]: term["bytes"] for term in found["terms"] if term["place"] == "device"}
    kept = sum(parts.get(name, 0) for name in ("weights", "gradients", "optimizer states"))
    floor = found["floor"]["device_bytes"]
    assert 0 < floor <= kept < found["device_bytes"]
    assert count("data.max_length=32")["floor"]["device_bytes"] == floor


@pytest.mark.parametrize("packed", ["base", "part of base", "wsl", ""])
def test_a_base_that_is_stored_packed_and_a_driver_that_moves_memory_refuse_nothing(
    packed, wide, tmp_path, bare_home, monkeypatch
):
    folder = tmp_path / "base"
    shutil.copytree(wide, folder)
    config = json.loads((folder / "config.json").read_text())
    kept = {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(
        json.dumps(config | {"base": kept, "part of base": {"text_config": kept}}.get(packed, {}))
    )
    kernel = f"6.6.87-{verdict.WSL}" if packed == "wsl" else "6.8.0"
    monkeypatch.setattr(verdict.platform, "uname", lambda: SimpleNamespace(release=kernel))
    found = {"device_bytes": 9, "host_bytes": 1, "disk_bytes": 0, "error_percent": 10.0, "steps": 1, "longest": 1}
    found |= {"floor": {"device_bytes": 9, "host_bytes": 0}}
    monkeypatch.setattr(verdict.solver, "choose_strategy", lambda profile, *_: (dict(found), profile))
    given = estimate.Given(bare_home, {"base": str(folder)}, None, True, 0)
    profile = parse(PROFILE.format(base=wide), "test", Path("/"), ["training.liger=false"])
    judged, _ = verdict.forecast(profile, Host("cuda", "a card", 1, 8, None), given)
    assert (judged["floor"] is None, judged["certain"]) == (bool(packed), not packed)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ((), 1),
        (("training.epochs=2", "checkpoint.every_steps=null"), 2),
        (("training.epochs=9", "checkpoint.every_steps=null"), 3),  # as many as are kept
        (("training.max_steps=10", "checkpoint.every_steps=5"), 2),
        (("training.max_steps=11", "checkpoint.every_steps=5"), 3),  # the last step has one, too
        (("training.epochs=9", "checkpoint.every_steps=null", "checkpoint.keep=1"), 1),
    ],
)
def test_checkpoints_that_are_there_at_the_same_time(changes, count):
    profile = parse(PROFILE.format(base="a/b"), "test", Path("/"), changes)
    per_epoch, most = 7, profile.training.max_steps
    traced = Trace(steps=most or int(per_epoch * profile.training.epochs), steps_per_epoch=per_epoch)
    assert estimate._count_checkpoints(profile, traced) == count


def test_nothing_is_certain_where_the_driver_or_a_library_may_take_less(wide, bare_home, monkeypatch):
    given = estimate.Given(bare_home, {"base": str(wide)}, None, True, 0)
    card = Host("cuda", "a card", 1, 24 * GB, None)

    def judge(*changes: str, steps: int = 10, host: Host = card) -> bool:
        profile = parse(PROFILE.format(base=wide), "test", Path("/"), changes)
        return verdict.is_certain(profile, host, given, steps)

    monkeypatch.setattr(verdict.liger, "find_spec", lambda _: None)
    assert judge()
    assert not judge(steps=10_000)  # then `auto` compiles
    assert judge("training.compile=false", steps=10_000)
    assert not judge("training.compile=true") and not judge("training.liger=true")
    assert not judge("model.quantization=nf4", "training.compile=false")
    monkeypatch.setattr(verdict.liger, "find_spec", lambda _: object())
    assert not judge() and judge("training.liger=false") and judge(host=Host("cpu", "CPU", 1, None, GB))


def test_a_refusal_names_changes_that_make_it_fit(bare_home, wide, tmp_path, capfd, monkeypatch):
    """A real trace: full tuning of a model whose weights fit, but not with all the tokens of a batch."""
    monkeypatch.setattr(terms, "CONTEXT", 1_000_000)  # not much larger than such a model
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w{n} w{n + 1}"}) + "\n" for n in range(20)))
    settings = (FULL, "training.micro_batch=64", "data.max_length=64", "training.accumulation=1")
    text = PROFILE.format(base=wide).replace("triples/train.jsonl", str(rows))
    profile = parse(text, "own", tmp_path, settings)
    monkeypatch.setattr(hosts, "list_visible", lambda _: [CARD])
    host = hosts.find(profile, None, None, {})
    whole, _ = worker.make(profile, bare_home, host, lambda *_: False)
    least, _ = worker.make(
        parse(text, "own", tmp_path, (*settings, "training.micro_batch=8")), bare_home, host, lambda *_: False
    )
    small = Device(index=0, kind="nvidia", name="Fake", memory_total=int(least["device_bytes"] * 1.2), memory_used=0)
    assert whole["device_bytes"] * 0.9 > (small.memory_total or 0)
    monkeypatch.setattr(hosts, "list_visible", lambda _: [small])
    arguments = {"profile": "own", "text": profile.to_yaml(), "directory": str(tmp_path), "limit": 60}
    worker._find_changes(bare_home, arguments)
    changes = json.loads(capfd.readouterr().out.splitlines()[-1])["changes"]
    assert len(changes) == 3
    assert [change["time"] for change in changes] == sorted(change["time"] for change in changes)
    for change in changes:
        settled = estimate.replace_settings(profile, change["settings"])
        again, _ = worker.make(settled, bare_home, hosts.find(settled, None, None, {}), lambda *_: False)
        assert again["verdict"] in ("fits", "near") and again["device_bytes"] == change["device_bytes"]
    kept = forecasts.read(bare_home, forecasts.compute_key(profile, forecasts.find_place([small]), 1))
    assert kept is not None and kept["changes"] == changes
    hint = forecasts.explain_refusal(kept, small.memory_total, None).hint
    assert hint.count("; or ") == 2 and "training.micro_batch" in hint
