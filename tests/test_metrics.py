"""Metrics: every series from the start, valid for Prometheus, and pages on loopback."""

import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from adaptd.clock import FakeClock
from adaptd.errors import AdaptdError, ConfigError
from adaptd.http import HttpServer, parse_listen
from adaptd.metrics import Histogram, LearnerFigures, Metrics, Snapshot, StageTimes

LEARNERS = [
    LearnerFigures(
        name="forest", loss=0.4, scores={"accuracy": 0.9, "kappa": 0.8}, weight=0.75, is_champion=True
    ),
    LearnerFigures(name="linear", learning_rate=0.01, rate_scale=4.0, gradient_norm=1.5, step_norm=0.1),
]


def full():
    snapshot = Snapshot(
        version="1.2.3", task="classification", rows=1000, rejects={"not_json": 3, "too_long": 0}
    )
    snapshot.learners = LEARNERS
    snapshot.blend_scores = {"accuracy": 0.91}
    snapshot.values_missing = {"null": 2}
    snapshot.events = {"drift_detected": 1, "daemon_started": 1}
    snapshot.checkpoint_time = 1_700_000_000.0
    for delay in (0.0, 1.0, 5.0, 1e7):
        snapshot.label_delay_rows.add(delay)
    return snapshot


@pytest.fixture
def registry():
    return CollectorRegistry()


def page(registry):
    return generate_latest(registry).decode()


def samples(registry):
    """Value by name and labels, of adaptd's own."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(registry))
        for sample in family.samples
        if sample.name.startswith("adaptd_")
    }


def test_scrape_shows_the_newest_snapshot(registry):
    clock = FakeClock(1_700_000_042.0)
    metrics = Metrics(registry, clock)
    assert samples(registry)[("adaptd_rows_total",)] == 0
    metrics.publish(full())
    found = samples(registry)
    assert found[("adaptd_rows_total",)] == 1000
    assert found[("adaptd_rejects_total", ("reason", "not_json"))] == 3
    assert found[("adaptd_learner_loss", ("learner", "forest"))] == 0.4
    assert found[("adaptd_learner_score", ("learner", "forest"), ("score", "kappa"))] == 0.8
    assert found[("adaptd_learner_champion", ("learner", "forest"))] == 1
    assert found[("adaptd_learner_champion", ("learner", "linear"))] == 0
    assert found[("adaptd_learner_rate_scale", ("learner", "linear"))] == 4
    assert found[("adaptd_checkpoint_age_seconds",)] == 42
    assert found[("adaptd_events_total", ("event", "drift_detected"))] == 1
    assert found[("adaptd_build_info", ("task", "classification"), ("version", "1.2.3"))] == 1


def test_counters_leave_out_what_a_checkpoint_brought(registry):
    metrics = Metrics(registry, FakeClock())
    metrics.begin(full())
    assert samples(registry)[("adaptd_predictions_total",)] == 0
    assert samples(registry)[("adaptd_rejects_total", ("reason", "not_json"))] == 0
    later = full()
    later.predictions += 7
    later.drifts += 1
    metrics.publish(later)
    found = samples(registry)
    assert (found[("adaptd_predictions_total",)], found[("adaptd_drifts_total",)]) == (7, 1)
    assert metrics.snapshot.predictions == later.predictions


def test_every_series_exists_from_the_start(registry):
    snapshot = full()
    metrics = Metrics(registry, FakeClock(), snapshot)
    before = set(samples(registry))
    later = full()
    later.rejects = {"not_json": 9, "too_long": 1}
    later.rows = 5
    metrics.publish(later)
    assert set(samples(registry)) == before


def test_histogram_buckets_are_cumulative(registry):
    Metrics(registry, FakeClock(), full())
    found = samples(registry)
    buckets = [
        found[("adaptd_label_delay_rows_bucket", ("le", le))]
        for le in ("0.0", "1.0", "10.0", "100000.0", "+Inf")
    ]
    assert buckets == [1, 2, 3, 3, 4]
    assert found[("adaptd_label_delay_rows_count",)] == 4
    assert found[("adaptd_label_delay_rows_sum",)] == 10_000_006


def test_page_keeps_the_conventions_of_prometheus(registry):
    Metrics(registry, FakeClock(), full())
    text = page(registry)
    families = list(text_string_to_metric_families(text))
    assert len(families) > 40
    for family in families:
        assert family.documentation
        assert re.fullmatch(r"(adaptd|process)_[a-z_]+", family.name)
        assert family.type != "unknown"
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
    promtool = shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_page_is_open_metrics_for_who_asks_for_that(registry):
    Metrics(registry, FakeClock(), full())
    text = exposition.generate_latest(registry).decode()
    families = {family.name for family in parser.text_string_to_metric_families(text)}
    assert {"adaptd_rows", "adaptd_stage_duration_seconds", "adaptd_learner_weight"} <= families


def test_process_metrics_are_on_the_page(registry):
    Metrics(registry, FakeClock())
    assert "process_resident_memory_bytes" in page(registry)


def test_lap_gives_the_time_to_the_stage_that_ends():
    clock = FakeClock()
    times = StageTimes(clock.monotonic)
    clock.advance(0.002)
    times.lap("poll")
    clock.advance(0.5)
    assert times.lap("learn") == 0.5
    clock.advance(9.0)
    times.start()
    clock.advance(0.5)
    times.lap("learn")
    copied = times.copy()
    clock.advance(100.0)
    times.lap("learn")
    assert (copied["learn"].sum, sum(copied["learn"].counts)) == (1.0, 2)
    assert copied["poll"].counts[copied["poll"].bounds.index(0.0025)] == 1
    assert times.histograms["learn"].counts[-1] == 1


def test_value_on_a_bound_counts_below_it():
    histogram = Histogram((1.0, 2.0))
    histogram.add(1.0)
    histogram.add(2.5, count=3)
    assert (histogram.counts, histogram.sum) == ([1, 0, 3], 8.5)


def get(server, path, method="GET"):
    request = urllib.request.Request(f"http://{server.host}:{server.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def ready():
    return [False]


@pytest.fixture
def server(registry, ready):
    Metrics(registry, FakeClock(), full())
    server = HttpServer("127.0.0.1:0", registry, lambda: ready[0])
    yield server
    server.close()


def test_pages_answer(server, ready):
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz") == (503, "not ready\n")
    ready[0] = True
    assert get(server, "/readyz") == (200, "ready\n")
    status, text = get(server, "/metrics")
    assert status == 200
    assert 'adaptd_learner_weight{learner="forest"} 0.75\n' in text
    assert get(server, "/nothing")[0] == 404
    assert get(server, "/metrics", "POST")[0] == 405
    assert get(server, "/healthz", "HEAD") == (200, "")


def test_silent_client_holds_up_nobody(server):
    with socket.create_connection((server.host, server.port)):
        assert get(server, "/healthz") == (200, "ok\n")


def test_taken_port_is_named(server, registry):
    with pytest.raises(AdaptdError, match=rf"127.0.0.1:{server.port}' could not be opened: Address already"):
        HttpServer(f"127.0.0.1:{server.port}", registry)


def test_closed_server_frees_its_port(registry):
    first = HttpServer("127.0.0.1:0", registry)
    first.close()
    second = HttpServer(f"127.0.0.1:{first.port}", registry)
    assert second.port == first.port
    second.close()


@pytest.mark.parametrize(
    "listen", ["9464", ":9464", "localhost:", "localhost:http", "127.0.0.1:70000", "a:-1"]
)
def test_bad_address_is_a_fault_of_the_configuration(listen):
    with pytest.raises(
        ConfigError,
        match=re.escape(f"http.listen must be host:port with a port from 0 to 65535; got {listen!r}"),
    ):
        parse_listen(listen)


def test_addresses_of_both_families_are_understood():
    assert parse_listen("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_listen("[::1]:0") == ("::1", 0)
