"""Pushes to a hub on the loopback, with the hub's own library."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.export import model_card, push
from engine.export.request import ExportRequest
from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.workers import push as worker

NAME = "org/name"


class WritableHub:
    """The part of the Hugging Face hub's interface that an upload uses. `files` is the repository."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.commits: list[list[str]] = []
        self.stored: dict[str, bytes] = {}
        self.refused_commits: set[int] = set()
        self.forbidden = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: WritableHub

    def do_GET(self) -> None:
        self._body()
        self._json({"id": NAME, "sha": "0" * 40, "private": bool(self.hub.private), "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        content = self._body()
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._json({})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if self.hub.forbidden:
            self._json({"error": "no"}, 403)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            if self.hub.private is None:
                private = asked.get("private", asked.get("visibility") == "private")
                self.hub.private = bool(private)
            self._json({"url": f"{self.hub.url}/{NAME}", "id": NAME})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/paths-info/main"):
            self._json([self._entry(name) for name in self._paths(body) if name in self.hub.files])
        elif path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [
                {"path": each["path"], "uploadMode": "lfs" if _is_large(each["path"]) else "regular"} for each in asked
            ]
            self._json({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})
        elif path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                if each["oid"] not in self.hub.stored:
                    each["actions"] = {"upload": {"href": f"{self.hub.url}/store/{each['oid']}"}}
            self._json({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": path}, 404)

    def _paths(self, body: bytes) -> list[str]:
        from urllib.parse import parse_qs

        if body[:1] == b"{":
            return list(json.loads(body)["paths"])
        return parse_qs(body.decode())["paths"]

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.hub.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if _is_large(name):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        return entry

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        number = len(self.hub.commits)
        if number in self.hub.refused_commits:
            self.hub.refused_commits.discard(number)
            self._json({"error": "the hub is full"}, 400)
            return
        changed = {}
        for line in lines[1:]:
            value = line["value"]
            changed[value["path"]] = (
                base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.stored[value["oid"]]
            )
        self.hub.files |= changed
        self.hub.commits.append(sorted(changed))
        self._json(
            {"commitUrl": f"{self.hub.url}/{NAME}/commit/{number}", "commitOid": f"{number:040}", "success": True}
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, document: Any, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    from huggingface_hub import constants

    hub = WritableHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its own protocol, to another server
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield hub
    hub.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported adapter."""
    folder = tmp_path / "adapter"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer/optimizer.pt").write_bytes(b"state")
    (folder / ".hidden").write_text("secret")
    (folder / "README.md").write_text("# adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/models/base", "r": 4}))
    golden = [{"messages": [{"role": "user", "content": "a row"}], "ids": [1]}]
    (folder / "lock.json").write_text(
        json.dumps({"base": "/home/me/models/base", "golden": golden, "dtype": "float32"})
    )
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 3000)
    (folder / "other.safetensors").write_bytes(b"others" * 3000)
    return folder


def send(folder: Path, public: bool = False, base: str | None = "org/base") -> dict[str, Any]:
    return push.push(push.list_uploads(folder, base), NAME, hub="huggingface", public=public, message="up")


def test_a_push_is_private_has_no_paths_and_goes_on_after_an_interruption(
    hub: WritableHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "LARGE", 10_000)
    hub.refused_commits = {1}
    with pytest.raises(ProblemError) as caught:
        send(folder)
    assert caught.value.problem.code == "push.failed" and "push again" in (caught.value.problem.hint or "")
    assert hub.private is True and hub.commits == [["adapter_model.safetensors"]]
    done = send(folder)
    assert done["kept"] == ["adapter_model.safetensors"] and done["private"] and len(done["sent"]) == 4
    assert hub.commits[1:] == [["other.safetensors"], ["README.md", "adapter_config.json", "lock.json"]]
    assert set(hub.files) == {path.name for path in folder.iterdir() if path.is_file()} - {".hidden"}
    assert json.loads(hub.files["adapter_config.json"]) == {"base_model_name_or_path": "org/base", "r": 4}
    assert json.loads(hub.files["lock.json"]) == {"base": "org/base", "dtype": "float32"}
    assert not any(b"/home/me" in content or b"a row" in content for content in hub.files.values())
    assert send(folder)["sent"] == [] and len(hub.commits) == 3
    (folder / "README.md").write_text("# other")
    assert send(folder, base="org/base")["sent"] == ["README.md"]


def test_a_public_repository_and_a_refusal(hub: WritableHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private = False
    with pytest.raises(ProblemError) as caught:
        send(folder)
    assert "is public" in caught.value.problem.title and not hub.files
    assert send(folder, public=True)["private"] is False
    hub.forbidden = True
    (folder / "README.md").write_text("# new")
    with pytest.raises(ProblemError) as caught:
        send(folder, public=True)
    assert "HF_TOKEN" in (caught.value.problem.hint or "")
    with pytest.raises(ProblemError, match="no model folder"):
        push.list_uploads(folder / "trainer", None)
    for name in ("name", "a/b/c", "../x/y", "-/x"):
        with pytest.raises(ProblemError) as caught:
            push.check(name, "huggingface")
        assert caught.value.problem.code == "request.invalid"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ProblemError, match="could not be pushed") as caught:
        send(folder)
    assert caught.value.problem.code == "push.failed" and "push again" in (caught.value.problem.hint or "")


def test_a_run_is_exported_until_it_has_arrived_and_again_when_it_has_changed(
    hub: WritableHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home").create()
    run = home.run("run")
    shutil.copytree(folder, run.checkpoint(2), ignore=shutil.ignore_patterns("README.md", "lock.json"))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (run.checkpoint(2) / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    run.profile.write_text("model: {}\n")
    exports = []

    def export(target: targets.Target, out: Path, request: ExportRequest, home: Home) -> None:
        exports.append(request.adapter_only)
        shutil.copytree(target.folder, out)
        (out / "README.md").write_text("# run")

    monkeypatch.setattr("engine.export.run.export", export)
    given = {
        "target": "run",
        "repository": NAME,
        "hub": "huggingface",
        "public": False,
        "merged": False,
        "message": "m",
    }

    def cockpit(**more: Any) -> dict[str, Any]:
        return worker._push(home, argparse.Namespace(**given, **{"dry_run": False} | more))

    assert cockpit(dry_run=True)["files"] and cockpit()["sent"] and exports == [True], "the same export is sent"
    assert hub.files["adapter_config.json"] == b'{\n "base_model_name_or_path": "base"\n}'
    assert not [path for path in (home.root / "cache/push").rglob("*") if path.is_file()], "it takes no more room"
    cockpit(dry_run=True)
    (run.checkpoint(2) / "adapter_model.safetensors").write_bytes(b"trained on")
    assert cockpit()["sent"] == ["adapter_model.safetensors"] and len(exports) == 3
    assert hub.files["adapter_model.safetensors"] == b"trained on"


def test_the_settings_on_a_card_are_for_everybody(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    run = home.run("run")
    run.checkpoint(2).mkdir(parents=True)
    run.profile.write_text(
        f"model: {{base: {home.root}/models/tiny}}\n"
        "data: {train: [{source: /srv/clients/rows.jsonl}]}\n"
        "launch: {environment: {SERVICE_PASSWORD: hunter2, EMPTY: ''}}\n"
        "evaluation: {base_url: 'https://me:hunter2@example.org/v1'}\n"
    )
    target = targets.Target(base="org/base", label="run@2", adapter=run.checkpoint(2), run="run", step=2)
    text = "\n".join(model_card._settings(target, home))
    assert "COCKPIT_HOME/models/tiny" in text and "…/rows.jsonl" in text and "SERVICE_PASSWORD" in text
    assert "hunter2" not in text and "/srv" not in text and str(tmp_path) not in text


def test_modelscope_gets_the_same_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError, match="needs the package modelscope"):
        push.check(NAME, "modelscope")
    got: dict[str, Any] = {}

    class HubApi:
        visibility: int | None = 5

        def login(self, token: str) -> None:
            got["token"] = token
            credentials = Path(os.environ["MODELSCOPE_CREDENTIALS_PATH"])
            credentials.mkdir()
            (credentials / "git_token").write_text(token)
            got["credentials"] = credentials

        def get_model(self, name: str) -> dict[str, Any]:
            return {"Visibility": got.get("visibility", self.visibility)}

        def repo_exists(self, name: str) -> bool:
            return "exists" in got

        def create_model(self, name: str, visibility: int) -> None:
            got["visibility"] = visibility

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            got["files"] = {path.name: path.read_bytes() for path in Path(folder_path).rglob("*") if path.is_file()}

    modules = {name: ModuleType(name) for name in ("modelscope", "modelscope.hub", "modelscope.hub.api")}
    constants: Any = ModuleType("modelscope.hub.constants")
    constants.ModelVisibility = SimpleNamespace(PRIVATE=1, PUBLIC=5)
    vars(modules["modelscope.hub.api"])["HubApi"] = HubApi
    for name, module in {**modules, "modelscope.hub.constants": constants}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(push, "check", lambda *_: None)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "t")
    monkeypatch.setenv("MODELSCOPE_CREDENTIALS_PATH", "")
    push.push(push.list_uploads(folder, None), NAME, hub="modelscope", public=False, message="up")
    assert (got["visibility"], got["token"]) == (1, "t")
    assert not got["credentials"].exists() and "git_token" not in got["files"], "the token is in no file afterwards"
    assert json.loads(got["files"]["adapter_config.json"])["base_model_name_or_path"] == "base"
    for HubApi.visibility in (5, None):
        got = {"exists": True}
        with pytest.raises(ProblemError, match="is public"):
            push.push(push.list_uploads(folder, None), NAME, hub="modelscope", public=False, message="up")
        assert "files" not in got
    done = push.push(push.list_uploads(folder, None), NAME, hub="modelscope", public=True, message="up")
    assert done["private"] is False
    assert "optimizer.pt" not in got["files"] and got["files"]["other.safetensors"] == b"others" * 3000


@pytest.mark.slow
def test_the_verb(hub: WritableHub, folder: Path, tmp_path: Path) -> None:
    def cockpit(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "cockpit.cli", "push", str(folder), NAME, "--json", *arguments],
            env=os.environ | {"COCKPIT_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    (folder / "lock.json").write_text(json.dumps({"base": "org/base"}))
    dry = cockpit("--dry-run")
    assert dry["private"] and "adapter_model.safetensors" in dry["files"] and hub.private is None
    assert cockpit()["private"] and set(hub.files) == set(dry["files"])
