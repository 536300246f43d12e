"""Scripted services for tests of the screens that ask one: a chat, a data set, evaluations, an export."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.protocol.messages import (
    Answer,
    CleanItem,
    CleanReply,
    Judgements,
    Message,
    Nothing,
    Problem,
    ProblemError,
    Run,
    RunChanged,
    Service,
    ServiceEvent,
)
from tests.app.fake import FakeEngine, demo_run

PARTS = {"train": 5, "validation": 2, "test": 0, "rejected": 2}


class FakeServices(FakeEngine):
    """Answers the questions of all screens, with `text` wherever a foreign text may be."""

    def __init__(self, *runs: Run, text: str = "text", devices: int = 0) -> None:
        super().__init__(*runs, devices=devices)
        self.text = text
        self.pieces = 3
        self.pace = 0.0
        """Pieces of a reply, and seconds before each."""
        self.cancelled: set[str] = set()
        self._services = 0

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        asked: Any = message
        if getattr(message, "run", "") not in ("", *self.runs):
            raise ProblemError(Problem(code="run.not_found", title="There is no such run"))
        match operation:
            case "service_open":
                self._services += 1
                return Service(id=f"service-{self._services}", kind=asked.kind, state="ready")
            case "service_ask":
                self.requests.append((operation, asked))
                return Answer(result=await self._answer(asked.question, asked.arguments, asked.request))
            case "service_cancel":
                self.cancelled.add(asked.request)
                return Nothing()
            case "service_close" | "judge" | "set_telemetry":
                return Nothing()
            case "clean":
                return CleanReply(items=[CleanItem(kind="cache", path=self.text, bytes=1, why=self.text)])
            case "label" | "reorder":
                self.requests.append((operation, asked))
                return self._change(asked)
            case "judgements":
                return Judgements(judgements=[])
            case "submit":
                self.requests.append((operation, asked))
                return demo_run(id="submitted", state="queued")
        return await super().request(operation, message, timeout)

    def _change(self, asked: Any) -> Run:
        run = self.runs[asked.run]
        for name in ("note", "pinned", "group", "priority"):
            if getattr(asked, name, None) is not None:
                setattr(run, name, getattr(asked, name))
        self.say(RunChanged(run=run))
        return run

    async def _answer(self, question: str, arguments: dict[str, Any], request: str) -> Any:
        text = self.text
        match question:
            case "load":
                return {"label": arguments["target"], "template": True, "seconds": 0.1, "context": 2048, "note": text}
            case "generate":
                return await self._generate(request)
            case "score":
                found = arguments.get("reply") or arguments["text"]
                top = [[text, -0.1], [f"{text} {text}", -3.0]]
                tokens = [[found, None, []], [f" {found}\n", -0.1, top], [found, -6.0, top]]
                return {"tokens": tokens, "scored": 2, "nats": 3.05, "perplexity": 21.12, "own": "reply" in arguments}
            case "keep_row":
                return {"path": arguments["path"], "format": text, "added": True}
            case "forecast":
                sizes = {"device_bytes": 6.2e9, "host_bytes": 5e9, "disk_bytes": 2e9, "card_bytes": 24e9}
                return sizes | {"seconds": 1200.0, "error_percent": 10.0, "verdict": "fits", "rows_measured": True}
            case "open" | "reread":
                return self._summary()
            case "rows":
                return {"rows": [self._row(arguments["part"], at) for at in range(PARTS[arguments["part"]])]}
            case "tokens":
                pieces = [{"text": text, "id": 1, "trained": False}, {"text": text, "id": 2, "trained": True}]
                return {"pieces": pieces, "tokens": 2, "trained": 1, "cut": 0}
            case "rendered":
                return {"same": True, "chat": text, "training": text + text}
            case "batch":
                pieces = [{"text": text, "id": 1, "trained": True}]
                return {"parts": [{"sequence": 0, "pieces": pieces}], "step": 1, "steps": 9, "tokens": 4, "trained": 2}
            case "stats":
                numbers = {"rows": 5, "tokens": 50, "trained_tokens": 20, "p50": 9, "p95": 10, "max": 11}
                dropped = [{"file": text, "line": 4, "reason": text}]
                return numbers | {"truncated": 1, "histogram": [[8, 3], [16, 2]], "rejected": 2, "dropped": dropped}
            case "draft":
                return {
                    "profile": "data: {train: my.jsonl}\n", "name": arguments["name"], "rows": 55, "rejected": 4,
                    "rejected_share": 4 / 59, "refused": True,
                    "says": ["4 of 59 rows are bad = 6.8 %, above 1 %: a launch would be refused", text],
                }  # fmt: skip
            case "narrow":
                return {"total": 0 if "nowhere" in arguments["query"] else 1}
            case "stages":
                done = [{"name": "clean", "in": 9, "out": 8}]
                return self._summary() | {"stages": done, "tokens": 50, "trained_tokens": 20}
            case "listed":
                return {"evaluations": [self._evaluation(25), self._evaluation(50)], "checkpoints": [25, 50]}
            case "replies":
                replies = [{"row": at, "prompt": text, "scores": {text: 0.5}, "passed": None} for at in range(3)]
                return {"replies": replies, "total": 3, "scores": [text], "by": text}
            case "reply":
                return {"reply": text, "reference": text, "asked": text, "thinking": text, "scores": {text: 0.5}}
            case "compare":
                each = {"first": 0.5, "second": 0.6, "difference": 0.1, "low": -0.1, "high": 0.2, "better": 0}
                differences = {text: each | {"beyond_noise": False}}
                return {"compared_rows": 5, "resamples": 100, "differences": differences}
            case "worst":
                alike = [{"file": f"/data/{text}", "line": 7, "similarity": 0.9, "answer": text}]
                row = {"file": f"/data/{text}", "score": 9.5, "losses": [None, 2.5], "prompt": text, "answer": text}
                worst = [{**row, "line": at + 1, "alike": alike} for at in range(3)]
                facts = {"by": arguments["by"], "epochs": 2, "rows": 400, "places": True, "listed": 1, "added": 1}
                return facts | {"worst": worst}
            case "evaluate":
                return self._evaluation(25)
        return {}

    async def _generate(self, request: str) -> dict[str, Any]:
        reply, finish = "", "stop"
        for at in range(self.pieces):
            await asyncio.sleep(self.pace)
            if request in self.cancelled:
                finish = "cancelled"
                break
            reply += f"{self.text} "
            self.say(ServiceEvent(service="service", request=request, kind="tokens",
                                  data={"text": f"{self.text} ", "count": at + 1}))  # fmt: skip
        return {"reply": reply, "thinking": "", "tokens": 3, "tokens_per_second": 9.0, "finish": finish}

    def _summary(self) -> dict[str, Any]:
        source = {"source": self.text, "format": self.text, "rows": 5, "rejected": 2, "part": "train", "files": 1}
        problem = {"file": self.text, "line": 3, "reason": self.text}
        return {
            "sources": [source | {"unused_columns": {self.text: 3}, "left_out": 1}],
            "rows": 7, "parts": dict(PARTS), "decisions": {}, "columns": [self.text], "problems": [problem],
            "stages": ["validate", "clean", "tokenize"], "template": self.text, "base": self.text,
        }  # fmt: skip

    def _row(self, part: str, at: int) -> dict[str, Any]:
        text = self.text
        where = {"index": at, "raw": text, "file": f"/data/{text}", "line": at + 1}
        if part == "rejected":
            return where | {"text": text, "reason": text}
        if at == 1:
            return where | {"text": text}  # plain text, as for pre-training
        turns = [{"role": "user", "content": text}, {"role": text, "content": text}]
        return where | {"messages": turns, "columns": {text: text}}

    def _evaluation(self, step: int) -> dict[str, Any]:
        return {
            "name": f"e{step}", "directory": f"/x/{step}", "origin": "eval", "step": step, "task": self.text,
            "data": self.text, "sha256": "1", "rows": 8, "replies": 8, "state": "done", "passed": False,
            "metrics": {"loss": 1.0, self.text[:40]: 0.5}, "notes": [self.text],
            "thresholds": [{"text": self.text, "passed": False}], "directions": {"loss": -1},
        }  # fmt: skip
