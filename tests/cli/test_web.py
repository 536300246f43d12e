"""`cockpit web`: who gets the page and its websocket, where it is refused, and that the app comes through."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from contextlib import nullcontext
from typing import Any

import pytest

from cockpit.cli import build_parser
from cockpit.verbs import web
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

TOKEN = "a-token-that-nobody-guesses"


def options(*arguments: str) -> Namespace:
    return build_parser().parse_args(["web", *arguments])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--host", "192.0.2.7", "--no-token"], "ssh -L"),
        (["--host", "0.0.0.0"], "--public-url"),
        (["--host", "::"], "--public-url"),
    ],
)
def test_beyond_loopback_it_wants_a_token_and_a_name(arguments: list[str], hint: str) -> None:
    chosen = options(*arguments)
    with pytest.raises(ProblemError) as refused:
        web.check_address(chosen.host, web.read_token(chosen), chosen.public_url)
    assert hint in refused.value.problem.hint


def test_a_proxys_address_needs_a_token_too() -> None:
    for public, refused in (("https://train.example", True), ("http://localhost:9000", False)):
        chosen = options("--no-token", "--public-url", public)
        with pytest.raises(ProblemError) if refused else nullcontext():
            web.check_address(chosen.host, web.read_token(chosen), chosen.public_url)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://127.0.0.1:80", "http://127.0.0.1", True),
        ("https://Train.example", "https://train.example:443/x", True),
        ("http://[::1]:80", "http://[::1]", True),
        ("http://127.0.0.1:8010", "http://127.0.0.1", False),
        ("http://127.0.0.1:99999", "http://", True),
        ("http://a:80", "https://a:443", False),
    ],
)
def test_addresses_are_compared_as_browsers_write_them(one: str, other: str, same: bool) -> None:
    assert (web._origin(one) == web._origin(other)) is same


async def test_an_app_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tab was lost while it wrote: nobody reads what it writes, and it cannot be told."""
    monkeypatch.setattr(web, "LEAVE", 0.1)
    program = "import sys\nwhile True: sys.stdout.write('x' * 4096)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    await web.end_process(process)
    assert process.returncode == -9


def test_a_weak_token_is_refused_and_a_new_one_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAK", "1234")
    with pytest.raises(ValueError, match="16 or more"):
        web.read_token(options("--token-env", "WEAK"))
    assert len(web.read_token(options())) >= 32


def test_without_the_package_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    monkeypatch.setitem(sys.modules, "textual_serve", None)
    with pytest.raises(ProblemError) as missing:
        web.open_web(options())
    assert missing.value.problem.hint == "pip install 'cockpit[web]'"


async def test_only_this_page_with_the_token_reaches_the_app(unused_tcp_port_of: int, bare_home: Home) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    pytest.importorskip("textual_serve")
    from aiohttp.web import AppRunner, TCPSite

    port = unused_tcp_port_of
    url = f"http://127.0.0.1:{port}"
    application = await web.make_application(web.build_command(options("--home", str(bare_home.root))), url, TOKEN)
    runner = AppRunner(application)
    await runner.setup()
    try:
        await TCPSite(runner, "127.0.0.1", port).start()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:

            async def status(path: str, **headers: str) -> int:
                async with session.get(f"{url}{path}", headers=headers, allow_redirects=False) as answer:
                    return int(answer.status)

            assert (
                await status("/") == 401 and await status("/ws") == 401 and await status("/static/css/xterm.css") == 401
            )
            assert await status("/?token=wrong") == 401 and await status(f"/ws?token={TOKEN}") == 401
            assert await status(f"/?token={TOKEN}", Host="evil.example:80") == 421  # DNS rebinding
            assert await status("/", Cookie=f"cockpit-{port}=\xe9") == 401
            async with session.get(
                f"{url}/?token={TOKEN}", headers={"Host": f"localhost:{port}"}, allow_redirects=False
            ) as answer:
                assert answer.headers["Location"] == f"{url}/?token={TOKEN}" and "Set-Cookie" not in answer.headers
            async with session.get(f"{url}/?token={TOKEN}", allow_redirects=False) as answer:
                assert answer.status == 302 and answer.headers["Location"] == f"{url}/"
                cookie = answer.headers["Set-Cookie"]
                assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
            async with session.get(url) as answer:
                page = await answer.text()
                assert answer.status == 200 and f"ws://127.0.0.1:{port}/ws" in page and TOKEN not in page
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert await status("/ws", Origin="http://evil.example") == 403
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"{url}/ws", origin="http://evil.example")
            async with session.ws_connect(f"{url}/ws?width=100&height=30", origin=url) as socket:
                assert "cockpit" in await read_until(socket, "cockpit")
                await socket.send_json(["stdin", "?"])
                assert "Help" in await read_until(socket, "Esc closes")
                await socket.send_json(["stdin", "?q"])
                await read_until(socket, "\0")  # the app has ended, and with it the connection
    finally:
        await runner.cleanup()


async def read_until(socket: Any, wanted: str) -> str:
    text = ""
    async with asyncio.timeout(60):
        async for message in socket:
            text += message.data.decode(errors="replace") if isinstance(message.data, bytes) else str(message.data)
            if wanted in text:
                break
    return text


@pytest.fixture
def unused_tcp_port_of() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
