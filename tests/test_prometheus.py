"""Alerts and dashboards against Debian's Prometheus: checked, tested, and run on a real daemon's page."""

import contextlib
import itertools
import json
import math
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

from adaptd import reference
from tests import streams
from tests.conftest import not_run

DEPLOY = pathlib.Path(__file__).parent.parent / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
# The rates of the rules need two scrapes of a page whose figures move.
TIMEOUT_SECONDS = 90
CHUNK_LINES = 100
CHUNK_SECONDS = 0.1


def rules():
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


ALERTS = [rule for rule in rules() if "alert" in rule]


def promtool(*arguments):
    program = shutil.which("promtool")
    if program is None:
        not_run("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_its_rules():
    promtool("check", "config", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", *RULES)


def test_alerts_fire_when_they_should_and_not_in_the_nearest_other_case():
    promtool("test", "rules", PROMETHEUS / "tests" / "alerts.yml")


@pytest.mark.parametrize("alert", [pytest.param(alert, id=alert["alert"]) for alert in ALERTS])
def test_alert_tells_the_person_on_call_what_to_do(alert):
    assert alert["labels"]["severity"] in ("warning", "critical")
    notes = alert["annotations"]
    assert "{{ $labels.instance }}" in notes["summary"]
    assert notes["description"].endswith(".")
    page, anchor = notes["runbook_url"].split("#")
    heading = next(
        line
        for line in (DEPLOY.parent / page).read_text().splitlines()
        if line.startswith("#") and slug(line) == anchor
    )
    assert heading
    assert f"`{alert['alert']}`" in (DEPLOY.parent / page).read_text()
    assert alert["alert"] in (PROMETHEUS / "tests" / "alerts.yml").read_text(), "no test says when it fires"


def slug(heading):
    """The anchor that a Markdown heading gets."""
    words = re.sub(r"[^\w\- ]", "", heading.lstrip("# ").strip().lower())
    return words.replace(" ", "-")


def expressions():
    """(where, expression) of everything that asks Prometheus for something."""
    found = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    for file in DASHBOARDS:
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            found += [(f"{file.stem}: {panel['title']}", target["expr"]) for target in panel["targets"]]
        for entry in board["annotations"]["list"]:
            found.append((f"{file.stem}: {entry['name']}", entry["target"]["expr"]))
        for entry in board["templating"]["list"]:
            if entry["type"] == "query":
                selector = re.fullmatch(r"label_values\((.+), \w+\)", entry["query"])[1]
                found.append((f"{file.stem}: ${entry['name']}", selector))
    return found


def without_thresholds(expr):
    """`expr` so that it has data whatever the values are: `bool` makes a comparison give 0 or 1.

    A daemon that has just begun has no past, so `offset` goes too.
    """
    parts = re.split(r"(\{[^}]*\})", expr)
    parts[::2] = [
        re.sub(r"(?<![=!<>])(>=|<=|==|!=|>|<)(?![=~])", r"\1 bool", re.sub(r" offset 1h", "", part))
        for part in parts[::2]
    ]
    return "".join(parts)


def with_variables(expr):
    """What Grafana would send."""
    for name, value in (
        ("$__rate_interval", "20s"), ("$__range", "60s"),
        ("$job", ".+"), ("$instance", ".+"), ("$score", ".+"),
    ):  # fmt: skip
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def test_thresholds_are_taken_out_of_expressions_only_outside_of_selectors():
    taken = without_thresholds('a{b!="c"} > 1 and x == 0 or (y >= -Inf)')
    assert taken == 'a{b!="c"} > bool 1 and x == bool 0 or (y >= bool -Inf)'


def test_every_metric_that_is_asked_for_is_one_that_the_daemon_has():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = recorded | {"adaptd_build_info"}
    for family in reference.collected():
        known |= {sample.name for sample in family.samples} | {family.name}
        known |= {family.name + ending for ending in ("_bucket", "_sum", "_count")}
    for where, expr in expressions():
        names = set(re.findall(r"\b(?:\w+:)?adaptd_[\w:]+", re.sub(r'"[^"]*"', "", expr)))
        assert names <= known, where


class Running:
    """A daemon on a stream with late labels, drift and rubbish, and a Prometheus that scrapes it."""

    def __init__(self, folder, program):
        self.ended = threading.Event()
        state = folder / "state"
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "adaptd", "run", "--set", "http.enabled=true",
             "--set", "http.listen=127.0.0.1:0", "--set", f"checkpoint.directory={state}",
             "--set", "checkpoint.interval_seconds=2",
             *("--set", "pool.learners.prior.kind=prior", "--set", "pool.learners.linear.kind=linear")],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.prometheus = None
        self.feeder = threading.Thread(target=self.feed, daemon=True)
        try:
            events = map(json.loads, self.daemon.stderr)
            listen = next(event["listen"] for event in events if event["event"] == "http_started")
            threading.Thread(target=self.daemon.stderr.read, daemon=True).start()
            self.feeder.start()
            self.start_prometheus(folder, program, listen)
        except BaseException:
            self.close()
            raise

    def feed(self):
        """A few thousand rows a second, over and over, until it is told to end."""
        records = streams.with_late_labels(streams.classes(8000, drift_at=4000), delay=40, share=0.3)
        lines = streams.lines(records).splitlines(keepends=True)
        lines[50::400] = [b"{no record\n"] * len(lines[50::400])
        for at in itertools.cycle(range(0, len(lines), CHUNK_LINES)):
            if self.ended.wait(CHUNK_SECONDS):
                break
            try:
                self.daemon.stdin.write(b"".join(lines[at : at + CHUNK_LINES]))
                self.daemon.stdin.flush()
            except OSError:
                break

    def start_prometheus(self, folder, program, listen):
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(file) for file in RULES]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        targets = {"adaptd": listen, "prometheus": f"127.0.0.1:{self.port}"}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        with open(folder / "prometheus.log", "wb") as log:
            self.prometheus = subprocess.Popen(
                [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def values(self, expr):
        """The values of an instant query; none when Prometheus has not come up yet."""
        query = urllib.parse.urlencode({"query": expr})
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/api/v1/query?{query}", timeout=10
            ) as answer:
                result = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it still reads its own files
                return []
            pytest.fail(f"{expr}: {error.read().decode()}")
        except OSError:
            assert self.prometheus.poll() is None, "Prometheus has ended"
            return []
        return [float(sample["value"][1]) for sample in result]

    def close(self):
        self.ended.set()
        for process in (self.prometheus, self.daemon):
            if process is not None:
                process.terminate()
                process.wait(TIMEOUT_SECONDS)
        with contextlib.suppress(OSError):
            self.daemon.stdin.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    program = shutil.which("prometheus")
    if program is None:
        not_run("prometheus is not installed (Debian's package prometheus)")
    running = Running(tmp_path_factory.mktemp("prometheus"), program)
    yield running
    running.close()


def test_every_expression_of_rules_and_dashboards_has_data(running):
    waiting = {where: with_variables(without_thresholds(expr)) for where, expr in expressions()}
    assert len(waiting) > 60
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while waiting and time.monotonic() < deadline:
        for where, expr in list(waiting.items()):
            if any(not math.isnan(value) for value in running.values(expr)):
                del waiting[where]
        running.ended.wait(CHUNK_SECONDS)
    assert waiting == {}


def test_a_working_daemon_raises_no_alert(running):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not running.values("instance:adaptd_rows:rate5m > 0") and time.monotonic() < deadline:
        running.ended.wait(CHUNK_SECONDS)
    firing = {name for name in (alert["alert"] for alert in ALERTS)
              if running.values(f'ALERTS{{alertname="{name}", alertstate="firing"}}')}  # fmt: skip
    assert firing == set()
