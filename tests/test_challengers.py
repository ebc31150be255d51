"""`challengers.py`: who starts in the background when the world may have changed, and what becomes of it."""

import numpy as np
import pytest

from adaptd import challengers, config, places, registry
from adaptd.challengers import ACTIONS, FAMILY, mutable, mutated
from adaptd.contracts import LEARN, PREDICT, Layout
from adaptd.numerics import same_state
from adaptd.pool import build_slot
from tests import streams
from tests.lanes import Bench

# A tree forgets nothing: after the rule has turned round, one that is built anew must soon be better.
LEARNERS = {
    "tree": {"kind": "hoeffding_tree"},
    "linear": {"kind": "linear"},
    "lagged": {"kind": "hoeffding_tree", "lagged": True},
}
STRETCH = 2500
ALONE = {"memory": {"enabled": False}}
# Control points so close that a challenger has rows to learn aside before it comes to its place.
CLOSE = ALONE | {"control": {"rows": 32}}


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return streams.reversals(3, STRETCH)


@pytest.fixture(scope="module")
def whole(records) -> Bench:
    return Bench(learners=LEARNERS).feed(records)


def only(bench: Bench, action: str) -> Bench:
    """Let the bench try no other action: what is known of the others speaks against them."""
    for other in ACTIONS:
        if other != action:
            kinds = {slot.kind for slot in bench.lane.pool.slots}
            bench.lane.strategy.experience.sums[other] = {kind: [-50.0, 0.0, 50.0] for kind in kinds}
    return bench


def test_a_drift_raises_a_challenger_and_the_better_one_takes_the_slot(whole):
    raised, promoted = whole.events("challenger_raised"), whole.events("challenger_promoted")
    assert raised
    assert promoted
    for row, payload in raised:
        assert row % 128 == 0
        assert payload["replay_rows"] <= 1000
        assert payload["challenger"].startswith(f"{FAMILY}_")
        assert payload["action"] in ACTIONS
    row, payload = promoted[0]
    assert payload["loss_saved"] > 0
    assert any(row > start and payload["learner"] == about["learner"] for start, about in raised)
    counts = whole.lane.strategy.challengers.counts
    told = {"raised": raised, "promoted": promoted, "retired": whole.events("challenger_retired")}
    for action in ACTIONS:
        for outcome, found in told.items():
            assert counts[f"{action}_{outcome}"] == sum(about["action"] == action for _, about in found)


def test_it_is_promoted_only_above_the_bound(whole):
    settings = whole.lane.strategy.challengers_config
    for _, payload in whole.events("challenger_promoted"):
        assert payload["evidence"] >= settings.evidence * settings.trial_rows
    for _, payload in whole.events("challenger_retired"):
        assert payload["evidence"] < settings.evidence * settings.trial_rows


def test_one_that_is_no_better_is_promoted_in_one_of_twenty_at_most():
    rows, seeds, settings = 2048, 200, challengers.Config()
    won = 0
    for seed in range(seeds):
        comparison = places.Comparison(1, is_number=False)
        comparison.add_place()
        comparison.start(1, 0)
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, rows).astype(float)
        # Sure of itself and as often wrong as the other: the differences are as great as can be.
        said = np.zeros((2, rows, 2))
        for learner in said:
            wrong = rng.random(rows) < 0.3
            learner[np.arange(rows), np.where(wrong, 1 - y, y).astype(int)] = 1.0
        op, ones = np.full(rows, PREDICT | LEARN, np.uint8), np.ones(rows)
        for start in range(0, rows, 128):
            part = slice(start, start + 128)
            comparison.step(np.ascontiguousarray(said[:, part]), said[0, part], y[part], op[part], ones[part])
            if comparison.is_better(1) >= settings.evidence * settings.trial_rows:
                won += 1
                break
    assert won <= seeds / settings.evidence


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_reads_of_any_size_raise_the_same(step):
    records = streams.with_late_labels(streams.reversals(2, 1700), delay=60, share=0.3)
    first = Bench(learners=LEARNERS).feed(records)
    second = Bench(learners=LEARNERS).feed(records, list(range(step, len(records), step)))
    assert first.events("challenger_raised")
    assert [value.tobytes() for value in first.values] == [value.tobytes() for value in second.values]
    assert same_state(first.lane.state(), second.lane.state())
    assert first.journal.read(last=10_000) == second.journal.read(last=10_000)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("after", [0, 10, 32, 64])
def test_a_stop_with_a_challenger_in_flight_leaves_no_trace(records, action, after):
    straight = only(Bench(CLOSE, LEARNERS), action).feed(records[:4200])
    stop = straight.events("challenger_raised")[0][0] + after
    first = only(Bench(CLOSE, LEARNERS), action).feed(records[:stop])
    [challenger] = first.lane.strategy.challengers.challengers.values()
    assert (challenger.slot is not None) == (after < 32 and action != "mutate")
    second = Bench(CLOSE, LEARNERS)
    assert second.lane.load_state(first.lane.state()) == []
    second.decoder.load_state(first.decoder.state())
    second.feed(records[stop:4200])
    values = first.values + second.values
    assert [value.tobytes() for value in values] == [value.tobytes() for value in straight.values]
    assert same_state(second.lane.state(), straight.lane.state())


@pytest.mark.parametrize("after", [10, 80], ids=["while it learns aside", "in its place"])
def test_one_that_fails_is_retired_and_nobody_else(records, after):
    straight = only(Bench(CLOSE, LEARNERS), "fresh").feed(records[:4200])
    stop = straight.events("challenger_raised")[0][0] + after
    bench = only(Bench(CLOSE, LEARNERS), "fresh").feed(records[:stop])
    [(index, challenger)] = bench.lane.strategy.challengers.challengers.items()
    assert (challenger.slot is None) == (after == 80)

    def fail(*block: object) -> None:
        raise ArithmeticError("overflow")

    (challenger.slot or bench.lane.pool.slots[index]).learner.step = fail
    bench.feed(records[stop:4200])
    retired = bench.events("challenger_retired")
    assert (retired[0][0] - stop, retired[0][1]["reason"]) == (-stop % 32, "failed")
    assert all(slot.is_place or not slot.set_aside for slot in bench.lane.pool.slots)
    assert np.isfinite(np.concatenate([np.ravel(value) for value in bench.values])).all()


def test_places_rows_and_bytes_are_bounded(records):
    one = Bench({"challengers": {"places_max": 1}}, LEARNERS).feed(records)
    assert len(places.indices(one.lane.pool, FAMILY)) == 1
    few = Bench({"challengers": {"rows_share": 1e-6}}, LEARNERS).feed(records)
    assert len(few.events("challenger_raised")) == 2
    none = Bench({"challengers": {"bytes_max": 100_000}}, LEARNERS).feed(records)
    assert all(payload["learner"] == "linear" for _, payload in none.events("challenger_raised"))


def test_rows_before_the_change_are_not_replayed(whole):
    for row, payload in whole.events("challenger_raised"):
        changes = [start for start in (STRETCH, 2 * STRETCH) if start < row]
        if payload["action"] != "mutate" and changes and row - changes[-1] < 500:
            assert payload["replay_rows"] <= row - changes[-1] + 64


def test_a_promoted_mutant_survives_a_restart_and_a_reset_undoes_it(records):
    bench = only(Bench(ALONE, LEARNERS), "mutate").feed(records[:3200])
    lane, raised = bench.lane, bench.events("challenger_raised")
    parts = lane.strategy.challengers
    (index,) = list(parts.challengers)[:1]
    relative = lane.pool.names.index(parts.challengers[index].relative)
    slot = lane.pool.slots[relative]
    parts.promote(lane, index, relative)
    assert raised[0][1]["options"] != slot.options_told
    assert slot.options != slot.options_told
    again = Bench(ALONE, LEARNERS)
    assert again.lane.load_state(lane.state()) == []
    assert again.lane.pool.slots[relative].options == slot.options
    again.decoder.load_state(bench.decoder.state())
    bench.values, again.values = [], []
    bench.feed(records[3200:3600])
    again.feed(records[3200:3600])
    assert [value.tobytes() for value in bench.values] == [value.tobytes() for value in again.values]
    changed = {"linear": {"clip": 2.0}, "hoeffding_tree": {"tie": 0.2}}[slot.kind]
    other = Bench(ALONE, {**LEARNERS, slot.name: {"kind": slot.kind, **slot.options_told, **changed}})
    assert slot.name in other.lane.load_state(lane.state())
    lane.commands = [("reset", slot.name)]
    bench.feed(records[3600:3800])
    assert bench.events("learner_reset")
    assert lane.pool.slots[relative].options == slot.options_told


def test_what_actions_saved_teaches_the_next_choice(whole):
    sums = whole.lane.strategy.experience.sums
    concluded = [*whole.events("challenger_promoted"), *whole.events("challenger_retired")]
    tried = {payload["action"] for _, payload in concluded if payload["loss_saved"] is not None}
    assert tried == {action for action in ACTIONS if sums[action]}


def test_asleep_it_changes_nothing(records):
    tree = {"challengers": {"enabled": False}} | ALONE
    bench = Bench(tree, LEARNERS).feed(records[:3500])
    assert not any(slot.is_place for slot in bench.lane.pool.slots)
    assert not bench.events("challenger_raised")


def test_with_another_pool_the_experience_stays_and_challengers_go(records):
    bench = Bench(ALONE, LEARNERS).feed(records[:2650])
    assert bench.lane.strategy.challengers.challengers
    other = Bench(ALONE, {**LEARNERS, "prior": {"kind": "prior"}})
    other.lane.load_state(bench.lane.state())
    parts = other.lane.strategy.challengers
    assert not parts.challengers
    assert other.lane.strategy.experience.sums == bench.lane.strategy.experience.sums
    assert all(places.is_empty(slot) for slot in other.lane.pool.slots if slot.is_place)
    other.decoder.load_state(bench.decoder.state())
    other.feed(records[2650:3000])


KINDS = [kind for kind in registry.kinds("learners") if mutable(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_fits_every_mutation(kind):
    layout = Layout("classification", (0, 0), (0, 0), 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = (x[:, 0] > 0).astype(float)
    op, ones = np.full(400, PREDICT | LEARN, np.uint8), np.ones(400)
    slot = build_slot("it", {"kind": kind}, layout, 0)
    slot.learner.step(x, y, op, ones, np.full((400, 2), np.nan))
    for row in range(20):
        options = mutated(slot, 0, row)
        assert set(options) == set(mutable(kind))
        other = build_slot("it", {"kind": kind, **options}, layout, 0)
        other.learner.load_state(slot.learner.state())
        out = np.full((400, 2), np.nan)
        other.learner.step(x, y, op, ones, out)
        assert np.isfinite(out).all()
        assert mutated(slot, 0, row) == options


def test_what_may_be_mutated_is_an_option_with_a_number():
    for kind in registry.kinds("learners"):
        module = registry.load("learners", kind)
        names = {name for name, *_ in config.documentation(module.Config)}
        assert set(getattr(module, "MUTABLE", ())) <= names
