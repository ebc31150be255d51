"""`rates.py`: a drift raises the learning rates, softly and for a while."""

import msgspec
import numpy as np
import pytest

from adaptd.numerics import same_state
from adaptd.rates import Config, RateControl


def test_rates_start_at_their_own():
    rates = RateControl(Config(), 3)
    assert rates.scales.tolist() == [1.0, 1.0, 1.0]
    assert not rates.is_boosted()


def test_drift_boosts_every_learner():
    rates = RateControl(Config(boost=3.0), 2)
    rates.review(drifted=True, rows=128)
    assert rates.scales.tolist() == [3.0, 3.0]
    assert rates.is_boosted()


def test_half_of_the_boost_wears_off_in_a_half_life():
    rates = RateControl(Config(boost=5.0, half_life_rows=200.0), 1)
    rates.review(drifted=True, rows=100)
    rates.review(drifted=False, rows=100)
    rates.review(drifted=False, rows=100)
    assert rates.scales[0] == pytest.approx(3.0)


def test_boost_ends_at_exactly_one():
    rates = RateControl(Config(), 2)
    rates.review(drifted=True, rows=128)
    for _ in range(100):
        rates.review(drifted=False, rows=128)
    assert rates.scales.tolist() == [1.0, 1.0]
    assert not rates.is_boosted()


def test_second_drift_does_not_pile_up():
    rates = RateControl(Config(boost=4.0), 1)
    rates.review(drifted=True, rows=128)
    rates.review(drifted=True, rows=128)
    assert rates.scales[0] == 4.0


def test_disabled_leaves_the_rates_alone():
    rates = RateControl(Config(enabled=False), 2)
    rates.review(drifted=True, rows=128)
    assert rates.scales.tolist() == [1.0, 1.0]


def test_rebuilt_learner_starts_at_its_own_rate():
    rates = RateControl(Config(boost=2.0), 2)
    rates.review(drifted=True, rows=128)
    rates.reset_learner(1)
    assert rates.scales.tolist() == [2.0, 1.0]


def test_state_round_trip_goes_on_alike():
    rates, other = RateControl(Config(), 2), RateControl(Config(), 2)
    rates.review(drifted=True, rows=128)
    other.load_state(rates.state())
    for control in (rates, other):
        control.review(drifted=False, rows=77)
    assert same_state(rates.state(), other.state())
    assert rates.scales[0] > 1.0


def test_state_is_a_copy():
    rates = RateControl(Config(), 2)
    state = rates.state()
    rates.review(drifted=True, rows=128)
    rates.reset_learner(0)
    assert np.array_equal(state["scales"], [1.0, 1.0])


@pytest.mark.parametrize("fault", [{"boost": 0.5}, {"half_life_rows": 0}, {"bost": 4.0}])
def test_wrong_config_is_refused(fault):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fault, Config)
