"""`meta.py`: what was learned of learning goes from one lane to another, by a file."""

import json
import pathlib

import msgspec
import numpy as np
import pytest

from adaptd import cli, meta
from adaptd.errors import ConfigError, InputError
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import SMALL_POOL, Bench

POOL = {"tree": {"kind": "hoeffding_tree"}, "linear": {"kind": "linear"}, "prior": {"kind": "prior"}}


@pytest.fixture(scope="module")
def teacher() -> Bench:
    return Bench(learners=POOL).feed(streams.reversals(3, 1700))


@pytest.fixture(scope="module")
def path(teacher, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("meta") / "meta.json"
    meta.write(str(file), meta.of_state(teacher.lane.state()))
    return str(file)


def told(path: str) -> dict:
    return {"meta": {"path": path}}


def test_a_lane_has_something_to_tell(teacher):
    knowledge = meta.of_state(teacher.lane.state())
    assert any(knowledge.actions.values())
    assert knowledge.boosts.gains["linear"]
    assert set(knowledge.trust["classification"].learners) == set(POOL)


def test_what_is_written_is_read(teacher, path):
    assert meta.read(path) == meta.of_state(teacher.lane.state())


def test_who_was_given_nothing_new_tells_what_it_was_given(path):
    given = meta.read(path)
    tells = meta.of_state(Bench(told(path), POOL).lane.state())
    assert (tells.trust, tells.after) == (given.trust, given.after)
    for action, kinds in given.actions.items():
        for kind, mean in kinds.items():
            assert tells.actions[action][kind].saved == pytest.approx(mean.saved)
            assert tells.actions[action][kind].outcomes == pytest.approx(mean.outcomes)


def test_it_changes_the_first_predictions_and_the_same_ones_however_the_input_is_cut(path):
    records = streams.classes(600, seed=5)
    plain, first = Bench(learners=POOL).feed(records), Bench(told(path), POOL).feed(records)
    second = Bench(told(path), POOL).feed(records, list(range(7, 600, 7)))
    assert [value.tobytes() for value in first.values] == [value.tobytes() for value in second.values]
    assert same_state(first.lane.state(), second.lane.state())
    assert any((a != b).any() for a, b in zip(plain.values[:50], first.values[:50], strict=True))


@pytest.mark.parametrize("stop", [700, 1900, 2500])
def test_a_stop_leaves_no_trace_of_what_was_given_and_noted(path, stop):
    records = streams.reversals(2, 1700)
    whole = Bench(told(path), POOL).feed(records)
    assert whole.lane.meta.drifts
    first = Bench(told(path), POOL).feed(records[:stop])
    second = Bench(told(path), POOL)
    assert second.lane.load_state(first.lane.state()) == []
    second.decoder.load_state(first.decoder.state())
    second.feed(records[stop:])
    assert same_state(whole.lane.state(), second.lane.state())


def test_newcomers_begin_with_the_part_that_they_came_to_have_elsewhere(path):
    given = Bench(told(path), POOL).lane.strategy.experience
    assert Bench(learners=POOL).lane.strategy.experience.part("fresh", "linear") == 0.0
    means = meta.read(path).actions["fresh"].values()
    assert min(m.part for m in means) <= given.part("fresh", "linear") <= max(m.part for m in means)
    given.note("fresh", "linear", 0.1, 1.0)
    assert given.part("fresh", "linear") > given.part("fresh", "mlp") > 0.0


def test_after_a_drift_a_lane_leans_on_what_others_thought_after_theirs(path):
    assert meta.read(path).after["classification"].streams == 1.0
    nothing = json.loads(pathlib.Path(path).read_text()) | {"actions": {}, "trust": {}}
    nothing["boosts"] |= {"gains": {}, "trials": {}}
    without = pathlib.Path(path).with_name("without.json")
    after = pathlib.Path(path).with_name("after.json")
    after.write_text(json.dumps(nothing))
    without.write_text(json.dumps(nothing | {"after": {}}))
    records = streams.reversals(2, 1700)
    plain, leaning = Bench(told(str(without)), POOL), Bench(told(str(after)), POOL)
    plain.feed(records)
    leaning.feed(records)
    control_point = -(-plain.events("drift_detected")[0][0] // 128) * 128
    differs = [(a != b).any() for a, b in zip(plain.values, leaning.values, strict=True)]
    assert differs.index(True) == control_point


def only_crises(path: str, tmp_path) -> str:
    known = meta.read(path)
    nothing = meta.Boosts(known.boosts.arms, {}, {})
    file = tmp_path / "crises.json"
    meta.write(str(file), msgspec.structs.replace(known, actions={}, boosts=nothing, trust={}, after={}))
    return str(file)


def test_what_is_known_of_crises_changes_what_is_said_in_them_and_no_decision(path, tmp_path):
    records = streams.reversals(2, 1700)
    plain = Bench(learners=POOL).feed(records)
    taught = Bench(told(only_crises(path, tmp_path)), POOL).feed(records)
    differs = np.array([(a != b).any() for a, b in zip(plain.values, taught.values, strict=True)])
    assert differs[1700:1760].mean() > 0.8
    assert differs[:1000].sum() == 0
    for name in ("drift_detected", "challenger_raised", "challenger_promoted", "champion_changed"):
        assert plain.events(name) == taught.events(name)
    assert plain.events("drift_detected")
    states = plain.lane.state(), taught.lane.state()
    for part in ("pool", "detector", "strategy", "boosts"):
        assert same_state(states[0][part], states[1][part])


def test_late_labels_leave_the_detectors_with_what_was_said(path):
    records = streams.with_late_labels(streams.reversals(2, 1700), 40)
    lane = Bench(told(path), POOL).feed(records).lane
    assert lane.learned > 3000
    whole, cut = Bench(told(path), POOL).feed(records), Bench(told(path), POOL)
    cut.feed(records, list(range(13, len(records), 13)))
    assert same_state(whole.lane.state(), cut.lane.state())


def test_what_is_told_of_crises_goes_from_lane_to_lane(path, teacher):
    first = meta.read(path).crises
    assert first.streams == 1.0
    assert first.blend["blend"] != [1.0, 1.0, 1.0]
    untouched = meta.of_state(Bench(told(path), POOL).feed(streams.classes(300)).lane.state())
    assert untouched.crises == first
    pupil = Bench(told(path), POOL).feed(streams.reversals(2, 1700)).lane
    second = meta.of_state(pupil.state()).crises
    assert second.streams == 2.0
    for level in range(3):
        now = float(pupil.controller.crisis.w[level, 0])
        assert second.blend["blend"][level] == pytest.approx((first.blend["blend"][level] + now) / 2)
    merged = meta.merged([meta.read(path), msgspec.structs.replace(meta.read(path), crises=second)])
    assert merged.crises.streams == 3.0
    unknown = msgspec.structs.replace(meta.read(path), crises=None)
    assert meta.merged([unknown, unknown]).crises is None
    assert meta.merged([unknown, meta.read(path)]).crises == first


def test_each_task_has_its_own_trust(path, tmp_path):
    tree = {"schema": {"task": "regression"}, "controller": {"kind": "fixed_share"}}
    teacher = Bench(tree, SMALL_POOL).feed(streams.numbers(1200))
    file = tmp_path / "numbers.json"
    meta.write(str(file), meta.merged([meta.read(path), meta.of_state(teacher.lane.state())]))
    assert set(meta.read(str(file)).trust) == {"classification", "regression"}
    records = streams.numbers(300, seed=3)
    plain = Bench(tree, SMALL_POOL).feed(records)
    taught = Bench(tree | told(str(file)), SMALL_POOL).feed(records)
    assert plain.numbers() != taught.numbers()
    assert np.isfinite(taught.numbers()[1:]).all()


def test_merging_weighs_by_what_is_behind_it(path):
    one = meta.read(path)
    same = meta.merged([one, one])
    for action, kinds in one.actions.items():
        for kind, mean in kinds.items():
            assert same.actions[action][kind].saved == pytest.approx(mean.saved)
            assert same.actions[action][kind].outcomes == pytest.approx(2 * mean.outcomes)
    assert same.trust["classification"].streams == 2 * one.trust["classification"].streams
    means = [meta.Mean(0.2, 0.1, 1.0), meta.Mean(0.6, 0.5, 3.0)]
    parts = [msgspec.structs.replace(one, actions={"fresh": {"linear": mean}}) for mean in means]
    assert meta.merged(parts).actions["fresh"]["linear"] == meta.Mean(
        pytest.approx(0.5), pytest.approx(0.4), 4.0
    )


def broken(path: str, change) -> str:
    tree = json.loads(pathlib.Path(path).read_text())
    change(tree)
    file = pathlib.Path(path).with_name("broken.json")
    file.write_text(json.dumps(tree))
    return str(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(format="something else"), "format"),
        (lambda tree: tree.update(version=2), "version 2"),
        (lambda tree: tree["actions"].update(dance={}), "dance"),
        (lambda tree: tree["boosts"]["gains"].update(linear=[0.1]), "boosts.gains.linear"),
        (lambda tree: tree["trust"]["classification"].update(streams="many"), "streams"),
        (lambda tree: tree["trust"]["classification"]["learners"]["tree"].update(w=[1e300]), "learners"),
        (lambda tree: tree.update(more=1), "more"),
    ],
)
def test_what_is_no_meta_knowledge_is_refused_with_what_to_do(path, change, words):
    file = broken(path, change)
    with pytest.raises(InputError) as caught:
        meta.read(file)
    assert words in str(caught.value)
    assert file in str(caught.value)
    assert "adaptd meta export" in str(caught.value)
    with pytest.raises(ConfigError):
        Bench(told(file), POOL)


@pytest.mark.parametrize(
    "content", [b"", b"not JSON", b"[]", b"\xff\x00", b'{"format": "adaptd meta-knowledge"']
)
def test_any_bytes_are_refused_the_same_way(tmp_path, content):
    file = tmp_path / "bytes.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="adaptd meta export"):
        meta.read(str(file))


def test_a_missing_file_is_a_fault_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Bench(told(str(tmp_path / "none.json")), POOL)


def test_what_was_learned_under_another_controller_or_other_arms_is_left_out(path):
    other = {"controller": {"kind": "fixed_share"}}
    bench = Bench(told(broken(path, lambda tree: tree["boosts"]["arms"].reverse())) | other, POOL)
    plain = Bench(other, POOL)
    assert same_state(bench.lane.controller.state(), plain.lane.controller.state())
    assert not bench.lane.boosts.gains


def test_from_the_command_line_and_back(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_bytes(streams.lines(streams.reversals(2, 1700)))
    out, twice = str(tmp_path / "meta.json"), str(tmp_path / "twice.json")
    only = ["--learner", "hoeffding_tree", "--learner", "linear"]
    assert cli.main(["replay", str(data), "--meta", out, "--format", "json", *only]) == 0
    assert cli.main(["meta", "merge", out, out, "--output", twice]) == 0
    assert meta.read(twice).trust["classification"].streams == 2.0
    capsys.readouterr()
    assert cli.main(["meta", "show", out]) == 0
    shown = capsys.readouterr().out
    assert "fresh" in shown
    assert "weights in crises, 1 streams: " in shown
    directory = tmp_path / "state"
    settings = [
        f'source={{kind="file", path="{data}"}}',
        f'sink={{kind="file", path="{tmp_path}/out.jsonl"}}',
        f'checkpoint.directory="{directory}"',
        f'meta.path="{out}"',
    ]
    sets = [part for setting in settings for part in ("--set", setting)]
    assert cli.main(["run", *sets]) == 0
    capsys.readouterr()
    assert cli.main(["meta", "export", "--checkpoint", str(directory)]) == 0
    exported = msgspec.json.decode(capsys.readouterr().out, type=meta.Knowledge)
    assert exported.trust["classification"].streams == 2.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export"], "--checkpoint"),
        (["export", "--checkpoint", "/nowhere"], "must hold a checkpoint"),
        (["show"], "adaptd meta export"),
        (["merge", "/nowhere.json"], "adaptd meta export"),
    ],
)
def test_wrong_use_says_what_to_do(arguments, words, capsys):
    assert cli.main(["meta", *arguments]) != 0
    assert words in capsys.readouterr().err
