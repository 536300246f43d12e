"""What the tests of the app share: an exception that the app has caught fails the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cockpit.fault_guard import FaultTolerantApp


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The reports of exceptions that the app has caught. A test that causes one empties the list."""
    reports: list[str] = []
    log = FaultTolerantApp._write_report

    def note(app: FaultTolerantApp, report: str) -> None:
        reports.append(report)
        log(app, report)

    monkeypatch.setattr(FaultTolerantApp, "_write_report", note)
    yield reports
    assert not reports, reports[0]
