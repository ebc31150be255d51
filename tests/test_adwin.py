"""ADWIN: the window and the detector on it."""

import numpy as np
import pytest
from river import drift

from adaptd.contracts import DRIFT, STABLE, WARNING
from adaptd.detectors import adwin
from adaptd.kernels.adwin import ADWIN_SIZE, WIDTH, adwin_add, adwin_clear


def steps(seed, probabilities=(0.1, 0.3, 0.25, 0.7, 0.2, 0.25), n=2000):
    generator = np.random.default_rng(seed)
    return np.concatenate([(generator.random(n) < p).astype(float) for p in probabilities])


def levels_of(detector, values, block=1 << 20):
    levels = np.full(len(values), 9, dtype=np.uint8)
    for start in range(0, len(values), block):
        detector.step(values[start : start + block], levels[start : start + block])
    return levels


@pytest.mark.parametrize("delta", [0.002, 0.05])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_window_is_cut_at_the_rows_where_river_cuts(delta, noise):
    for seed in range(3):
        values = steps(seed) + noise * np.random.default_rng(seed).normal(size=12000)
        state = np.zeros(ADWIN_SIZE)
        river = drift.ADWIN(delta=delta)
        found, expected = [], []
        for row, value in enumerate(values.tolist()):
            if adwin_add(state, value, delta) != 0:
                found.append((row, state[WIDTH]))
                adwin_clear(state)
            river.update(value)
            if river.drift_detected:
                expected.append((row, river.width))
        assert found == expected
        assert len(found) >= 3


def test_direction_of_a_change_is_told():
    for values, direction in ((steps(1, (0.1, 0.6)), 1), (steps(1, (0.6, 0.1)), -1)):
        state = np.zeros(ADWIN_SIZE)
        changes = [adwin_add(state, value, 0.002) for value in values.tolist()]
        assert {change for change in changes if change} == {direction}


def test_rise_is_a_drift_and_a_fall_is_not():
    rise = levels_of(adwin.build(adwin.Config()), steps(2, (0.2, 0.5)))
    fall = levels_of(adwin.build(adwin.Config()), steps(2, (0.5, 0.2)))
    first = int(np.flatnonzero(rise == DRIFT)[0])
    assert 2000 < first < 2200
    assert (fall == STABLE).all()


def test_warning_comes_before_the_drift():
    warned = 0
    for seed in range(10):
        levels = levels_of(adwin.build(adwin.Config()), steps(seed, (0.2, 0.35)))
        first_drift = int(np.flatnonzero(levels == DRIFT)[0])
        warned += bool((levels[2000:first_drift] == WARNING).any())
    assert warned >= 7


def test_change_rows_reach_back_to_the_change():
    detector = adwin.build(adwin.Config())
    assert detector.change_rows() == 0
    levels = levels_of(detector, steps(3, (0.1, 0.6)))
    row = int(np.flatnonzero(levels == DRIFT)[0])
    since_change = row + 1 - 2000
    assert 0.5 * since_change <= detector.change_rows() <= since_change + 256


def test_after_a_drift_it_behaves_as_new():
    used = adwin.build(adwin.Config())
    values = steps(4, (0.1, 0.6))
    row = int(np.flatnonzero(levels_of(used, values) == DRIFT)[0])
    used = adwin.build(adwin.Config())
    levels_of(used, values[: row + 1])
    more = steps(5, (0.3, 0.6, 0.3, 0.7))
    assert levels_of(used, more).tolist() == levels_of(adwin.build(adwin.Config()), more).tolist()


def test_no_second_alarm_within_the_cooldown():
    config = adwin.Config(cooldown=700)
    levels = levels_of(adwin.build(config), steps(6, (0.1, 0.3, 0.5, 0.7, 0.9), n=800))
    drifts = np.flatnonzero(levels == DRIFT)
    assert len(drifts) >= 2
    for drift_row in drifts:
        assert (levels[drift_row + 1 : drift_row + 701] == STABLE).all()


def test_false_alarms_are_rare_on_a_stationary_signal():
    alarms = sum(
        int((levels_of(adwin.build(adwin.Config()), steps(seed, (0.2,), n=20000)) == DRIFT).sum())
        for seed in range(20)
    )
    assert alarms <= 2


def test_blocks_and_state_round_trip_give_the_same_levels_and_bits():
    values = steps(7)
    whole = adwin.build(adwin.Config())
    expected = levels_of(whole, values)
    first = adwin.build(adwin.Config())
    head = levels_of(first, values[:5001], block=37)
    second = adwin.build(adwin.Config())
    second.load_state(first.state())
    tail = levels_of(second, values[5001:], block=1)
    assert np.concatenate([head, tail]).tolist() == expected.tolist()
    assert second.state()["windows"].tobytes() == whole.state()["windows"].tobytes()


def test_values_that_are_no_numbers_are_passed_over():
    values = steps(8, (0.1, 0.6))
    spoiled = np.insert(values, 1000, [np.nan, np.inf])
    levels = levels_of(adwin.build(adwin.Config()), spoiled)
    expected = levels_of(adwin.build(adwin.Config()), values)
    assert np.delete(levels, [1000, 1001]).tolist() == expected.tolist()
