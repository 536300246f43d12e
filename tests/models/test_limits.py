"""Settings that a model cannot take are named before a run starts: ids, positions, layers, and settings that never take
effect."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from engine.config.profile import ProfileError, parse
from engine.models import limits
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.training.adapters import base as adapters
from engine.training.doubts import list_new_doubts
from tests.training.harness import make_model

ROW = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 <end>"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("limits") / "tiny")


def profile(model: Path, tmp_path: Path, *overrides: str, text: str = "") -> Any:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([json.dumps(ROW)] * 4))
    text = text or f"model: {{base: {model}}}\nadapter: {{kind: lora, rank: 2}}\n"
    text += f"data: {{train: [{{source: {rows}}}], validation: [{{source: {rows}}}], max_length: 64}}\n"
    return parse(text, "p.yaml", tmp_path, overrides, Home(tmp_path / "home").create())


def complain(model: Path, tmp_path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        profile(model, tmp_path, *overrides)
    return [str(issue) for issue in caught.value.issues]


# ── token ids ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def enlarged(model: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer has three tokens more than its embedding has rows."""
    import shutil

    from transformers import AutoTokenizer

    folder = tmp_path / "enlarged"
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(f"<|tool{number}|>") for number in range(3)])
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_beyond_the_embedding(enlarged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.inference.loaded_model import load
    from engine.workers.doctor import check_folder
    from engine.workers.models import run_verify

    said = "the token '<|tool0|>' has the id 64, as 2 more are, and the embedding has 64 rows: ids up to 63"
    assert limits.find_vocabulary_problem(enlarged, enlarged) == said
    home = Home(tmp_path / "home").create()
    with pytest.raises(ProblemError) as caught:
        prepare(profile(enlarged, tmp_path), home, lambda *_: None)
    problem = caught.value.problem
    assert (problem.code, problem.cause) == ("tokenizer.beyond_embedding", said) and problem.hint
    assert run_verify(home, SimpleNamespace(folder=enlarged, json=False)) == 1  # type: ignore[arg-type]
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert next((check.name, check.ok) for check in check_folder(enlarged)) == ("files", False)
    loaded = load(str(enlarged), home=home, device="cpu")
    assert loaded.prompt("w1 w2")
    with pytest.raises(ValueError, match=r"tool1.*has the id 65.*64 rows"):
        loaded.prompt([{"role": "user", "content": "w1 <|tool1|>"}])


@pytest.mark.parametrize(
    "where", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json", "vocabulary", "merges"]
)
def test_ids_are_found_in_every_file_that_names_them(where: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 4}}')
    written: dict[str, Any] = {
        "tokenizer.json": {"added_tokens": [{"id": 4, "content": "x"}]},
        "added_tokens.json": {"x": 4},
        "tokenizer_config.json": {"added_tokens_decoder": {"4": {"content": "x"}}},
        "merges": {"model": {"type": "BPE", "vocab": {"a": 0, "x": 4}}},
        "vocabulary": {"model": {"type": "Unigram", "vocab": [["a", 0.0]] * 4 + [["x", 0.0]]}},
    }
    (tmp_path / (where if where.endswith(".json") else "tokenizer.json")).write_text(json.dumps(written[where]))
    assert limits.find_vocabulary_problem(tmp_path, tmp_path).startswith("the token 'x' has the id 4, and")
    (tmp_path / "config.json").write_text('{"vocab_size": 5}')
    assert limits.find_vocabulary_problem(tmp_path, tmp_path) == ""


def test_a_model_with_room_is_fine(model: Path, tmp_path: Path) -> None:
    assert limits.find_vocabulary_problem(model, model) == ""
    prepared = prepare(profile(model, tmp_path), Home(tmp_path / "home"), lambda *_: None)
    assert prepared["rows"] == 4


def test_tokenised_rows_beyond_the_embedding(model: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    from engine.prep.stages.pretokenized import check_ids

    Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [64], "labels": [1]}]).save_to_disk(
        str(tmp_path / "tokens")
    )
    method = SimpleNamespace(rows="tokens")
    check_ids(tmp_path / "tokens", method, 65)
    check_ids(tmp_path / "tokens", method, None)
    with pytest.raises(ProblemError) as caught:
        check_ids(tmp_path / "tokens", method, 64)
    assert "the token id 64, and the model's embedding has 64 rows" in str(caught.value.problem.cause)


# ── positions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 4096}, 512),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0,
          "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0,
          "original_max_position_embeddings": 8192}}, 131072),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"factor": "x"}}, 100),
    ],
)  # fmt: skip
def test_positions_by_config(config: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert limits.read_positions(tmp_path) == expected


def test_rows_beyond_the_models_positions(model: Path, tmp_path: Path) -> None:
    assert profile(model, tmp_path, "data.max_length=256").data.max_length == 256
    (issue,) = complain(model, tmp_path, "data.max_length=257")
    assert issue.startswith("--set data.max_length: is 257, and tiny has positions for 256 tokens: lower it to 256")
    (issue,) = complain(model, tmp_path, "data.max_length=250", "adapter={kind: prompt, virtual_tokens: 8}")
    assert (
        "is 250 with 8 virtual tokens of the adapter, and tiny has positions for 256 tokens: lower it to 248" in issue
    )


# ── targets ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "oft"])
def test_targets_that_name_no_layer(model: Path, tmp_path: Path, kind: str) -> None:
    assert profile(model, tmp_path, f"adapter.kind={kind}", "adapter.targets=[q_proj, lm_head, mlp.up_proj]")
    (issue,) = complain(model, tmp_path, f"adapter.kind={kind}", "adapter.targets=[q_proj, nosuch, proj]")
    assert issue.startswith("--set adapter.targets: no layer of tiny is called nosuch, proj")


def test_targets_that_name_no_layer_in_memory(model: Path, tmp_path: Path) -> None:
    """As for models whose files do not tell."""
    from transformers import AutoModelForCausalLM

    options = profile(model, tmp_path, "adapter.targets=[q_proj, v_proj]").adapter
    changed = options.model_copy(update={"targets": ["q_proj", "nosuch"]})
    with pytest.raises(ProblemError) as caught:
        adapters.attach_low_rank(AutoModelForCausalLM.from_pretrained(model), changed)
    problem = caught.value.problem
    assert problem.code == "adapter.unknown_target" and problem.title == "No layer of this model is called nosuch"
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj" in problem.hint
    adapted = adapters.attach_low_rank(AutoModelForCausalLM.from_pretrained(model), options)
    assert {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name
    } == {"q_proj", "v_proj"}


# ── settings that never take effect ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["training.max_steps=5", "training.warmup=5"], "training.warmup", "lasts 5 steps, and the run has 5"),
        (["training.max_steps=5", "training.warmup=100"], "training.warmup", "lasts 100 steps"),
        (["training.max_steps=3", "training.warmup=0.9"], "training.warmup", "lasts 3 steps"),
        (["training.max_steps=50", "checkpoint.every_steps=7", "evaluation.every_steps=10"], "checkpoint.every_steps",
         "do not meet before the last of 50 steps"),
        (["checkpoint.every_steps=7", "evaluation.every_steps=10"], "checkpoint.every_steps", "only every 70 steps"),
        (["training.max_steps=10", "checkpoint.every_steps=2", "evaluation.every_steps=100"], "checkpoint.every_steps",
         "do not meet"),
    ],
)  # fmt: skip
def test_settings_that_never_take_effect_are_doubted(
    model: Path, tmp_path: Path, overrides: list[str], key: str, said: str
) -> None:
    (doubt,) = profile(model, tmp_path, *overrides).doubts
    assert (doubt.code, doubt.key) == ("profile.doubtful", key) and said in doubt.message


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.max_steps=5", "training.warmup=2"],
        ["training.warmup=100"],
        ["training.max_steps=5", "training.warmup=0.5"],
        ["training.max_steps=50", "checkpoint.every_steps=20", "evaluation.every_steps=10"],
        ["training.max_steps=50", "checkpoint.every_steps=10", "evaluation.every_steps=20"],
        ["checkpoint.every_steps=10", "evaluation.every_steps=10"],
        ["training.max_steps=5", "checkpoint.every_steps=100", "evaluation.every_steps=30"],
        ["checkpoint.every_steps=7"],
    ],
)
def test_settings_that_take_effect_are_not_doubted(model: Path, tmp_path: Path, overrides: list[str]) -> None:
    assert profile(model, tmp_path, *overrides).doubts == ()


def test_what_only_the_number_of_steps_tells_is_doubted_at_the_start(model: Path, tmp_path: Path) -> None:
    found = profile(model, tmp_path, "training.warmup=100", "checkpoint.every_steps=7")
    assert [key for key, _ in list_new_doubts(found, 50, 10)] == ["training.warmup", "checkpoint.every_steps"]
    assert list_new_doubts(found, 500, 7) == []
    told = profile(model, tmp_path, "training.max_steps=5", "training.warmup=9")
    assert told.doubts and list_new_doubts(told, 5, 10) == [], "what was told at the check is not told again"


def test_the_verb_tells_place_and_code(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cockpit.verbs.profile import check

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW))
    file = tmp_path / "p.yaml"
    file.write_text(
        f"model: {{base: {model}}}\ndata: {{train: [{{source: {rows}}}], max_length: 64}}\n"
        "training:\n  max_steps: 5\n  warmup: 10\n"
    )
    options = SimpleNamespace(profile=str(file), overrides=[], home=str(tmp_path / "home"), json=False)
    assert check(options) == 0  # type: ignore[arg-type]
    assert f"{file}:5:3 training.warmup: lasts 10 steps" in capsys.readouterr().err
    options.json = True
    assert check(options) == 0  # type: ignore[arg-type]
    (doubt,) = json.loads(capsys.readouterr().out)["doubts"]
    assert (doubt["code"], doubt["key"], doubt["line"]) == ("profile.doubtful", "training.warmup", 5)


@given(number=st.integers(1, 2000), value=st.integers(0, 30000), blank=st.sampled_from(["", " ", "\n  "]))
def test_the_search_for_ids_misses_none(number: int, value: int, blank: str) -> None:
    content = f'{{"a":{blank}{value}, "b": 0}}'.encode()
    assert limits._may_reach(content, number) == (value >= number)
