"""The ledger of rows: the loss of each is its own, however rows are batched, joined, interrupted and shared."""

from __future__ import annotations

import random
import signal
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from engine.protocol.home import Home
from engine.storage.row_losses import RowLossWriter, read_blocks, read_row_losses
from tests.training.harness import pack
from tests.training.in_process import train

STILL = ("training.learning_rate=1e-12", "training.warmup=0", "training.epochs=2", "model.quantization=none")
ROWS = 27


@pytest.fixture(scope="module")
def expected(prepared: dict[str, Any]) -> Any:
    """Each row's mean loss under the base, from one forward pass of the library's own for each."""
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(prepared["base"]).eval()
    losses = []
    for row in load_from_disk(prepared["train"]):
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return numpy.array(losses)


@pytest.mark.parametrize(
    "changes",
    [
        ("training.micro_batch=4", "training.accumulation=2"),
        ("training.micro_batch=3", "training.optimizations=false"),
        ("training.micro_batch=1", "training.tokens_per_batch=64", "training.accumulation=2"),
    ],
    ids=["joined", "padded", "by tokens"],
)
def test_each_row_has_its_own_loss(
    changes: tuple[str, ...], prepared: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    run = train(Home(tmp_path), "run", prepared, *STILL, *changes)
    table = read_row_losses(run.row_losses, ROWS)
    assert table.shape == (2, ROWS)
    assert numpy.allclose(table, expected, rtol=2e-3), abs(table - expected).max()
    assert sum(path.stat().st_size for path in run.row_losses.iterdir()) <= 2 * ROWS * 6 + 16 * 40


def test_packed_rows_are_told_apart(prepared: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    order: list[Any] = []
    pack(Path(prepared["train"]), tmp_path / "train", tell_order=order.append)
    run = train(Home(tmp_path), "run", prepared | {"train": str(tmp_path / "train")}, *STILL, "data.packing=true")
    table = read_row_losses(run.row_losses, ROWS)
    assert sorted(order[0].tolist()) == list(range(ROWS))
    assert numpy.allclose(table, expected[order[0]], rtol=2e-3)


def test_a_resume_has_the_ledger_of_an_uninterrupted_run(prepared: dict[str, Any], tmp_path: Path) -> None:
    settings = ("training.epochs=3", "checkpoint.every_steps=4", "checkpoint.keep=9", "training.micro_batch=4")
    whole = train(Home(tmp_path), "whole", prepared, *settings)
    broken = train(Home(tmp_path), "broken", prepared, *settings)
    train(Home(tmp_path), "broken", prepared, *settings, from_step=8)
    assert len(list(broken.row_losses.iterdir())) == 2
    tables = [read_row_losses(run.row_losses, ROWS) for run in (whole, broken)]
    assert not numpy.isnan(tables[0]).any() and numpy.array_equal(*tables)
    assert tables[0][0].mean() > tables[0][2].mean()


def test_switched_off_it_leaves_no_file(prepared: dict[str, Any], tmp_path: Path) -> None:
    run = train(Home(tmp_path), "run", prepared, "training.max_steps=2", "logging.row_losses=false")
    assert not run.row_losses.exists()


@pytest.mark.slow
def test_killed_ranks_leave_a_whole_ledger(start_run: Any, expected: Any) -> None:
    run = start_run("run", *STILL, "training.epochs=3", "checkpoint.every_steps=4", "training.micro_batch=2")
    run.start(processes=2)
    run.until(lambda: len(run.series("train/loss")) >= 10)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    run.train()  # alone, so that the rows are divided otherwise
    table = read_row_losses(run.run.row_losses, ROWS)
    assert table.shape == (3, ROWS) and numpy.allclose(table, expected, rtol=2e-3)


def test_any_prefix_of_a_file_is_readable(tmp_path: Path) -> None:
    """Whatever a kill leaves: each complete block counts, and nothing else."""
    generator = random.Random(7)
    for case in range(30):
        folder = tmp_path / str(case)
        writer, model, sizes = RowLossWriter(folder, 1, 0), [], [0]
        step = 0
        for _ in range(generator.randrange(1, 12)):
            if generator.random() < 0.2:
                step = generator.randrange(step + 1)
                writer.rewind(step)
                model.append((step, None))
            else:
                rows = generator.sample(range(50), generator.randrange(1, 9))
                losses = [generator.random() * 9 for _ in rows]
                writer.add(step, step // 4, rows, numpy.array(losses))
                model.append((step, dict(zip(rows, losses, strict=True))))
                step += 1
            sizes.append(next(folder.iterdir()).stat().st_size)
        writer.close()
        path = next(folder.iterdir())
        content = path.read_bytes()
        for cut in {generator.randrange(len(content) + 1) for _ in range(6)} | {len(content)}:
            path.write_bytes(content[:cut])
            whole = sum(size <= cut for size in sizes) - 1
            known: dict[int, dict[int, float]] = {}
            for at, rows_then in model[:whole]:
                known = {each: value for each, value in known.items() if each < at}
                if rows_then is not None:
                    known[at] = rows_then
            found = {
                block.step: dict(zip(block.rows.tolist(), block.losses, strict=True)) for block in read_blocks(folder)
            }
            assert found.keys() == known.keys()
            assert all(found[at] == pytest.approx(known[at], rel=1e-3) for at in known)


def test_half_a_block_on_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an attempt appends later, when there is room again, is not read as the rest of it."""
    writer = RowLossWriter(tmp_path, 1, 0)
    writer.add(0, 0, [1, 2], numpy.array([0.5, 0.25]))
    file = writer._file
    monkeypatch.setattr(
        writer,
        "_file",
        SimpleNamespace(seek=file.seek, truncate=file.truncate, write=lambda content: file.write(content[:20])),
    )
    with pytest.raises(OSError, match="space"):
        writer.add(1, 0, [3, 4], numpy.array([1.0, 2.0]))
    file.close()
    writer = RowLossWriter(tmp_path, 1, 0)
    writer.rewind(1)
    writer.add(1, 0, [3, 4], numpy.array([4.0, 8.0]))
    writer.close()
    assert read_row_losses(tmp_path, 5)[0, 1:].tolist() == [0.5, 0.25, 4.0, 8.0]


def test_a_rollback_goes_behind_the_attempt_that_it_happens_in(tmp_path: Path) -> None:
    """Rows that are skipped after it have no loss of the attempt before."""
    writer = RowLossWriter(tmp_path, 1, 0)
    writer.rewind(0)
    for step in range(4):
        writer.add(step, 0, [step], numpy.array([1.0]))
    writer.close()
    writer = RowLossWriter(tmp_path, 2, 0)
    for step, rows in ((3, [3]), (1, [])):
        writer.rewind(step)
        writer.add(step, 0, rows, numpy.full(len(rows), 2.0))
    writer.add(2, 0, [2], numpy.array([2.0]))
    writer.close()
    assert [(block.step, block.rows.tolist()) for block in read_blocks(tmp_path)] == [(0, [0]), (1, []), (2, [2])]


def test_a_file_of_something_else_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "attempt-0001.rank-0000.bin").write_bytes(b"\xff" * 99)
    (tmp_path / "attempt-0002.rank-0000.bin").write_bytes(struct.pack("<4sIII", b"rows", 0, 0, 2**31))
    assert read_row_losses(tmp_path, 4).shape == (0, 4)
