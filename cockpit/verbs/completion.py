"""`cockpit completion`: what completes verbs and options in bash and zsh."""

from __future__ import annotations

import argparse


def completion(options: argparse.Namespace) -> int:
    import shtab

    from cockpit.cli import build_parser

    print(shtab.complete(build_parser(whole=True), options.shell))
    return 0
