"""The engine's promises: same bits however the input is cut, honest scores, decisions at fixed rows."""

import math

import numpy as np
import pytest

from adaptd.contracts import LEARN, PREDICT, Layout
from adaptd.kernels.blocks import LAGS
from adaptd.lags import Lags
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import SMALL_POOL, Bench


def eventful(n: int = 3000) -> list[dict]:
    """A stream in which all happens: drift, late and missing labels, new features, categories, classes."""
    records = streams.classes(n, drift_at=n // 2)
    rng = np.random.default_rng(3)
    for i, record in enumerate(records):
        if i > 400:
            record["late"] = round(float(rng.normal()), 4)
        if i > 700:
            record["colour"] = f"shade{rng.integers(40)}"
        if i % 11 == 0:
            del record["a"]
        if i > 1000 and i % 17 == 0:
            record["y"] = ["sideways", "down", "round"][i % 3]
        if i % 23 == 0:
            record["y"] = None
        if i % 29 == 0:
            record["b"] = "not a number"
    return streams.with_late_labels(records, delay=60, share=0.3)


def read_cuts(n: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(8)
    return {
        "one": list(range(1, n)),
        "seven": list(range(7, n, 7)),
        "thousand": list(range(1000, n, 1000)),
        "random": sorted(rng.choice(np.arange(1, n), n // 40, replace=False).tolist()),
    }


@pytest.fixture(scope="module")
def whole() -> Bench:
    return Bench().feed(eventful())


@pytest.mark.parametrize("name", ["one", "seven", "thousand", "random"])
def test_reads_of_any_size_give_the_same_bits(whole, name):
    records = eventful()
    bench = Bench().feed(records, read_cuts(len(records))[name])
    assert bench.ids == whole.ids
    assert bench.rows == whole.rows
    assert [value.tobytes() for value in bench.values] == [value.tobytes() for value in whole.values]
    assert same_state(bench.lane.state(), whole.lane.state())
    assert bench.journal.read(last=10_000) == whole.journal.read(last=10_000)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_default_pool_gives_the_same_bits_in_reads_of_seven(task):
    records = streams.classes(700) if task == "classification" else streams.numbers(700)
    records = streams.with_late_labels(records, delay=20, share=0.2)
    first = Bench(learners={}).feed(records)
    second = Bench(learners={}).feed(records, list(range(7, len(records), 7)))
    assert [value.tobytes() for value in first.values] == [value.tobytes() for value in second.values]
    assert same_state(first.lane.state(), second.lane.state())


def test_threads_change_nothing(whole):
    bench = Bench({"pool": {"threads": 4}}).feed(eventful())
    assert same_state(bench.lane.state(), whole.lane.state())


@pytest.mark.parametrize("controller", ["stack", "fixed_share", "champion"])
@pytest.mark.parametrize("stop", [1, 137, 1400])
def test_a_stop_at_any_row_leaves_no_trace(controller, stop):
    records = eventful(1500)
    tree = {"controller": {"kind": controller}}
    whole = Bench(tree).feed(records)
    first = Bench(tree).feed(records[:stop])
    second = Bench(tree)
    assert second.lane.load_state(first.lane.state()) == []
    second.decoder.load_state(first.decoder.state())
    second.feed(records[stop:])
    values = first.values + second.values
    assert [value.tobytes() for value in values] == [value.tobytes() for value in whole.values]
    assert same_state(second.lane.state(), whole.lane.state())


def test_every_row_with_features_is_answered_in_order(whole):
    records = eventful()
    asked = [record["id"] for record in records if set(record) - {"id", "y"}]
    assert [int(identifier) for identifier in whole.ids] == asked
    assert whole.rows == list(range(1, len(asked) + 1))


# A tree needs hundreds of rows to see that the rule was reversed; a linear learner a few dozen.
SLOW_POOL = {"tree": {"kind": "hoeffding_tree"}, "prior": {"kind": "prior"}}


def test_learns_and_recovers_from_drift():
    records = streams.classes(6000, drift_at=3000)
    bench = Bench().feed(records)
    right = np.array([p == f'"{r["y"]}"' for p, r in zip(bench.predictions(), records, strict=True)])
    assert right[1000:3000].mean() > 0.9
    assert right[3500:].mean() > 0.85


def test_drift_is_called_soon():
    bench = Bench(learners=SLOW_POOL).feed(streams.classes(4000, drift_at=3000))
    assert any(3000 < row < 3300 for row, _ in bench.events("drift_detected"))


def test_drift_boosts_rates_at_the_next_control_point_and_they_decay():
    bench = Bench(learners=SLOW_POOL).feed(streams.classes(9000, drift_at=3000))
    drift = bench.events("drift_detected")[0][0]
    boost, payload = bench.events("rates_boosted")[0]
    assert boost == math.ceil(drift / 128) * 128
    assert payload["factor"] > 1
    assert bench.events("rates_restored")[0][0] > boost


def test_scores_are_those_of_the_printed_predictions(whole):
    records = eventful()
    printed = dict(zip(whole.ids, whole.predictions(), strict=True))
    truth = {record["id"]: record["y"] for record in records if record.get("y") is not None}
    hits = [printed[str(key).encode()] == f'"{label}"' for key, label in truth.items()]
    scores = whole.lane.scores.cumulative(len(whole.lane.pool.slots))
    assert scores["accuracy"] == pytest.approx(np.mean(hits), abs=1e-12)
    assert whole.lane.learned == len(hits)


def test_a_late_label_is_scored_against_the_prediction_that_was_made():
    records = streams.classes(500)
    waiting = {key: value for key, value in records[300].items() if key != "y"}
    made = Bench().feed([*records[:300], waiting]).predictions()[-1]
    wrong = "up" if made == '"down"' else "down"
    bench = Bench().feed([*records[:300], waiting, *records[301:]])
    before = bench.lane.scores.cumulative(len(SMALL_POOL))["accuracy"] * bench.lane.learned
    bench.feed([{"id": 300, "y": wrong}])
    after = bench.lane.scores.cumulative(len(SMALL_POOL))["accuracy"] * bench.lane.learned
    assert after == pytest.approx(before)
    assert bench.lane.learned == 500


def test_a_label_that_comes_with_the_next_read_or_in_the_same_is_the_same():
    records = streams.with_late_labels(streams.classes(900), delay=3, share=1.0)
    one = Bench().feed(records)
    two = Bench().feed(records, list(range(1, len(records))))
    assert same_state(one.lane.state(), two.lane.state())
    assert one.lane.learned == 900


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_delay_counts_the_predictions_between(step):
    # Each label comes just before the 30th row after its own; the last ones come when the rows have ended.
    records = streams.with_late_labels(streams.classes(300), delay=30, share=1.0)
    bench = Bench().feed(records, list(range(step, len(records), step)))
    assert bench.lane.delays == [29] * 270 + list(range(29, -1, -1))


def test_labels_may_come_before_their_row():
    records = streams.classes(300)
    early = [{"id": r["id"], "y": r["y"]} for r in records[200:]]
    rows = [{k: v for k, v in r.items() if k != "y"} for r in records[200:]]
    bench = Bench().feed(records[:200] + early + rows)
    assert bench.lane.learned == 300
    assert not bench.lane.labels.early


def test_no_prediction_knows_a_class_before_it_was_learned():
    records = streams.classes(50)
    records[0]["y"], records[30]["y"] = "up", "brand new"
    bench = Bench().feed(records)
    known: set[str] = set()
    for value, record in zip(bench.values, records, strict=True):
        assert len(value) == len(known)
        known.add(record["y"])


def test_nothing_known_predicts_null_then_the_only_class():
    bench = Bench().feed([{"id": 1, "a": 1.0}, {"id": 2, "a": 2.0, "y": "up"}, {"id": 3, "a": 3.0}])
    assert bench.predictions() == [None, None, '"up"']


def test_numbers_that_are_no_classes_turn_the_task_and_nothing_is_lost():
    records = streams.numbers(400)
    for record in records:
        record["y"] = round(record["y"] * 20)
    records = streams.with_late_labels(records, delay=10, share=0.2)
    bench = Bench().feed(records)
    assert bench.lane.layout.task == "regression"
    assert bench.lane.learned == 400
    assert bench.events("task_decided")[-1][1]["reason"] == "distinct_integers"
    assert bench.lane.scores.cumulative(len(SMALL_POOL))["mae"] < 25
    cut = Bench().feed(records, list(range(1, len(records))))
    assert same_state(cut.lane.state(), bench.lane.state())


def test_a_whole_number_class_stays_a_class():
    records = [{"id": i, "a": i % 7 / 7, "y": i % 3} for i in range(600)]
    bench = Bench().feed([*records, {"id": 601, "a": 0.1, "y": 2.5}])
    assert bench.lane.layout.task == "classification"
    assert bench.lane.classes.spellings[-1] == b"2.5"


def test_a_label_of_the_wrong_kind_is_rejected_and_its_row_answered():
    bench = Bench({"schema": {"task": "regression"}}).feed(
        [*streams.numbers(50), {"id": 1, "a": 0.0, "y": "much"}]
    )
    assert bench.lane.rejected == {"bad_label": 1}
    assert len(bench.values) == 51
    assert bench.lane.learned == 50


def test_waiting_rows_are_bounded_and_expiry_is_counted():
    rows = [{k: v for k, v in r.items() if k != "y"} for r in streams.classes(500)]
    bench = Bench({"labels": {"rows_max": 100}}).feed([{"id": "z", "a": 0.0, "y": "up"}, *rows])
    assert len(bench.lane.labels.waiting) == 100
    assert bench.lane.labels.expired["rows"] == 400
    bench.feed([{"id": 399, "y": "up"}, {"id": 400, "y": "up"}])
    assert bench.lane.learned == 2


def test_rows_age_by_event_time():
    rows = [{"id": i, "ts": 1000.0 * i, "a": 0.0} for i in range(20)]
    bench = Bench({"labels": {"age_seconds_max": 5000.0}}).feed(rows)
    assert bench.lane.labels.expired["age"] == 14


def test_one_wrong_time_does_not_expire_everything():
    rows = [{"id": i, "ts": 1000.0, "a": 0.0} for i in range(20)]
    bench = Bench({"labels": {"age_seconds_max": 5000.0}}).feed([*rows, {"id": 99, "ts": 9e12, "a": 0.0}])
    assert bench.lane.labels.expired["age"] == 0


def test_a_waiting_id_that_comes_again_replaces_the_older_row():
    bench = Bench().feed([{"id": 1, "a": 0.0, "y": "up"}, {"id": 7, "a": 1.0}, {"id": 7, "a": 2.0}])
    assert bench.lane.labels.duplicates == 1
    assert len(bench.lane.labels.waiting) == 1
    bench.feed([{"id": 7, "y": "up"}])
    assert bench.lane.learned == 2


def test_labels_for_unknown_ids_are_held_within_bounds_then_rejected():
    bench = Bench({"labels": {"early_rows_max": 5}})
    bench.feed([{"id": 1, "a": 0.0, "y": "up"}, *({"id": f"x{i}", "y": "up"} for i in range(8))])
    assert bench.lane.rejected == {"unknown_id": 3}
    bench.lane.end_of_input()
    assert bench.lane.rejected == {"unknown_id": 8}


def test_a_frozen_learner_predicts_and_learns_no_more():
    learners = {"linear": {"kind": "linear", "frozen": True}, "prior": {"kind": "prior"}}
    bench = Bench(learners=learners).feed(streams.classes(400))
    before = bench.lane.pool.slots[0].learner.state()
    bench.feed(streams.classes(400, seed=1))
    assert same_state(bench.lane.pool.slots[0].learner.state(), before)


def test_a_pinned_learner_is_the_answer():
    bench = Bench({"control": {"pin": "prior"}}).feed(streams.classes(600))
    alone = Bench(learners={"prior": {"kind": "prior"}}, tree={"control": {"pin": "prior"}})
    alone.feed(streams.classes(600))
    assert bench.predictions() == alone.predictions()
    assert bench.lane.champion == 0


def test_a_learner_that_fails_is_set_aside_and_the_rest_go_on():
    bench = Bench().feed(streams.classes(300))
    slot = bench.lane.pool.slots[1]

    def fail(*arguments):
        raise ArithmeticError("out of range")

    slot.learner.step = fail
    bench.feed(streams.classes(300, seed=1))
    ((row, payload),) = bench.events("learner_set_aside")
    assert row == 384
    assert (payload["learner"], payload["reason"]) == ("linear", "raised")
    assert bench.lane.controller.weights()[1] == 0
    assert not any(np.isnan(value).any() for value in bench.values[-100:])


def test_more_classes_than_allowed_are_rejected():
    records = [{"id": i, "a": 0.0, "y": f"c{i % 9}"} for i in range(30)]
    bench = Bench({"schema": {"classes_max": 4}}).feed(records)
    assert bench.lane.layout.n_classes == 4
    assert bench.lane.rejected["too_many_classes"] == sum(i % 9 >= 4 for i in range(30))
    assert len(bench.values) == 30


def test_a_changed_pool_keeps_what_it_can():
    bench = Bench().feed(streams.classes(1000))
    learners = {**SMALL_POOL, "bayes": {"kind": "naive_bayes"}}
    changed = Bench(learners=learners)
    fresh = changed.lane.load_state(bench.lane.state())
    assert fresh == ["bayes", "controller"]
    assert same_state(changed.lane.pool.slots[1].learner.state(), bench.lane.pool.slots[1].learner.state())
    changed.decoder.load_state(bench.decoder.state())
    changed.feed(streams.classes(500, seed=4))
    assert changed.lane.rows == 1500


def test_lagged_learners_see_only_labels_that_have_come():
    """Labels that stay as they are for a while help at once, and hardly any more 60 rows later."""
    rng = np.random.default_rng(2)
    label, records = 0, []
    for i in range(1500):
        label ^= int(rng.random() < 0.05)
        records.append({"id": i, "a": 0.5, "y": ["up", "down"][label]})
    learners = {"lagged": {"kind": "linear", "lagged": True}}
    at_once = Bench(learners=learners).feed(records)
    late = Bench(learners=learners).feed(streams.with_late_labels(records, delay=60, share=1.0))
    assert at_once.lane.scores.cumulative(0)["accuracy"] > 0.9
    assert late.lane.scores.cumulative(0)["accuracy"] < 0.65


def test_a_cheating_label_order_gains_nothing():
    """What a lagged learner says of a row does not depend on that row's own label."""
    records = streams.classes(400)
    changed = [dict(record) for record in records]
    changed[-1]["y"] = "down" if records[-1]["y"] == "up" else "up"
    first, second = Bench().feed(records), Bench().feed(changed)
    assert [value.tobytes() for value in first.values] == [value.tobytes() for value in second.values]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_lag_columns_say_what_was_learned_last(task):
    lags = Lags(Layout(task, (), (), 3 * (task == "classification")))
    out = np.full((4, LAGS), -7.0)
    op = np.array([PREDICT | LEARN, PREDICT | LEARN, LEARN, PREDICT], np.uint8)
    lags.step(np.array([2.0, 0.0, 0.0, np.nan]), op, out)
    assert np.isnan(out[0, :2]).all()
    assert out[1, 0] == 2.0
    assert (out[2] == -7.0).all()
    assert (out[3, 0], out[3, 1]) == (0.0, 0.0)
