"""What a model folder can take: token ids, positions, names of layers. By config.json and headers; loads no weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models.files import read_json
from engine.models.weights import DamagedFile, read_header
from engine.protocol.messages import Problem, ProblemError

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings)\.weight$")
_POSITIONS = ("max_position_embeddings", "n_positions")
RECURRENT = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
"""Model types of transformers whose models take no `past_key_values`."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def check_vocabulary(base: Path, tokenizer: Path) -> None:
    """Raises ProblemError when the tokenizer in the second folder has ids for which the base has no embedding."""
    if found := find_vocabulary_problem(base, tokenizer):
        raise ProblemError(
            Problem(
                code="tokenizer.beyond_embedding",
                title=f"The tokenizer in {tokenizer} has more tokens than the model",
                cause=found,
                hint="enlarge the model's embedding to the tokenizer (transformers: "
                "model.resize_token_embeddings(len(tokenizer)), then save both), or take these tokens out of the "
                "tokenizer's files",
            )
        )


def find_vocabulary_problem(base: Path, tokenizer: Path) -> str:
    """The tokens whose ids are beyond the base's embedding, in one sentence; empty if there are none, or if the files
    do not tell."""
    rows = read_embedding_rows(base)
    if rows is None:
        return ""
    beyond = sorted((number, token) for token, number in _read_token_ids(tokenizer, rows) if number >= rows)
    if not beyond:
        return ""
    (number, token), others = beyond[0], len({number for number, _ in beyond}) - 1
    further = f", as {others} more are" if others else ""
    return f"the token {token!r} has the id {number}{further}, and the embedding has {rows} rows: ids up to {rows - 1}"


def read_embedding_rows(folder: Path) -> int | None:
    """The number of token ids that the model in `folder` has an embedding for; None if its files do not tell."""
    try:
        shapes = _read_shapes(folder)
        rows = [shape[0] for name, shape in shapes.items() if _EMBEDDING.search(name) and len(shape) == 2]
        if len(rows) == 1:
            return rows[0]
        size = _text_config(folder).get("vocab_size")
    except DamagedFile:
        return None  # reported by `folders.find_problems`
    return size if isinstance(size, int) else None


def read_positions(folder: Path) -> int | None:
    """The longest sequence that the model in `folder` has positions for, as its config.json stretches them; None if it
    has no limit, or none that is known."""
    try:
        config = _text_config(folder)
    except DamagedFile:
        return None
    own = next((config[name] for name in _POSITIONS if isinstance(config.get(name), int)), None)
    if own is None:
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
    if not isinstance(factor, (int, float)) or factor <= 1:
        return int(own)
    original = scaling.get("original_max_position_embeddings")
    return max(int(own), int((original if isinstance(original, int) else own) * factor))


def find_unknown_targets(folder: Path, targets: list[str]) -> list[str]:
    """Those of an adapter's targets that are the name of no layer of the model in `folder`.

    Empty for a model whose layers have other names in memory than in its files, such as one of experts.
    """
    try:
        config, shapes = _text_config(folder), _read_shapes(folder)
    except DamagedFile:
        return []
    if not shapes or "auto_map" in config or any(name in config for name in _EXPERTS):
        return []
    layers = {name.rpartition(".")[0] for name in shapes} | {"lm_head"}  # which tied weights leave out
    return [target for target in targets if not any(matches(target, layer) for layer in layers)]


def count_expert_weights(folder: Path) -> tuple[int, int]:
    """The number of weights in experts that a router chooses, and of all weights; 0, 0 if the files do not tell."""
    try:
        sizes = {name: math.prod(shape) for name, shape in _read_shapes(folder).items()}
    except DamagedFile:
        return 0, 0
    return sum(size for name, size in sizes.items() if ".experts." in name), sum(sizes.values())


def is_recurrent(folder: Path) -> bool:
    """Whether the model in `folder` keeps a state of its own kind instead of keys and values."""
    try:
        return _text_config(folder).get("model_type") in RECURRENT
    except DamagedFile:
        return False


def matches(target: str, layer: str) -> bool:
    """Whether a name in `adapter.targets` stands for the layer, as peft compares them."""
    return layer == target or layer.endswith(f".{target}")


def _text_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        return {}
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in safetensors files, by name; empty without any."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: tensor.shape for file in files for name, tensor in read_header(file).items()}


def _read_token_ids(folder: Path, rows: int) -> Iterator[tuple[str, int]]:
    """Tokens with their ids, from all files of a tokenizer that name both. A token may come several times. The largest
    file, in which a search is many times faster than reading it, may be left out if it has no id from `rows` on."""
    path = folder / "tokenizer.json"
    whole = _read_mapping(path) if path.is_file() and _may_reach(path.read_bytes(), rows) else {}
    for each in whole.get("added_tokens") or ():
        yield str(each.get("content")), int(each.get("id", 0))
    vocabulary = (whole.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):
        vocabulary = {each[0]: number for number, each in enumerate(vocabulary)}
    yield from vocabulary.items()
    yield from _read_mapping(folder / "added_tokens.json").items()
    decoder = _read_mapping(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for number, each in decoder.items():
        yield str(each.get("content") if isinstance(each, dict) else each), int(number)


def _may_reach(content: bytes, number: int) -> bool:
    """Whether JSON may have a whole number from `number` on as a value, or a list in which tokens are numbered by their
    place."""
    if b'"Unigram"' in content:
        return True
    digits = str(number)
    larger = [
        f"{digits[:place]}[{int(digit) + 1}-9][0-9]{{{len(digits) - place - 1}}}"
        for place, digit in enumerate(digits)
        if digit != "9"
    ]
    pattern = rf":\s*(?:{'|'.join([digits, *larger])}|[1-9][0-9]{{{len(digits)},}})(?![0-9])"
    return re.search(pattern.encode(), content) is not None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
