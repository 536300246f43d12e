"""Sends one notice about a run through apprise: a process of its own, so that no slow address holds up the engine.

It reads a `Notice` as JSON on standard input. Addresses are those of the notice and `notify.urls` of `settings.yaml`; a
`$NAME` in one stands for an environment variable. Exit status: 0 sent, 1 some address did not take it, 2 nothing could
be tried. What it prints names no secret.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import msgspec

from engine.supervisor.notices import Notice

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_OPEN = re.compile(r"((?:json|xml|form)s?://)(?:[^@/?]*@)?([\w.:\[\]-]+)(?:[/?][^@]*)?")
"""An address of one's own service: its scheme and its host are no secrets."""
_SCHEME = re.compile(r"([a-zA-Z][\w+.-]*://)")


class AddressError(ValueError):
    """An address that is not used; the text says why, without the address's secrets."""


def read_settings(path: Path) -> list[str]:
    """`notify.urls` of the settings; none where the file cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        urls = document["notify"]["urls"]
    except (OSError, ValueError, KeyError, TypeError, YAMLError):
        return []
    return [url for url in urls if isinstance(url, str)] if isinstance(urls, list) else []


def expand(url: str) -> str:
    """The address with the values of its variables. Raises AddressError for a variable that is not set."""
    missing = [name for pair in _VARIABLE.findall(url) for name in pair if name and name not in os.environ]
    if missing:
        raise AddressError(f"{hide(url)}: the variable {missing[0]} is not set where the engine was started")
    return _VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], url)


def hide(url: str) -> str:
    """An address for messages: without what may be secret in it."""
    if _VARIABLE.fullmatch(url):
        return url
    if own := _OPEN.fullmatch(url):
        return own[1] + own[2]
    scheme = _SCHEME.match(url)
    return f"{scheme[1] if scheme else ''}…"


def main() -> int:
    notice = msgspec.json.decode(sys.stdin.buffer.read(), type=Notice)
    urls = list(dict.fromkeys([*notice.urls, *read_settings(Path(notice.settings))]))
    if not urls:
        return 0
    try:
        import apprise
    except ImportError:
        print("notices need the package apprise: pip install 'cockpit[notify]'")
        return 2
    picture = [notice.picture] if notice.picture and Path(notice.picture).is_file() else None
    failed = []
    for url in urls:
        try:
            service = apprise.Apprise()
            if not service.add(expand(url)):
                raise AddressError(f"{hide(url)}: apprise does not know this kind of address")
            sent = service.notify(title=notice.title, body=notice.body, attach=picture, notify_type=notice.kind)
            if not sent:
                raise AddressError(f"{hide(url)}: it was not taken")
        except AddressError as error:
            failed.append(str(error))
        except Exception as error:  # noqa: BLE001 - one address must not cost the others; its text may hold secrets
            failed.append(f"{hide(url)}: {type(error).__name__}")
    print("; ".join(failed), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
