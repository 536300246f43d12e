"""Evaluation during training and rewards set thinking apart, in replies and in references."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Sample
from engine.training import evaluator
from engine.training.online import rewards
from tests.training.in_process import entries, train

ANSWER = json.dumps([{"subject": "w1", "subject_type": "w2", "predicate": "w3", "object": "w4", "object_type": "w5"}])
THOUGHT = f"<think>\nw7 [\n</think>\n\n{ANSWER}"


@pytest.mark.parametrize("opened", [False, True])
def test_evaluation_during_training(
    bare_home: Home, prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    """`opened`: the prompt ends in the mark that opens thinking."""
    rows = [{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": THOUGHT}]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    written = THOUGHT.removeprefix("<think>") if opened else THOUGHT

    class Tokenizer:
        """The run's own, but replies and the ends of prompts decode to these texts."""

        def __init__(self, own: Any) -> None:
            self._own = own

        def __getattr__(self, name: str) -> Any:
            return getattr(self._own, name)

        def decode(self, ids: list[int], **_: Any) -> str:
            return written if ids == [5, 6] else f"… assistant {'<think>' if opened else ''}\n"

    monkeypatch.setattr(
        evaluator, "generate_batch", lambda _m, _t, prompts, *_: [[5, 6] for _ in prompts], raising=True
    )
    own = evaluator.Evaluator.__init__

    def init(self: Any, loop: Any) -> None:
        loop.job.tokenizer = Tokenizer(loop.job.tokenizer)
        own(self, loop)

    monkeypatch.setattr(evaluator.Evaluator, "__init__", init)
    changes = (
        "training.max_steps=1",
        "data.split={validation: 0.1}",
        "evaluation={every_steps: 1, at_start: false, task: triples, samples: 1}",
    )
    run = train(bare_home, "thinks", prepared | {"validation_rows": str(tmp_path / "rows.jsonl")}, *changes)
    values = entries(run, Evaluation)[-1].values
    assert values["eval/triples_f1"] == values["eval/json_validity"] == 1
    sample = entries(run, Sample)[-1]
    assert (sample.reply, sample.reference) == (THOUGHT, THOUGHT), "the raw reply stays"
    kept = json.loads(next(run.evaluations.glob("*/replies.jsonl")).read_text())
    assert (kept["reply"], kept["thinking"], kept["passed"]) == (ANSWER, "w7 [", True)
    assert kept["scores"]["triples_f1"] == 1


@pytest.mark.parametrize("template", [None, "{#- x. thinking: <<< >>> -#}"])
def test_rewards_of_a_task(template: str | None) -> None:
    profile = SimpleNamespace(method=SimpleNamespace(reward=SimpleNamespace(task="triples", metric="triples_f1")))
    job: Any = SimpleNamespace(profile=profile, simulated=False, tokenizer=SimpleNamespace(chat_template=template))
    reward = rewards.make_reward(job)
    references = [ANSWER, THOUGHT] + ([f"<<<hm>>>{ANSWER}"] if template else [])
    rows = [{"prompt": "", "reference": reference} for reference in references]
    assert reward(rows, [THOUGHT] * len(rows)) == [1.0] * len(rows)
