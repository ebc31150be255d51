"""Intervals and sets of classes hold the truth as often as asked, and are judged as they were given."""

import itertools
import json
import math

import numpy as np
import pytest

from adaptd import answers, coverage, predictions
from adaptd.contracts import LEARN, PREDICT, Layout
from adaptd.kernels import conformal
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench
from tests.services import Running

ROWS = 12_000


def noisy(seed=0):
    """A regression whose noise grows fivefold in the middle, and whose forecast is off after two thirds."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=ROWS) * np.where(np.arange(ROWS) < ROWS // 2, 1.0, 5.0)
    said = np.where(np.arange(ROWS) < 2 * ROWS // 3, 0.0, 4.0)[:, None]
    return said, y


def shifty(seed=0):
    """Three classes whose probabilities are honest for a while, then far too sure."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet([1.0, 1.0, 1.0], size=ROWS)
    y = np.array([rng.choice(3, p=p) for p in honest], float)
    sure = honest**3 / (honest**3).sum(axis=1, keepdims=True)
    return np.where((np.arange(ROWS) < ROWS // 2)[:, None], honest, sure), y


STREAMS = {"regression": noisy, "classification": shifty}
every_task = pytest.mark.parametrize("task", STREAMS)


def make(task, asked=0.9):
    return coverage.Coverage(asked, Layout(task, n_classes=3 if task == "classification" else 0))


def walk(bounds, said, y, op=None, cuts=()):
    op = np.full(len(y), PREDICT | LEARN, np.uint8) if op is None else op
    given = np.full((len(y), coverage.GIVEN), np.nan)
    for a, b in itertools.pairwise([0, *cuts, len(y)]):
        part = given[a:b].copy()
        bounds.step(said[a:b], y[a:b], op[a:b], np.arange(b - a), part)
        given[a:b] = part
    return given


def inside(task, said, given, y):
    if task == "regression":
        low, high = coverage.interval(said, given)
        return (low <= y) & (y <= high)
    return coverage.members(said, given)[np.arange(len(y)), y.astype(int)]


@every_task
@pytest.mark.parametrize("asked", [0.5, 0.8, 0.9, 0.95])
def test_the_truth_is_inside_as_often_as_asked_whatever_happens(task, asked):
    said, y = STREAMS[task]()
    bounds = make(task, asked)
    held = inside(task, said, walk(bounds, said, y), y)
    assert held.mean() == pytest.approx(asked, abs=0.005)
    windows = np.convolve(held, np.ones(1000) / 1000, "valid")
    assert windows.min() > asked - 0.025
    figures = bounds.figures()
    assert figures["reached"] == pytest.approx(held.mean(), abs=1e-12)
    assert figures["worst_window"] == pytest.approx(windows.min(), abs=1e-9)
    assert figures["best_window"] == pytest.approx(windows.max(), abs=1e-9)


def test_intervals_follow_the_noise():
    said, y = noisy()
    low, high = coverage.interval(said, walk(make("regression"), said, y))
    width = high - low
    calm, wild = width[1000 : ROWS // 2], width[ROWS // 2 + 300 : 2 * ROWS // 3]
    # Nine tenths of a normal variable lie within 1.64 deviations on both sides.
    assert np.median(calm) == pytest.approx(3.29, rel=0.1)
    assert np.median(wild) == pytest.approx(5 * 3.29, rel=0.15)


def test_sets_are_no_larger_than_they_must_be():
    said, y = shifty()
    members = coverage.members(said, walk(make("classification"), said, y))[2000 : ROWS // 2]
    # What the honest probabilities themselves would give: the smallest threshold that holds 0.9.
    honest = said[2000 : ROWS // 2]
    thresholds = np.linspace(0, 1, 500)
    held = [(honest * (honest >= threshold)).sum(axis=1).mean() for threshold in thresholds]
    best = thresholds[np.flatnonzero(np.array(held) >= 0.9)[-1]]
    assert members.sum(axis=1).mean() < 1.06 * (honest >= best).sum(axis=1).mean()


@every_task
def test_any_cut_gives_the_same_bits(task):
    said, y = STREAMS[task]()
    cuts = sorted(np.random.default_rng(1).choice(np.arange(1, ROWS), 100, replace=False).tolist())
    whole, pieces = make(task), make(task)
    assert walk(whole, said, y).tobytes() == walk(pieces, said, y, cuts=cuts).tobytes()
    assert same_state(whole.state(), pieces.state())


@every_task
def test_asking_changes_nothing_and_state_goes_on(task):
    said, y = STREAMS[task]()
    bounds, other = make(task), make(task)
    walk(bounds, said[:700], y[:700])
    before = bounds.state()
    now = bounds.now(said[700:710])
    assert same_state(before, bounds.state())
    other.load_state(before)
    assert other.now(said[700:710]).tobytes() == now.tobytes()
    assert walk(other, said[700:], y[700:]).tobytes() == walk(bounds, said[700:], y[700:]).tobytes()


def test_the_window_is_the_last_residuals_in_order():
    said, y = noisy()
    bounds = make("regression")
    walk(bounds, said[:5000], y[:5000])
    assert (np.diff(bounds.ordered) >= 0).all()
    assert np.array_equal(np.sort(bounds.ring), bounds.ordered)
    assert bounds.moving[conformal.COUNT] == len(bounds.ring) == 500


def test_before_enough_rows_nobody_can_say():
    said, y = noisy()
    given = walk(make("regression"), said[:40], y[:40])
    assert np.isinf(given[:9, 0]).all()
    assert np.isfinite(given[9:, 0]).all()


def test_rows_without_a_prediction_are_not_judged():
    said, y = noisy()
    said = said.copy()
    said[:100] = np.nan
    bounds = make("regression")
    given = walk(bounds, said[:200], y[:200])
    assert np.isnan(given[:100, 0]).all()
    assert bounds.moving[conformal.ROWS] == 100


# In the lane and on the line.


def lines(records, tree, cuts=(), bench=None):
    bench, form, found = bench or Bench(tree), predictions.JsonLines(), []
    for a, b in itertools.pairwise([0, *cuts, len(records)]):
        read = bench.decoder.decode(streams.lines(records[a:b]), bench.lane.schema.kinds)
        for part in bench.lane.process(read):
            text = answers.formatted(form, part, bench.lane.classes.spellings)
            found += [json.loads(line) for line in text.splitlines()]
    return found, bench


COVERED = {"output": {"coverage": 0.8}, "control": {"rows": 16}}


@pytest.mark.parametrize(
    "records", [streams.numbers(1500), streams.classes(1500)], ids=["numbers", "classes"]
)
def test_late_labels_are_judged_by_what_was_printed(records):
    stream = streams.with_late_labels(records, delay=70, share=0.4)
    found, bench = lines(stream, COVERED)
    truth = {record["id"]: record["y"] for record in records}
    judged = hits = 0
    for line in found:
        if "interval" in line:
            if line["prediction"] is None:
                continue
            low, high = line["interval"] or (-math.inf, math.inf)
            hits += low <= truth[line["id"]] <= high
        elif line["proba"]:
            hits += truth[line["id"]] in line["classes"]
        else:
            continue
        judged += 1
    moving = bench.lane.coverage.moving
    assert judged == moving[conformal.ROWS]
    assert judged - hits == moving[conformal.MISSES]
    assert hits / judged == pytest.approx(0.8, abs=0.03)
    cut, other = lines(stream, COVERED, range(7, len(stream), 7))
    assert cut == found
    assert same_state(other.lane.state(), bench.lane.state())


@pytest.mark.parametrize("stop", [5, 333])
def test_a_stop_at_any_row_leaves_no_trace(stop):
    stream = streams.with_late_labels(streams.numbers(600), delay=50, share=0.5)
    whole, bench = lines(stream, COVERED)
    first, before = lines(stream[:stop], COVERED)
    after = Bench(COVERED)
    assert after.lane.load_state(before.lane.state()) == []
    after.decoder.load_state(before.decoder.state())
    second, _ = lines(stream[stop:], COVERED, bench=after)
    assert first + second == whole
    assert same_state(after.lane.state(), bench.lane.state())


def test_nothing_is_said_unasked_and_another_coverage_starts_fresh():
    found, bench = lines(streams.numbers(50), {})
    assert not {"interval", "classes"} & found[-1].keys()
    assert bench.lane.coverage is None
    asked = Bench(COVERED)
    assert asked.lane.load_state(bench.lane.state()) == ["coverage"]


def test_the_api_gives_intervals_and_the_figures():
    with Running(COVERED) as running:
        running.learn(streams.numbers(300))
        (line,) = running.post("predict", {"a": 0.5, "b": 1.0})["predictions"]
        low, high = line["interval"]
        assert low < line["prediction"] < high
        while (figures := running.get("status")["coverage"])["reached"] is None:
            pass
        assert figures["asked"] == 0.8
        page = running.client.get(f"{running.url}/metrics").text
        assert "adaptd_coverage_asked 0.8" in page
