"""Models in one GGUF file of llama.cpp. Training and inference need plain weights, so the file is dequantised once into
a folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models import gguf_header
from engine.models.catalogue import build_folder
from engine.models.plausible import find_implausible
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

SUFFIX = ".gguf"
VERSION = 2
"""Increased when the folder of a file changes, so that older folders are not reused."""
NOTE = "dequantised.json"
"""A file in the folder: `source`, `types` (the quantisations and how many tensors have them) and `dtype`."""


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Attribute of a tokenizer -> name in a GGUF file."""


def choose_folder(file: Path, home: Home) -> Path:
    """The folder for the plain weights of this state of the file."""
    found = file.stat()
    state = f"{VERSION} {file.resolve()} {found.st_size} {found.st_mtime_ns}"
    return home.cache / f"{file.stem}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def unpack(file: Path, place: Path, progress: Callable[[str, int, int], None]) -> None:
    """Make `place` an ordinary model folder with the file's tokenizer and template, unless it exists. Raises
    ProblemError."""
    if place.is_dir():
        return
    types = _count_types(file)
    dtype, size = _choose_dtype(types), sum(elements for _, elements in types.values())
    progress(f"dequantising {_describe_types(types)}", 0, 0)
    place.parent.mkdir(parents=True, exist_ok=True)
    build_folder(
        place, int(size * (4 if dtype == "float32" else 2) * 1.1), lambda partial: _convert(file, partial, types, dtype)
    )


def describe_source(base: Path) -> str:
    """The source of a dequantised folder; empty for any other folder."""
    path = base / NOTE
    if not path.is_file():
        return ""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return f"{recorded['source']}: {recorded['types']}, dequantised to {recorded['dtype']}"


def _count_types(file: Path) -> dict[str, tuple[int, int]]:
    """Quantisation -> number of tensors and of elements. Raises ProblemError."""
    from gguf import GGUFReader

    try:
        gguf_header.check(file)
        reader = GGUFReader(file)
        tensors = reader.tensors
        sizes = {name: each.contents() for name, each in reader.fields.items() if len(each.data) == 1}
    except Exception as error:  # noqa: BLE001 - numpy raises many kinds for bytes that are not what they say
        raise _load_error(file, f"it is not a complete GGUF file ({first_lines(error)})")
    if wrong := find_implausible(sizes, len(tensors), "it"):
        raise _load_error(file, wrong[0])
    counts, elements = Counter[str](), Counter[str]()
    for tensor in tensors:
        counts[tensor.tensor_type.name] += 1
        elements[tensor.tensor_type.name] += int(tensor.n_elements)
    return {name: (counts[name], elements[name]) for name, _ in elements.most_common()}


def _describe_types(types: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} in {count} tensors" for name, (count, _) in types.items())


def _choose_dtype(types: dict[str, tuple[int, int]]) -> str:
    """The dtype of most weights when it is float32 or float16, else bfloat16."""
    return {"F32": "float32", "F16": "float16"}.get(next(iter(types), ""), "bfloat16")


def _convert(file: Path, place: Path, types: dict[str, tuple[int, int]], dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        with contextlib.redirect_stderr(io.StringIO()), put_alone(file) as folder:  # progress bars would mix with ours
            where: dict[str, Any] = {"gguf_file": file.name}
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
            # Without dequantize=True transformers keeps the weights packed, and what it saves could not be trained.
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), quantization_config=GgufConfig(dequantize=True), **where
            )
            _complete(tokenizer, model, _read_tokenizer_fields(file))
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.config._name_or_path = ""
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
    except Exception as error:  # noqa: BLE001 - whatever transformers raises for settings that it does not expect
        raise _load_error(file, first_lines(error))
    record = {"source": file.name, "types": _describe_types(types), "dtype": dtype}
    (place / NOTE).write_text(json.dumps(record), encoding="utf-8")


@contextlib.contextmanager
def put_alone(file: Path) -> Iterator[Path]:
    """A folder that has nothing but the file. Beside other files of a model transformers would read the tokenizer's
    settings from these, and drop the file's own template and special tokens."""
    with tempfile.TemporaryDirectory(prefix="cockpit-gguf-") as folder:
        Path(folder, file.name).symlink_to(file.resolve())
        yield Path(folder)


def _read_tokenizer_fields(file: Path) -> dict[str, Any]:
    """The template, the special tokens' ids and whether texts get them, by the names below `tokenizer.` of the GGUF
    specification."""
    from gguf import GGUFReader

    wanted = re.compile(r"tokenizer\.((?:chat_template(?:\..+)?)|ggml\.(?:\w+_token_id|add_[be]os_token))")
    found = ((wanted.fullmatch(name), field) for name, field in GGUFReader(file).fields.items())
    return {match[1]: field.contents() for match, field in found if match}


def _complete(tokenizer: Any, model: Any, fields: Mapping[str, Any]) -> None:
    """Give tokenizer and model the template and the special tokens that the file names, if they lack them."""
    named = {name.partition(".")[2] or "default": text for name, text in fields.items() if "chat_template" in name}
    if named:
        tokenizer.chat_template = named["default"] if named.keys() == {"default"} else named
    ids = {name: fields.get(f"ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    for name, token in ids.items():
        if token is not None and token < len(tokenizer):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
            if name == "unk_token":
                continue
            setattr(model.config, f"{name}_id", token)
            setattr(model.generation_config, f"{name}_id", token)
    ends = [ids["eos_token"], *(fields.get(f"ggml.{key}_token_id") for key in ("eot", "eom"))]
    ends = [token for token in dict.fromkeys(ends) if token is not None]
    if len(ends) > 1:
        model.generation_config.eos_token_id = ends


def _load_error(file: Path, cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="model.gguf_unsupported",
            title=f"{file} cannot be loaded",
            cause=cause,
            hint="use the folder or hub id of the model that the GGUF was made from",
        )
    )
