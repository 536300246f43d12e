"""Sets on disk: packed and in blocks, nothing lost, and rows kept apart in a model that trains on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prep import token_file, token_store
from engine.prep.rows import Row
from engine.prep.token_rows import COLUMNS, MASKED, PLAIN, Tokens

Rows = list[tuple[list[int], list[int]]]


def rows_of(*lengths: int) -> Rows:
    """Rows of these lengths whose tokens are all different; half of each is trained."""
    rows: Rows = []
    for number, length in enumerate(lengths):
        ids = [100 * number + place for place in range(length)]
        rows.append((ids, [MASKED if place <= length // 2 else token for place, token in enumerate(ids)]))
    return rows


def plain_set(folder: Path, rows: Rows) -> Path:
    place = Row("f", 1, 0, {})
    token_store.write((Tokens(ids, labels, place) for ids, labels in rows), folder)
    return folder


def load(folder: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(folder))


def parts_of(sequence: dict[str, list[int]]) -> Rows:
    """A sequence taken apart; its columns checked."""
    assert len(sequence["input_ids"]) == len(sequence["labels"]) == sum(sequence["seq_lengths"])
    assert sequence["position_ids"] == [place for length in sequence["seq_lengths"] for place in range(length)]
    parts, at = [], 0
    for length in sequence["seq_lengths"]:
        assert length > 0
        parts.append((sequence["input_ids"][at : at + length], sequence["labels"][at : at + length]))
        at += length
    return parts


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_packing_keeps_every_row_whole(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], capacity: int
) -> None:
    folder, rows = tmp_path_factory.mktemp("packed"), rows_of(*lengths)
    sequences = token_store.write_packed(plain_set(folder / "plain", rows), folder / "packed", capacity)
    packed = load(folder / "packed")
    assert len(packed) == sequences
    assert all(len(each["input_ids"]) <= capacity for each in packed)
    assert sorted(part for each in packed for part in parts_of(each)) == sorted(rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(8, 50), st.integers(1, 7))
def test_blocks_hold_the_documents_end_to_end(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], capacity: int, batch: int
) -> None:
    folder, rows = tmp_path_factory.mktemp("blocks"), rows_of(*lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_store, "_ROWS", batch)  # what is left of a batch goes on in the next
        counts = token_store.write_blocks(plain_set(folder / "plain", rows), folder / "blocks", capacity)
    blocks = list(load(folder / "blocks"))
    sizes = [len(each["input_ids"]) for each in blocks]
    assert sizes[:-1] == [capacity] * len(sizes[:-1]) and all(0 < size <= capacity for size in sizes)
    assert [token for each in blocks for token in each["input_ids"]] == [token for ids, _ in rows for token in ids]
    labels = {ids[0] // 100 * 100 + place: label for ids, each in rows for place, label in enumerate(each)}
    borders, at = {ids[0] for ids, _ in rows}, 0
    for each in blocks:
        for ids, found in parts_of(each):
            assert len({token // 100 for token in ids}) == 1, "a part holds tokens of one document"
            assert found == [MASKED, *(labels[token] for token in ids[1:])]
            assert at == 0 or ids[0] in borders or at % capacity == 0
            at += len(ids)
    assert (counts.rows, counts.tokens) == (len(blocks), sum(lengths))
    assert counts.trained_tokens == sum(label != MASKED for each in blocks for label in each["labels"])


def test_a_set_made_of_streams_is_in_their_order_and_outlives_them(tmp_path: Path) -> None:
    rows = rows_of(3, 5, 1, 7)
    with token_store.link_streams(tmp_path / "set") as link:
        for number, each in enumerate(rows):
            stream = tmp_path / f"{number}.arrow"
            with token_store.arrow_writer(stream, PLAIN) as write:
                write({"input_ids": (each[0], [len(each[0])]), "labels": (each[1], [len(each[1])])})
            link(stream)
            stream.unlink()
    assert load(tmp_path / "set")["input_ids"][:] == [ids for ids, _ in rows]
    taken = token_store.TokenSet(tmp_path / "set")
    assert taken.lengths.tolist() == [3, 5, 1, 7]
    import numpy

    assert taken.take(numpy.array([2, 0]))[0].tolist() == rows[2][0] + rows[0][0]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_flat_files_hold_every_document(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    import numpy

    rows = rows_of(4, 1, 9)
    told = token_file.write(plain_set(tmp_path / "plain", rows), tmp_path / "flat", vocabulary)
    assert told == {"dtype": dtype, "tokens": 14, "documents": 3, "vocabulary": vocabulary}
    found = token_file.read(tmp_path / "flat")
    assert [found.document(number).tolist() for number in range(3)] == [ids for ids, _ in rows]
    assert numpy.memmap(tmp_path / "flat" / "tokens.bin", dtype=dtype).tolist() == [
        token for ids, _ in rows for token in ids
    ]
    with pytest.raises(IndexError):
        found.document(3)
    with (tmp_path / "flat" / "tokens.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"tokens\.bin does not have the length"):
        token_file.read(tmp_path / "flat")
    with pytest.raises(ValueError, match="has no flat token file"):
        token_file.read(tmp_path)


def test_no_documents_are_flat_files_too(tmp_path: Path) -> None:
    token_file.write(plain_set(tmp_path / "plain", []), tmp_path / "flat", 100)
    assert len(token_file.read(tmp_path / "flat").offsets) == 1


@pytest.mark.slow
def test_packed_rows_have_the_log_probabilities_of_rows_alone(tmp_path: Path) -> None:
    """Through the file, the collator and the model as training uses them, in float32."""
    import random

    import torch
    from transformers import AutoModelForCausalLM

    from engine.models.loss import PickedHead
    from engine.models.segments import Segments
    from engine.prep.batching import collate_flat
    from tests.training.harness import WORDS, make_model

    generator = random.Random(0)
    rows: Rows = []
    for length in (7, 19, 3, 12, 25, 5, 9, 16):
        ids = [generator.randrange(4, 4 + WORDS) for _ in range(length)]
        rows.append((ids, [MASKED, *ids[1:]]))
    plain = plain_set(tmp_path / "plain", rows)
    token_store.write_packed(plain, tmp_path / "packed", 32)
    token_store.write_blocks(plain, tmp_path / "blocks", 32)
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "tiny"), dtype=torch.float32).eval()
    segments = Segments()
    segments.install(model)
    head = PickedHead(model, segments)

    def log_probabilities(given: Any) -> Any:
        batch = collate_flat(given)
        with torch.no_grad():
            logits = head.logits(model, batch)
        return logits.log_softmax(-1)[torch.arange(len(logits)), batch["targets"]]

    def alone(part: tuple[list[int], list[int]]) -> Any:
        return log_probabilities([{"input_ids": part[0], "labels": part[1]}])

    for name in ("packed", "blocks"):
        sequences = list(load(tmp_path / name))
        assert max(len(each["seq_lengths"]) for each in sequences) > 1
        together = log_probabilities(sequences)
        apart = torch.cat([alone(part) for each in sequences for part in parts_of(each)])
        assert (together - apart).abs().max() < 1e-3
        first = next(each for each in sequences if len(each["seq_lengths"]) > 1)
        own = first["seq_lengths"][0]
        changed = {**first, "input_ids": [5] * own + first["input_ids"][own:]}
        before, after = log_probabilities([first]), log_probabilities([changed])
        trained = own - 1
        assert torch.equal(before[trained:], after[trained:]) and not torch.allclose(before[:trained], after[:trained])


@pytest.mark.slow
def test_packing_does_not_hold_the_set(tmp_path: Path) -> None:
    """40 MB of tokens are packed within a third of that over what an empty set takes."""
    program = """
import resource, sys; from pathlib import Path; import numpy; from engine.prep import token_store
from engine.prep.token_rows import PLAIN
import datasets
folder, rows = Path(sys.argv[1]), int(sys.argv[2]); rng = numpy.random.default_rng(0)
with token_store._open_set(folder / "plain", PLAIN) as write:
    for _ in range(rows // 500):
        lengths = rng.integers(1, 513, 500); ids = numpy.arange(lengths.sum(), dtype=numpy.int32)
        write({"input_ids": (ids, lengths), "labels": (ids, lengths)})
token_store._TOUCHED = 2**21
token_store.write_packed(folder / "plain", folder / "packed", 1024)
token_store.write_blocks(folder / "plain", folder / "blocks", 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

    def peak(rows: int) -> int:
        folder = tmp_path / str(rows)
        command = [sys.executable, "-c", program, str(folder), str(rows)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    small, large = peak(500), peak(20_000)
    assert sum(path.stat().st_size for path in (tmp_path / "20000" / "plain").iterdir()) > 40e6
    assert large - small < 14, (small, large)


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_a_set_is_described_as_datasets_would(columns: tuple[str, ...], tmp_path: Path) -> None:
    """The description is written without loading the library, and these are the two ways to notice a change in it."""
    from datasets import DatasetInfo, Features, load_from_disk

    with token_store.link_streams(tmp_path / "set", columns):
        pass
    found = load_from_disk(tmp_path / "set")
    assert found.features == Features.from_arrow_schema(found.data.schema) and found.column_names == list(columns)
    DatasetInfo(features=found.features).write_to_directory(tmp_path)
    written = [json.loads((each / "dataset_info.json").read_text()) for each in (tmp_path, tmp_path / "set")]
    assert written[0] == written[1]
