"""Checks whether a model folder is complete, by names, sizes and headers. Loads no weights and no training library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.models.catalogue import CATALOGUE
from engine.models.files import find_special_files, read_json, read_json_object
from engine.models.glm.generations import Unsupported, find_weights_problem, recognise
from engine.models.pickled import read_shapes
from engine.models.plausible import find_implausible
from engine.models.weights import DamagedFile, digest, is_lfs_pointer, read_header
from engine.storage import manifest

ADAPTER = "adapter_config.json"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "ice_text.model",
)
_GLM_TOKENIZERS = {
    1: ("ice_text.model",),
    2: ("tokenizer.model", "tokenizer.json"),
    3: ("tokenizer.model", "tokenizer.json"),
    4: ("tokenizer.json", "tokenizer.model"),
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_WEIGHTS = "there are no weights: model.safetensors and an index of shards are both missing"


def detect_kind(folder: Path) -> str | None:
    """`adapter`, `model`, or None for any other folder."""
    if (folder / ADAPTER).is_file():
        return "adapter"
    return "model" if (folder / "config.json").is_file() else None


def is_reward_model(folder: Path) -> bool:
    """Whether the model or adapter gives a number instead of text, as reward models do."""
    try:
        if detect_kind(folder) == "adapter":
            return bool(read_json_object(folder / ADAPTER).get("task_type") == "SEQ_CLS")
        named = read_json_object(folder / "config.json").get("architectures")
    except DamagedFile:
        return False  # reported by `find_problems`
    return isinstance(named, list) and str(named[0] if named else "").endswith("ForSequenceClassification")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has the file of a tokenizer. A GLM folder in its original layout may have only its
    settings."""
    named = _GLM_TOKENIZERS.get(_read_glm_generation(folder), TOKENIZERS)
    return any((folder / name).is_file() for name in named)


def is_original_glm(folder: Path) -> bool:
    return _read_glm_generation(folder) > 0


def _name_tokenizer_file(folder: Path) -> str:
    """The file to name in a message when there is no tokenizer."""
    return _GLM_TOKENIZERS.get(_read_glm_generation(folder), ("tokenizer.json and tokenizer_config.json",))[0]


def _read_glm_generation(folder: Path) -> int:
    """The generation of a GLM folder in its original layout; 0 for any other folder, or when it cannot be told."""
    try:
        generation = recognise(read_json(folder / "config.json"))
    except (DamagedFile, Unsupported):
        return 0
    return generation.number if generation else 0


def find_problems(folder: Path) -> list[str]:
    """The problems that keep a model or adapter folder from being loaded, one sentence each."""
    found = find_weights_problems(folder)
    if detect_kind(folder) == "model" and not has_tokenizer(folder):
        found.append(f"no tokenizer: copy {_name_tokenizer_file(folder)} beside the weights")
    return found


def find_shape_problems(folder: Path) -> list[str]:
    """The same for uses that need no weights: a folder may have none, but none that are damaged."""
    return [problem for problem in find_problems(folder) if problem != _NO_WEIGHTS]


def find_weights_problems(folder: Path) -> list[str]:
    """The same without the tokenizer, for uses of the model alone."""
    if special := find_special_files(folder):
        return special
    if damage := manifest.find_damage_on_load(folder):
        return [damage]
    match detect_kind(folder):
        case "adapter":
            return [*_find_lfs_pointers(folder), *_report(_check_adapter, folder)]
        case "model":
            return [*_find_lfs_pointers(folder), *_find_weights_problems(folder)]
    return ["there is no config.json and no adapter_config.json: this is not a model folder"]


def check_hashes(folder: Path, progress: Callable[[str, int, int], None]) -> tuple[int, list[str]]:
    """Compare the weights whose hash is known: how many files were compared, and the problems.

    Hashes are known of checkpoints (by their manifest), of catalogue models (by the folder's name), of files in a hub's
    cache (blobs are named by their hash), and of files that a hub's client has downloaded into a folder (in
    `.cache/huggingface/download`).
    """
    if (folder / manifest.FILE).is_file():
        progress(f"hashing {folder.name}", 0, 1)
        damage = manifest.find_damage(folder)
        return len(manifest.read(folder).get("files") or ()), [damage] if damage else []
    entry = CATALOGUE.get(folder.name)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin")]
    if entry and files:
        progress(f"hashing {folder.name}", 0, 1)
        found = digest(path for path in files if path.suffix == ".safetensors")
        wrong = [] if found == entry.tensors_sha256 else [f"the tensors are not those of {folder.name}: pull it again"]
        return len(files), wrong
    known = [(path, expected) for path in files if (expected := _known_sha256(path))]
    wrong = []
    for index, (path, expected) in enumerate(known):
        progress(f"hashing {path.name}", index, len(known))
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                wrong.append(f"{path.name} differs from what the hub has: download it again")
    return len(known), wrong


def _known_sha256(path: Path) -> str | None:
    blob = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(blob):
        return blob
    metadata = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if metadata.is_file():
        lines = metadata.read_text().splitlines()  # commit, etag, time; the etag of a large file is its hash
        if len(lines) > 1 and _SHA256.fullmatch(lines[1]):
            return lines[1]
    return None


def _report(check: Callable[[Path], object], path: Path) -> Iterator[str]:
    try:
        check(path)
    except DamagedFile as error:
        yield str(error)


def _find_lfs_pointers(folder: Path) -> Iterator[str]:
    """Find small files that are git-lfs pointers. Files of weights are checked elsewhere."""
    for path in sorted(folder.glob("*.json")):
        if path.is_file() and is_lfs_pointer(path):
            yield f"{path.name} is a git-lfs pointer, not the file: run `git lfs pull` in its repository"


def _check_adapter(folder: Path) -> None:
    settings = read_json_object(folder / ADAPTER)
    base = settings.get("base_model_name_or_path") or ""
    if not isinstance(base, str) or "\0" in base:
        raise DamagedFile(f"{ADAPTER} names no base in base_model_name_or_path, but {base!r:.80}")
    if implausible := find_implausible(settings, where=ADAPTER):
        raise DamagedFile(implausible[0])
    if (folder / "adapter_model.safetensors").is_file():
        read_header(folder / "adapter_model.safetensors")
    elif not (folder / "adapter_model.bin").is_file():
        raise DamagedFile("adapter_model.safetensors is missing")


def describe_glm(folder: Path) -> str | None:
    """Describe a GLM folder in its original layout, and its conversion; None for any other folder."""
    try:
        generation = recognise(read_json(folder / "config.json"))
    except (DamagedFile, Unsupported):
        return None
    return f"{generation.name}: {generation.conversion}" if generation else None


def _find_weights_problems(folder: Path) -> Iterator[str]:
    try:
        config = read_json(folder / "config.json")
        generation = recognise(config)
    except (DamagedFile, Unsupported) as error:
        yield str(error)
        return
    shapes: dict[str, tuple[int, ...]] = {}
    wrong = list(_find_file_problems(folder, shapes))
    yield from wrong
    yield from find_implausible(config, tensors=len(shapes))
    if generation and shapes and not wrong and (problem := find_weights_problem(generation, shapes)):
        yield problem


def _find_file_problems(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Find problems of the files of weights. The shapes in their headers are added to `shapes`, by name."""
    for name in _WEIGHTS:
        if (folder / f"{name}.index.json").is_file():
            yield from _find_shard_problems(folder, f"{name}.index.json", shapes)
            return
        if (folder / name).is_file():
            yield from _report(lambda path: shapes.update(_check_weights(path)), folder / name)
            return
        if (folder / name).is_symlink():
            yield f"{name} is a link to a missing file: download it again"
            return
    yield _NO_WEIGHTS


def _find_shard_problems(folder: Path, index: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    try:
        content = read_json_object(folder / index)
        placed: dict[str, str] = dict(content["weight_map"])
    except (DamagedFile, KeyError, TypeError, ValueError):
        placed = {}
    if not placed or not all(isinstance(shard, str) and 0 < len(shard) < 256 for shard in placed.values()):
        yield f"{index} cannot be read, or has no weight_map from names to files"
        return
    shards = sorted(set(placed.values()))
    whole = True
    for number, shard in enumerate(shards, 1):
        path = folder / shard
        if "/" in shard or "\0" in shard or not path.is_file():
            yield f"shard {number} of {len(shards)} is missing: {shard}"
            whole = False
            continue
        try:
            tensors = _check_weights(path)
        except DamagedFile as error:
            yield str(error)
            whole = False
            continue
        shapes.update(tensors)
        absent = [name for name, place in placed.items() if place == shard and tensors and name not in tensors]
        if absent:
            yield f"{shard} lacks {len(absent)} tensors that {index} puts there, {absent[0]} among them"
            whole = False
    if whole and not isinstance(content.get("metadata"), dict):
        yield f'{index} has no metadata, which transformers requires: add "metadata": {{}} to it'


def _check_weights(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by name; empty where the format tells them only by unpickling. Raises DamagedFile."""
    if path.suffix == ".safetensors":
        return {name: tensor.shape for name, tensor in read_header(path).items()}
    return read_shapes(path)
