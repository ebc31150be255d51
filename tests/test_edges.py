"""Edges that a tester of the whole program fell over: each test is one bug that was fixed."""

import json
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from adaptd import config as configuration
from adaptd import pool, river_objects
from adaptd.contracts import LEARN, PREDICT, Fields, Layout, Vitals
from adaptd.decoders import csv as csv_decoder
from adaptd.errors import CheckpointError, ConfigError, InputError
from adaptd.learners import river as river_learner
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench

ADAPTD = [sys.executable, "-m", "adaptd"]
POOL = ["--set", "pool.learners.prior.kind=prior", "--set", "pool.learners.linear.kind=linear"]
TIMEOUT_SECONDS = 180
REGRESSION = {"schema": {"task": "regression"}}


def replayed(*arguments: str) -> dict:
    command = [*ADAPTD, "replay", *arguments, *POOL, "--format", "json"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


# Labels.


@pytest.mark.parametrize("told", [REGRESSION, {}], ids=["told", "found"])
def test_minus_one_is_a_target_like_any_other(told):
    """It once stood for a class never met: the layout got classes in a regression, and the process died."""
    records = [{"id": i, "a": i % 7, "y": (i % 7) - 3 + (0.5 if i == 0 else 0.0)} for i in range(400)]
    bench = Bench(told).feed(records, cuts=(100, 101, 333))
    assert bench.lane.layout.task == "regression"
    assert bench.lane.layout.n_classes == 0
    assert len(bench.lane.classes) <= 1
    printed = np.array([float(value[0]) for value in bench.values[300:]])
    assert np.abs(printed - np.array([record["y"] for record in records[300:]])).mean() < 0.5


def test_infinite_targets_are_rejected_in_every_block():
    records = [{"a": 1.0, "y": 1.5}] * 3
    bench = Bench(REGRESSION).feed(records)
    read = bench.decoder.decode(b'{"a":1,"y":1e400}\n{"a":1,"y":2}\n', bench.lane.schema.kinds)
    bench.lane.process(read)
    assert bench.lane.rejected == {"bad_label": 1}
    assert bench.lane.learned == 4


def test_labels_that_all_come_after_their_rows_set_nobody_aside():
    """Before its first lesson a learner has nothing to say; that is no failure."""
    records = streams.numbers(600)
    asked = [{key: value for key, value in record.items() if key != "y"} for record in records[:300]]
    told = [{"id": record["id"], "y": record["y"]} for record in records[:300]]
    bench = Bench(REGRESSION).feed(asked + told + records[300:])
    assert bench.events("learner_set_aside") == []
    assert bench.lane.pool.awake().all()
    assert np.isfinite(bench.numbers()[300:]).all()


def test_a_learner_that_never_speaks_after_its_lessons_is_still_set_aside():
    slot_pool = pool.Pool(
        configuration.read({"pool": {"learners": {"linear": {"kind": "linear"}}}}, "test"),
        Layout("regression", (0,), (0,)),
    )

    class Mute:
        rate_scale = 1.0

        def step(self, x, y, op, weight, out):
            out[:] = np.nan

        def vitals(self):
            return Vitals()

    slot_pool.slots[0].learner = Mute()
    n = 10
    x, lags, y = np.zeros((n, 1)), np.zeros((n, 5)), np.zeros(n)
    ops = np.full(n, PREDICT | LEARN, np.uint8)
    slot_pool.step(x, lags, y, ops, np.ones(n))
    assert [reason for _, reason, _ in slot_pool.review()] == ["not_finite"]
    slot_pool.close()


def test_a_class_too_many_is_buried_with_the_position_of_its_label():
    records = [
        {"id": 1, "a": 1, "y": "up"},
        {"id": 2, "a": 1, "y": "down"},
        {"id": 3, "a": 1, "y": "left"},
        {"id": 4, "y": "right"},
        {"id": 4, "a": 1},
        {"id": 5, "a": 1},
        {"id": 5, "y": "left"},
    ]
    bench = Bench({"schema": {"classes_max": 2}}).feed(records)
    assert [(reject.reason, reject.position) for reject in bench.lane.dead] == [
        ("too_many_classes", 3), ("too_many_classes", 4), ("too_many_classes", 7),
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [('"\\u00e9"', '"é"'), ('"a\\/b"', '"a/b"')])
def test_an_id_is_found_however_it_is_escaped(first, second):
    bench = Bench()
    lines = f'{{"id":{first},"a":1}}\n{{"id":{second},"y":"up"}}\n'.encode()
    bench.lane.process(bench.decoder.decode(lines, bench.lane.schema.kinds))
    assert bench.lane.learned == 1
    assert bench.lane.rejected == {}


@pytest.mark.parametrize("told", [{"controller": {"kind": "champion"}}, {"control": {"pin": "linear"}}])
def test_answers_name_the_learner_that_gave_them(told):
    """The pool of a regression is another one: a row before that was once signed with a name of this one."""
    learners = {"bayes": {"kind": "naive_bayes"}, "linear": {"kind": "linear"}, "prior": {"kind": "prior"}}
    records = [{"a": i % 5, "y": i % 5} for i in range(20)] + [{"a": 1, "y": 1.5}, {"a": 2, "y": 2}]
    signed = []
    for cuts in ((), range(1, len(records))):
        bench = Bench(told, learners=learners)
        signed.append([])
        for start, stop in zip([0, *cuts], [*cuts, len(records)], strict=True):
            read = bench.decoder.decode(streams.lines(records[start:stop]), bench.lane.schema.kinds)
            for part in bench.lane.process(read):
                signed[-1] += [part.learner] * len(part.ids)
    assert signed[0] == signed[1]
    assert signed[0][20] in learners
    assert set(signed[0][21:]) <= {"linear", "prior"}


def test_a_river_learner_that_raises_leaves_the_same_state_however_the_rows_come():
    learners = {"prior": {"kind": "prior"}, "logistic": {
        "kind": "river", "estimator": "river.linear_model.LogisticRegression",
    }}  # fmt: skip
    records = [
        *streams.classes(40),
        {"id": 99, "a": 1, "b": 1, "y": "sideways"},
        *streams.classes(40, seed=1),
    ]
    records += records[:10]
    whole = Bench(learners=learners).feed(records)
    parts = Bench(learners=learners).feed(records, cuts=range(1, len(records)))
    assert whole.lane.pool.slots[1].failed
    assert same_state(whole.lane.pool.state(), parts.lane.pool.state())


def test_growth_of_a_regression_tells_of_no_classes():
    records = [{"a": 1, "y": 1}, {"a": 2, "y": 2}, {"a": 3, "y": 2.5}, {"a": 4, "b": 1, "y": 3.5}]
    bench = Bench().feed(records)
    assert bench.events("layout_grown")[-1][1] == {
        "features": ["b"], "classes": [], "n_features": 2, "n_classes": 0,
    }  # fmt: skip


def test_counts_of_the_schema_do_not_depend_on_the_reads():
    records = [
        {"a": 1, "b": 2, "y": "up"},
        {"a": 1, "c": "x", "y": "up"},
        {"a": 1, "c": "y", "d": 3, "y": "down"},
    ]
    told = {"schema": {"features_max": 1}}
    whole, parts = Bench(told).feed(records * 5), Bench(told).feed(records * 5, cuts=range(1, 15))
    assert same_state(whole.lane.schema.state(), parts.lane.schema.state())


# Scores and replay.


def test_scores_beyond_the_range_of_numbers_are_null(tmp_path):
    file = tmp_path / "huge.jsonl"
    file.write_bytes(
        b"".join(b'{"a":%d,"y":%s}\n' % (i, y) for i, y in enumerate([b"1.5", b"1e308", b"-1e308"] * 9))
    )
    report = replayed(str(file))
    assert (report["mae"], report["rmse"], report["r2"]) == (None, None, None)


def test_a_column_of_an_array_that_is_told_is_the_target(tmp_path):
    """`--target x2` once put the last column's values in its place."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 3))
    table[:, 1] = 2.0 * table[:, 0] + 0.5
    np.save(tmp_path / "table.npy", table)
    assert replayed(str(tmp_path / "table.npy"), "--target", "x2")["r2"] > 0.8
    assert replayed(str(tmp_path / "table.npy"))["r2"] < 0.5


def test_the_hold_out_leaves_out_rows_without_label_or_features(tmp_path):
    records = streams.numbers(300)
    for record in records[280:290]:
        del record["y"]
    file = tmp_path / "stream.jsonl"
    file.write_bytes(streams.lines(records) + b'{"id": "r285", "y": 3.5}\n')
    report = replayed(str(file), "--holdout", "0.2")
    assert report["holdout"]["rows"] == 49
    assert report["holdout"]["r2"] > 0.5


def test_a_hold_out_of_everything_has_no_hits(tmp_path):
    file = tmp_path / "stream.jsonl"
    file.write_bytes(streams.lines(streams.classes(10)))
    assert replayed(str(file), "--holdout", "0.99")["holdout"] == {"rows": 10, "accuracy": 0.0}


def test_a_csv_header_with_bare_carriage_returns_is_a_fault_that_helps():
    decoder = csv_decoder.build(csv_decoder.Config(), Fields())
    with pytest.raises(InputError, match="must be one line of column names"):
        decoder.decode(b"a,y\r1,u\r2,d\n", {})


# Configuration.


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"control": {"pin": "nobody"}}, "c.toml: control.pin must be one of prior, last_value, "),
        ({"fields": {"target": ""}}, "c.toml: fields.target must be a name; got ''."),
        ({"fields": {"id": "y"}}, "fields.id must be another name than fields.target; got 'y' for both."),
        ({"fields": {"echo": ["colour", "row"]}}, "fields.echo must be without id, prediction, proba, "),
        ({"pool": {"learners": {"blend": {"kind": "prior"}}}}, "pool.learners.blend must have another name"),
        ({"http": {"enabled": True, "listen": "all"}}, "c.toml: http.listen must be host:port"),
        ({"schema": {"types": {"a": "float"}}}, "a table of one of number, category, boolean, ignore;"),
        ({"pool": {"learners": 5}}, "c.toml: pool.learners must be a table; got 5."),
        ({"sink": {"path": "x"}}, "c.toml: sink.path is not known here."),
    ],
)  # fmt: skip
def test_a_fault_between_keys_is_told(tree, words):
    with pytest.raises(ConfigError) as caught:
        configuration.read(tree, "c.toml")
    (fault,) = caught.value.faults
    assert words in fault
    assert "NODEFAULT" not in fault


def river(name: str, **options: object) -> dict:
    return {"kind": "river", "estimator": name, "options": options}


def test_faults_of_all_river_learners_name_their_learner():
    learners = {"a": river("river.nope.Nope"), "b": river("river.linear_model.LogisticRegression", nope=1)}
    config = configuration.read({"pool": {"learners": learners}}, "test")
    with pytest.raises(ConfigError) as caught:
        pool.Pool(config, Layout("classification"))
    first, second = caught.value.faults
    assert first.startswith("pool.learners.a.estimator must")
    assert second.startswith("pool.learners.b.options.nope must")


def test_a_river_learner_of_the_other_task_is_left_out():
    """Labels that turned out to be quantities once ended the process: wrong configuration."""
    learners = {
        "prior": {"kind": "prior"},
        "logistic": river("river.linear_model.LogisticRegression"),
        "least_squares": river("river.linear_model.LinearRegression"),
    }
    bench = Bench(learners=learners)
    assert bench.lane.pool.names == ["prior", "logistic"]
    bench.feed(streams.numbers(200))
    assert bench.lane.pool.names == ["prior", "least_squares"]


# River's state.

LINEAR = {"estimator": "river.linear_model.LinearRegression"}
BOUND = {
    "river.linear_model.PAClassifier": {"mode": 0},
    "river.linear_model.PARegressor": {},
    "river.ensemble.LeveragingBaggingClassifier": {"model": {"estimator": "river.naive_bayes.GaussianNB"}},
    "river.preprocessing.TargetStandardScaler": {"regressor": LINEAR},
    "river.preprocessing.TargetMinMaxScaler": {"regressor": LINEAR},
    "river.tree.HoeffdingTreeRegressor": {
        "leaf_prediction": "mean", "splitter": {"estimator": "river.tree.splitter.QOSplitter"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BOUND)
def test_a_river_model_that_holds_its_own_methods_can_be_read_back(name):
    faults: list[str] = []
    model = river_objects.build({"estimator": name, "options": BOUND[name]}, "", 0, faults)
    assert faults == []
    is_classifier = "Classifier" in name
    for i in range(300):
        model.learn_one({"a": i % 7, "b": i % 3}, bool(i % 2) if is_classifier else float(i % 5))
    again = river_objects.loads(river_objects.dumps(model))
    assert again.predict_one({"a": 1, "b": 2}) == model.predict_one({"a": 1, "b": 2})
    for each in (model, again):
        each.learn_one({"a": 3, "b": 1}, True if is_classifier else 2.0)
    assert again.predict_one({"a": 1, "b": 2}) == model.predict_one({"a": 1, "b": 2})


def test_a_pickle_fetches_no_other_method():
    class Forged:
        def __reduce__(self):
            return river_objects.bound_method, (river_learner.compose.Pipeline(), "learn_one")

    with pytest.raises(CheckpointError, match="'learn_one' of Pipeline is not allowed"):
        river_objects.loads(river_objects.dumps(Forged()))


# Checkpoints and the process.


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fields": {"target": "colour"}}, "fields.target must be 'y' as in the checkpoint; got 'colour'."),
        ({"schema": {"types": {"a": "category"}}}, "schema.types.a must be 'number' as in the checkpoint;"),
        ({"schema": {"types": {"colour": "ignore"}}}, "schema.types.colour must be 'category' as in the"),
        ({"schema": {"categories_max": 4}}, "schema.categories_max must be 1024 as in the checkpoint; got"),
        ({"schema": {"task": "regression"}}, "schema.task must be 'classification' as in the checkpoint;"),
    ],
)  # fmt: skip
def test_a_schema_that_contradicts_the_checkpoint_is_refused(changed, words):
    state = Bench().feed(streams.classes(50)).lane.state()
    with pytest.raises(CheckpointError) as caught:
        Bench(changed).lane.load_state(state)
    assert words in str(caught.value)


def test_a_schema_that_says_what_was_found_is_taken():
    state = Bench().feed(streams.classes(50)).lane.state()
    told = {"schema": {"task": "classification", "types": {"a": "number", "colour": "category"}}}
    assert Bench(told).lane.load_state(state) == []


@pytest.fixture
def stream(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "stream.jsonl"
    file.write_bytes(streams.lines(streams.classes(300)))
    return file


def shell(command: str, stream: pathlib.Path) -> subprocess.CompletedProcess:
    text = f"{' '.join([*ADAPTD, 'run', *POOL])} {command} < {stream}"
    return subprocess.run(["sh", "-c", text], capture_output=True, timeout=TIMEOUT_SECONDS)


def test_who_closes_stderr_wants_predictions_all_the_same(stream):
    done = shell("2>&-", stream)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 300


def test_with_a_closed_stdout_no_prediction_goes_into_a_file_of_the_daemon(stream, tmp_path):
    done = shell(f"--set checkpoint.directory={tmp_path / 'state'} >&-", stream)
    assert done.returncode == 1
    assert b"standard output could not be written" in done.stderr
    for file in (tmp_path / "state").iterdir():
        assert b'"prediction"' not in file.read_bytes()


def test_a_first_checkpoint_that_cannot_be_saved_ends_the_start(stream, tmp_path):
    """Without it a crash would double the output; a run that saved nothing must not end with 0 either."""
    directory = tmp_path / "state"
    options = [*POOL, "--set", f"checkpoint.directory={directory}"]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = subprocess.run(
        [*ADAPTD, "run", *options], input=stream.read_bytes(), capture_output=True, timeout=TIMEOUT_SECONDS,
        preexec_fn=small_files,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"could not be written" in done.stderr
    shutil.rmtree(directory)
    done = subprocess.run([*ADAPTD, "run", *options], input=stream.read_bytes(), capture_output=True)
    assert done.returncode == 0
