"""Whether this cockpit and what runs on another host understand each other, and which side is to be updated."""

from __future__ import annotations

from cockpit.connection.agent import Found
from cockpit.connection.ssh import RemoteHost
from cockpit.language.translate import tr
from engine.protocol.messages import PROTOCOL, Problem, ProblemError


def check_versions(host: RemoteHost, found: Found) -> None:
    """Raises ProblemError when the engine there, or the cockpit there that would start one, speaks another version
    than this cockpit. It says which side to update."""
    spoken = found.protocol if found.connection is None else found.connection.protocol
    if spoken == PROTOCOL:
        return
    restart = tr(
        "`cockpit --on {text} engine stop`, then connect again; runs go on, and the next engine adopts them",
        text=host.text,
    )
    if found.protocol == PROTOCOL:
        hint = tr(
            "its cockpit is of this version, but the engine was started by another one: {restart}", restart=restart
        )
    elif found.protocol > PROTOCOL:
        hint = tr("update the cockpit here to version {version}, which {host} has", version=found.version, host=host)
    else:
        hint = tr("update cockpit on {host}", host=host) + (
            tr("; then {restart}", restart=restart) if found.connection is not None else ""
        )
    engine = (
        tr("no engine runs there")
        if found.connection is None
        else tr("the engine there speaks version {spoken}", spoken=spoken)
    )
    raise ProblemError(
        Problem(
            code="engine.protocol_mismatch",
            title=tr("This cockpit and the engine on {host} speak different protocols", host=host),
            cause=tr(
                "{engine}, the cockpit there ({version}) speaks version {protocol}, this cockpit version {own}",
                engine=engine,
                version=found.version,
                protocol=found.protocol,
                own=PROTOCOL,
            ),
            hint=hint,
        )
    )
