"""Reload: what is taken live, what is refused, and that a bad configuration stops nothing."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from adaptd import config as configuration
from adaptd import reload
from tests import streams
from tests.services import POOL, Running
from tests.test_inbox import Service, same

RECORDS = streams.classes(400)


class Changing:
    """A daemon whose configuration file a test can change."""

    def __init__(self, tree: dict | None = None) -> None:
        self.running = Running(tree, reread=self.read)
        self.tree = copy.deepcopy(self.running.tree)

    def read(self) -> configuration.Config:
        return configuration.read(self.tree, "changed.toml")

    def __enter__(self) -> "Changing":
        self.running.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.running.__exit__(*error)


def read(tree: dict) -> configuration.Config:
    return configuration.read(tree, "test")


def test_differences_are_named_by_key():
    old = read({"pool": {"learners": POOL}})
    new = read(
        {
            "pool": {"learners": {**POOL, "tree": {"kind": "hoeffding_tree"}}},
            "seed": 3,
            "rates": {"boost": 2.0},
        }
    )
    assert reload.differences(old, old) == []
    assert reload.differences(old, new) == ["pool.learners.tree", "rates.boost", "seed"]


@pytest.mark.parametrize(
    "tree",
    [
        {"seed": 1}, {"source": {"kind": "table", "path": "x.npy"}}, {"sink": {"kind": "file", "path": "y"}},
        {"schema": {"task": "regression"}}, {"fields": {"target": "z"}},
        {"checkpoint": {"directory": "elsewhere"}}, {"http": {"listen": "127.0.0.1:1"}},
        {"control": {"rows": 64}}, {"pool": {"threads": 3}},
    ],
    ids=lambda tree: next(iter(tree)),
)  # fmt: skip
def test_what_cannot_be_taken_live_is_refused_by_name(tree):
    changed = reload.differences(read({}), read(tree))
    (section,) = tree
    faults = reload.faults(changed, "adaptd.toml")
    assert faults
    assert all(fault.startswith(f"adaptd.toml: {section}") and "Restart" in fault for fault in faults)


def test_a_refused_change_takes_nothing_of_it():
    with Changing() as service:
        running = service.running
        service.tree["rates"] = {"boost": 2.0}
        service.tree["seed"] = 9
        answer = running.post("reload", code=422)
        assert answer["faults"] == [
            "test.toml: seed must stay as it is while adaptd runs. Restart it to change this key."
        ]
        running.learn(RECORDS[:40])
        assert running.daemon.lane.rates.config.boost == 4.0
        assert running.events("config_refused")[0]["faults"] == answer["faults"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control": {"rows": "many"}}, "control.rows must be"),
        ({"pool": {"learners": {"new": {"kind": "linaer"}}}}, "Did you mean 'linear'?"),
        ({"pool": {"learners": {"new": {"kind": "river", "estimator": "river.no.Such"}}}}, "river.no.Such"),
    ],
)
def test_a_bad_configuration_stops_nothing(change, words):
    with Changing() as service:
        running = service.running
        running.learn(RECORDS[:40])
        service.tree |= change
        assert words in json.dumps(running.post("reload", code=422)["faults"])
        assert len(running.learn(RECORDS[40:80])) == 40
        assert running.daemon.lane.pool.names == ["linear", "prior"]


def test_a_file_that_cannot_be_read_stops_nothing():
    def unreadable() -> configuration.Config:
        raise OSError("no such disk")

    with Running(reread=unreadable) as running:
        assert "no such disk" in running.post("reload", code=422)["faults"][0]
        running.learn(RECORDS[:5])


def test_learners_come_and_go_and_the_others_keep_what_they_know():
    with Changing() as service:
        running = service.running
        running.learn(RECORDS[:20])
        service.tree["pool"] = {"learners": {"linear": {"kind": "linear"}, "bayes": {"kind": "naive_bayes"}}}
        assert running.post("reload")["changed"] == ["pool.learners.bayes", "pool.learners.prior"]
        running.learn(RECORDS[20:32])
        # The control point is here; what changes does so before the next operation.
        assert running.daemon.lane.pool.names == ["linear", "prior"]
        kept = running.daemon.lane.pool.slots[0].learner.state()
        running.post("predict", {"id": "waits", "a": 1.0})
        assert running.daemon.lane.pool.names == ["linear", "bayes"]
        assert same(running.daemon.lane.pool.slots[0].learner.state(), kept)
        assert running.daemon.lane.pool.slots[1].learner.state() is not None
        (entry,) = running.get("journal", params={"kind": "lane_reconfigured"})["entries"]
        assert entry["row"] == 32
        assert entry["payload"]["fresh"] == ["bayes", "controller"]
        running.post("label", {"id": "waits", "y": "up"})
        assert running.learn(RECORDS[33:80])[-1]["prediction"] in ("up", "down")


def test_changed_options_start_that_learner_fresh():
    with Changing() as service:
        running = service.running
        running.learn(RECORDS[:32])
        service.tree["pool"] = {"learners": {**POOL, "linear": {"kind": "linear", "learning_rate": 0.02}}}
        running.post("reload")
        running.post("predict", {"id": "waits", "a": 1.0})
        (entry,) = running.get("journal", params={"kind": "lane_reconfigured"})["entries"]
        assert entry["payload"]["fresh"] == ["linear", "controller"]


def test_rates_detector_pin_and_frozen_are_taken_and_nothing_starts_fresh_for_it():
    with Changing() as service:
        running = service.running
        running.learn(RECORDS[:32])
        before = running.daemon.lane.controller.state()
        service.tree |= {"rates": {"boost": 2.0}, "drift": {"kind": "page_hinkley"}}
        service.tree["control"] = {"rows": 16, "pin": "prior"}
        service.tree["pool"] = {"learners": {**POOL, "linear": {"kind": "linear", "frozen": True}}}
        running.post("reload")
        (answer,) = running.post("predict", {"id": "waits", "a": 1.0})["predictions"]
        lane = running.daemon.lane
        assert answer["learner"] == "prior"
        assert lane.rates.config.boost == 2.0
        assert lane.pool.slots[0].frozen
        assert same(lane.controller.state(), before)
        (entry,) = running.get("journal", params={"kind": "lane_reconfigured"})["entries"]
        assert entry["payload"]["fresh"] == ["drift"]


def test_what_no_prediction_depends_on_is_taken_at_once():
    with Changing() as service:
        running = service.running
        service.tree["log"] = {"level": "error"}
        service.tree["http"] = {**service.tree["http"], "body_bytes_max": 1024}
        service.tree["checkpoint"] = {"interval_seconds": 5.0, "keep": 7}
        assert running.post("reload")["changed"] == [
            "checkpoint.interval_seconds", "checkpoint.keep", "http.body_bytes_max", "log.level",
        ]  # fmt: skip
        running.post("predict", {"a": "x" * 2000}, 413)
        assert running.events("config_changed") == []


def test_a_change_waits_in_the_checkpoint_for_its_control_point(tmp_path):
    """As after a crash between the checkpoint and the control point."""
    state = tmp_path / "state"
    with Changing({"checkpoint": {"directory": str(state)}}) as service:
        running = service.running
        running.learn(RECORDS[:20])
        service.tree["pool"] = {"learners": {**POOL, "bayes": {"kind": "naive_bayes"}}}
        running.post("reload")
        shutil.copytree(state, tmp_path / "crashed")
        answers = running.learn(RECORDS[20:100])
        whole = running.daemon.lane.state()
    tree = copy.deepcopy(service.tree)
    tree["checkpoint"] = {"directory": str(tmp_path / "crashed")}
    with Running(tree) as running:
        # The new configuration is in the file; the old one holds until the control point all the same.
        assert running.learn(RECORDS[20:21]) == answers[:1]
        assert running.daemon.lane.pool.names == ["linear", "prior"]
        assert running.learn(RECORDS[21:100]) == answers[1:]
        assert same(running.daemon.lane.state(), whole)


def test_sighup_reads_the_file_again(tmp_path):
    service = Service(tmp_path / "run", 50)
    file = tmp_path / "adaptd.toml"
    file.write_text('[log]\nlevel = "info"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptd", "run", "--config", str(file), "--set", "source.kind=file",
         "--set", f"source.path={service.folder}/in.jsonl", "--set", "source.follow=true",
         "--set", "sink.kind=file", "--set", f"sink.path={service.sink}",
         "--set", "pool.learners.linear.kind=linear"],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        events = map(json.loads, process.stderr)
        while not service.sink.exists() or service.sink.read_bytes().count(b"\n") < 50:
            assert process.poll() is None
        file.write_text("[control]\nrows = 0\n")
        process.send_signal(signal.SIGHUP)
        refused = next(event for event in events if event["event"] == "config_refused")
        assert "control.rows must be" in refused["faults"][0]
        file.write_text("[rates]\nboost = 3.0\n")
        process.send_signal(signal.SIGHUP)
        changed = next(event for event in events if event["event"] == "config_changed")
        assert changed["changed"] == ["rates.boost"]
    finally:
        process.send_signal(signal.SIGTERM)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", reload.LANE_KEYS + reload.AT_ONCE_KEYS)
def test_what_can_be_taken_live_is_a_key_of_the_configuration(name):
    value = configuration.Config()
    for part in name.split("."):
        assert hasattr(value, part)
        value = getattr(value, part)
