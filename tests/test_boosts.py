"""`boosts.py`: earlier drifts decide how the next is met; a trial by itself changes no prediction."""

import numpy as np

from adaptd import boosts as boosts_module
from adaptd.boosts import ARMS, Boosts, named
from adaptd.contracts import LEARN, PREDICT
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench

# A tree is slow to see a reversed rule, so the drift is called; the linear learner is what a boost concerns.
POOL = {"tree": {"kind": "hoeffding_tree"}, "linear": {"kind": "linear"}}
ALONE = {"tree": {"kind": "hoeffding_tree"}, "pinned": {"kind": "linear", "ladder": False}}


def boosts_of(tree: dict | None = None, learners: dict | None = None) -> tuple[Boosts, Bench]:
    bench = Bench(tree, learners or ALONE).feed(streams.classes(640))
    return bench.lane.boosts, bench


def test_a_trial_follows_a_drift_and_is_journalled():
    bench = Bench({"control": {"pin": "tree"}}, POOL).feed(streams.reversals(2, 3000))
    drift = bench.events("drift_detected")[0][0]
    row, payload = bench.events("boosts_compared")[0]
    # Four stretches of 128 rows are kept, then each of the five arms walks them.
    assert drift < row <= drift + 128 + 24 * 128
    assert payload["rows"] == 512
    assert set(payload["gains"]) == {"linear"}
    assert payload["gains"]["linear"]["none"] == 0.0
    assert set(payload["gains"]["linear"]) == {named(arm) for arm in ARMS}
    assert payload["chosen"]["linear"] in {named(arm) for arm in ARMS}


def test_gains_are_those_of_copies_with_each_boost():
    boosts, bench = boosts_of()
    pool, layout = bench.lane.pool, bench.lane.layout
    boosts.begin(pool, 640, 128)
    trial = boosts.trial
    before = pool.slots[1].learner.state()
    x = np.random.default_rng(0).normal(size=(512, layout.n_features))
    x[:, 2] = 0.0
    y = (x[:, 0] < 0).astype(float)
    ones, op = np.ones(512), np.full(512, PREDICT | LEARN, np.uint8)
    for start in range(0, 512, 128):
        part = slice(start, start + 128)
        boosts.step(x[part], np.full((128, 5), np.nan), y[part], op[part], ones[part])
    rows = range(1152, 1152 + 20 * 128, 128)
    said = [boosts.go_on(pool, row) for row in rows]
    assert [bool(events) for events in said] == [False] * 19 + [True]
    gains = trial.gains()
    # The rule was turned round: more is better, and so is longer.
    assert gains[0] == 0.0 < gains[1] < gains[2] < gains[3]
    assert same_state(pool.slots[1].learner.state(), before)


def test_the_arm_that_helps_is_chosen_and_one_that_harms_is_left():
    boosts, bench = boosts_of()
    conclude_with(boosts, bench, 640, [100.0, 95.0, 80.0, 90.0, 99.0])
    assert boosts.boost_of("pinned") == ARMS[2]
    for row in (6000, 12000, 18000):
        conclude_with(boosts, bench, row, [100.0, 105.0, 130.0, 120.0, 150.0])
    assert boosts.boost_of("pinned") == ARMS[0]


def conclude_with(boosts: Boosts, bench: Bench, row: int, losses: list[float]) -> None:
    """A trial that ended with these losses."""
    boosts.begin(bench.lane.pool, row, 128)
    boosts.trial.losses[:, 0] = losses
    boosts.conclude(row + 512)


def test_learners_take_turns():
    pool = {**ALONE, "other": {"kind": "linear"}, "third": {"kind": "mlp"}}
    boosts, bench = boosts_of(learners=pool)
    tried = []
    for row in range(6000, 42_000, 6000):
        boosts.begin(bench.lane.pool, row, 128)
        tried.append(boosts.trial.name)
        boosts.trial = None
    assert tried == ["pinned", "other", "third"] * 2


def test_a_layout_that_grows_ends_the_trial():
    boosts, bench = boosts_of()
    boosts.begin(bench.lane.pool, 640, 128)
    bench.feed([{**record, "new": 1.0} for record in streams.classes(100, seed=5)])
    assert boosts.trial is None


def test_what_helps_by_next_to_nothing_is_no_boost():
    boosts, bench = boosts_of()
    conclude_with(boosts, bench, 640, [100.0, 99.9, 99.95, 99.99, 101.0])
    assert boosts.boost_of("pinned") == ARMS[0]


def test_until_a_trial_has_ended_and_when_told_so_the_boost_is_the_configured_one():
    boosts, _ = boosts_of({"rates": {"boost": 3.0, "half_life_rows": 99.0}})
    assert boosts.boost_of("pinned") == (3.0, 99.0)
    boosts.arms["pinned"] = 4
    assert boosts.boost_of("pinned") == ARMS[4]
    fixed, bench = boosts_of({"rates": {"learned": False}})
    fixed.arms["pinned"] = 4
    assert fixed.boost_of("pinned") == (4.0, 350.0)
    fixed.review(bench.lane.pool, True, 640, 128)
    assert fixed.trial is None


def test_trials_are_rare_however_many_drifts_there_are():
    boosts, bench = boosts_of()
    begun = 0
    for row in range(1280, 128_000, 640):
        before = boosts.tried_at
        boosts.review(bench.lane.pool, True, row, 128)
        begun += boosts.tried_at != before
        boosts.trial = None
    assert begun <= 127_000 // 4096 + 1


def test_a_trial_changes_no_prediction():
    records = streams.reversals(2, 3000)[:4200]
    with_trials = Bench({"rates": {"learned": True, "trial_rows": 4000}}, POOL).feed(records)
    without = Bench({"rates": {"learned": False}}, POOL).feed(records)
    assert with_trials.lane.boosts.trial is not None
    assert [v.tobytes() for v in with_trials.values] == [v.tobytes() for v in without.values]


def test_any_split_and_any_stop_within_a_trial_go_on_alike():
    records = streams.with_late_labels(streams.reversals(2, 5000), delay=20, share=0.3)[:13_000]
    for record in records[12_500:]:
        if "a" in record:
            record["late"] = 1.0
    whole = Bench(learners=POOL).feed(records)
    assert whole.events("boosts_compared")
    pieces = Bench(learners=POOL).feed(records, list(range(11, len(records), 11)))
    assert same_state(pieces.lane.state(), whole.lane.state())
    drift = whole.events("drift_detected")[0][0] * len(records) // whole.lane.learned
    # While rows are kept, and while an arm walks them.
    for at in (drift + 250, drift + 1500):
        first, second = Bench(learners=POOL).feed(records[:at]), Bench(learners=POOL)
        assert first.lane.boosts.trial.is_full == (at > drift + 1000)
        assert second.lane.load_state(first.lane.state()) == []
        second.decoder.load_state(first.decoder.state())
        second.feed(records[at:])
        assert same_state(second.lane.state(), whole.lane.state())


def test_a_learner_too_large_for_a_copy_keeps_the_configured_boost(monkeypatch):
    monkeypatch.setattr(boosts_module, "TRIAL_BYTES_MAX", 100)
    boosts, bench = boosts_of()
    boosts.begin(bench.lane.pool, 640, 128)
    assert boosts.trial is None
    assert boosts.boost_of("pinned") == (boosts.config.boost, boosts.config.half_life_rows)
