"""Checking a profile's text while it is being edited. Pure; call it off the event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cockpit.language.translate import tr
from cockpit.profiles.files import ProfileFile
from cockpit.profiles.yaml_edit import read_yaml
from cockpit.state.formatting import counted

if TYPE_CHECKING:
    from engine.config.form import Field
    from engine.config.issues import Issue
    from engine.config.profile import Profile
    from engine.protocol.home import Home


@dataclass(frozen=True)
class ProfileCheck:
    """A text's values, the settings that apply to it, and either the valid profile or its problems."""

    text: str
    document: dict[str, Any]
    fields: list[Field]
    issues: list[Issue] = field(default_factory=list)
    profile: Profile | None = None
    notes: list[str] = field(default_factory=list)
    """Remarks about a valid profile."""


def check_profile(text: str, file: ProfileFile, home: Home, elsewhere: str = "") -> ProfileCheck:
    """Parse and check a profile's text. Takes milliseconds, the first time 0.2 s: call it off the event loop.
    `elsewhere` names the host that it is for, if its files are not here."""
    from engine.config.form import list_fields
    from engine.config.profile import SECTIONS, ProfileError, list_notes, parse  # pydantic: not before the first paint

    document = read_yaml(text)
    kinds = {}
    for section in ("method", "adapter"):
        table = SECTIONS[section]
        assert isinstance(table, dict)
        value = document.get(section)
        kind = value.get("kind") if isinstance(value, dict) else None
        kinds[section] = kind if isinstance(kind, str) and kind in table else None
    fields = list_fields(**kinds)
    try:
        profile = parse(text, file.path.name, file.path.parent, home=home, elsewhere=bool(elsewhere), rows=True)
    except ProfileError as error:
        return ProfileCheck(text, document, fields, error.issues)
    notes = (
        [tr("data and models are checked on {elsewhere} when it is launched", elsewhere=elsewhere)] if elsewhere else []
    )
    return ProfileCheck(text, document, fields, profile=profile, notes=notes or list_notes(profile, home))


def summarize_launch(profile: Profile) -> str:
    """What a launch would start, in four lines."""
    training, launch = profile.training, profile.launch
    rank = getattr(profile.adapter, "rank", None)
    adapter = profile.adapter.kind + (tr(" of rank {rank}", rank=rank) if rank else "")
    base = tr("{quantization} base in {dtype}", quantization=profile.model.quantization, dtype=profile.model.dtype)
    length = counted(training.max_steps, "step") if training.max_steps else counted(training.epochs, "epoch")
    unit = "tokens" if training.tokens_per_batch else "rows"
    micro = training.tokens_per_batch or training.micro_batch
    nodes = launch.node_count
    ranks = (
        f"{launch.processes}"
        if nodes == 1
        else tr("{processes} × {nodes} nodes", processes=launch.processes, nodes=nodes)
    )
    each = f"{micro} × {training.accumulation} × {ranks}"
    return "\n".join(
        (
            f"{profile.name or 'unnamed'}: {profile.method.kind}, {adapter}, {base}",
            tr("base       {origin}", origin=profile.model.origin),
            tr("data       {source}", source=", ".join(source.source for source in profile.data.train)),
            tr(
                "length     {length}, {unit} a step {each} (micro batch × accumulation × processes)",
                length=length,
                unit=unit,
                each=each,
            ),
        )
    )
