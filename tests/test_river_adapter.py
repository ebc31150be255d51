"""River's models and detectors as guests: names, options, pickles, rates."""

import math
import os
import pickle

import numpy as np
import pytest
from river import compose, drift, linear_model, optim, preprocessing

from adaptd import river_objects
from adaptd.contracts import CATEGORY, DRIFT, LEARN, NUMBER, PREDICT, STABLE, WARNING, Layout
from adaptd.detectors import river as river_detector
from adaptd.errors import CheckpointError, ConfigError
from adaptd.learners import river
from adaptd.numerics import same_state

TWO = Layout("classification", (NUMBER, NUMBER), (0, 0), 2)
MIXED = Layout("classification", (NUMBER, CATEGORY), (0, 8), 2)
LOGISTIC = [
    {"estimator": "river.preprocessing.StandardScaler"},
    {"estimator": "river.linear_model.LogisticRegression"},
]


def rows(n=400, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, 2))
    return x, (x[:, 0] + x[:, 1] > 0).astype(float)


def walk(learner, x, y, width=2, op=PREDICT | LEARN):
    n = len(y)
    out = np.full((n, width), -7.0)
    learner.step(np.ascontiguousarray(x), y, np.full(n, op, np.uint8), np.ones(n), out)
    return out


def faults_of(**options):
    with pytest.raises(ConfigError) as caught:
        river.build(river.Config(**options), TWO, 0)
    return caught.value.faults


def test_a_pipeline_predicts_what_river_itself_predicts():
    x, y = rows()
    out = walk(river.build(river.Config(pipeline=LOGISTIC), TWO, 0), x, y)
    model = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    for i, row in enumerate(x.tolist()):
        features = {"f0": row[0], "f1": row[1]}
        if i:
            assert out[i, 1] == pytest.approx(model.predict_proba_one(features)[True], abs=1e-12)
        model.learn_one(features, int(y[i]))


MODELS = {
    "logistic": {"pipeline": LOGISTIC},
    "adaptive_tree": {"estimator": "river.tree.HoeffdingAdaptiveTreeClassifier"},
    "forest": {"estimator": "river.forest.ARFClassifier", "options": {"n_models": 3}},
    "softmax": {"estimator": "river.linear_model.SoftmaxRegression"},
    "factorization": {"estimator": "river.facto.FMClassifier"},
}


@pytest.mark.parametrize("name", MODELS)
def test_state_goes_on_bit_for_bit(name):
    x, y = rows(600)
    learner = river.build(river.Config(**MODELS[name]), TWO, 5)
    walk(learner, x[:300], y[:300])
    twin = river.build(river.Config(**MODELS[name]), TWO, 5)
    twin.load_state(learner.state())
    assert same_state(twin.state(), learner.state())
    np.testing.assert_array_equal(walk(twin, x[300:], y[300:]), walk(learner, x[300:], y[300:]))


def test_every_open_seed_is_set_from_the_run_seed():
    config = river.Config(
        estimator="river.ensemble.BaggingClassifier",
        options={"model": {"estimator": "river.tree.HoeffdingAdaptiveTreeClassifier"}},
    )
    x, y = rows(100)
    first, second, other = (river.build(config, TWO, seed) for seed in (1, 1, 2))
    assert isinstance(first._model.seed, int)
    assert isinstance(first._model.model.seed, int)
    np.testing.assert_array_equal(walk(first, x, y), walk(second, x, y))
    assert not np.array_equal(walk(other, x, y), walk(second, x, y))


def test_a_seed_that_is_given_stays():
    config = river.Config(estimator="river.forest.ARFClassifier", options={"seed": 42})
    assert river.build(config, TWO, 1)._model.seed == 42


def test_missing_values_are_left_out_and_categories_are_text():
    learner = river.build(river.Config(), MIXED, 0)
    assert learner._row(np.array([np.nan, 3.0])) == {"f1": "c3"}
    assert learner._row(np.array([0.5, np.nan])) == {"f0": 0.5}


def test_one_hot_categories_let_a_linear_model_use_them():
    rng = np.random.default_rng(2)
    x = np.column_stack([rng.normal(0, 1, 600), rng.integers(0, 4, 600)])
    y = (x[:, 1] >= 2).astype(float)
    config = river.Config(estimator="river.linear_model.LogisticRegression", categories="one_hot")
    out = walk(river.build(config, MIXED, 0), x, y)
    assert (out.argmax(axis=1) == y)[300:].mean() > 0.95


def test_a_model_that_raises_leaves_the_rest_asleep():
    x = np.column_stack([np.ones(5), np.ones(5)])
    y = np.array([0.0, 1.0, 2.0, 0.0, 1.0])
    layout = Layout("classification", (NUMBER, NUMBER), (0, 0), 3)
    out = np.full((5, 3), -7.0)
    learner = river.build(river.Config(pipeline=LOGISTIC), layout, 0)
    with pytest.raises(ValueError, match="OneVsRestClassifier"):
        learner.step(x, y, np.full(5, PREDICT | LEARN, np.uint8), np.ones(5), out)
    assert np.isfinite(out[1]).all()
    assert np.isnan(out[2:]).all()


def test_one_number_too_large_puts_a_linear_regressor_to_sleep():
    layout = Layout("regression", (NUMBER,), (0,))
    learner = river.build(river.Config(estimator="river.linear_model.LinearRegression"), layout, 0)
    x = np.array([[1e200], [1e200], [1e200], [1.0]])
    out = walk(learner, x, np.full(4, 1e200), 1)
    assert np.isnan(out[-1, 0]) or math.isfinite(out[-1, 0])
    assert not np.isinf(out).any()


def test_the_learning_rate_is_seen_and_scaled():
    learner = river.build(river.Config(pipeline=LOGISTIC), TWO, 0)
    assert learner.vitals().learning_rate == pytest.approx(0.01)
    learner.rate_scale = 4.0
    assert learner.vitals().learning_rate == pytest.approx(0.04)
    x, y = rows(100)
    faster = {
        "optimizer": {"estimator": "river.optim.SGD", "options": {"lr": 0.04}},
        "intercept_lr": 0.04,
    }
    told = river.Config(pipeline=[LOGISTIC[0], {**LOGISTIC[1], "options": faster}])
    np.testing.assert_allclose(walk(learner, x, y), walk(river.build(told, TWO, 0), x, y), rtol=1e-12)


def test_a_zero_rate_scale_changes_no_prediction():
    learner = river.build(river.Config(pipeline=LOGISTIC), TWO, 0)
    x, y = rows()
    walk(learner, x, y)
    before = walk(learner, x, np.full(len(y), np.nan), op=PREDICT)
    learner.rate_scale = 0.0
    walk(learner, x * 9, 1 - y)
    np.testing.assert_array_equal(walk(learner, x, np.full(len(y), np.nan), op=PREDICT), before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "os.system"}, "estimator must be the dotted name of a class of River"),
        ({"estimator": "river.tree.HoefdingTreeClassifier"}, "Did you mean 'river.tree.HoeffdingTreeC"),
        ({"estimator": "river.three.HoeffdingTreeClassifier"}, "Did you mean 'river.tree'"),
        ({"estimator": "river.datasets.Phishing"}, "estimator must be the dotted name"),
        ({"estimator": "river.stream.iter_csv"}, "estimator must be the dotted name"),
        ({"estimator": "river.utils.math.minkowski_distance"}, "estimator must be the dotted name"),
        ({"estimator": "river.compose.pipeline.inspect"}, "estimator must be the dotted name"),
        ({"estimator": "river.tree.__init__.X"}, "estimator must be the dotted name"),
        ({"estimator": "river.tree.HoeffdingTreeRegressor"}, "estimator must be a classifier"),
        (
            {"estimator": "river.tree.HoeffdingTreeClassifier", "options": {"grace_perid": 1}},
            "options.grace_perid must be one of",
        ),
        (
            {"estimator": "river.tree.HoeffdingTreeClassifier", "options": {"leaf_prediction": [1]}},
            "options must be what river.tree.HoeffdingTreeClassifier accepts",
        ),
        ({"pipeline": [{"estimatr": "x"}]}, "pipeline[0].estimatr must be one of"),
        ({"pipeline": [LOGISTIC[0]]}, "pipeline[0].estimator must be a classifier"),
        ({"pipeline": LOGISTIC, "estimator": "river.tree.EFDT"}, "pipeline must be given alone"),
    ],
)
def test_wrong_names_and_options_are_faults_that_help(options, said):
    if options.get("options") == {"leaf_prediction": [1]}:
        options = {**options, "options": {"splitter": 3}}
    assert any(said in fault for fault in faults_of(**options)), faults_of(**options)


def test_all_faults_of_a_nested_table_come_at_once():
    faults = faults_of(
        estimator="river.ensemble.BaggingClassifier",
        options={
            "model": {"estimator": "river.tree.Nothing"},
            "n_model": 3,
        },
    )
    assert len(faults) == 2
    assert any(fault.startswith("options.model.estimator must") for fault in faults)
    assert any("Did you mean 'n_models'?" in fault for fault in faults)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


def by_name(module, name):
    """A pickle that only names a thing, written by hand: no such thing need exist here."""
    return b"".join(
        [b"\x80\x04", *(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name)), b"\x93."]
    )


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Call(os.system, "true")),
        pickle.dumps(Call(eval, "1")),
        pickle.dumps(Call(getattr, optim.SGD(), "lr")),
        pickle.dumps(Call(np.fromfile, "/dev/null")),
        by_name("builtins", "exec"),
        by_name("builtins", "__import__"),
        by_name("builtins", "open"),
        by_name("numpy", "load"),
        by_name("numpy.testing", "runstring"),
        by_name("numpy.ctypeslib", "load_library"),
        by_name("river.datasets", "Phishing"),
        by_name("river.stream", "iter_csv"),
        by_name("river.compat.river_to_sklearn", "convert_river_to_sklearn"),
        by_name("river.evaluate", "progressive_val_score"),
        by_name("river.compose.pipeline", "learn_during_predict"),
        by_name("river.base.base", "sys"),
        by_name("river.base.base", "sys.modules"),
        by_name("river.tree.hoeffding_adaptive_tree_classifier", "random.os.system"),
        by_name("river.utils.random", "random"),
        by_name("adaptd.river_objects", "loads"),
        b"",
        b"no pickle at all",
        by_name("os", "system")[:-3],
    ],
)
def test_a_forged_pickle_is_refused(data):
    with pytest.raises(CheckpointError, match="start it fresh"):
        river_objects.loads(data)


def test_what_a_river_module_imported_from_elsewhere_is_refused():
    assert drift.kswin.stats.__name__.startswith(("scipy", "river"))
    for module, name in (("river.drift.kswin", "np.load"), ("river.drift.kswin", "collections")):
        with pytest.raises(CheckpointError):
            river_objects.loads(by_name(module, name))


def test_another_version_of_river_is_refused_with_what_to_do():
    learner = river.build(river.Config(), TWO, 0)
    state = {**learner.state(), "river": "0.19.0"}
    with pytest.raises(CheckpointError, match=r"Install river==0\.19\.0"):
        learner.load_state(state)


def test_the_hash_seed_of_the_process_does_not_order_categories():
    codes = [5, 0, 3, 7, 1, 6, 2, 4]
    assert [str(c) for c in {river_objects.category(code) for code in codes}] == [f"c{i}" for i in range(8)]


def levels_of(detector, values):
    levels = np.full(len(values), 9, np.uint8)
    detector.step(np.asarray(values, float), levels)
    return levels


def errors(rates, seed=1):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.random(n) < rate for n, rate in rates]).astype(float)


DETECTORS = [
    "river.drift.binary.HDDMA",
    "river.drift.binary.HDDMW",
    "river.drift.binary.DDM",
    "river.drift.ADWIN",
    "river.drift.PageHinkley",
]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_finds_a_rise_and_goes_on_bit_for_bit(name):
    config = river_detector.Config(detector=name)
    values = errors([(1500, 0.1), (1500, 0.9)])
    whole = river_detector.build(config)
    levels = levels_of(whole, values)
    found = np.flatnonzero(levels == DRIFT)
    assert (found >= 1500).any()
    first, second = river_detector.build(config), river_detector.build(config)
    before = levels_of(first, values[:1600])
    second.load_state(first.state())
    np.testing.assert_array_equal(np.concatenate([before, levels_of(second, values[1600:])]), levels)
    assert same_state(second.state(), whole.state())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_fall_is_no_drift(name):
    detector = river_detector.build(river_detector.Config(detector=name))
    levels = levels_of(detector, errors([(1500, 0.9), (1500, 0.1)], seed=2))
    assert (levels[1500:] != DRIFT).all()


def test_a_warning_comes_before_the_drift():
    detector = river_detector.build(river_detector.Config(detector="river.drift.binary.DDM"))
    levels = levels_of(detector, errors([(1000, 0.1), (500, 0.5)]))
    drift_at = np.flatnonzero(levels[1000:] == DRIFT)[0]
    assert (levels[1000 : 1000 + drift_at] == WARNING).any()


def test_the_default_detector_is_quiet_on_a_steady_signal():
    levels = levels_of(river_detector.build(river_detector.Config()), errors([(10_000, 0.2)]))
    assert (levels == STABLE).mean() > 0.97
    assert (levels == DRIFT).sum() <= 1


def test_an_adaptive_window_tells_where_the_change_was():
    detector = river_detector.build(river_detector.Config(detector="river.drift.ADWIN"))
    values = errors([(1500, 0.1), (200, 0.9)])
    at = int(np.flatnonzero(levels_of(detector, values) == DRIFT)[0])
    assert 0 < detector.change_rows() <= at + 1 - 1400


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"detector": "river.drift.ADWINN"}, "Did you mean 'river.drift.ADWIN'?"),
        ({"detector": "river.tree.HoeffdingTreeClassifier"}, "detector must be a drift detector"),
        ({"options": {"drift_confidance": 1}}, "Did you mean 'drift_confidence'?"),
    ],
)
def test_a_wrong_detector_is_a_fault_that_helps(options, said):
    with pytest.raises(ConfigError, match="must be") as caught:
        river_detector.build(river_detector.Config(**options))
    assert said in str(caught.value)
