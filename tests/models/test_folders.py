"""Damage as it happens: cut copies, pointers, missing shards. The files are real, and small."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.models import folders
from engine.models.find import find
from engine.models.weights import digest
from engine.protocol.home import Home
from tests.models.test_targets import adapter_folder, model_folder, tensors_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060552\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])


def shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    tensors_file(folder / names["w"])


def misplace(folder: Path) -> None:
    shard(folder)
    tensors_file(folder / "model-00002-of-00002.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, "the copy was cut off"),
    "shard": (shard, "shard 2 of 2 is missing: model-00002-of-00002.safetensors"),
    "misplaced": (misplace, "lacks 1 tensors that model.safetensors.index.json puts there, v among them"),
    "pointer": (lambda folder: (folder / "model.safetensors").write_bytes(POINTER), "is a git-lfs pointer"),
    "tokenizer pointer": (
        lambda folder: (folder / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json is a git-lfs",
    ),
    "garbage": (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>" * 9), "not a safetensors file"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a safetensors file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "not a model folder"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(folder: Path, kind: str) -> None:
    assert folders.find_problems(folder) == []
    damage, expected = DAMAGE[kind]
    damage(folder)
    found = folders.find_problems(folder)
    assert len(found) == 1 and expected in found[0], found


def test_the_embedded_model_is_whole_by_hash_and_a_flipped_bit_is_not(whole_smollm2: Path, tmp_path: Path) -> None:
    assert folders.find_problems(whole_smollm2) == []
    assert folders.check_hashes(whole_smollm2, lambda *_: None) == (1, [])
    copy = tmp_path / whole_smollm2.name
    shutil.copytree(whole_smollm2, copy)
    weights = copy / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert folders.find_problems(copy) == []
    hashed, wrong = folders.check_hashes(copy, lambda *_: None)
    assert hashed == 1 and "are not those of smollm2-135m-instruct" in wrong[0]


def test_digest_does_not_depend_on_the_split(folder: Path, tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }

    def write(name: str, header: dict[str, object], content: bytes) -> Path:
        text = json.dumps(header).encode()
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + content)
        return tmp_path / name

    whole = write("whole", header, b"aaaabbbb")
    second = write("second", {"b": header["b"] | {"data_offsets": [0, 4]}}, b"bbbb")
    first = write("first", {"a": header["a"]}, b"aaaa")
    assert digest([whole]) == digest([second, first])
    assert digest([whole]) != digest([first])


def test_find_looks_where_tools_keep_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home").create()
    model_folder(home.models / "mine")
    repository = tmp_path / "hf" / "models--org--name"
    blob = repository / "blobs" / hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    snapshot = model_folder(repository / "snapshots" / "abc")
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    scope = model_folder(tmp_path / "modelscope" / "hub" / "models" / "org" / "other")
    cut(scope)
    adapter_folder(tmp_path / "given" / "deep" / "adapter", "tiny")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))

    found = {each.name: each for each in find(home, [tmp_path / "given"])}
    assert set(found) == {"mine", "org/name", str(scope), str(tmp_path / "given" / "deep" / "adapter")}
    assert found["org/name"].where == "huggingface" and found["org/name"].problems == []
    assert folders.check_hashes(found["org/name"].path, lambda *_: None) == (1, []), "a blob is named by its hash"
    assert "cut off" in found[str(scope)].problems[0]
    assert found[str(tmp_path / "given" / "deep" / "adapter")].kind == "adapter"


def tool(*arguments: str, home: Home) -> tuple[int, str, str]:
    command = [sys.executable, "-P", "-m", "engine.workers.models", *arguments, "--home", str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_tool_speaks_json_and_exit_codes(folder: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    status, out, _ = tool("verify", str(folder), "--json", home=home)
    assert (status, json.loads(out)["ok"]) == (0, True)
    cut(folder)
    status, out, error = tool("verify", str(folder), home=home)
    assert (status, out) == (1, "") and "cut off" in error
    status, out, _ = tool("pull", "no-such-name", "--json", home=home)
    assert (status, json.loads(out)["error"]["title"]) == (2, "There is no model 'no-such-name'")
