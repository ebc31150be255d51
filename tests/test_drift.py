"""`drift.py`: one drift gives one alarm; what needs no label is told, and changes nothing."""

import numpy as np
import pytest

from adaptd import config as configuration
from adaptd import events
from adaptd.contracts import CATEGORY, DRIFT, NUMBER, PREDICT, STABLE, Layout
from adaptd.drift import Unlabelled, Watch
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench

PLAIN = {"linear": {"kind": "linear"}, "bayes": {"kind": "naive_bayes"}, "prior": {"kind": "prior"}}


def watch(tree: dict | None = None, task: str = "classification", n_features: int = 1) -> Watch:
    layout = Layout(task, (0,) * n_features, (0,) * n_features, 2 if task == "classification" else 0)
    return Watch(configuration.read({"drift": tree or {}}, "test"), layout)


def signals(rows: int, change: int, seed: int) -> np.ndarray:
    """An error and a log loss that rise together at `change`."""
    rng = np.random.default_rng(seed)
    share = np.where(np.arange(rows) < change, 0.1, 0.5)
    error = (rng.random(rows) < share).astype(float)
    return np.vstack([error, np.clip(0.1 + 0.4 * error + 0.05 * rng.normal(size=rows), 0.0, 1.0)])


def followed(watcher: Watch, values: np.ndarray, cuts: tuple[int, ...] = ()) -> list[events.Decision]:
    found = []
    for start, stop in zip([0, *cuts], [*cuts, values.shape[1]], strict=True):
        part = np.ascontiguousarray(values[:, start:stop])
        found += [event for _, event in watcher.follow(part, np.arange(stop - start), start)]
    return found


@pytest.mark.parametrize("kind", ["e_sr", "adwin", "page_hinkley"])
def test_one_drift_that_two_signals_show_gives_one_alarm(kind):
    for seed in range(5):
        found = followed(watch({"kind": kind}), signals(6000, 3000, seed))
        drifts = [event.row for event in found if isinstance(event, events.DriftDetected)]
        assert len(drifts) == 1, f"seed {seed}: {drifts}"
        assert 3000 < drifts[0] < 3200


def test_after_a_drift_every_signal_is_watched_as_new():
    values = signals(6000, 3000, 1)
    used = watch()
    (drift, *_) = [e.row for e in followed(used, values[:, :4000]) if isinstance(e, events.DriftDetected)]
    fresh = watch()
    followed(fresh, values[:, drift:4000])
    assert [same_state(a.state(), b.state()) for a, b in zip(used.detectors, fresh.detectors, strict=True)]
    assert followed(used, values[:, 4000:]) == followed(fresh, values[:, 4000:])


@pytest.mark.parametrize("cuts", [tuple(range(1, 6000)), tuple(range(7, 6000, 7)), (3040, 3050, 5000)])
def test_any_split_finds_the_same(cuts):
    whole, pieces = watch(), watch()
    values = signals(6000, 3000, 2)
    assert followed(whole, values) == followed(pieces, values, cuts)
    assert same_state(whole.state(), pieces.state())


def test_change_rows_count_on_after_the_alarm():
    watcher = watch()
    values = signals(4000, 3000, 3)
    (drift,) = [e for e in followed(watcher, values) if isinstance(e, events.DriftDetected)]
    assert abs(drift.row - drift.change_rows - 3000) < 50
    assert watcher.change_rows() == drift.change_rows + 4000 - drift.row


def test_disabled_looks_for_nothing():
    bench = Bench({"drift": {"enabled": False}}, PLAIN).feed(streams.classes(6000, drift_at=3000))
    assert bench.lane.counts["drifts"] == bench.lane.counts["warnings"] == 0
    assert bench.lane.level == STABLE
    on = Bench(learners=PLAIN).feed(streams.classes(6000, drift_at=3000))
    assert on.lane.counts["drifts"] >= 1


def unlabelled(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "y"} for record in records]


def shifted(records: list[dict], by: float) -> list[dict]:
    return [{**record, "a": record["a"] + by} for record in records]


def test_a_shift_of_the_inputs_is_told_and_named_without_labels():
    records = unlabelled(shifted(streams.classes(2500, seed=1), 2.0))
    bench = Bench(learners=PLAIN).feed(streams.classes(3000)).feed(records)
    ((row, payload),) = bench.events("covariate_shift_detected")
    assert row == 3000
    assert 3000 < payload["predicted_rows"] < 3200
    assert payload["features"] == ["a"]
    assert bench.lane.counts["covariate_shifts"] == 1
    assert bench.lane.level != DRIFT


def test_a_category_that_becomes_common_is_a_shift():
    records = [{**record, "colour": "green"} for record in streams.classes(2000, seed=1)]
    bench = Bench(learners=PLAIN).feed(streams.classes(3000)).feed(records)
    assert bench.events("covariate_shift_detected")[0][1]["features"] == ["colour"]


@pytest.mark.parametrize("kind", [NUMBER, CATEGORY])
def test_inputs_that_stay_as_they_are_are_no_shift(kind):
    watcher = watch(n_features=32)
    watcher.unlabelled = Unlabelled(Layout("classification", (kind,) * 32, (64 * kind,) * 32, 2))
    rng = np.random.default_rng(0)
    n = 30_000
    x = rng.normal(size=(n, 32)) if kind == NUMBER else rng.geometric(0.1, size=(n, 32)).clip(max=63) * 1.0
    blend = np.tile([0.7, 0.3], (n, 1))
    found = watcher.unlabelled.step(
        x, blend[None].copy(), blend, np.full(n, np.nan), np.full(n, PREDICT, np.uint8), 0, ["f"] * 32
    )
    assert not found


def test_what_moves_all_the_time_is_told_ever_more_rarely():
    n = 60_000
    blend = np.tile([0.7, 0.3], (n, 1))
    steps = 3.0 * (np.arange(n) // 1500) + np.random.default_rng(0).normal(size=n)
    found = watch().unlabelled.step(
        steps[:, None], blend[None].copy(), blend, np.full(n, np.nan),
        np.full(n, PREDICT, np.uint8), 0, ["date"],
    )  # fmt: skip
    rows = [event.predicted_rows for _, event in found]
    assert 3 <= len(rows) <= 6
    assert all(later > earlier for earlier, later in zip(np.diff(rows), np.diff(rows)[1:], strict=False))


def test_doubt_is_told_only_while_labels_are_missing():
    """Inputs at the border between the classes, where the blend is not sure."""
    hard = [{**r, "a": 0.1 * r["a"], "b": 0.1 * r["b"], "colour": "green"} for r in streams.classes(2500, 1)]
    bench = Bench(learners=PLAIN).feed(streams.classes(3000)).feed(unlabelled(hard))
    (first, *_) = bench.events("unlabelled_drift_suspected")
    assert 3000 < first[1]["predicted_rows"] < 4000
    assert "uncertainty" in first[1]["signals"]
    labelled = Bench(learners=PLAIN).feed(streams.classes(3000)).feed(hard)
    assert not labelled.events("unlabelled_drift_suspected")


def test_expected_accuracy_is_close_to_the_truth_before_any_label_comes():
    hard = [{**r, "a": 0.3 * r["a"], "b": 0.3 * r["b"], "colour": "green"} for r in streams.classes(4000, 1)]
    bench = Bench(learners=PLAIN).feed(streams.classes(4000))
    usual = bench.lane.detector.expected_accuracy()["predicted"]
    bench.feed(unlabelled(hard))
    expected = bench.lane.detector.expected_accuracy()["predicted"]
    right = [p == f'"{r["y"]}"' for p, r in zip(bench.predictions()[4000:], hard, strict=True)]
    truth = np.mean(right[-2000:])
    assert truth < usual - 0.05
    assert abs(expected - truth) < 0.5 * abs(usual - truth)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_without_labels_any_split_and_any_stop_find_the_same(task):
    make = streams.classes if task == "classification" else streams.numbers
    records = [*make(1500), *unlabelled(shifted(make(2500, seed=1), 3.0)), *make(300, seed=2)]
    whole = Bench(learners=PLAIN if task == "classification" else {"linear": {"kind": "linear"}}).feed(
        records
    )
    assert whole.events("covariate_shift_detected")
    pieces = Bench(learners=whole.config.pool.learners).feed(records, list(range(13, len(records), 13)))
    assert same_state(pieces.lane.state(), whole.lane.state())
    assert pieces.journal.read(last=1000) == whole.journal.read(last=1000)
    first, second = Bench(learners=whole.config.pool.learners), Bench(learners=whole.config.pool.learners)
    first.feed(records[:2700])
    assert second.lane.load_state(first.lane.state()) == []
    second.decoder.load_state(first.decoder.state())
    second.feed(records[2700:])
    assert same_state(second.lane.state(), whole.lane.state())


def test_what_is_seen_without_labels_resets_nothing():
    records = [*streams.classes(2000), *shifted(streams.classes(2500, seed=1), 2.0)]
    on = Bench({"drift": {"unlabelled": True}}, PLAIN).feed(records)
    off = Bench({"drift": {"unlabelled": False}}, PLAIN).feed(records)
    assert on.lane.counts["covariate_shifts"] > 0
    assert [v.tobytes() for v in on.values] == [v.tobytes() for v in off.values]
    assert same_state(on.lane.pool.state(), off.lane.pool.state())


def errors(levels: list[tuple[int, float]], seed: int) -> np.ndarray:
    """Absolute errors [1, n]: for each stretch (rows, usual size), of no sign and with a long tail."""
    rng = np.random.default_rng(seed)
    return np.concatenate([size * rng.exponential(size=rows) for rows, size in levels])[None]


def drift_rows(watcher: Watch, values: np.ndarray, cuts: tuple[int, ...] = ()) -> list[int]:
    return [e.row for e in followed(watcher, values, cuts) if isinstance(e, events.DriftDetected)]


def test_errors_that_stop_falling_are_no_drift():
    # As a learner's do: the usual error falls to a fiftieth and stays there.
    falling = [(100, 50.0 / (1 + k)) for k in range(50)]
    for seed in range(10):
        assert drift_rows(watch(task="regression"), errors([*falling, (20_000, 1.0)], seed)) == []


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_drift_is_found_in_any_unit_and_after_any_progress(unit):
    for seed in range(5):
        values = unit * errors([(1000, 100.0), (5000, 1.0), (2000, 2.0)], seed)
        (row,) = drift_rows(watch(task="regression"), values)
        assert 6000 < row < 6400, f"seed {seed}"


@pytest.mark.parametrize("cuts", [tuple(range(1, 9000)), tuple(range(7, 9000, 7)), (250, 5040, 8000)])
def test_any_split_of_errors_finds_the_same(cuts):
    whole, pieces = watch(task="regression"), watch(task="regression")
    values = errors([(1000, 10.0), (4000, 1.0), (4000, 3.0)], 3)
    assert followed(whole, values) == followed(pieces, values, cuts)
    assert same_state(whole.state(), pieces.state())


def test_one_wild_error_does_not_blind_the_detector():
    for seed in range(5):
        values = errors([(6000, 1.0), (2000, 3.0)], seed)
        values[0, 3000] = 1e9
        (row,) = drift_rows(watch(task="regression"), values)
        assert 6000 < row < 6300, f"seed {seed}"
