"""Every drift detector that the registry finds keeps the promises of `contracts.Detector`.

A detector's module declares what its defaults keep to on a signal that is 1 in 20 of 100 rows:
`FALSE_ALARMS_PER_MILLION` while that stays so, and `DELAY_ROWS`, in which it finds a step to 40 of 100.
"""

import itertools

import numpy as np
import pytest

from adaptd import registry
from adaptd.contracts import DRIFT, STABLE, WARNING
from adaptd.numerics import same_state

SEEDS = range(20)
STATIONARY_ROWS = 10_000

every_detector = pytest.mark.parametrize("kind", registry.kinds("detectors"))


def make(kind: str):
    module = registry.load("detectors", kind)
    return module.build(module.Config())


def wrong(*stretches: tuple[int, float], seed: int = 0) -> np.ndarray:
    """A signal of 0 and 1: for each stretch (rows, share of 1)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([(rng.random(rows) < share).astype(float) for rows, share in stretches])


def watch(detector, values, cuts=()):
    levels = np.full(len(values), 99, np.uint8)
    for a, b in itertools.pairwise([0, *cuts, len(values)]):
        block = np.full(b - a, 99, np.uint8)
        detector.step(values[a:b].copy(), block)
        levels[a:b] = block
    return levels


@every_detector
def test_false_alarms_stay_below_what_is_declared(kind):
    alarms = sum(
        (watch(make(kind), wrong((STATIONARY_ROWS, 0.2), seed=seed)) == DRIFT).sum() for seed in SEEDS
    )
    millions = len(SEEDS) * STATIONARY_ROWS / 1e6
    assert alarms <= registry.load("detectors", kind).FALSE_ALARMS_PER_MILLION * millions


@every_detector
def test_step_is_found_within_the_declared_rows(kind):
    for seed in SEEDS:
        detector = make(kind)
        watch(detector, wrong((2000, 0.2), seed=seed))
        levels = watch(detector, wrong((registry.load("detectors", kind).DELAY_ROWS, 0.4), seed=100 + seed))
        assert (levels == DRIFT).any(), f"seed {seed}"


@every_detector
def test_improvement_is_no_drift(kind):
    for seed in range(5):
        levels = watch(make(kind), wrong((2000, 0.4), (3000, 0.1), seed=seed))
        assert not (levels == DRIFT).any()


@every_detector
def test_change_rows_reach_back_to_the_change(kind):
    found = []
    for seed in range(10):
        detector = make(kind)
        watch(detector, wrong((2000, 0.1), seed=seed))
        after = wrong((1000, 0.6), seed=100 + seed)
        for row in range(1000):
            if watch(detector, after[row : row + 1])[0] == DRIFT:
                found.append((row + 1, detector.change_rows()))
                break
    assert len(found) == 10
    since, reported = np.median(found, axis=0)
    # 0 says "unknown", which a detector may answer.
    assert reported == 0 or 0.5 * since <= reported <= since + 256


@every_detector
def test_any_split_gives_the_same_levels(kind):
    values = wrong((1500, 0.1), (700, 0.6), (700, 0.95), seed=3)
    cuts = sorted(np.random.default_rng(1).choice(np.arange(1, 2900), size=80, replace=False).tolist())
    whole, pieces = make(kind), make(kind)
    levels = watch(whole, values)
    assert np.array_equal(levels, watch(pieces, values, cuts))
    assert same_state(whole.state(), pieces.state())
    assert set(levels) <= {STABLE, WARNING, DRIFT}
    assert (levels == DRIFT).any()


@every_detector
def test_state_round_trip_at_any_row_goes_on_alike(kind):
    values = wrong((1200, 0.1), (800, 0.6), seed=4)
    for row in (0, 1, 700, 1260, 1700):
        detector, other = make(kind), make(kind)
        watch(detector, values[:row])
        other.load_state(detector.state())
        assert np.array_equal(watch(detector, values[row:]), watch(other, values[row:]))
        assert detector.change_rows() == other.change_rows()


@every_detector
def test_after_drift_it_behaves_as_new(kind):
    detector = make(kind)
    before = wrong((1500, 0.1), (1000, 0.7), seed=5)
    for row in range(len(before)):
        if watch(detector, before[row : row + 1])[0] == DRIFT:
            break
    else:
        pytest.fail("the step was not found")
    after = wrong((2000, 0.3), (1000, 0.8), seed=6)
    levels = watch(detector, after)
    assert np.array_equal(levels, watch(make(kind), after))
    assert (levels == DRIFT).any()


@every_detector
def test_scaled_errors_of_regression_do_not_alarm_while_they_stay_alike(kind):
    errors = np.minimum(np.random.default_rng(7).exponential(1.0, 5000), 4.0) / 4.0
    assert not (watch(make(kind), errors) == DRIFT).any()


@every_detector
def test_constant_signal_is_stable(kind):
    for value in (0.0, 1.0):
        assert not (watch(make(kind), np.full(3000, value)) == DRIFT).any()


@every_detector
def test_missing_value_does_not_blind_it(kind):
    values = wrong((1500, 0.1), (1000, 0.7), seed=8)
    values[[3, 900]] = np.nan
    assert (watch(make(kind), values)[1500:] == DRIFT).any()


def test_page_hinkley_warns_before_it_alarms():
    levels = watch(make("page_hinkley"), wrong((2000, 0.2), (400, 0.5), seed=9))
    assert 2000 < np.argmax(levels == WARNING) < np.argmax(levels == DRIFT)
    assert not (levels[:2000] == WARNING).any()
