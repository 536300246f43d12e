"""`cockpit web`: the app in a browser, by textual-serve.

Whoever reaches the page can do what the user can. So it listens on loopback and asks for a token; a page of another
site can neither read it nor open its websocket, whatever name it gives to this machine (DNS rebinding).
"""

from __future__ import annotations

import argparse
import hmac
import ipaddress
import os
import secrets
import shlex
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cockpit.language.translate import tr
from cockpit.verbs.output import say
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from aiohttp import web

LEAST_TOKEN = 16
"""Characters of a token that is not guessed."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; connect-src 'self' {socket}; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Nothing is loaded from elsewhere (textual-serve's page asks for a font), and no other page may embed this one."""


def open_web(options: argparse.Namespace) -> int:
    """Serve the app until ctrl+c."""
    try:
        from aiohttp.web import run_app
        from textual_serve.server import Server  # noqa: F401
    except ImportError:
        raise ProblemError(
            Problem(
                code="request.invalid",
                title=tr("`cockpit web` needs the package textual-serve"),
                hint=tr("pip install 'cockpit[web]'"),
            )
        ) from None
    token = read_token(options)
    url = options.public_url or f"http://{_bracketed(options.host)}:{options.port}"
    check_address(options.host, token, options.public_url)
    os.environ["TERM"] = "xterm-256color"  # the browser's terminal, whatever this one is
    say(tr("Open {url}/{value}", url=url.rstrip("/"), value=f"?token={token}" if token else ""))
    if not is_loopback(options.host) and url.startswith("http:"):
        say(tr("The connection is not encrypted: put a proxy with TLS before it, or use ssh -L instead"), "yellow")
    say(tr("ctrl+c ends the server; the runs go on"), "dim")
    application = make_application(build_command(options), url.rstrip("/"), token)
    run_app(application, host=options.host, port=options.port, print=None, handle_signals=True)
    return 0


def read_token(options: argparse.Namespace) -> str:
    """The token that the browser has to show; empty for none. Raises ValueError."""
    if options.no_token:
        return ""
    if options.token_env is None:
        return secrets.token_urlsafe(24)
    token = os.environ.get(options.token_env, "")
    if len(token) < LEAST_TOKEN or not token.isascii() or not all(each.isalnum() or each in "-_.~" for each in token):
        raise ValueError(
            tr(
                "the variable {token_env} must hold a token of {LEAST_TOKEN} or more letters, digits, - and _",
                token_env=options.token_env,
                LEAST_TOKEN=LEAST_TOKEN,
            )
        )
    return token


def check_address(host: str, token: str, public_url: str | None) -> None:
    """Refuse to listen where others would get in. Raises ProblemError."""
    if public_url and urlsplit(public_url).scheme not in ("http", "https"):
        raise ProblemError(Problem(code="request.invalid", title=f"--public-url {public_url!r} is no http(s) address"))
    if is_loopback(host):
        return
    if not token:
        raise ProblemError(
            Problem(
                code="request.invalid",
                title=tr("The app is not served on {host} without a token", host=host),
                cause=tr("everybody who reaches this address could steer and delete your runs"),
                hint=tr("leave --no-token out, or serve on 127.0.0.1 and use ssh -L"),
            )
        )
    if host in ("0.0.0.0", "::", "*", "") and not public_url:
        raise ProblemError(
            Problem(
                code="request.invalid",
                title=tr("{host} says no name by which the browser finds this machine", host=host or "An empty host"),
                cause=tr("requests under other names are refused"),
                hint=tr("add --public-url http://NAME:PORT, or give --host one address"),
            )
        )


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def build_command(options: argparse.Namespace) -> str:
    """The command line of the app that each browser gets."""
    home = ["--home", options.home] if options.home else []
    readonly = ["--readonly"] if options.readonly else []
    Home.locate(options.home)
    return shlex.join([sys.executable, "-m", "cockpit", *home, *readonly])


async def make_application(command: str, url: str, token: str) -> web.Application:
    """textual-serve's application for the page at `url`, behind the checks of each request."""
    from textual_serve.server import Server

    class Page(Server):  # type: ignore[misc]
        async def on_startup(self, app: web.Application) -> None:
            """Print nothing: `open_web` has said where the page is."""

    server = Page(command, title=tr("cockpit"), public_url=url)
    application = await server._make_app()
    application.middlewares.append(make_guard(url, token))
    return application


def make_guard(url: str, token: str) -> Any:
    """A middleware that lets in only requests for this page, from this page, with the token."""
    from aiohttp import web

    address = urlsplit(url)
    names = {address.netloc.lower()}
    cookie = f"cockpit-{address.port or address.scheme}"
    aliases = {f"{_bracketed(name)}:{address.port}" for name in LOOPBACK_NAMES} if is_loopback(_host(url)) else set()
    socket = f"{'wss' if address.scheme == 'https' else 'ws'}://{address.netloc}"
    headers = {name: value.format(socket=socket) for name, value in HEADERS.items()}

    @web.middleware  # type: ignore[untyped-decorator]
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        host = request.headers.get("Host", "").lower()
        if host not in names | aliases:
            raise web.HTTPMisdirectedRequest(text=tr("This name is not the one that the page is served under.\n"))
        origin = request.headers.get("Origin")
        own = f"{address.scheme}://{address.netloc}".lower()
        if origin is not None and origin.lower() != own:
            raise web.HTTPForbidden(text=tr("Another page asks for this one.\n"))
        if request.headers.get("Sec-Fetch-Site", "none") == "cross-site" and request.path != "/":
            raise web.HTTPForbidden(text=tr("Another page asks for this one.\n"))
        given = request.query.get("token", "")
        if token and request.path == "/" and given and _same(given, token):
            answer: web.StreamResponse = web.Response(status=302, headers={"Location": f"{url}/"})
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict", secure=address.scheme == "https")
        elif token and not _same(request.cookies.get(cookie, ""), token):
            raise web.HTTPUnauthorized(text=tr("Open the address with the token that `cockpit web` has printed.\n"))
        elif host in aliases - names:
            raise web.HTTPFound(f"{url}/")
        else:
            answer = await handler(request)
        if not answer.prepared:
            answer.headers.update(headers)
        return answer

    return guard


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
