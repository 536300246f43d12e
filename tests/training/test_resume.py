"""A run that was interrupted goes on exactly, and what it leaves loads everywhere."""

from __future__ import annotations

import json
import signal

import pytest

from engine.protocol.journal import Checkpoint, End, Ledger, Start

DROPOUT = ("adapter.dropout=0.3", "training.epochs=3", "checkpoint.every_steps=4", "checkpoint.keep=2")


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(start_run, tiny):
    whole = start_run("whole", *DROPOUT)
    whole.train()
    broken = start_run("broken", *DROPOUT)
    broken.start()
    broken.until(lambda: len(broken.series("train/loss")) >= 10)
    broken.process.send_signal(signal.SIGKILL)
    broken.process.wait()
    survivors = broken.run.checkpoint_steps()
    broken.train(cold=True)
    assert broken.entries(Start)[-1].step == survivors[-1]
    assert broken.series("train/loss") == whole.series("train/loss")
    assert broken.series("train/grad_norm") == whole.series("train/grad_norm")
    ours, theirs = ((run.run.checkpoint(21) / "adapter_model.safetensors").read_bytes() for run in (broken, whole))
    assert ours == theirs

    # Two are kept: the last, and the one before; the best (none is: nothing was evaluated but at the end) is the last.
    assert whole.run.checkpoint_steps() == [20, 21]
    assert whole.entries(Checkpoint)[-1].best
    assert not list(whole.run.checkpoints.glob(".*"))

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = whole.run.checkpoint(21)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    assert any(tensor.abs().max() > 0 for name, tensor in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[2, 5, 6]])).logits).all()
    lock = json.loads((folder / "lock.json").read_text())
    assert (lock["dtype"], lock["base"]) == ("float32", str(tiny))


@pytest.mark.slow
def test_settings_changed_while_running_count_and_survive_a_resume(start_run):
    run = start_run("steered", "training.max_steps=100000", "training.scheduler=constant", "training.warmup=0")
    run.start()
    answer = run.ask("set", changes={"training.learning_rate": 0.001})
    run.until(lambda: len(run.series("train/loss")) > answer.step + 1)
    rates = run.series("train/learning_rate")
    assert rates[answer.step + 1] == 0.001 and rates.get(answer.step, 0.01) == 0.01
    refused = run.ask("set", changes={"training.micro_batch": 2})
    assert "cannot change" in refused.problem.title
    paused = run.ask("pause")
    assert run.ask("save").step == paused.step and run.ask("evaluate").step == paused.step
    assert run.ask("continue").step == paused.step
    stopped = run.ask("stop")
    assert run.wait() == 0
    assert run.entries(End)[-1].status == "stopped" and run.entries(End)[-1].step == stopped.step
    assert run.run.checkpoint_steps()[-1] == stopped.step
    names = [entry.name for entry in run.entries(Ledger)]
    assert names == ["training.learning_rate", "pause", "continue"]
    assert run.entries(Ledger)[0].old == 0.01

    run.start()
    run.until(lambda: max(run.series("train/loss")) > stopped.step)
    assert run.series("train/learning_rate")[stopped.step + 1] == 0.001
    last = run.ask("set", changes={"training.max_steps": stopped.step + 40})
    assert last.problem is None
    assert run.wait() == 0
    assert run.entries(End)[-1].status == "completed" and run.entries(End)[-1].step == stopped.step + 40
