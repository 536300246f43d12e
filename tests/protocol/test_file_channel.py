"""The files by which a supervisor and a run on another host talk: what one end writes, the other reads, once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from engine.protocol import file_channel
from engine.protocol.file_channel import Beat, Commands, Notice, SupervisorFiles, WorkerFiles
from engine.protocol.messages import Answered, CancelInstruction, Instruction, Problem, Rank, Said


def test_commands_arrive_once_in_order_and_answers_take_them_out(tmp_path: Path) -> None:
    """Random interleavings of sends, looks and answers, also of a supervisor that begins anew in between."""
    chance = random.Random(5)
    supervisor, worker = SupervisorFiles(tmp_path, 1, fresh=True), WorkerFiles(tmp_path, 1, 0)
    sent: list[str] = []
    taken: list[str] = []
    answers: list[str] = []
    open_ = 0
    for turn in range(300):
        match chance.randrange(4):
            case 0:
                supervisor.send(Instruction(id=f"i{turn}", name="save"))
                sent.append(f"i{turn}")
            case 1:
                taken += [each.id for each in worker.take() if isinstance(each, Instruction)]
            case 2 if open_ < len(taken):
                worker.reply(Answered(id=taken[open_], step=turn))
                open_ += 1
            case 3:
                answers += [each.id for each in supervisor.poll(1)[1] if isinstance(each, Answered)]
    taken += [each.id for each in worker.take() if isinstance(each, Instruction)]
    answers += [each.id for each in supervisor.poll(1)[1] if isinstance(each, Answered)]
    assert taken == sent and answers == taken[:open_] and len(sent) > 50
    later = SupervisorFiles(tmp_path, 1, fresh=False)
    assert later.poll(1)[1] == [], "answers to an earlier engine are nobody's"
    later.send(Instruction(id="last", name="stop"))
    assert [each.id for each in worker.take() if isinstance(each, Instruction)] == ["last"]


def test_other_attempts_and_other_ranks_take_nothing(tmp_path: Path) -> None:
    supervisor = SupervisorFiles(tmp_path, 2, fresh=True)
    supervisor.send(Instruction(id="a", name="stop"))
    supervisor.send(Instruction(id="b", name="stacks"))
    supervisor.send(CancelInstruction(request="r"))
    assert WorkerFiles(tmp_path, 1, 0).take() == []
    assert [each.id for each in WorkerFiles(tmp_path, 2, 1).take() if isinstance(each, Instruction)] == ["b"]
    assert len(WorkerFiles(tmp_path, 2, 0).take()) == 3


def test_a_heartbeat_that_says_nothing_new_is_one(tmp_path: Path) -> None:
    """A rank that waits in a collective is not silent."""
    supervisor, worker = SupervisorFiles(tmp_path, 1, fresh=True), WorkerFiles(tmp_path, 1, 0)
    for _ in range(3):
        worker.beat(Beat(attempt=1, rank=Rank(rank=0, pid=1, host="b")))
        assert len(supervisor.poll(1)[0]) == 1
        assert supervisor.poll(1)[0] == []


def test_the_batch_scripts_wish_is_taken_once(tmp_path: Path) -> None:
    worker = WorkerFiles(tmp_path, 3, 0)
    assert not worker.must_end()
    file_channel.stop_file(tmp_path, 3).touch()
    assert worker.must_end() and not worker.must_end()


def test_events_of_a_reply_come_in_order_and_a_torn_line_waits(tmp_path: Path) -> None:
    supervisor, worker = SupervisorFiles(tmp_path, 1, fresh=True), WorkerFiles(tmp_path, 1, 0)
    worker.reply(Said(request="r", kind="tokens", data={"text": "a"}))
    path = file_channel.replies_file(tmp_path, 1)
    with open(path, "ab") as file:
        file.write(b'{"type":"answe')
    assert [each.data for each in supervisor.poll(1)[1] if isinstance(each, Said)] == [{"text": "a"}]
    assert supervisor.poll(1)[1] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"attempt":1,"instructions":7}', b"[" * 100_000])
def test_damaged_files_are_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    for name in ("commands.json", "rank-0.json", "notice.json", "replies-1.jsonl"):
        (tmp_path / name).write_bytes(content + b"\n")
    supervisor, worker = SupervisorFiles(tmp_path, 1, fresh=False), WorkerFiles(tmp_path, 1, 0)
    assert worker.take() == [] and supervisor.poll(1) == ([], []) and supervisor.take_notice() is None


def test_a_full_disk_delays_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, worker = SupervisorFiles(tmp_path, 1, fresh=True), WorkerFiles(tmp_path, 1, 0)

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_channel, "replace", refuse)
        supervisor.send(Instruction(id="a", name="save"))
    assert worker.take() == []
    supervisor.poll(1)
    assert [each.id for each in worker.take() if isinstance(each, Instruction)] == ["a"]
    assert file_channel._commands.decode(file_channel.commands_file(tmp_path).read_bytes()) == Commands(
        attempt=1, instructions=[Instruction(id="a", name="save")]
    )
    assert file_channel.commands_file(tmp_path).stat().st_mode & 0o077 == 0


def test_a_notice_is_told_once(tmp_path: Path) -> None:
    supervisor = SupervisorFiles(tmp_path, 1, fresh=True)
    problem = Problem(code="launch.host_silent", title="b is silent")
    file_channel.replace(
        file_channel.notice_file(tmp_path), file_channel._encode(Notice(attempt=1, number=1, problem=problem))
    )
    assert supervisor.take_notice() == problem and supervisor.take_notice() is None


def test_a_later_supervisor_keeps_what_nobody_has_answered(tmp_path: Path) -> None:
    first, worker = SupervisorFiles(tmp_path, 1, fresh=True), WorkerFiles(tmp_path, 1, 0)
    first.send(Instruction(id="a", name="save"))
    first.send(Instruction(id="b", name="stop"))
    worker.reply(Answered(id="a", step=1))
    later = SupervisorFiles(tmp_path, 1, fresh=False)
    assert later.waits_for("stop") and not later.waits_for("save")
    later.send(Instruction(id="c", name="stacks"))
    assert [each.id for each in worker.take() if isinstance(each, Instruction)] == ["b", "c"]
    assert not SupervisorFiles(tmp_path, 2, fresh=False).waits_for("stop")


def test_a_full_disk_leaves_signs_of_life_and_no_torn_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, worker = SupervisorFiles(tmp_path, 1, fresh=True), WorkerFiles(tmp_path, 1, 0)
    worker.beat(Beat(attempt=1, rank=Rank(rank=0, pid=1, host="b")))
    assert len(supervisor.poll(1)[0]) == 1

    def refuse(descriptor: int, content: bytes) -> None:
        os.write(descriptor, content[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_channel, "write_all", refuse)
        with pytest.raises(OSError):
            worker.beat(Beat(attempt=1, rank=Rank(rank=0, pid=1, host="b")))
        with pytest.raises(OSError):
            worker.reply(Answered(id="a", step=1))
    worker.reply(Answered(id="a", step=1))
    beats, replies = supervisor.poll(1)
    assert len(beats) == 1 and [each.id for each in replies if isinstance(each, Answered)] == ["a"]
