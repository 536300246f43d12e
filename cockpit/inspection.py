"""What a profile's text means while somebody is still writing it. Pure, and off the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cockpit.profiles import ProfileFile
from cockpit.yaml_edit import read

if TYPE_CHECKING:
    from engine.config.form import Field
    from engine.config.profile import Issue, Profile
    from engine.protocol.home import Home


@dataclass(frozen=True)
class Inspection:
    """What a text means: its values, the settings that apply to it, and either a profile that holds or what is wrong."""

    text: str
    document: dict[str, Any]
    fields: list[Field]
    issues: list[Issue] = field(default_factory=list)
    profile: Profile | None = None
    notes: list[str] = field(default_factory=list)
    """What is good to know of a profile that holds."""


def inspect(text: str, file: ProfileFile, home: Home) -> Inspection:
    """Read and check a profile's text. Takes milliseconds, the first time 0.2 s: call it off the loop."""
    from engine.config.form import list_fields
    from engine.config.profile import SECTIONS, ProfileError, list_notes, parse  # pydantic: not before the first paint

    document = read(text)
    kinds = {}
    for section in ("method", "adapter"):
        table = SECTIONS[section]
        assert isinstance(table, dict)
        said = document.get(section)
        kind = said.get("kind") if isinstance(said, dict) else None
        kinds[section] = kind if isinstance(kind, str) and kind in table else None
    fields = list_fields(**kinds)
    try:
        profile = parse(text, file.path.name, file.path.parent, home=home)
    except ProfileError as error:
        return Inspection(text, document, fields, error.issues)
    return Inspection(text, document, fields, profile=profile, notes=list_notes(profile, home))


def summary(profile: Profile) -> str:
    """What a launch would start, in a few lines."""
    training, launch = profile.training, profile.launch
    rank = getattr(profile.adapter, "rank", None)
    adapter = profile.adapter.kind + (f" of rank {rank}" if rank else "")
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    each = f"{training.micro_batch} × {training.accumulation} × {launch.processes}"
    return "\n".join(
        (
            f"{profile.name or 'unnamed'}: {profile.method.kind}, {adapter}, {profile.model.quantization} base in {profile.model.dtype}",
            f"base       {profile.model.origin}",
            f"data       {', '.join(source.source for source in profile.data.train)}",
            f"length     {length}, rows a step {each} (micro batch × accumulation × processes)",
        )
    )
