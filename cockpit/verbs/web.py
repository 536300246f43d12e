"""`cockpit web`: the app in a browser, by textual-serve.

Whoever reaches the page can do what the user can. So it listens on loopback and asks for a token; a page of another
site can neither read it nor open its websocket, whatever name it gives to this machine (DNS rebinding).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import ipaddress
import os
import secrets
import shlex
import sys
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult, urlsplit

from cockpit import remote_names
from cockpit.language.translate import tr
from cockpit.verbs.output import say
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from aiohttp import web

LEAST_TOKEN = 16
"""Characters of a token that is not guessed."""
MOST_APPS = 16
"""Browser tabs that have an app at the same time."""
LEAVE = 5.0
"""Seconds that an app has to end in after its tab was closed."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}


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
    say(tr("Open {url}", url=f"{url.rstrip('/')}/{f'?token={token}' if token else ''}"))
    if remote_names.command.startswith("cockpit --on"):
        say(tr("It is an address of the other host: run ssh -L {port}:127.0.0.1:{port} HOST first", port=options.port))
    if not token:
        say(tr("Without a token every user of this machine can open the page and steer your runs"), "yellow")
    if not is_loopback(_host(url)) and url.startswith("http:"):
        say(tr("The connection is not encrypted: put a proxy with TLS before it, or use ssh -L instead"), "yellow")
    say(tr("ctrl+c ends the server; the runs go on"), "dim")
    application = make_application(build_command(options), url.rstrip("/"), token)
    run_app(
        application,
        host=options.host,
        port=options.port,
        print=None,
        access_log=None,  # the token is in the first address
        shutdown_timeout=LEAVE / 2,
    )
    return 0


def read_token(options: argparse.Namespace) -> str:
    """The token that the browser has to show; empty for none. Raises ValueError."""
    if options.no_token:
        return ""
    if options.token_env is None:
        return secrets.token_urlsafe(24)
    token = os.environ.pop(options.token_env, "")  # no app, engine or run inherits it
    if len(token) < LEAST_TOKEN or not token.isascii() or not all(each.isalnum() or each in "-_.~" for each in token):
        raise ValueError(
            tr(
                "the variable {name} must hold a token of {least} or more letters, digits, - and _",
                name=options.token_env,
                least=LEAST_TOKEN,
            )
        )
    return token


def check_address(host: str, token: str, public_url: str | None) -> None:
    """Refuse to listen where others would get in. Raises ProblemError."""
    if public_url and urlsplit(public_url).scheme not in ("http", "https"):
        title = tr("--public-url {url} is not an address with http:// or https://", url=public_url)
        raise ProblemError(Problem(code="request.invalid", title=title))
    reached = _host(public_url) if public_url and is_loopback(host) else host
    if not token and not is_loopback(reached):
        raise ProblemError(
            Problem(
                code="request.invalid",
                title=tr("The app is not served on {host} without a token", host=reached),
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
    return "exec " + shlex.join([sys.executable, "-m", "cockpit", *home, *readonly])


async def make_application(command: str, url: str, token: str) -> web.Application:
    """textual-serve's application for the page at `url`, behind the checks of each request."""
    from textual_serve import server as served

    class App(served.AppService):  # type: ignore[misc]
        async def stop(self) -> None:
            """Also end an app that cannot be told, because its page was lost while it wrote to it."""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE):
                    await super().stop()
            await end_process(self._process)

    class Page(served.Server):  # type: ignore[misc]
        async def on_startup(self, app: web.Application) -> None:
            """Print nothing: `open_web` has said where the page is."""

    served.AppService = App
    server = Page(command, title="cockpit", public_url=url)
    application = await server._make_app()
    application.middlewares.append(make_guard(url, token))
    add_headers(application, url)
    return application


async def end_process(process: asyncio.subprocess.Process | None) -> None:
    """Wait until a process that was asked to end has done so, and read what it still writes; kill it if it does not."""
    if process is None:
        return
    for _ in range(2):
        try:
            async with asyncio.timeout(LEAVE):
                while process.stdout is not None and await process.stdout.read(1 << 16):
                    pass  # asyncio waits for a process only after all of it was read
                await process.wait()
                return
        except TimeoutError:
            if process.returncode is None:
                process.kill()


def add_headers(application: web.Application, url: str) -> None:
    """Load nothing from elsewhere (textual-serve's page asks for a font), and be embedded in no other page."""
    socket = f"{'wss' if url.startswith('https:') else 'ws'}://{urlsplit(url).netloc}"
    policy = (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data:; connect-src 'self' {socket}; frame-ancestors 'none'"
    )

    async def add(request: web.Request, answer: web.StreamResponse) -> None:
        answer.headers.update(
            {
                "Content-Security-Policy": policy,
                "Referrer-Policy": "no-referrer",
                "X-Frame-Options": "DENY",
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
            }
        )

    application.on_response_prepare.append(add)


def make_guard(url: str, token: str) -> Any:
    """A middleware that lets in only requests for this page, from this page, with the token, and only so many apps."""
    from aiohttp import web

    address = urlsplit(url)
    own = _origin(url)
    cookie = f"cockpit-{address.port or address.scheme}"
    port = _port(address)
    names = LOOPBACK_NAMES if is_loopback(_host(url)) else ()
    aliases = {_origin(f"{address.scheme}://{_bracketed(name)}:{port}") for name in names} - {own}
    apps = 0

    @web.middleware  # type: ignore[untyped-decorator]
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        nonlocal apps
        name = _origin(f"{address.scheme}://{request.headers.get('Host', '')}")
        if name != own and name not in aliases:
            raise web.HTTPMisdirectedRequest(text=tr("This name is not the one that the page is served under.\n"))
        origin = request.headers.get("Origin")
        if origin is not None and _origin(origin) != own:
            raise web.HTTPForbidden(text=tr("Another page asks for this one.\n"))
        if request.headers.get("Sec-Fetch-Site", "none") == "cross-site" and request.path != "/":
            raise web.HTTPForbidden(text=tr("Another page asks for this one.\n"))
        if name != own and request.path == "/":  # before the token: its cookie belongs to one name
            raise web.HTTPFound(f"{url}/?{request.rel_url.raw_query_string}")
        given = request.query.get("token", "")
        if token and request.path == "/" and given and _same(given, token):
            answer = web.Response(status=302, headers={"Location": f"{url}/"})
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict", secure=address.scheme == "https")
            return answer
        if token and not _same(request.cookies.get(cookie, ""), token):
            raise web.HTTPUnauthorized(text=tr("Open the address with the token that `cockpit web` has printed.\n"))
        if request.path != "/ws":
            return cast("web.StreamResponse", await handler(request))
        if apps >= MOST_APPS:
            raise web.HTTPServiceUnavailable(text=tr("{most} apps are open: close a tab.\n", most=MOST_APPS))
        apps += 1
        try:
            return cast("web.StreamResponse", await handler(request))
        finally:
            apps -= 1

    return guard


def _origin(url: str) -> str:
    """Scheme, name and port of an address, in one spelling; empty if it has none."""
    try:
        address = urlsplit(url)
        return f"{address.scheme}://{_bracketed(address.hostname or '')}:{_port(address)}" if address.hostname else ""
    except ValueError:
        return ""


def _port(address: SplitResult) -> int | None:
    return address.port or DEFAULT_PORTS.get(address.scheme)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
