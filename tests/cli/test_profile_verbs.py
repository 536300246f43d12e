from __future__ import annotations

import json
from pathlib import Path

from engine.protocol.home import Home
from tests.cli.conftest import Cockpit

BAD = """\
model:
  base: smollm2-135m-instruct
  dtype: bf16
data:
  train: [{source: triples/train.jsonl}]
training:
  learning_rat: 1.0e-4
"""


def test_check_prints_every_problem_at_its_place(cockpit: Cockpit, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    answer = cockpit("profile", "check", "bad.yaml", "--set", "training.epochs=0")
    lines = answer.stdout.splitlines()
    assert answer.returncode == 2
    assert len(lines) == 3
    assert any(line.startswith(f"{tmp_path}/bad.yaml:3:3 model.dtype: ") for line in lines)
    assert f"{tmp_path}/bad.yaml:7:3 training.learning_rat: unknown key, did you mean learning_rate?" in lines
    assert any(line.startswith("--set training.epochs: ") for line in lines)

    issues = json.loads(cockpit("profile", "check", "bad.yaml", "--json").stdout)["issues"]
    assert {(issue["line"], issue["column"], issue["key"]) for issue in issues} == {
        (3, 3, "model.dtype"),
        (7, 3, "training.learning_rat"),
    }


def test_training_a_bad_profile_starts_nothing(cockpit: Cockpit, tmp_path: Path, bare_home: Home) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    answer = cockpit("train", "bad.yaml", "--json")
    assert answer.returncode == 2
    assert len(json.loads(answer.stdout)["error"]["issues"]) == 2
    assert not bare_home.connection.exists(), "no engine was started for it"
    assert not list(bare_home.runs.iterdir())


def test_own_profiles_are_listed_and_found_beside_the_built_in_ones(cockpit: Cockpit, bare_home: Home) -> None:
    folder = bare_home.root / "profiles"
    folder.mkdir()
    text = "# mine\nname: mine\ndata: {train: [{source: triples/train.jsonl}]}\nmodel: {}\n"
    (folder / "mine.yaml").write_text(text)
    listed = {entry["name"]: entry["place"] for entry in json.loads(cockpit("profile", "list", "--json").stdout)}
    assert listed["mine"] == "home"
    assert listed["triples-qlora"] == "built-in"
    assert cockpit("profile", "show", "mine").stdout == text
    resolved = json.loads(cockpit("profile", "show", "mine", "--set", "training.epochs=3", "--json").stdout)
    assert resolved["training"]["epochs"] == 3
    assert resolved["model"]["base"] == "smollm2-135m-instruct"


def test_a_profile_that_is_not_there_names_the_nearest(cockpit: Cockpit) -> None:
    answer = cockpit("profile", "show", "triples-qlor")
    assert answer.returncode == 2
    assert "did you mean triples-qlora?" in answer.stderr


def test_a_profile_whose_model_one_has_to_bring_lacks_that_alone(cockpit: Cockpit, bare_home: Home) -> None:
    for name in ("chatglm3-6b-qlora-8gpu", "chatglm-6b-qlora-20gb"):
        (issue,) = json.loads(cockpit("profile", "check", name, "--json").stdout)["issues"]
        assert issue["key"] == "model.base" and "There is no model" in issue["message"]
    goldens = Path(__file__).parents[1] / "goldens"
    for name, tiny, tokenizer in (
        ("chatglm3", "tiny_tokenizer.model", "tokenizer.model"),
        ("chatglm", "tiny_ice_text.model", "ice_text.model"),
    ):
        folder = bare_home.models / f"{name}-6b"
        folder.mkdir()
        for source, place in (
            ("config.json", "config.json"),
            ("model.safetensors", "model.safetensors"),
            (tiny, tokenizer),
        ):
            (folder / place).write_bytes((goldens / name / source).read_bytes())
    answer = cockpit("profile", "check", "chatglm3-6b-qlora-8gpu")
    assert answer.returncode == 0 and "chatglm3-6b is ChatGLM3: converted while loading" in answer.stderr
    told = json.loads(cockpit("profile", "check", "chatglm-6b-qlora-20gb", "--json").stdout)
    assert told["ok"] and told["notes"][0].startswith("chatglm-6b is ChatGLM-6B (first generation)")
