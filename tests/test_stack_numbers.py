"""The stack with numbers: noise costs it next to nothing, and what proves right after noise is heard."""

import numpy as np
import pytest

from adaptd import pool, reload
from adaptd.errors import CheckpointError
from tests import streams
from tests.lanes import Bench
from tests.test_controller_contract import labelled, make, walk

NOISE = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy_tails": lambda rng, n: rng.standard_t(3, size=n),
    "moving_mean": lambda rng, n: 0.01 * np.cumsum(rng.normal(size=n)) + rng.normal(size=n),
}


@pytest.mark.parametrize("kind", NOISE)
def test_targets_that_nothing_tells_cost_the_blend_next_to_nothing(kind):
    """The default pool, 1,500 rows, three seeds: on average within 0.5 % of the best learner."""
    gaps = []
    for seed in (100, 101, 102):
        rng = np.random.default_rng(seed)
        y = NOISE[kind](rng, 1500)
        x = rng.normal(size=(1500, 8))
        records = [
            {**{f"x{j}": value for j, value in enumerate(row)}, "y": target}
            for row, target in zip(x.tolist(), y.tolist(), strict=True)
        ]
        lane = Bench({"schema": {"task": "regression"}}, learners={}).feed(records).lane
        errors = [sums["mae"] for sums in map(lane.scores.cumulative, range(len(lane.scores.sums)))]
        # Who joined later was scored on other rows.
        first = [lane.pool.names.index(name) for name in pool.chosen(lane.config, "regression")]
        gaps.append(errors[-1] / min(errors[k] for k in first) - 1.0)
    assert np.mean(gaps) < 0.005


def test_what_proves_right_after_a_thousand_rows_of_noise_is_heard_within_fifty():
    """Then two groups of learners err alike, one twice as much: together they know what none of them does."""
    rng = np.random.default_rng(0)
    noise, signal = 1000, 500
    y = rng.normal(size=noise + signal)
    said = 0.3 * rng.normal(size=(6, noise + signal))
    shared = rng.normal(size=signal)
    said[:3, noise:] += y[noise:] + shared
    said[3:, noise:] += y[noise:] + 2.0 * shared
    out = walk(make("stack", "regression", 6), labelled(said[:, :, None].copy(), y))[:, 0]
    late = slice(noise + 50, noise + signal)
    best = np.abs(said[:, late] - y[late]).mean(axis=1).min()
    assert np.abs(out[late] - y[late]).mean() < 0.5 * best


def test_a_checkpoint_from_before_the_lasting_shares_goes_on():
    lane = Bench().feed(streams.numbers(300)).lane
    state = lane.state()
    for name in ("lasting", "worth", "answers"):
        del state["controller"]["state"][name]
    later = Bench()
    assert reload.resume(later.lane, state) == []
    assert np.isfinite(later.feed(streams.numbers(400)[300:]).values).all()
    del state["scores"]
    with pytest.raises(CheckpointError, match="lacks 'scores': another version of adaptd wrote it"):
        reload.resume(Bench().lane, state)
