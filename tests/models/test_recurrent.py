"""Recurrent models are trained, and refused by name where replies would have to be generated."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from cockpit.verbs.train import explain_end
from engine.config.profile import ProfileError, parse
from engine.models import targets
from engine.prep import base_model
from engine.protocol import states
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import ProblemError, Run
from tests.models.small import SMALL
from tests.training.harness import PROFILE, make_model, prepare
from tests.training.in_process import series, train

FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {}, "falcon_mamba": {}, "rwkv": {}, "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = make_model(tmp_path / "base")
    small = {key: value for key, value in SMALL.items() if key != "head_dim"}
    small |= {"vocab_size": len(AutoTokenizer.from_pretrained(folder)), "state_size": 8, "num_hidden_layers": 2}
    config = AutoConfig.for_model(request.param, **{**small, **FAMILIES[request.param]})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_they_are_trained(base: Path, tmp_path: Path, bare_home: Home) -> None:
    profile = parse(PROFILE.format(base=base), "test", Path("/"), ("adapter={kind: none}",), bare_home)
    assert base_model.locate_model(profile, bare_home, lambda *_: None).base == str(base)
    prepared = prepare(tmp_path / "prepared", base)
    rate = ("training.learning_rate=1e-2", "training.scheduler=constant")
    run = train(bare_home, "run", prepared, "adapter={kind: none}", "training.max_steps=28", *rate)
    losses = list(series(run, "train/loss").values())
    assert _last_word(run) == [f"a recurrent model cannot chat here: load {run.checkpoint(28)} with transformers"]
    assert sum(losses[-7:]) < 0.9 * sum(losses[:7]), "of the last and the first pass over the rows"


def _last_word(run: RunDirectory) -> list[str]:
    """What `cockpit train` says when the run has ended, to its first comma."""
    ended = Run(
        id=run.id,
        kind="train",
        state=states.COMPLETED,
        method="sft",
        directory=str(run.path),
        step=28,
    )
    with contextlib.redirect_stderr(io.StringIO()) as told:
        explain_end(ended)
    return [line.partition(", ")[0] for line in told.getvalue().splitlines()]


def test_others_are_offered_a_chat(tmp_path: Path, bare_home: Home) -> None:
    prepared = prepare(tmp_path / "prepared", make_model(tmp_path / "base"))
    run = train(bare_home, "run", prepared, "training.max_steps=28", "training.rehearsal=false")
    assert _last_word(run) == [f"talk to it with: cockpit chat {run.id}"]


def test_they_are_refused_where_replies_are_generated(base: Path, bare_home: Home) -> None:
    with pytest.raises(ProblemError) as refused:
        targets.check_chats(targets.resolve(str(base), bare_home, Path("/")))
    assert refused.value.problem.code == "model.recurrent"
    with pytest.raises(ProfileError, match="recurrent model"):
        text = PROFILE.format(base=base)
        parse(text, "test", Path("/"), ("evaluation.task=triples", "data.split={validation: 0.2}"), bare_home)
