"""The benchmark suite counts right: its figures are what the project is judged by."""

import math
import pathlib

import numpy as np
import pytest

from benchmarks.suite import changes, collected, generated, plot, ranks, switches
from benchmarks.suite.__main__ import BAR_SYSTEMS
from benchmarks.suite.compare import COST_PEERS, compare
from benchmarks.suite.runs import Runner
from benchmarks.suite.said import Said, load
from benchmarks.suite.scores import scores
from benchmarks.suite.systems import ALWAYS, QUICK, SYSTEMS, System


def said_of(truth, values, places=None, task="classification"):
    said = Said(np.array(truth, float), task)
    said.probabilities(0, np.array(values, float), places)
    return said


def test_scores_of_classes_by_hand():
    nothing = [math.nan, math.nan]
    said = said_of([0, 0, 1, 1], [nothing, [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    found = scores(said)
    assert found["accuracy"] == 0.5
    # Said: 0 twice, 1 once, once nothing; true: 2 and 2. By chance 0.5 * 0.5 + 0.25 * 0.5.
    assert found["kappa"] == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    # The label before is right at rows 1 and 3.
    assert found["kappa_temporal"] == 0.0
    assert found["log_loss"] == pytest.approx(-math.log(0.8 * 0.4 * 0.9) / 3)
    assert found["calibration_error"] == pytest.approx((0.2 + 0.6 + 0.1) / 3)


def test_a_class_that_was_not_known_had_no_probability():
    said = said_of([2, 0], [[1.0], [1.0]], places=np.array([0]))
    assert said.of_true.tolist() == [0.0, 1.0]
    assert scores(said)["log_loss"] == pytest.approx(-math.log(1e-15) / 2)


def test_codes_of_another_order_are_put_right():
    said = said_of([0, 1], [[0.3, 0.7], [0.9, 0.1]], places=np.array([1, 0]))
    assert said.predicted.tolist() == [0.0, 1.0]
    assert said.of_true == pytest.approx([0.7, 0.9])


def test_scores_of_numbers_leave_out_what_was_not_said(tmp_path):
    said = Said(np.array([1.0, 2.0, 3.0]), "regression")
    said.numbers(1, np.array([5.0, 2.0]))
    assert scores(said) == {"mae": 2.0, "rmse": pytest.approx(math.sqrt(5))}
    said.save(tmp_path / "said.npz")
    assert scores(load(tmp_path / "said.npz", said.truth, "regression")) == scores(said)


def test_rows_to_recover_finds_where_the_losses_are_back():
    rng = np.random.default_rng(0)
    chance = np.concatenate([np.full(400, 0.5), np.full(1600, 0.1)])
    losses = (rng.random((200, 2000)) < chance).astype(float)
    level = changes.steady(losses)
    assert level == pytest.approx(0.1, abs=0.005)
    # The smoothing of 50 rows adds at most its own length.
    assert 400 < changes.rows_to_recover(losses, level) <= 450
    assert changes.rows_to_recover(losses, 0.6) == changes.ROWS_MIN
    assert changes.rows_to_recover(losses, 0.01) == 2000
    rows, error = changes.with_error(list(np.split(losses, 10)), None)
    assert rows == changes.rows_to_recover(losses, level)
    assert 0 <= error < 50


def test_changes_are_laid_over_each_other():
    losses = np.arange(100.0)
    assert changes.laid_over(losses, [20, 50, 80]).tolist() == [
        list(range(20, 40)), list(range(50, 70)), list(range(80, 100))
    ]  # fmt: skip
    # The end of the stream cut the last stretch short.
    assert changes.laid_over(losses, [10, 50, 95]).shape == (2, 40)
    assert changes.laid_over(losses, []).shape == (0, 0)


def test_alarms_are_found_or_false():
    # Spans: 1000 to 1250 and 2000 to 2250. One late, one repeated, one before any change.
    found = changes.alarms([500, 1100, 1200, 2300], [1000, 2000], 3000)
    assert (found.changes, found.found, found.delay, found.false) == (2, 1, 100.0, 2)
    assert found.quiet_rows == 2500
    assert found.false_per_million == pytest.approx(800)
    assert math.isnan(changes.alarms([], [1000], 2000).delay)
    assert changes.alarms([5], [], 10).false == 1


def test_ranks_by_hand():
    table = {
        "a": {"s": 0.9, "t": 0.8, "u": 0.7},
        "b": {"s": 0.8, "t": 0.9, "u": 0.6},
        "c": {"s": 0.1, "t": 0.1, "u": 0.1},
    }
    found = ranks.ranks({**table, "short": {"s": 1.0}}, lower_is_better=False)
    assert found.systems == ["a", "b", "c"]
    assert found.means == pytest.approx([4 / 3, 5 / 3, 3.0])
    # Demšar (2006), table 5: q at 0.05 for three is 2.343.
    assert found.distance == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 3)), abs=0.002)
    assert ranks.ranks(table, lower_is_better=True).systems == ["c", "b", "a"]


@pytest.mark.parametrize("name", ["sea_recurring", "agrawal_abrupt", "sea_gradual", "led_stationary"])
def test_generated_streams_repeat_and_differ_by_seed(name):
    plan = generated.plans(100)[name]
    stream, x, y = generated.generate(name, plan, 1, 450)
    again, same_x, same_y = generated.generate(name, plan, 1, 450)
    assert (x == same_x).all()
    assert (y == same_y).all()
    assert stream == again
    assert not (generated.generate(name, plan, 2, 450)[1] == x).all()
    assert stream.change_points == (
        [] if name == "led_stationary" else [100, 200, 300, 400][: len(plan.order) - 1]
    )


@pytest.mark.parametrize("name", collected.FRIEDMAN)
def test_streams_of_numbers_know_their_changes(name, tmp_path):
    stream = collected.collect(name, tmp_path, 600, seed=2)
    assert (stream.name, stream.task, stream.rows) == (f"{name}@2", "regression", 600)
    assert stream.change_points == ([150, 300, 450] if name == "friedman_local" else [200, 400])


def test_a_gradual_change_goes_through_both_concepts():
    """Of SEA's rule the sum of two numbers is above a threshold: it tells which concept a row is from."""
    plan = generated.Plan("sea", (1, 0), 2000, width_rows=800)
    _, x, y = generated.generate("s", plan, 0, 4000)
    between = np.abs(x[:, 0] + x[:, 1] - 8.25) < 1.25
    labels = [y[part][between[part]].mean() for part in (slice(1000), slice(1900, 2100), slice(3000, 4000))]
    assert abs(labels[0] - labels[2]) > 0.6
    assert min(labels[0], labels[2]) + 0.2 < labels[1] < max(labels[0], labels[2]) - 0.2


def test_files_of_a_folder_are_streams(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "kinds.csv").write_text("a,day,y\n1,mon,up\n,tue,down\n3,mon,up\n")
    (data / "sizes.csv").write_text("a,y\n1,0.5\n2,1.5\n")
    kinds = collected.collect("kinds", tmp_path, 0, data=data)
    assert (kinds.task, kinds.classes, kinds.categories) == (
        "classification",
        ["up", "down"],
        {"day": ["mon", "tue"]},
    )
    (x, y), *_ = kinds.blocks()
    assert np.array_equal(x, [[1, 0], [math.nan, 1], [3, 0]], equal_nan=True)
    assert y.tolist() == kinds.truth().tolist() == [0, 1, 0]
    assert collected.collect("sizes", tmp_path, 1, data=data).rows == 1
    assert collected.collect("sizes", tmp_path, 0, data=data).task == "regression"
    with pytest.raises(collected.UnknownStreamError, match="nothing_known"):
        collected.collect("nothing_known", tmp_path, 0)


def test_a_run_measures_and_goes_on_where_it_was(tmp_path, capsys):
    """adaptd and those that know nothing in processes of their own; a peer that is missing is named."""
    systems = [SYSTEMS[name] for name in ("adaptd", "no-change", "majority", "mean")]
    systems.append(System("absent", "run_absent", {}))
    results = []
    for _ in range(2):
        runner = Runner(tmp_path / "kept")
        results.append(
            (runner, *compare(runner, ["approval", "sea_abrupt"], systems, 1, 400, tmp_path, None))
        )
    progress, second = capsys.readouterr().err, results[1][0]
    assert progress.count(" rows: ") == 6, progress
    assert results[0][1:] == results[1][1:]
    assert "run_absent" in second.left_out
    words, figures, charts = results[1][1:]
    runs = {(run["stream"], run["system"]): run for run in figures["runs"]}
    assert runs["approval", "adaptd"]["mae"] < runs["approval", "mean"]["mae"]
    assert runs["sea_abrupt@0", "adaptd"]["accuracy"] > runs["sea_abrupt@0", "majority"]["accuracy"]
    assert all(run["resident_bytes_max"] > 1e7 for run in runs.values())
    assert "| approval |" in words
    assert set(charts) == {"classification.svg", "regression.svg"}


def test_adaptd_scores_itself_as_the_suite_does(tmp_path):
    """Two independent counts of the same predictions, class by class."""
    stream = collected.collect("segments", tmp_path, 600)
    run = Runner(tmp_path).run(SYSTEMS["adaptd"], stream)
    assert run is not None
    pinned = max(run.measured["learners"], key=lambda name: run.measured["learners"][name])
    alone = System("pinned", "run_adaptd", {"set": [f"control.pin={pinned}"]})
    again = Runner(tmp_path).run(alone, stream)
    assert again is not None
    # A pinned learner's words are the output wherever it speaks; it scores what the pool says it scores.
    assert scores(again.said)["accuracy"] == pytest.approx(run.measured["learners"][pinned], abs=0.005)


def test_names_that_the_suite_counts_on_exist():
    assert {*QUICK, *ALWAYS, *BAR_SYSTEMS, *COST_PEERS} <= set(SYSTEMS)
    assert set(collected.QUICK) <= set(collected.names(None))
    folder = pathlib.Path(generated.__file__).parent
    assert all((folder / f"{system.runner}.py").exists() for system in SYSTEMS.values())


def test_ablations_are_configurations():
    found = switches.ablations()
    assert "without boosting" in found
    assert "no rate ladder" in found
    assert all(switches.is_known(part) for parts in found.values() for part in parts)
    assert not switches.is_known("memory.no_such_key=1")


def test_charts_are_svg():
    from xml.etree import ElementTree

    cells = {"s & t": {"adaptd": 0.1, "peer": 0.2, "lost": math.nan}}
    assert ElementTree.fromstring(plot.dots("a <title>", cells, ["adaptd", "peer", "lost"], 2)).tag.endswith(
        "svg"
    )
    panels = {"one": {"adaptd": [0.1, 0.5], "peer": [0.3, 0.3]}}
    assert ElementTree.fromstring(plot.curves("t", panels, "rows")).tag.endswith("svg")
