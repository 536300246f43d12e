"""Modelfiles: Ollama's template engine, Go's text/template, renders what the model's own chat template renders.

`modelfiles/goldens.json` has the Go templates and what Go rendered with them; where `go` is on PATH, it renders again.
`python -m tests.inference.test_modelfile` writes the file anew.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import pytest
import trl

from engine.export import modelfile
from engine.export.modelfile import Pieces, UnsayableError, read_pieces
from engine.models import chat_template, tokenizers
from engine.models.targets import Target
from tests.conftest import USER_HOME
from tests.prep.test_templates import LLAMA2, MISTRAL

FOLDER = Path(__file__).parent / "modelfiles"
GOLDENS = FOLDER / "goldens.json"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = ("cohere", "deepseekv3", "gemma", "glm4moe", "llama3", "nemotron_3_nano", "phi3", "qwen2_5", "qwen3", "qwen3_8")
ROLES = ("user", "system user", "user assistant user", "system user assistant user", "user assistant " * 3 + "user")


def read_templates(tokenizer: Any) -> dict[str, str]:
    theirs = {name: (TEMPLATES / f"{name}.jinja").read_text("utf-8") for name in NAMES}
    return {"smollm2": tokenizer.chat_template, "llama2": LLAMA2, **theirs}


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def make_conversations(pieces: Pieces) -> list[list[dict[str, str]]]:
    content = "text {} \"quoted\" 'so' {{{{ .Role }}}} {{% if %}} 中文 \\n <b> & 🙂"
    return [
        [{"role": role, "content": content.format(at)} for at, role in enumerate(roles.split())]
        for roles in ROLES
        if "system" not in roles or any(after == "system" for _, after in pieces.between)
    ]


def render_with_go(requests: list[dict[str, Any]]) -> Any:
    command = ["go", "run", str(FOLDER / "render.go")]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def make_goldens(tokenizer: Any) -> dict[str, Any]:
    """The Go template and Go's texts of each chat template."""
    all_pieces = {name: read_pieces(with_template(tokenizer, text)) for name, text in read_templates(tokenizer).items()}
    requests = [
        {"template": pieces.write_go(), "conversations": make_conversations(pieces)} for pieces in all_pieces.values()
    ]
    rendered = render_with_go(requests)
    return {
        name: {"go": request["template"], "texts": texts}
        for name, request, texts in zip(all_pieces, requests, rendered, strict=True)
    }


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return tokenizers.load(smollm2)


def test_go_renders_the_bytes_of_the_chat_template(tokenizer: Any) -> None:
    goldens = json.loads(GOLDENS.read_text("utf-8"))
    templates = read_templates(tokenizer)
    assert goldens.keys() == templates.keys()
    for name, text in templates.items():
        own = with_template(tokenizer, text)
        pieces = read_pieces(own)
        conversations = make_conversations(pieces)
        rendered = [chat_template.render(own, each, reply_follows=True) for each in conversations]
        assert (pieces.write_go(), rendered) == (goldens[name]["go"], goldens[name]["texts"]), name
        assert [pieces.render(each) for each in conversations] == rendered


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed: what it rendered is in the goldens")
def test_goldens_are_what_go_renders(tokenizer: Any) -> None:
    assert make_goldens(tokenizer) == json.loads(GOLDENS.read_text("utf-8"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (MISTRAL, "more than the roles beside it"),
        ("{%- for m in messages %}\n{{- m.content | upper }}\n{%- endfor %}", "line 2: {{- m.content | upper }}"),
        (
            "{%- for m in messages %}{{ m.role ~ m.content }}{%- endfor %}\n{{- strftime_now('%d %B %Y') }}",
            "date of the day, line 2",
        ),
        ("{%- for m in messages %}\n{{ loop.index ~ m.content }}\n{%- endfor %}", "line 2: {{ loop.index ~ m.content"),
        ("{{- raise_exception('no') }}", "refuses a plain conversation: no"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_line(tokenizer: Any, template: str, reason: str) -> None:
    with pytest.raises(UnsayableError) as refused:
        read_pieces(with_template(tokenizer, template))
    assert reason in str(refused.value)


def test_every_byte_outlives_ollamas_reading_of_the_file(tokenizer: Any) -> None:
    """Ollama drops characters that are not printable, and three quotes end a text."""
    odd = '\u00a0<\u200b\u3000\ue000\U000e0001 """ \x7f\t\\ {{ .Role }} }}\n中🙂'
    text = "{{ " + json.dumps(odd, ensure_ascii=False)
    each = "{%- for m in messages %}" + text + " ~ m.role ~ m.content }}{%- endfor %}"
    pieces = read_pieces(with_template(tokenizer, each + text + " }}"))
    template = pieces.write_go()
    assert (pieces.between["", "user"], pieces.end) == (odd + "user", odd) and '"""' not in template
    assert all(each.isprintable() or each == "\n" for each in template)
    if shutil.which("go"):
        turns = [{"role": "user", "content": "so"}]
        ((made,),) = render_with_go([{"template": template, "conversations": [turns]}])
        assert made == pieces.render(turns)
    settings, notes = modelfile.list_parameters({}, ["\n\n", 'a "b"', "c", '"""', "\u00a0"], 4096)
    stops = [value for name, value in settings if name == "stop"]
    assert stops == ['"""\n\n"""', '"""a "b""""', '"c"'] and len(notes) == 2


def test_notes_tell_what_other_conversations_lose(tokenizer: Any) -> None:
    templates = read_templates(tokenizer)
    notes = {name: " ".join(read_pieces(with_template(tokenizer, text)).notes) for name, text in templates.items()}
    assert not notes["smollm2"] and "tools" in notes["qwen2_5"]
    assert "trims" in notes["llama3"] and "system" in notes["gemma"] and "thinking" in notes["qwen3"]


def write_header(file: Path, tokenizer: Any, **fields: Any) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(fields.pop("model", "gpt2"))
    writer.add_bos_token_id(tokenizer.bos_token_id)
    if fields:
        writer.add_add_bos_token(fields["bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_the_token_that_ollama_writes_itself(tokenizer: Any, tmp_path: Path) -> None:
    for number, (fields, written) in enumerate(
        [
            ({}, ""),
            ({"model": "llama"}, "<|im_start|>"),
            ({"bos": False, "model": "llama"}, ""),
            ({"bos": True}, "<|im_start|>"),
        ]
    ):
        write_header(tmp_path / f"{number}.gguf", tokenizer, **fields)
        assert modelfile.read_opening(tmp_path / f"{number}.gguf", tokenizer) == written
    gemma = with_template(tokenizer, read_templates(tokenizer)["gemma"])
    pieces = read_pieces(gemma, gemma.bos_token)
    turns = [{"role": "user", "content": "so"}]
    assert gemma.bos_token + pieces.render(turns) == chat_template.render(gemma, turns, reply_follows=True)
    with pytest.raises(UnsayableError, match="begins each prompt"):
        read_pieces(with_template(tokenizer, LLAMA2), "<|im_end|>")


def test_the_file_has_the_runs_sampling_and_stops(smollm2: Path, tokenizer: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint, made = run / "checkpoints/step-1", tmp_path / "out"
    checkpoint.mkdir(parents=True)
    made.mkdir()
    tokenizer.save_pretrained(made)
    shutil.copy(smollm2 / "config.json", made)
    (run / "profile.yaml").write_text(
        "data: {max_length: 6000}\n"
        "generation: {temperature: 0.7, top_k: 20, max_new_tokens: 99, stop: ['a \"b\"'], no_repeat_ngram: 3}\n"
    )
    golden = [{"role": "user", "content": "so"}, {"role": "assistant", "content": "yes"}]
    (made / "lock.json").write_text(json.dumps({"eos_token_ids": [2], "golden": [{"messages": golden}]}))
    write_header(made / "out-q8_0.gguf", tokenizer)
    target = Target(base=str(smollm2), label="run", adapter=checkpoint, run="run")
    done = modelfile.write(made, made / "out-q8_0.gguf", target)
    assert done["modelfile"] == "Modelfile" and any("no_repeat_ngram" in note for note in done["notes"])
    lines = (made / "Modelfile").read_text("utf-8").splitlines()
    assert "FROM ./out-q8_0.gguf" in lines
    parameters = {tuple(line.split(" ", 2)[1:]) for line in lines if line.startswith("PARAMETER")}
    assert parameters >= {
        ("temperature", "0.7"),
        ("top_k", "20"),
        ("top_p", "1"),
        ("repeat_penalty", "1"),
        ("num_ctx", "6099"),
        ("num_predict", "99"),
        ("stop", '"<|im_end|>"'),
        ("stop", '"""a "b""""'),
    }
    text = "\n".join(lines)
    assert text.partition('TEMPLATE """')[2].partition('"""')[0] == read_pieces(tokenizer).write_go()
    # Without a chat template there is nothing to write.
    bare = tmp_path / "bare"
    shutil.copytree(made, bare)
    (bare / "chat_template.jinja").unlink()
    (bare / "Modelfile").unlink()
    assert "no chat template" in modelfile.write(bare, bare / "out-q8_0.gguf", target)["no_modelfile"]
    assert not (bare / "Modelfile").exists()


if __name__ == "__main__":
    own = tokenizers.load(USER_HOME.models / "smollm2-135m-instruct")
    GOLDENS.write_text(json.dumps(make_goldens(own), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
