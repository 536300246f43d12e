"""Any problem of a GLM folder is reported in one sentence before anything is computed."""

from __future__ import annotations

import copy
import json
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from engine.models import base, folders
from engine.models.devices import Device
from engine.models.glm.generations import Unsupported, recognise
from engine.models.loading import load_model
from engine.models.pickled import read_shapes
from engine.models.weights import DamagedFile
from engine.options.model import ModelOptions
from engine.protocol.messages import ProblemError
from tests.models.glm.layouts import FIRST, FOURTH, GOLDENS, THIRD, rewrite

VALUES = (None, True, False, -1, 0, 1, 3, 1.5, 10**12, "x", "64", [], [1], {}, float("nan"))
CPU = Device("cpu", torch.float32, "")


def config(source: Path, **changes: object) -> dict[str, object]:
    return json.loads((source / "config.json").read_text()) | changes


def change(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(config(folder, **changes)))


REFUSED = {
    "a quantised folder": (FIRST, {"quantization_bit": 4}, "quantization_bit: 4"),
    "a prefix": (FIRST, {"pre_seq_len": 128}, "pre_seq_len: 128"),
    "positions of one dimension": (FIRST, {"position_encoding_2d": False}, "position_encoding_2d: False"),
    "LayerNorm": (THIRD, {"rmsnorm": False}, "rmsnorm: False"),
    "no last norm": (THIRD, {"post_layer_norm": False}, "post_layer_norm: False"),
    "biases": (THIRD, {"add_bias_linear": True}, "add_bias_linear: True"),
    "another residual": (
        THIRD,
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm: True",
    ),
    "no shared keys": (THIRD, {"multi_query_attention": False}, "multi_query_attention: False"),
    "no shared keys, unsaid": (THIRD, {"multi_query_attention": None}, "multi_query_attention: None"),
    "quantised later": (FOURTH, {"quantization_bit": 8}, "quantization_bit: 8"),
    "later prefix": (FOURTH, {"pre_seq_len": 64}, "pre_seq_len: 64"),
    "both at once": (THIRD, {"inner_hidden_size": 3}, "not of a known generation"),
    "which 32k": (THIRD, {"_name_or_path": "mine", "rope_ratio": 16}, "rope_ratio: 16"),
    "words for numbers": (FIRST, {"num_layers": "two"}, "num_layers: 'two'"),
    "heads": (THIRD, {"num_attention_heads": 3}, "3 attention heads cannot share 2 groups"),
    "a token too far": (FIRST, {"bos_token_id": 130004}, "bos_token_id 130004 is beyond vocab_size 512"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_computed_exactly_is_refused_by_name(tmp_path: Path, kind):
    source, changes, named = REFUSED[kind]
    folder = rewrite(source, tmp_path)
    change(folder, **changes)
    with pytest.raises(ProblemError) as caught:
        load_model(str(folder), trust_remote_code=True)
    assert named in caught.value.problem.cause and "\n" not in caught.value.problem.cause
    assert any(named in each for each in folders.find_problems(folder))


def test_generations_are_told_apart():
    names = {source: recognise(config(source)).name for source in (FIRST, THIRD, FOURTH)}
    assert names == {FIRST: "ChatGLM-6B (first generation)", THIRD: "ChatGLM3", FOURTH: "GLM-4 (original layout)"}
    unnamed = {"_name_or_path": "/data/mine"}
    assert recognise(config(THIRD, **unnamed, seq_length=8192)).number == 3
    assert recognise(config(THIRD, **unnamed, seq_length=32768)).number == 2
    assert recognise(config(THIRD, **unnamed, padded_vocab_size=151552, rope_ratio=500)).number == 4
    assert recognise(config(THIRD, _name_or_path="/data/chatglm2-6b-32k", rope_ratio=16)).number == 2
    assert recognise({"model_type": "llama"}) is None and recognise({"model_type": "glm"}) is None
    with pytest.raises(Unsupported, match="not of a known generation"):
        recognise({"model_type": "chatglm"})
    with pytest.raises(Unsupported, match="lacks kv_channels"):
        recognise({key: value for key, value in config(THIRD).items() if key != "kv_channels"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble_index(folder: Path) -> None:
    path = next(folder.glob("*.index.json"))
    content = json.loads(path.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "nowhere.bin")
    path.write_text(json.dumps(content))


def without_metadata(folder: Path) -> None:
    path = next(folder.glob("*.index.json"))
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"]}))


DAMAGE = {
    "a shard is gone": (lambda folder: shard(folder).unlink(), "shard 2 of 3 is missing"),
    "a shard is cut": (lambda folder: cut(shard(folder)), "cut off"),
    "a shard is a page": (lambda folder: shard(folder).write_text("<html>" * 99), "is not a"),
    "a shard is empty": (lambda folder: shard(folder).write_bytes(b""), "is not a"),
    "another shard's copy": (
        lambda folder: shard(folder).write_bytes(shard(folder, 1).read_bytes()),
        "tensors that",
    ),
    "the index names others": (scramble_index, "shard 1 of 1 is missing: nowhere.bin"),
    "the index has no map": (
        lambda folder: next(folder.glob("*.index.json")).write_text('{"weight_map": 3}'),
        "no weight_map",
    ),
    "the index has no metadata": (without_metadata, "has no metadata"),
    "more layers are wanted": (lambda folder: change(folder, num_layers=3), "the weights lack"),
    "other widths are wanted": (lambda folder: change(folder, hidden_size=128, kv_channels=32), "has the shape"),
}


def shard(folder: Path, number: int = 2) -> Path:
    return next(path for path in folder.iterdir() if f"-0000{number}-of" in path.name)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("source", [FIRST, THIRD])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_once(tmp_path: Path, source, binary, kind):
    folder = rewrite(source, tmp_path, shards=3, binary=binary)
    assert folders.find_weights_problems(folder) == []
    damage, expected = DAMAGE[kind]
    damage(folder)
    found = folders.find_weights_problems(folder)
    assert len(found) == 1 and expected in found[0] and "\n" not in found[0], found
    with pytest.raises(ProblemError) as caught:
        load_model(str(folder))
    assert caught.value.problem.cause == found[0]


@pytest.mark.parametrize(("source", "binary"), [(FIRST, False), (THIRD, True)])
def test_a_hundred_mutations_load_or_are_one_problem(tmp_path: Path, source, binary):
    """Settings of every wrong kind, files with bytes changed, cut, removed: never a traceback."""
    generator = random.Random(7)
    whole = rewrite(source, tmp_path / "whole", shards=2, binary=binary)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    settings = config(source)
    outcomes = {"loaded": 0, "refused": 0}
    for number in range(100):
        folder = tmp_path / "mutated"
        folder.mkdir(exist_ok=True)
        mutated = dict(files)
        if number % 2:
            changed = copy.deepcopy(settings)
            changed[generator.choice(sorted(settings))] = generator.choice(VALUES)
            mutated["config.json"] = json.dumps(changed).encode()
        else:
            name = generator.choice(sorted(files))
            content = bytearray(files[name])
            match generator.randrange(4):
                case 0:
                    del content[generator.randrange(len(content)) :]
                case 1:
                    for _ in range(20):
                        content[generator.randrange(min(len(content), 2000))] = generator.randrange(256)
                case 2:
                    for _ in range(20):
                        content[-generator.randrange(1, min(len(content), 2000))] = generator.randrange(256)
                case 3:
                    content = bytearray(generator.randbytes(300))
            mutated[name] = bytes(content)
        for name, data in mutated.items():
            (folder / name).write_bytes(data)
        found = folders.find_problems(folder)
        assert all(isinstance(each, str) and each and "\n" not in each for each in found)
        try:
            base.load(str(folder), ModelOptions(base=str(folder), dtype="float32"), CPU, lambda *_: None)
            outcomes["loaded"] += 1
            assert not folders.find_weights_problems(folder)
        except ProblemError as error:
            outcomes["refused"] += 1
            assert error.problem.title and error.problem.cause
    assert min(outcomes.values()) > 5, outcomes


def test_missing_weights_are_never_filled_with_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the files do not tell before they are read (a hub id, a file of before torch 1.6)."""
    monkeypatch.setattr(folders, "find_weights_problems", lambda folder: [])
    for source in (FIRST, THIRD):
        folder = rewrite(source, tmp_path / source.name)
        change(folder, num_layers=3)
        with pytest.raises(ProblemError, match="weights are missing"):
            load_model(str(folder))


def test_a_pickle_that_would_run_something_is_not_unpickled(tmp_path: Path):
    class Runs:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "ran", "x"))

    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Runs()}, protocol=2))
    with pytest.raises(DamagedFile, match="something other than tensors"):
        read_shapes(path)
    assert not (tmp_path / "ran").exists()


def test_headers_are_read_without_a_training_library():
    script = (
        "import sys; from pathlib import Path; from engine.models import folders; "
        f"folder = Path({str(GOLDENS / 'chatglm3')!r}); "
        "assert folders.find_weights_problems(folder) == [] and folders.describe_glm(folder); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_verify_and_doctor_report_the_generation_and_the_conversion(tmp_path: Path):
    def told(tool: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-P", "-m", f"engine.workers.{tool}", *arguments, "--home", str(tmp_path / "home")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    folder = rewrite(THIRD, tmp_path / "model", shards=2, binary=True)
    for name in ("tiny_tokenizer.model",):
        (folder / "tokenizer.model").write_bytes((THIRD / name).read_bytes())
    status, out = told("models", "verify", str(folder), "--json")
    assert status == 0 and json.loads(out)["family"].startswith("ChatGLM3: converted while loading")
    status, out = told("doctor", str(folder), "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert "converted while loading to transformers' GlmForCausalLM" in checks["family"]["detail"]
    shard(folder, 1).unlink()
    assert "shard 1 of 2 is missing" in told("models", "verify", str(folder))[1]
    assert told("doctor", str(folder))[0] == 1
