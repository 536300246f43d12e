"""The whole of an evaluation: rows, losses, replies, a judge, metrics, thresholds. What is done stays done across kills (`records`)."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from pydantic import ValidationError

from engine.evaluation import TASKS, judged, measures, thresholds
from engine.evaluation.answers import Answer
from engine.evaluation.judge import Case, judge
from engine.evaluation.material import Material, Own, Question, of_source
from engine.evaluation.measures import Tallies
from engine.evaluation.options import JudgeOptions
from engine.evaluation.records import JUDGE, LOSSES, REPLIES, Record, lines
from engine.models import folders, targets
from engine.models.targets import Target
from engine.prep.verbs.tokenize import loss_on_of
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from engine.evaluation.scoring import Scorer
    from engine.inference.loaded import Loaded

NEW_TOKENS = 256
"""Longest reply where nobody says."""
_SLUG = re.compile(r"[^\w.@-]+")


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be measured. None leaves it to the run that the target is of, or to the defaults."""

    data: str | None = None
    """A source; None: the rows that the run held out."""
    format: str = "auto"
    task: str | None = None
    rows: int | None = None
    """At most so many rows are taken."""
    samples: int | None = None
    """Replies are generated for so many of them; None: for as many as the run's profile says, or for all."""
    max_new_tokens: int | None = None
    constrained: bool = False
    """Let replies hold to the task's schema."""
    thresholds: list[str] | None = None
    judge: dict[str, Any] | None = None
    """Settings of a judge over those of the run's profile; None: no judge."""
    out: str | None = None
    again: bool = False
    dtype: str | None = None
    quantization: str | None = None


class Models(Protocol):
    """Keeps what it has loaded, so that the next target of the same base is quickly there."""

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> Loaded: ...

    def reward_model(self, target: Target) -> Scorer: ...


class Watch(Protocol):
    """Hears how far it is. Both raise when the work is given up."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def given_up(self) -> bool:
        """Without raising."""
        ...


def evaluate(name: str, wanted: Wanted, home: Home, directory: Path, models: Models, watch: Watch) -> dict[str, Any]:
    """Measure a target. Returns `metrics`, `passed`, and all else that `evaluation.json` keeps. Raises ProblemError, ValueError."""
    target = targets.resolve(name, home, directory)
    wanted = settled(wanted, target, home)
    own = Own.of(home.run(target.run)) if target.run else None
    watch("reading", 0, 0)
    material = (
        of_source(
            wanted.data, wanted.format, wanted.rows, home, directory, lambda done, total: watch("reading", done, total)
        )
        if wanted.data
        else _own(own, name).material(wanted.rows)
    )
    scores = any(
        folders.scores(each) for each in (target.adapter, None if target.on_hub else Path(target.base)) if each
    )
    if scores and not material.are_pairs:
        raise ValueError(
            f"{target.label} is a reward model: it is measured on preference pairs, and {material.source} holds others"
        )
    questions = [] if scores else material.questions(wanted.task, wanted.samples)
    for question in questions:
        tallies_of({"row": question.row, "reply": "", "reference": question.reference}, wanted.task)
    identity = _identity(target, wanted, material)
    folder = _folder(target, wanted, home, identity)
    with Record(folder, identity, again=wanted.again) as record:
        notes = [*record.notes, *material.said()]
        if scores:
            _score(record, models.reward_model(target), material, own, notes, watch)
        else:
            _measure(record, models, target, material, questions, own, wanted, notes, watch)
        told = {
            "target": target.label,
            "run": target.run,
            "step": target.step,
            "data": material.source,
            "sha256": material.sha256,
            "rows": len(material.rows) or len(record.done(LOSSES)),
            "rejected": material.rejected,
        }
        return conclude(record, told, wanted, notes, watch)


def settled(wanted: Wanted, target: Target, home: Home) -> Wanted:
    """What the run says where nobody else does: on its own rows it is measured as it was while it trained. Raises ValueError."""
    own = Own.of(home.run(target.run)) if target.run else None
    further: dict[str, Any] = {}
    if own is not None and wanted.data is None:
        further = {name: own.said("evaluation", name) for name in ("task", "thresholds", "samples")}
    if own is not None:
        further["max_new_tokens"] = own.said("generation", "max_new_tokens")
    if own is not None and wanted.judge is not None:
        wanted = msgspec.structs.replace(wanted, judge=(own.said("evaluation", "judge") or {}) | wanted.judge)
    given = {name: value for name, value in further.items() if getattr(wanted, name) is None and value is not None}
    wanted = msgspec.structs.replace(wanted, **given)
    check(wanted)
    return wanted


def check(wanted: Wanted) -> None:
    """Raises ValueError for what cannot be, before anything is loaded."""
    if wanted.task is not None and wanted.task not in TASKS:
        raise ValueError(f"there is no task {wanted.task!r}: choose one of {', '.join(TASKS)}")
    if wanted.constrained and wanted.task is None:
        raise ValueError("a reply can be held to a task's schema alone: name the task")
    for text in wanted.thresholds or ():
        thresholds.parse(text)
    if wanted.judge is not None:
        judging(wanted.judge)


def _own(own: Own | None, name: str) -> Own:
    if own is None:
        raise ProblemError(
            Problem(
                title=f"There is nothing to evaluate {name} on",
                cause="it is no run, so it held no rows out",
                hint="name rows with --data",
            )
        )
    return own


# ── where it is kept ───────────────────────────────────────────────────────────────────────────────────────────────


def _identity(target: Target, wanted: Wanted, material: Material) -> dict[str, Any]:
    """All that rows and replies depend on: another evaluation has another."""
    return {
        "target": target.label,
        "weights": _fingerprint(target),
        "data": material.source,
        "sha256": material.sha256,
        "rows": len(material.rows),
        "task": wanted.task,
        "samples": wanted.samples,
        "max_new_tokens": wanted.max_new_tokens or NEW_TOKENS,
        "constrained": wanted.constrained,
        "dtype": wanted.dtype,
        "quantization": wanted.quantization,
    }


def _fingerprint(target: Target) -> str:
    """Of the files that hold the weights, by name, size and time."""
    digest = hashlib.sha256(f"{target.base} {target.adapter}".encode())
    for folder in filter(None, (target.adapter, None if target.on_hub else Path(target.base))):
        for path in sorted(folder.glob("*")):
            if path.is_file():
                told = path.stat()
                digest.update(f"{path.name} {told.st_size} {told.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _folder(target: Target, wanted: Wanted, home: Home, identity: Mapping[str, Any]) -> Path:
    if wanted.out:
        return Path(wanted.out)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    if target.run is not None and target.step is not None:
        return home.run(target.run).evaluations / f"step-{target.step:08d}-{digest}"
    return home.evaluations / f"{slug(target.label)}-{digest}"


def slug(text: str) -> str:
    """`text` as part of a file's name."""
    return _SLUG.sub("-", text).strip("-")


# ── the model's part ───────────────────────────────────────────────────────────────────────────────────────────────


def _measure(
    record: Record,
    models: Models,
    target: Target,
    material: Material,
    questions: list[Question],
    own: Own | None,
    wanted: Wanted,
    notes: list[str],
    watch: Watch,
) -> None:
    """What is missing of losses and replies. A model is loaded only for something that is missing."""
    measured, answered = record.done(LOSSES), record.done(REPLIES)
    asked = [question for question in questions if question.row not in answered]
    if record.complete(LOSSES) and not asked:
        return
    loaded = models.language_model(target, wanted.dtype, wanted.quantization)
    if not record.complete(LOSSES):
        _lose(record, loaded, material, own, measured, notes, watch)
    if not loaded.templated:
        notes.append("the model has no chat template: it went on with each prompt's text")
    _reply(record, loaded, asked, wanted, notes, watch)


def _lose(
    record: Record,
    loaded: Loaded,
    material: Material,
    own: Own | None,
    measured: Mapping[int, Any],
    notes: list[str],
    watch: Watch,
) -> None:
    from engine.evaluation import likelihood

    if loaded.tokenizer is None or not likelihood.can_render(material.rows, loaded.tokenizer):
        notes.append("loss was not measured: without a chat template a conversation has no tokens to predict")
        record.conclude(LOSSES, notes)
        return
    texts = all("text" in row for row in material.rows)
    loss_on = (own.said("method", "loss_on") if own else None) or loss_on_of("auto", {"text"} if texts else ())
    rows, lost = likelihood.tokenised(material, loaded, loss_on, own.said("data", "max_length") if own else None)
    notes += [f"{count} of {len(material.rows)} rows were {what}" for what, count in lost.items() if count]
    missing = {number: row for number, row in rows.items() if number not in measured}
    watch("losses", len(measured), len(rows))
    for tallies in likelihood.losses(
        loaded.model, missing, lambda done, _: watch("losses", len(measured) + done, len(rows))
    ):
        record.add(LOSSES, [{"row": row, **tally} for row, tally in tallies.items()])
    record.conclude(LOSSES, notes)


def _reply(
    record: Record, loaded: Loaded, asked: list[Question], wanted: Wanted, notes: list[str], watch: Watch
) -> None:
    """Replies to what is missing, each on disk as soon as it is there."""
    from engine.inference.generate import Reply
    from engine.inference.sampling import Sampling

    fitting: list[Question] = []
    unfit: list[Question] = []
    refused: list[Question] = []
    for question in asked:
        try:
            (fitting if len(loaded.prompt(question.asked)) < loaded.context else unfit).append(question)
        except ValueError as error:
            notes.append(f"row {question.row + 1} gets an empty reply: {error}")
            refused.append(question)
    if unfit:
        notes.append(f"{len(unfit)} prompts fill the model's context of {loaded.context} tokens: their reply is empty")
    record.add(REPLIES, [_entry(question, "", 0, False, None) for question in (*unfit, *refused)])
    schema = _schema(wanted.task) if wanted.constrained else None
    sampling = Sampling(max_new_tokens=wanted.max_new_tokens or NEW_TOKENS, schema=schema)
    done = 0

    def told(index: int, reply: Reply) -> None:
        nonlocal done
        if reply.finish == "cancelled":
            return
        done += 1
        record.add(REPLIES, [_entry(fitting[index], reply.text, reply.tokens, reply.finish == "stop", reply.seconds)])
        if not watch.given_up():
            watch("replies", done, len(fitting))

    if fitting:
        watch("replies", 0, len(fitting))
        loaded.batch([question.asked for question in fitting], sampling, told, watch.given_up)
        watch("replies", done, len(fitting))


def _schema(task: str | None) -> dict[str, Any]:
    assert task is not None
    schema: dict[str, Any] = importlib.import_module(TASKS[task]).SCHEMA
    return schema


def _entry(question: Question, reply: str, tokens: int, stopped: bool, seconds: float | None) -> dict[str, Any]:
    return {
        "row": question.row,
        "asked": question.asked,
        "reference": question.reference,
        "reply": reply,
        "tokens": tokens,
        "stopped": stopped,
        "seconds": seconds,
    }


def _score(record: Record, scorer: Scorer, material: Material, own: Own | None, notes: list[str], watch: Watch) -> None:
    if record.complete(LOSSES):
        return
    measured = record.done(LOSSES)
    max_length, max_prompt = (own.said("data", "max_length"), own.said("method", "max_prompt")) if own else (None, None)
    pairs, lost = scorer.pairs(material, max_length or 1024, max_prompt)
    notes += [f"{count} of {len(material.rows)} pairs were {what}" for what, count in lost.items() if count]
    missing = {row: pair for row, pair in pairs.items() if row not in measured}
    done = len(measured)
    for tallies in scorer.scores(missing):
        record.add(LOSSES, [{"row": row, **tally} for row, tally in tallies.items()])
        done += len(tallies)
        watch("scoring", done, len(pairs))
    record.conclude(LOSSES, notes)


# ── what comes of it ───────────────────────────────────────────────────────────────────────────────────────────────


def conclude(record: Record, told: Mapping[str, Any], wanted: Wanted, notes: list[str], watch: Watch) -> dict[str, Any]:
    """Let the judge judge, score every reply, and write down what came out; `told` is what else is to be said of it. Raises ProblemError,
    ValueError."""
    entries = [entry for _, entry in sorted(record.done(REPLIES).items())]
    further: dict[str, Any] = {}
    if wanted.judge is not None and entries:
        watch("judging", 0, len(entries))
        found = judge(
            [Case(entry["row"], text_of(entry), entry["reply"], entry.get("reference")) for entry in entries],
            judging(wanted.judge),
            record.folder / JUDGE,
            lambda done, total: watch("judging", done, total),
        )
        for entry in entries:
            entry.pop("judge", None)
            if entry["row"] in found.points:
                entry["judge"] = found.points[entry["row"]]
        used = {"prompt_tokens": found.usage.prompt, "reply_tokens": found.usage.reply, "cost": found.cost}
        further = {"judge_usage": used}
        if found.stopped:
            notes.append(f"not every reply was judged: {found.stopped}")
    limits = [thresholds.parse(text) for text in wanted.thresholds or ()]
    for done, entry in enumerate(entries, 1):
        entry["scores"] = measures.scores(tallies_of(entry, wanted.task), wanted.task)
        entry["passed"] = passes(entry["scores"], limits)
        watch("scoring", done, len(entries))
    rows = together(record.done(LOSSES).values(), entries, wanted.task)
    found_metrics = measures.metrics(measures.together(rows.values()), wanted.task)
    result = {
        **outcome(found_metrics, wanted.thresholds or []),
        **told,
        "task": wanted.task,
        "replies": len(entries),
        "notes": list(dict.fromkeys(notes)),
        "directory": str(record.folder),
        **further,
    }
    record.finish(entries, result)
    return result


def judging(settings: Mapping[str, Any]) -> JudgeOptions:
    """Raises ValueError, naming the setting."""
    try:
        return JudgeOptions.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"judge.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def outcome(metrics: Mapping[str, float], limits: list[str]) -> dict[str, Any]:
    """`metrics`, `passed`, and each threshold with its value. Raises ValueError."""
    verdicts = thresholds.judge(limits, {f"eval/{name}": value for name, value in metrics.items()})
    return {
        "metrics": dict(metrics),
        "passed": all(verdict.passed for verdict in verdicts),
        "thresholds": [
            {
                "threshold": str(verdict.threshold),
                "value": verdict.value,
                "passed": verdict.passed,
                "text": str(verdict),
            }
            for verdict in verdicts
        ],
    }


def passes(scores: Mapping[str, float], limits: Iterable[thresholds.Threshold]) -> bool | None:
    """Whether one reply holds what is asked of all; without such a threshold whether it fits its task's schema. None: nothing says."""
    asked = [each for each in limits if each.name.removeprefix("eval/") in scores]
    if asked:
        return all(each.holds(scores[each.name.removeprefix("eval/")]) for each in asked)
    return scores["schema_validity"] == 1 if "schema_validity" in scores else None


def text_of(entry: Mapping[str, Any]) -> str:
    """What was asked last."""
    asked = entry.get("asked")
    return str(asked[-1]["content"]) if isinstance(asked, list) and asked else str(asked or "")


def answer_of(entry: Mapping[str, Any]) -> Answer:
    return Answer(
        entry["reply"], entry.get("reference"), entry.get("tokens"), entry.get("stopped"), entry.get("seconds")
    )


def tallies_of(entry: Mapping[str, Any], task: str | None) -> Tallies:
    """Of a line of `replies.jsonl`. Raises ValueError, naming its row, for a reference that is no answer to the task."""
    try:
        found = measures.of_answer(answer_of(entry), task)
    except ValueError as error:
        raise ValueError(f"the reference of row {entry['row'] + 1} {error}")
    if "judge" in entry:
        found["judge"] = judged.tally(entry["judge"])
    return found


def together(
    losses: Iterable[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]], task: str | None
) -> dict[int, Tallies]:
    """Row -> all that was measured of it."""
    found: dict[int, Tallies] = {}
    for loss in losses:
        measure = "preferences" if "pairs" in loss else "tokens"
        found.setdefault(loss["row"], {})[measure] = {name: value for name, value in loss.items() if name != "row"}
    for entry in entries:
        found.setdefault(entry["row"], {}).update(tallies_of(entry, task))
    return found


def kept(folder: Path, task: str | None) -> dict[int, Tallies]:
    """`together`, of an evaluation's folder."""
    return together(lines(folder / LOSSES), lines(folder / REPLIES), task)
