"""A stream that tempts learners to look at labels before they arrive: with them all is told, without nothing.

Labels come in runs and features say nothing, so whoever sees the label of a row that still waits is right
nearly always. All learners that look at labels are there: last values, lagged ones, the default's boosting.
"""

import numpy as np
import pytest

from tests import streams
from tests.lanes import Bench

LOOKERS = {
    "prior": {"kind": "prior"},
    "last_value": {"kind": "last_value"},
    "linear_lagged": {"kind": "linear", "lagged": True},
    "boosting_lagged": {"kind": "boosting", "lagged": True, "work": 2000.0, "trees": 20},
    "neighbours_lagged": {"kind": "knn", "lagged": True, "window": 200},
}
ROWS = 700
CHANGED = 400


def records(task: str, turned_from: int | None = None) -> list[dict]:
    """Labels that stay for some ten rows; from `turned_from` on they are other ones."""
    rng = np.random.default_rng(7)
    runs = np.repeat(np.arange(ROWS // 10 + 1), 10)[:ROWS]
    level = rng.integers(0, 2, runs[-1] + 1)[runs]
    noise = rng.normal(size=(ROWS, 2))
    if turned_from is not None:
        level[turned_from:] = 1 - level[turned_from:]
    labels = [f"class_{k}" for k in level] if task == "classification" else (level * 50.5 + 0.25).tolist()
    return [
        {"id": i, "a": float(noise[i, 0]), "b": float(noise[i, 1]), "y": label}
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("delay", [0, 1, 37])
@pytest.mark.parametrize("step", [1, 64, 10_000])
def test_no_label_shows_before_it_arrives(task, delay, step):
    """Two streams whose labels part at one row: every answer before the first such label came is the same."""
    answers = []
    for turned_from in (None, CHANGED):
        stream = records(task, turned_from)
        if delay:
            stream = streams.with_late_labels(stream, delay=delay, share=1.0)
        bench = Bench({"schema": {"task": task}}, learners=LOOKERS)
        bench.feed(stream, cuts=range(step, len(stream), step))
        assert len(bench.values) == ROWS
        answers.append([value.tobytes() for value in bench.values])
    one, other = answers
    # A label that comes at once is learned after its own row was answered.
    first_to_know = CHANGED + max(delay, 1)
    assert one[:first_to_know] == other[:first_to_know]
    assert one[first_to_know : first_to_know + 5] != other[first_to_know : first_to_know + 5]


def accuracies(bench: Bench) -> dict[str, float]:
    """By learner; the blend stands behind the places, too."""
    names = [*bench.lane.pool.names, "blend"]
    return {name: bench.lane.scores.cumulative(k)["accuracy"] for k, name in enumerate(names)}


@pytest.mark.parametrize("delay", [15, 60])
def test_late_runs_cannot_be_foreseen(delay):
    """Labels at once: the run tells nearly all. Labels after the run is over: no better than chance."""
    rng = np.random.default_rng(1)
    label, stream = 0, []
    for i in range(3000):
        # A new draw after each run of ten, so that what was says nothing of what will be.
        label = int(rng.integers(0, 2)) if i % 10 == 0 else label
        stream.append({"id": i, "a": float(rng.normal()), "y": ["up", "down"][label]})
    at_once = accuracies(Bench(learners=LOOKERS).feed(stream))
    late = accuracies(Bench(learners=LOOKERS).feed(streams.with_late_labels(stream, delay, share=1.0)))
    for name in [*LOOKERS, "blend"][1:]:
        if name != "neighbours_lagged":
            assert at_once[name] > 0.85, name
        # Three standard deviations of the mean over 300 runs.
        assert late[name] < 0.5 + 3 * 0.5 / 300**0.5, name
