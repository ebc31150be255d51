"""What could not run here, and why, stands in one closing list: a test is never left out in silence."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="the fault tests of Kafka with 50 rounds over 200,000 rows: an hour; -s shows the figures",
    )


_NOT_RUN: dict[str, str] = {}
_MARK = "could not run here: "


def not_run(reason: str) -> None:
    """Leave the running test out for `reason`, which the closing list names."""
    pytest.skip(_MARK + reason)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # From the report, since with several workers it is all that reaches the process that prints.
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        _NOT_RUN[report.nodeid] = reason.removeprefix(_MARK)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _NOT_RUN:
        return
    terminalreporter.section("could not run here")
    for name, reason in sorted(_NOT_RUN.items()):
        terminalreporter.line(f"{name}: {reason}")
