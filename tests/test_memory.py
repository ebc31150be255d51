"""`memory.py`: what was known comes back when the world does."""

import numpy as np
import pytest

from adaptd.memory import FAMILY, unlikeness
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench

# A tree forgets nothing and a linear learner must turn round: both have to gain from a memory.
LEARNERS = {
    "linear": {"kind": "linear"},
    "tree": {"kind": "hoeffding_tree"},
    "forest": {"kind": "forest", "trees": 3},
    "lagged": {"kind": "linear", "lagged": True},
}
VISIT = 2500
ASLEEP = {"memory": {"enabled": False}, "challengers": {"enabled": False}}


def returning(visits: int = 5, rows: int = VISIT, seed: int = 0) -> list[dict]:
    """Two rules that take turns: the sign of a product, and that of a sum."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(visits * rows):
        a, b, c = rng.normal(size=3)
        score = a * b if (i // rows) % 2 == 0 else a + c
        label = "up" if (score > 0) != (rng.random() < 0.03) else "down"
        records.append({"id": i, "a": round(a, 6), "b": round(b, 6), "c": round(c, 6), "y": label})
    return records


def accuracy(bench: Bench, records: list[dict], start: int, stop: int) -> float:
    said = bench.predictions()[start:stop]
    return float(np.mean([a == f'"{b["y"]}"' for a, b in zip(said, records[start:stop], strict=True)]))


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return returning()


@pytest.fixture(scope="module")
def whole(records) -> Bench:
    return Bench(learners=LEARNERS).feed(records)


def test_a_concept_that_returns_is_recalled_and_named(whole):
    stored = {payload["concept"]: row for row, payload in whole.events("concept_stored")}
    recalls = whole.events("concept_recalled")
    assert recalls
    for row, payload in recalls:
        assert payload["first_seen"] <= stored[payload["concept"]] < row
        assert payload["learners"]
        assert payload["evidence"] > 0
        assert row % 128 == 0
    assert whole.lane.strategy.memory.recalls == len(recalls)
    assert whole.lane.strategy.experience.sums["recall"]


def test_what_was_known_is_known_soon_after_the_return(whole, records):
    without = Bench(ASLEEP, LEARNERS).feed(records)
    gained = [
        accuracy(whole, records, start + 200, start + 1000)
        - accuracy(without, records, start + 200, start + 1000)
        for start in (2 * VISIT, 3 * VISIT, 4 * VISIT)
    ]
    assert np.mean(gained) > 0.02
    steady = [accuracy(whole, records, start - 1000, start) for start in (VISIT, 3 * VISIT)]
    assert accuracy(whole, records, 4 * VISIT + 200, 4 * VISIT + 1000) > np.mean(steady) - 0.03


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_reads_of_any_size_remember_the_same(step):
    records = streams.with_late_labels(returning(3, 1500), delay=60, share=0.3)
    tree = {"memory": {"stable_rows": 300, "concepts_max": 1}}
    first = Bench(tree, LEARNERS).feed(records)
    second = Bench(tree, LEARNERS).feed(records, list(range(step, len(records), step)))
    assert first.lane.strategy.memory.concepts
    assert [value.tobytes() for value in first.values] == [value.tobytes() for value in second.values]
    assert same_state(first.lane.state(), second.lane.state())
    assert first.journal.read(last=10_000) == second.journal.read(last=10_000)


@pytest.mark.parametrize("stop", [1800, 2700, 5200])
def test_a_stop_in_any_regime_leaves_no_trace(records, whole, stop):
    first = Bench(learners=LEARNERS).feed(records[:stop])
    second = Bench(learners=LEARNERS)
    assert second.lane.load_state(first.lane.state()) == []
    second.decoder.load_state(first.decoder.state())
    second.feed(records[stop:])
    values = first.values + second.values
    assert [value.tobytes() for value in values] == [value.tobytes() for value in whole.values]
    assert same_state(second.lane.state(), whole.lane.state())


def test_frozen_means_frozen(records):
    bench = Bench({"memory": {"stable_rows": 500}}, LEARNERS).feed(records[:2400])
    places = [slot for slot in bench.lane.pool.slots if slot.is_place and slot.kind]
    assert places
    assert places[0].frozen
    before = places[0].learner.state()
    bench.feed(records[2400:2450])
    assert same_state(before, places[0].learner.state())


def test_the_least_useful_concept_makes_room():
    records = returning(4, 1500)
    tree = {"memory": {"stable_rows": 300, "concepts_max": 1}, "challengers": {"enabled": False}}
    bench = Bench(tree, LEARNERS).feed(records)
    assert len(bench.lane.strategy.memory.concepts) == 1
    assert bench.events("concept_dropped")
    assert [slot.name for slot in bench.lane.pool.slots if slot.is_place] == [f"{FAMILY}_1"]


def test_what_does_not_fit_the_bytes_is_left_out(records):
    bench = Bench({"memory": {"bytes_max": 100_000}}, LEARNERS).feed(records[:4000])
    for concept in bench.lane.strategy.memory.concepts.values():
        assert "forest" not in concept.learners
    tree = {"memory": {"bytes_max": 100_000, "concepts_max": 32}}
    only_large = {name: LEARNERS[name] for name in ("tree", "forest")}
    none = Bench(tree, only_large).feed(records[:2600])
    assert not none.lane.strategy.memory.concepts


def test_one_world_is_one_concept():
    records = streams.classes(6000)
    bench = Bench(learners=LEARNERS).feed(records)
    assert len(bench.events("concept_stored")) == 1
    assert not bench.events("concept_recalled")


def test_asleep_it_changes_nothing(records):
    bench = Bench(ASLEEP, LEARNERS).feed(records[:3000])
    assert not any(slot.is_place for slot in bench.lane.pool.slots)
    assert not bench.events("concept_stored")


def test_a_pool_of_one_has_no_memory(records):
    bench = Bench(learners={"tree": {"kind": "hoeffding_tree"}}).feed(records[:3000])
    assert not any(slot.is_place for slot in bench.lane.pool.slots)


def test_numbers_are_remembered_too():
    rng = np.random.default_rng(3)
    records = []
    for i in range(10_000):
        a, b = rng.normal(size=2)
        y = 3 * a - b if (i // 2500) % 2 == 0 else 5 * b * b
        records.append({"id": i, "a": round(a, 6), "b": round(b, 6), "y": round(y + rng.normal() * 0.1, 4)})
    tree = {"schema": {"task": "regression"}}
    bench = Bench(tree, LEARNERS).feed(records)
    without = Bench(tree | ASLEEP, LEARNERS).feed(records)
    truth = np.array([record["y"] for record in records])
    late = slice(5200, 6000)
    error, plain = (np.abs(np.array(run.numbers()) - truth)[late].mean() for run in (bench, without))
    assert bench.lane.strategy.memory.concepts
    assert error < 1.05 * plain


def test_features_and_classes_that_came_later_do_not_break_a_recall():
    records = returning(4, 2000)
    for record in records[2500:]:
        record["d"] = 1.0
    for record in records[3000:3010]:
        record["y"] = "sideways"
    bench = Bench({"memory": {"stable_rows": 500}}, LEARNERS).feed(records)
    assert bench.events("concept_recalled")
    assert accuracy(bench, records, 6500, 8000) > 0.8


def test_a_changed_pool_keeps_its_concepts(records, whole):
    bench = Bench(learners=LEARNERS | {"prior": {"kind": "prior"}})
    fresh = bench.lane.load_state(whole.lane.state())
    assert "prior" in fresh
    kept, before = bench.lane.strategy.memory.concepts, whole.lane.strategy.memory.concepts
    assert [concept.first_row for concept in kept.values()] == [c.first_row for c in before.values()]
    names, former = bench.lane.pool.names, whole.lane.pool.names
    assert [names[index] for index in kept] == [former[index] for index in before]
    bench.decoder.load_state(whole.decoder.state())
    bench.feed(records[:1000])


def test_switched_off_later_the_places_are_gone(records, whole):
    bench = Bench(ASLEEP, LEARNERS)
    bench.lane.load_state(whole.lane.state())
    assert not any(slot.is_place for slot in bench.lane.pool.slots)
    bench.decoder.load_state(whole.decoder.state())
    bench.feed(records[:500])


def test_commands_leave_places_alone(records, whole):
    bench = Bench(learners=LEARNERS)
    bench.lane.load_state(whole.lane.state())
    bench.decoder.load_state(whole.decoder.state())
    name = next(slot.name for slot in bench.lane.pool.slots if slot.is_place)
    bench.lane.commands.append(("reset", name))
    bench.feed(records[:256])
    assert bench.events("command_refused")[0][1]["learner"] == name


def test_fingerprints_of_like_rows_are_near():
    def taken(shift: float, seed: int):
        records = returning(1, 1500, seed)
        for record in records:
            record["a"] += shift
        return Bench(learners=LEARNERS).feed(records).lane.strategy.memory.print_now()

    first, again, other = taken(0.0, 0), taken(0.0, 1), taken(4.0, 2)
    assert unlikeness(first, again) < 0.5
    assert unlikeness(first, other) > 1.0
    assert first["confidence"] > 0.4


def test_learning_does_not_end_the_notes_of_numbers():
    # Errors are told in units of the usual one, which shrinks as learners get better.
    learners = {"forest": {"kind": "forest", "trees": 3}, "tree": {"kind": "hoeffding_tree"}}
    rng = np.random.default_rng(4)
    records = []
    for i in range(10_000):
        a, b, c = rng.uniform(-5, 5, size=3)
        y = (a + 2 * b if a > 0 else c) * (3 if b > 2 else 1)
        records.append({"id": i, "a": a, "b": b, "c": c, "y": y})
    bench = Bench(learners=learners).feed(records)
    (concept,) = bench.lane.strategy.memory.concepts.values()
    assert concept.row > 4000
