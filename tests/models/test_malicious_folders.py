"""Folders that somebody made to break their readers: each is refused with a problem, soon, and with little memory."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from engine.inference.loaded_model import load
from engine.models import folders, targets, template_guard, tokenizers
from engine.prep.base_model import load_tokenizer
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.training.harness import make_model

SECONDS = 20
MOST_MEMORY = 3 << 30
Spoil = Callable[[Path], None]


class Late(BaseException):
    """No Exception: the code under test catches those."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fails when it takes longer than `SECONDS`."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Late(f"not done within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for each in whole.iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    return copy


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def write(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def template(text: str) -> Spoil:
    return write("chat_template.jinja", text)


def in_settings(text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))

    return spoil


def special(name: str, make: Callable[[Path], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def header(content: str | bytes | dict[str, Any], tail: bytes = b"", length: int | None = None) -> Spoil:
    encoded = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    return write("model.safetensors", struct.pack("<Q", len(encoded) if length is None else length) + encoded + tail)


def tensor(**changes: Any) -> Spoil:
    return header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}, b"\0" * 4)


def index(content: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write("model.safetensors.index.json", content if isinstance(content, str) else json.dumps(content))(folder)

    return spoil


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/cockpit-was-here",)


def pickled(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", content)

    return spoil


def adapter(content: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        for each in folder.iterdir():
            each.unlink()
        write("adapter_config.json", content if isinstance(content, str) else json.dumps(content))(folder)
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4)(folder)
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")

    return spoil


def gguf(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        for each in folder.iterdir():
            each.unlink()
        (folder / "model.gguf").write_bytes(content)

    return spoil


def gguf_header(tensors: int, settings: int, tail: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, settings) + tail


DEEP = "[" * 100_000 + "]" * 100_000
BROKEN: dict[str, Spoil] = {
    "a billion layers": config(num_hidden_layers=10**9),
    "more layers than tensors": config(num_hidden_layers=5_000),
    "a float of layers": config(num_hidden_layers=1e300),
    "nested layers": config(text_config={"num_hidden_layers": 10**9}),
    "hidden size": config(hidden_size=10**12),
    "vocabulary": config(vocab_size=10**15),
    "heads": config(num_attention_heads=10**9),
    "deep config": write("config.json", DEEP),
    "deep object": write("config.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "list config": write("config.json", "[]"),
    "text config": write("config.json", '"llama"'),
    "null config": write("config.json", "null"),
    "number config": write("config.json", "1"),
    "huge int": write("config.json", '{"model_type": "llama", "hidden_size": ' + "9" * 5_000 + "}"),
    "not UTF-8": write("config.json", b"\xff\xfe{}"),
    "cut off": write("config.json", '{"model_type": "lla'),
    "empty": write("config.json", b""),
    "zeros": write("config.json", b"\0" * 1000),
    "a terabyte": special("config.json", lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40)),
    "config is a fifo": special("config.json", os.mkfifo),
    "config is a loop": special("config.json", lambda path: path.symlink_to(path.name)),
    "config is a folder": special("config.json", Path.mkdir),
    "config is a device": special("config.json", lambda path: path.symlink_to("/dev/zero")),
    "a fifo beside": special("merges.txt", os.mkfifo),
    "generation fifo": special("generation_config.json", os.mkfifo),
    "tokenizer is a fifo": special("tokenizer.json", os.mkfifo),
    "a socket": special("tokenizer_config.json", a_socket),
    "a loop": special("tokenizer.json", lambda path: path.symlink_to(path.name)),
    "weights are a fifo": special("model.safetensors", os.mkfifo),
    "weights are a device": special("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "weights are a loop": special("model.safetensors", lambda path: path.symlink_to(path.name)),
    "weights are a folder": special("model.safetensors", Path.mkdir),
    "header too long": header("{}", length=1 << 62),
    "header of all": header("{}", length=(1 << 64) - 1),
    "no header": write("model.safetensors", b""),
    "deep header": header(DEEP),
    "deep header object": header('{"a":' * 50_000 + "1" + "}" * 50_000),
    "header is a list": header("[1, 2]"),
    "header is not UTF-8": header(b"\xff\xff\xff"),
    "entry is a number": header({"a": 1}),
    "negative offset": tensor(data_offsets=[-8, 4]),
    "backwards": tensor(data_offsets=[4, 0]),
    "three offsets": tensor(data_offsets=[0, 2, 4]),
    "text offsets": tensor(data_offsets=["0", "4"]),
    "float offsets": tensor(data_offsets=[0.5, 4.5]),
    "huge offset": tensor(data_offsets=[0, 1 << 63]),
    "boolean shape": tensor(shape=[True]),
    "text shape": tensor(shape="abc"),
    "huge shape": tensor(shape=[10**30]),
    "deep index": index(DEEP),
    "index is a list": index([]),
    "index of numbers": index({"metadata": {}, "weight_map": {"a": 1}}),
    "index outside": index({"metadata": {}, "weight_map": {"a": "../../../../etc/passwd"}}),
    "index of a device": index({"metadata": {}, "weight_map": {"a": "/dev/zero"}}),
    "index with a zero": index({"metadata": {}, "weight_map": {"a": "a\0b"}}),
    "index of itself": index({"metadata": {}, "weight_map": {"a": "model.safetensors.index.json"}}),
    "pickle runs code": pickled(pickle.dumps(Evil())),
    "pickle is a bomb": pickled(b"\x80\x02" + b"]" * (64 << 20)),
    "pickle is deep": pickled(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
    "pickle asks for a terabyte": pickled(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."),
    "pickle of long": pickled(b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"."),
    "pickle of nothing": pickled(b""),
    "bin is not a zip": pickled(b"PK\x03\x04 this is no archive"),
    "adapter is a list": adapter("[]"),
    "adapter is deep": adapter(DEEP),
    "adapter of a rank": adapter({"peft_type": "LORA", "r": 10**12, "base_model_name_or_path": "x"}),
    "adapter of itself": adapter({"peft_type": "LORA", "base_model_name_or_path": "model"}),
    "adapter of a number": adapter({"peft_type": "LORA", "base_model_name_or_path": 7}),
    "adapter of zeros": adapter({"peft_type": "LORA", "base_model_name_or_path": "/a\0b"}),
    "gguf of nothing": gguf(b"GGUF"),
    "gguf of zeros": gguf(b"\0" * 100),
    "gguf tensors": gguf(gguf_header(10**18, 0)),
    "gguf settings": gguf(gguf_header(0, 10**18)),
    "gguf array": gguf(gguf_header(0, 1, struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 60))),
    "gguf name": gguf(gguf_header(1, 0, struct.pack("<Q", 1 << 60)) + b"\0" * 100),
    "gguf arrays in arrays": gguf(
        gguf_header(0, 1, struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 2_000)),
}  # fmt: skip
"""What no model may be loaded from."""
TOKENIZERS: dict[str, Spoil] = {
    "deep tokenizer": write("tokenizer.json", DEEP),
    "tokenizer is a list": write("tokenizer.json", "[]"),
    "tokenizer is no model": write("tokenizer.json", '{"model": {"type": "BPE", "vocab": 1}}'),
    "not UTF-8": write("tokenizer.json", b"\xff\xff"),
    "settings are a list": write("tokenizer_config.json", "[]"),
    "settings are deep": write("tokenizer_config.json", DEEP),
    "a class of another kind": write("tokenizer_config.json", '{"tokenizer_class": ["a"]}'),
    "added tokens": write("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'),
}
"""What no tokenizer may be loaded from."""
ENDLESS: dict[str, Spoil] = {
    "loops": template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    "loops of messages": template("{% for i in range(99999) %}{% for m in messages %}{% for j in range(99999) %}{{ m }}"
                                  "{% endfor %}{% endfor %}{% endfor %}"),
    "texts": template("{{ 'a' * 100000000000 }}"),
    "doubling": template(
        "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"),
    "format": template("{{ '%99999999999d' % 1 }}"),
    "centred": template("{{ 'a'|center(99999999999) }}"),
    "macro": template("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"),
    "in the settings": in_settings("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    "too long": template("{# " + "a" * (1 << 20) + " #}"),
    "deep": template("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}"),
}  # fmt: skip
"""Chat templates that do not end, or not soon."""


@pytest.fixture(autouse=True)
def less_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(template_guard, "SECONDS", 1)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # earlier tests of this process had a peak of their own
    before = read_peak()
    yield
    assert read_peak() - before < MOST_MEMORY


def read_peak() -> int:
    """The most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_folder_is_loaded(name: str, folder: Path, tmp_path: Path) -> None:
    BROKEN[name](folder)
    home = Home(tmp_path / "home").create()
    with bounded():
        kind = folders.detect_kind(folder)
        found = folders.find_problems(folder)
        folders.is_reward_model(folder)
        folders.describe_glm(folder)
        folders.has_tokenizer(folder)
        assert kind is None or found or name == "adapter of itself", "verify says so"
        with pytest.raises(ProblemError) as caught:
            load(str(folder), home=home)
    assert caught.value.problem.code and caught.value.problem.title


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_broken_tokenizer_is_loaded(name: str, folder: Path) -> None:
    TOKENIZERS[name](folder)
    with bounded(), pytest.raises(ProblemError) as caught:
        tokenizers.load(folder)
    assert caught.value.problem.code == "tokenizer.unusable"


@pytest.mark.parametrize("name", ENDLESS)
def test_no_endless_template_is_rendered(name: str, folder: Path, tmp_path: Path) -> None:
    ENDLESS[name](folder)
    with bounded():
        assert template_guard.find_faults(folder), "verify says so"
        with pytest.raises(ProblemError) as caught:
            tokenizers.load(folder)
        assert caught.value.problem.code == "template.endless"
        text = (folder / "chat_template.jinja") if (folder / "chat_template.jinja").is_file() else None
        if text:
            (tmp_path / "own.jinja").write_bytes(text.read_bytes())
            text.unlink()
            with pytest.raises(ProblemError):
                load_tokenizer(folder, str(tmp_path / "own.jinja"), tmp_path, False)


def test_common_templates_are_not_tried(whole: Path, smollm2: Path) -> None:
    """A process for each load would cost as much as loading."""
    before = time.monotonic()
    for _ in range(3):
        template_guard.find_fault.cache_clear()
        assert not template_guard.find_faults(smollm2) and not template_guard.find_faults(whole)
    assert template_guard._ends_by_itself(tokenizers.load(smollm2).chat_template)
    assert (
        template_guard.find_fault(
            "{% for m in messages %}{% if loop.index0 % 2 %}{{ m.content }}{% endif %}{% endfor %}"
        )
        == ""
    )
    assert time.monotonic() - before < 10


def test_a_template_that_only_looks_dangerous_is_used() -> None:
    assert template_guard.find_fault("{% for i in range(3) %}{{ messages[0].content }}{{ 2 * i }}{% endfor %}") == ""
    assert (
        template_guard.find_fault("{% macro f(x) %}{{ x }}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}")
        == ""
    )


def test_the_whole_folder_is_whole(folder: Path, tmp_path: Path) -> None:
    assert folders.find_problems(folder) == [] and template_guard.find_faults(folder) == []
    assert load(str(folder), home=Home(tmp_path / "home").create()).templated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a billion layers", "deep config", "a fifo beside", "pickle is a bomb", "loops"])
def test_the_verb_says_so_and_ends(name: str, folder: Path, tmp_path: Path) -> None:
    (BROKEN | ENDLESS)[name](folder)
    command = [sys.executable, "-m", "cockpit.cli", "--home", str(tmp_path / "home"), "model", "verify", str(folder)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    document = json.loads(done.stdout)
    assert done.returncode == 1 and document["problems"], done.stderr


def test_targets_of_all_of_them_end(folder: Path, tmp_path: Path) -> None:
    """`cockpit chat`, `profile check` and `prepare` begin with it."""
    home = Home(tmp_path / "home").create()
    for name, spoil in BROKEN.items():
        each = tmp_path / "each"
        each.mkdir()
        for path in folder.iterdir():
            (each / path.name).write_bytes(path.read_bytes())
        spoil(each)
        with bounded():
            try:
                targets.check(targets.resolve(str(each), home, tmp_path))
            except ProblemError as error:
                assert error.problem.code, name
        each.rename(tmp_path / f"done {name.replace('/', ' ')}")
