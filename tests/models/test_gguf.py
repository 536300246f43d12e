"""A GGUF file as a target: dequantised once into an ordinary folder, with its tokenizer and template."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.inference.loaded_model import load
from engine.inference.sampling import Sampling
from engine.models import gguf, targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, LAYERS, HEADS = 64, 2, 4


def write(path: Path, **templates: str) -> Path:
    """A tiny Llama with a byte-level tokenizer, its matrices in Q8_0. `templates` are further ones, by name."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = [*bytes_to_unicode().values(), "th", "<|im_start|>", "<|im_end|>"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * (len(words) - 2) + [3, 3])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(len(words) - 2)
    writer.add_eos_token_id(len(words) - 1)
    writer.add_chat_template(TEMPLATE)
    if templates:
        writer.add_array("tokenizer.chat_templates", [*templates])
    for name, template in templates.items():
        writer.add_string(f"tokenizer.chat_template.{name}", template)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(words), HIDDEN), "output": (len(words), HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{part}": (2 * HIDDEN, HIDDEN) for part in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (HIDDEN, 2 * HIDDEN)
    for name, shape in shapes.items():
        weight = random.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(
            f"{name}.weight", quantize(weight, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0
        )
    for name in ["output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(LAYERS) for part in ("attn", "ffn"))]:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_and_its_folder_are_targets(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    (tmp_path / "there").mkdir()
    file = write(tmp_path / "there" / "tiny-q8.gguf")
    told: list[str] = []
    loaded = load(str(file), home=home, device="cpu", progress=lambda stage, *_: told.append(stage))
    assert told[0] == "dequantising Q8_0 in 16 tensors, F32 in 5 tensors"
    assert loaded.note == "tiny-q8.gguf: Q8_0 in 16 tensors, F32 in 5 tensors, dequantised to bfloat16"
    assert (loaded.target.label, loaded.dtype, loaded.templated) == ("tiny-q8", "bfloat16", True)
    assert loaded.tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.stop_ids
    ids = loaded.prompt([{"role": "user", "content": "the sea"}])
    assert loaded.tokenizer.decode(ids) == "<|im_start|>user\nthe sea<|im_end|>\n<|im_start|>assistant\n"
    reply = loaded.chat("the sea", Sampling(5))
    assert 0 < reply.tokens <= 5
    again: list[str] = []
    assert (
        load(str(file.parent), home=home, device="cpu", progress=lambda stage, *_: again.append(stage)).target
        == loaded.target
    )
    assert not again, "what is there is not made again"
    expected = loaded.model.get_input_embeddings().weight
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    (tensor,) = [each for each in GGUFReader(file).tensors if each.name == "token_embd.weight"]
    weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).bfloat16()
    assert torch.equal(expected.bfloat16(), weight)


def test_a_file_that_is_no_gguf_is_reported(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF no more")
    with pytest.raises(ProblemError, match=r"broken\.gguf cannot be loaded"):
        load(str(tmp_path / "broken.gguf"), home=home)
    assert not [path for path in home.cache.iterdir() if path.is_dir()]
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(ProblemError) as refused:
        targets.resolve(str(tmp_path), home, tmp_path)
    assert "2 GGUF files" in refused.value.problem.cause
    assert gguf.describe_source(tmp_path) == ""


def test_a_file_beside_other_files_of_its_model_keeps_its_own_template_and_tokens(tmp_path: Path) -> None:
    """As an export with --gguf leaves it: beside tokenizer files whose template is a file of its own."""
    from transformers import AutoTokenizer, LlamaConfig

    home = Home(tmp_path / "home").create()
    (tmp_path / "alone").mkdir()
    file = write(tmp_path / "alone" / "m.gguf")
    alone = load(str(file), home=home, device="cpu")
    beside = tmp_path / "beside"
    beside.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(beside)
    LlamaConfig(vocab_size=7).save_pretrained(beside)
    (beside / "generation_config.json").write_text('{"eos_token_id": 3}')
    (beside / "chat_template.jinja").write_text("{# another #}")
    shutil.copyfile(file, beside / "m.gguf")
    loaded = load(str(beside / "m.gguf"), home=home, device="cpu")
    assert loaded.target.base != alone.target.base and loaded.templated
    for name in ("chat_template", "bos_token", "eos_token"):
        assert getattr(loaded.tokenizer, name) == getattr(alone.tokenizer, name)
    assert loaded.tokenizer.bos_token == "<|im_start|>" and loaded.stop_ids == alone.stop_ids
    chat = [{"role": "user", "content": "the sea"}]
    assert loaded.prompt(chat) == alone.prompt(chat)
    assert loaded.chat("the sea", Sampling(5)).ids == alone.chat("the sea", Sampling(5)).ids


def test_several_templates_of_a_file_are_kept_by_name(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    tools = TEMPLATE + "{{ tools | tojson }}"
    loaded = load(str(write(tmp_path / "m.gguf", tool_use=tools)), home=home, device="cpu")
    assert loaded.tokenizer.chat_template == {"default": TEMPLATE, "tool_use": tools} and loaded.templated
