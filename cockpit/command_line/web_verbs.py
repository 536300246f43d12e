"""Verbs for other ways to the app and its help: a browser, a manual page, a shell."""

from __future__ import annotations

from cockpit.command_line.options import Verb, option

WEB_VERBS = (
    Verb(
        "web",
        "open the app in a browser: a page on this machine, behind a token",
        "web:open_web",
        (
            option("--host", metavar="H", default="127.0.0.1", help="address to listen on (127.0.0.1)"),
            option("--port", type=int, metavar="N", default=8010, help="port (8010)"),
            option("--token-env", metavar="NAME", help="variable with the token; without it, a new one is printed"),
            option("--no-token", action="store_true", help="ask for no token; on a loopback address only"),
            option("--public-url", metavar="URL", help="address of the page in the browser, such as a proxy's"),
        ),
    ),
    Verb(
        "completion",
        "print what completes cockpit's verbs and options in a shell",
        "completion:completion",
        (option("shell", choices=("bash", "zsh"), help="add its output to the shell's start-up file"),),
    ),
    Verb("man", "print the manual page, for man -l -", "man:man"),
)
