"""README.md of an export: what it is, its lineage and results, and how to load it."""

from __future__ import annotations

import io
import json
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from engine.export.request import ExportResult
from engine.models import folders
from engine.models.targets import Target
from engine.models.versions import list_versions
from engine.protocol.home import Home

_LOGIN = re.compile(r"(?<=://)[^\s/@]+@")
"""The user and password of an address."""
_FIRST = "chatglm"
"""`model_type` of models that need an import of this package before they can be loaded."""


def write(folder: Path, target: Target, exported: ExportResult, dtype: str | None, home: Home) -> None:
    """Write the card into `folder`. Raises OSError."""
    report = _report(target)
    parts = (
        _head(folder, target, exported, dtype),
        _loading(folder, target, exported),
        _agreement(exported),
        _results(report, target),
        _data(report),
        _lineage(target, report, home),
        _settings(target, home),
        _environment(report),
    )
    text = "\n".join(line for part in parts for line in part)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def _report(target: Target) -> dict[str, Any]:
    path = target.folder.parent.parent / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if target.run and path.is_file() else {}
    return report if isinstance(report, dict) else {}


def _base_name(target: Target) -> str:
    return target.catalogue or (target.base if target.on_hub else Path(target.base).name)


def _head(folder: Path, target: Target, exported: ExportResult, dtype: str | None) -> Iterator[str]:
    library = "peft" if exported.kind == "adapter" else "transformers"
    yield from ("---", f"library_name: {library}", "tags: [cockpit]")
    if target.on_hub:
        yield f"base_model: {target.base}"
    yield "---"
    yield f"# {exported.directory.name}"
    yield ""
    what = {
        "merged": f"{_base_name(target)} with the adapter of {target.label} merged into its weights",
        "model": f"The weights of {target.label}",
        "reward": f"A reward model: the weights of {target.label}, one number for a conversation",
        "adapter": f"The adapter of {target.label} alone, for {_base_name(target)}",
    }[exported.kind]
    stored = f", {dtype}" if dtype and exported.kind != "adapter" else ""
    yield f"{what}{stored}. Exported {time.strftime('%Y-%m-%d')}."
    yield ""


def _loading(folder: Path, target: Target, exported: ExportResult) -> Iterator[str]:
    yield from ("## Load it", "```python")
    first = exported.kind != "adapter" and _read_json(folder / "config.json").get("model_type") == _FIRST
    if first:
        yield "import engine.models.glm.tokenizer_first  # the package cockpit: ChatGLM-6B has no class in transformers"
    classes = {"reward": "AutoModelForSequenceClassification"}.get(exported.kind, "AutoModelForCausalLM")
    yield f"from transformers import {classes}, AutoTokenizer"
    if exported.kind == "adapter":
        scoring = folders.is_reward_model(folder)
        classes = "AutoModelForSequenceClassification" if scoring else classes
        yield from ("from peft import PeftModel", "")
        labels = ", num_labels=1" if scoring else ""
        yield f'base = {classes}.from_pretrained("{_base_name(target)}", dtype="auto"{labels})'
        yield 'model = PeftModel.from_pretrained(base, "FOLDER")'
    else:
        yield from ("", f'model = {classes}.from_pretrained("FOLDER", dtype="auto")')
    yield from ('tokenizer = AutoTokenizer.from_pretrained("FOLDER")', "```")
    yield "or `cockpit chat FOLDER`." if exported.kind != "reward" else ""
    if exported.kind == "adapter":
        dtype = target.dtype or "its stored dtype"
        yield f"It was trained on {_base_name(target)} as {target.quantization or 'none'} ({dtype})."
    yield ""


def _agreement(exported: ExportResult) -> Iterator[str]:
    agreed = exported.agreement
    yield "## Against the checkpoint"
    yield f"Measured on {agreed['prompts']}, {agreed['positions']} positions, this folder read back from disk."
    yield ""
    yield from ("| | |", "|---|---|")
    for key, label in (
        ("kl", "Kullback-Leibler divergence, nats a token"),
        ("top1", "same likeliest token"),
        ("score_difference", "largest difference of a score"),
        ("order_kept", "pairs in the same order"),
    ):
        if agreed.get(key) is not None:
            yield f"| {label} | {agreed[key]:.4g} |"
    if agreed.get("golden"):
        yield f"| golden prompts answered alike | {agreed['golden_equal']} of {agreed['golden']} |"
    for name, figures in agreed.get("candidates", {}).items():
        text = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if value is not None)
        yield f"| merged into the {name} base{' (this folder)' if name == agreed['base'] else ''} | {text} |"
    yield ""
    for difference in agreed.get("differences", ()):
        # Not its text: it is a row of the training data, and a card may be read by everybody.
        yield f"- a golden conversation: other {difference['of']} from token {difference['at']} on"
    if exported.gguf:
        made = exported.gguf
        text = f"not read back: {made.get('unread')}"
        if "kl" in made:
            perplexity = f"perplexity {made['perplexity']:.4g}, theirs {made['perplexity_before']:.4g}"
            text = f"KL {made['kl']:.4g}, top-1 {made['top1']:.4g}, {perplexity}"
        yield f"`{made['file']}` ({made['bytes'] / 1e6:.0f} MB, {made['type']}) against these weights: {text}."
        if "modelfile" in made:
            yield f"For Ollama: `ollama create NAME -f {made['modelfile']}`."
    yield ""


def _results(report: dict[str, Any], target: Target) -> Iterator[str]:
    at = [each for each in report.get("evaluations", ()) if each["step"] == target.step]
    later = [part for name in ("test", "benchmarks") if (part := report.get(name))]
    if not at and not later and not report.get("thresholds"):
        return
    yield from ("## Results", "| metric | value |", "|---|---|")
    for each in at:
        yield from (f"| {name} | {value:.4g} |" for name, value in each["values"].items() if value is not None)
    for part in later:
        yield from (f"| {name} | {value:.4g} |" for name, value in part["values"].items() if value is not None)
    yield ""
    for each in report.get("thresholds", ()):
        value = "not measured" if each["value"] is None else f"{each['value']:.4g}"
        yield f"- {each['threshold']}: {'passed' if each['passed'] else 'MISSED'} ({value})"
    yield ""


def _data(report: dict[str, Any]) -> Iterator[str]:
    data = report.get("data") or {}
    if not data:
        return
    yield "## Data"
    rows, tokens = data.get("rows"), data.get("trained_tokens")
    yield f"{rows} training rows, {tokens} trained tokens an epoch; prepared as `{data.get('hash')}`."
    yield ""
    if files := data.get("files"):
        yield from ("| part | file | bytes | SHA-256 |", "|---|---|---|---|")
        yield from (f"| {each['part']} | {each['name']} | {each['bytes']} | `{each['sha256']}` |" for each in files)
        yield ""


def _lineage(target: Target, report: dict[str, Any], home: Home) -> Iterator[str]:
    yield "## Lineage"
    yield f"- base: {_base_name(target)}"
    if target.run:
        attempt = f", attempt {report['attempt']}" if report.get("attempt") else ""
        yield f"- run: {target.run}, step {target.step}{attempt}"
    if target.quantization or target.dtype:
        yield f"- trained as: {target.dtype}, quantization {target.quantization or 'none'}"
    yield ""


def _settings(target: Target, home: Home) -> Iterator[str]:
    """The run's profile as others may read it: of folders of this machine only the last part, and no values of
    environment variables."""
    profile = target.folder.parent.parent / "profile.yaml"
    if not target.run or not profile.is_file():
        return
    settings = YAML(typ="safe").load(profile.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        return
    launch = settings.get("launch")
    if isinstance(launch, dict) and isinstance(launch.get("environment"), dict):
        settings["launch"] = launch | {"environment": dict.fromkeys(launch["environment"], "…")}
    text = io.StringIO()
    writer = YAML(typ="safe")
    writer.default_flow_style, writer.allow_unicode = False, True
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(_shorten_paths(settings, home), text)
    yield from ("## Settings", "```yaml", text.getvalue().rstrip(), "```", "")


def _shorten_paths(value: Any, home: Home) -> Any:
    if isinstance(value, dict):
        return {key: _shorten_paths(each, home) for key, each in value.items()}
    if isinstance(value, list):
        return [_shorten_paths(each, home) for each in value]
    if isinstance(value, str) and "\n" not in value:
        if value.startswith(f"{home.root}/"):
            return value.replace(str(home.root), "COCKPIT_HOME", 1)
        if value.startswith(("/", "~/", "file:///")):
            return f"…/{Path(value).name}"
        return _LOGIN.sub("…@", value)
    return value


def _environment(report: dict[str, Any]) -> Iterator[str]:
    yield "## Environment"
    trained = report.get("environment") or {}
    if trained:
        yield "- trained with " + ", ".join(f"{name} {value}" for name, value in trained.items())
    yield (
        "- exported with "
        + ", ".join(f"{name} {value}" for name, value in list_versions().items())
        + f", {platform.system()}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
