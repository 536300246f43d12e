"""What a TARGET names, on disk laid out as runs, checkpoints and folders really are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.models import checks, targets
from engine.options.model import ModelOptions
from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError


def tensors_file(path: Path) -> None:
    """A real, tiny safetensors file."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    tensors_file(folder / "model.safetensors")
    return folder


def adapter_folder(folder: Path, base: str, **lock: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    tensors_file(folder / "adapter_model.safetensors")
    if lock:
        (folder / "lock.json").write_text(json.dumps({"base": base, **lock}))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def base(place: Home) -> Path:
    return model_folder(place.models / "tiny")


def make_run(home: Home, name: str, base: Path, steps: dict[int, bool], created: float = 1.0) -> None:
    """A run with adapters as checkpoints; `steps[n]` says whether the journal called step n the best so far."""
    run = home.run(name)
    run.path.mkdir()
    run.profile.write_text("name: test\n")
    (run.path / "job.json").write_text(json.dumps({"created": created}))
    writer = journal.Writer(run.events)
    for step, best in steps.items():
        adapter_folder(run.checkpoint(step), str(base), dtype="bfloat16", quantization="nf4")
        writer.write(journal.Checkpoint(attempt=1, step=step, path=str(run.checkpoint(step)), best=best))
    writer.close()


def resolve(name: str, home: Home, directory: Path | None = None) -> targets.Target:
    return targets.resolve(name, home, directory or home.root)


def test_runs(place: Home, base: Path) -> None:
    make_run(place, "alpha-1", base, {25: True, 50: True, 75: False}, created=1)
    make_run(place, "alpha-2", base, {25: False, 50: False}, created=3)
    make_run(place, "beta-1", base, {10: True}, created=2)

    best = resolve("alpha-1", place)
    assert (best.label, best.base, best.adapter) == ("alpha-1@50", str(base), place.run("alpha-1").checkpoint(50))
    assert (best.dtype, best.quantization) == ("bfloat16", "nf4")
    assert best.lock == place.run("alpha-1").checkpoint(50) / "lock.json"
    assert resolve("last", place).label == "alpha-2@50", "the newest run; none of its checkpoints was called best"
    assert resolve("be", place).label == "beta-1@10"
    assert resolve("alpha-1@75", place).step == 75
    assert resolve("last@25", place).label == "alpha-2@25"
    with pytest.raises(ProblemError, match="matches 2 runs"):
        resolve("alpha", place)
    with pytest.raises(ProblemError, match="no checkpoint at step 60"):
        resolve("alpha-1@60", place)
    make_run(place, "gamma-1", base, {})
    with pytest.raises(ProblemError, match="has no checkpoint yet"):
        resolve("gamma-1", place)


def test_only_the_profile_of_a_run_lets_code_of_the_base_run(place: Home, base: Path) -> None:
    make_run(place, "careful", base, {1: True})
    make_run(place, "trusting", base, {1: True})
    place.run("trusting").profile.write_text("name: test\nmodel: {base: tiny, trust_remote_code: true}\n")
    found = {name: resolve(name, place).trust_remote_code for name in ("careful", "trusting@1", "tiny")}
    assert found == {"careful": False, "trusting@1": True, "tiny": False}
    assert not resolve(str(place.run("trusting").checkpoint(1)), place).trust_remote_code


def test_folders_names_and_hub_ids(place: Home, base: Path, tmp_path: Path) -> None:
    assert resolve("tiny", place).base == str(base)
    assert resolve("models/tiny", place).base == str(base), "relative to the directory"
    adapter = adapter_folder(tmp_path / "adapter", str(base))
    assert resolve(str(adapter), place).base == str(base)
    assert resolve(str(adapter), place).adapter == adapter
    catalogue = resolve("smollm2-135m-instruct", place)
    assert catalogue.catalogue == "smollm2-135m-instruct"
    assert catalogue.base == str(place.models / "smollm2-135m-instruct")
    targets.check(catalogue)  # not pulled yet is fine
    for name in ("org/model-7b", "hf://org/model-7b"):
        assert resolve(name, place).base == "org/model-7b" and resolve(name, place).on_hub
    for name in ("nothing", "./nothing/here", "", "/absent/folder"):
        with pytest.raises(ProblemError, match="There is no model"):
            resolve(name, place)


def test_an_adapter_whose_home_has_moved_finds_its_base_by_name(place: Home, base: Path, tmp_path: Path) -> None:
    moved = adapter_folder(tmp_path / "adapter", "/elsewhere/models/tiny")
    assert resolve(str(moved), place).base == str(base)
    lost = adapter_folder(tmp_path / "lost", "/elsewhere/models/other")
    with pytest.raises(ProblemError, match="base model of the adapter") as caught:
        resolve(str(lost), place)
    assert "with the name other" in caught.value.problem.hint


def test_a_profile_names_its_base(place: Home, base: Path) -> None:
    def found(name: str) -> list[tuple[str, str]]:
        return list(checks.check_base({"model": ModelOptions(base=name)}, place.root, place))

    assert found("tiny") == found("smollm2-135m-instruct") == []
    [(key, message)] = found("tinny")
    assert key == "model.base" and "There is no model 'tinny'" in message
    (base / "tokenizer.json").unlink()
    [(key, message)] = found("tiny")
    assert "cannot be loaded: no tokenizer" in message
    assert list(checks.check_base({}, place.root, place)) == []


def test_an_adapter_is_a_base_like_any_other_when_all_of_it_is_whole(place: Home, base: Path) -> None:
    make_run(place, "first-run", base, {10: True})

    def said() -> str:
        return dict(checks.check_base({"model": ModelOptions(base="first-run")}, place.root, place)).get(
            "model.base", ""
        )

    assert said() == ""
    (base / "model.safetensors").unlink()
    assert f"{base} cannot be loaded: there are no weights" in said()
