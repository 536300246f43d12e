"""Forecasts of models that are not on this machine: their configuration and tokenizer are fetched, and no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.config import forecasts
from engine.config.profile import Profile
from engine.models import checks, hub_shape, targets
from engine.models.catalogue import CATALOGUE
from engine.models.folders import has_tokenizer
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError


def fetch_shapes(profile: Profile, home: Home) -> Profile:
    """The profile with folders that a forecast can be made from in the place of a base and a tokenizer that are on a
    hub alone. What cannot be reached stays as it is. Raises ProblemError for what the hub does not give, and for a base
    that does not go with the profile."""
    model, changed = profile.model, {}
    if (model.needs_base or model.tokenizer is None) and (found := _fetch(model.base, profile, home)):
        changed["base"] = str(found)
    own = model.tokenizer
    elsewhere = isinstance(own, str) and not has_tokenizer((profile.directory / Path(own).expanduser()).absolute())
    if isinstance(own, str) and elsewhere and (found := _fetch(own, profile, home)):
        changed["tokenizer"] = str(found)
    if not changed:
        return profile
    profile = replace(profile, model=model.model_copy(update=changed))
    if "base" in changed:
        _check(profile, home)
    return profile


def _fetch(name: str, profile: Profile, home: Home) -> Path | None:
    target = targets.resolve(name, home, profile.directory)
    if target.adapter is not None or target.gguf is not None:
        return None
    repository = target.base if target.on_hub else ""
    if target.catalogue and not Path(target.base).is_dir():
        repository = CATALOGUE[target.catalogue].hub
    if not repository:
        return None
    place = forecasts.folder(home) / "models"
    return hub_shape.fetch(repository, place, code=profile.model.trust_remote_code)


def _check(profile: Profile, home: Home) -> None:
    """Check what could not be checked while the profile was read."""
    sections = {"model": profile.model, "adapter": profile.adapter, "data": profile.data, "method": profile.method}
    sections |= {"training": profile.training, "launch": profile.launch, "evaluation": profile.evaluation}
    found = list(checks.check_shape(sections, profile.directory, home))
    if found:
        cause = "; ".join(f"{key}: {message}" for key, message in found)
        raise ProblemError(Problem(code="profile.invalid", title="The profile is not valid", cause=cause))
