"""Scores are what their definitions say, however the rows are cut."""

import math

import numpy as np
import pytest

from adaptd.contracts import LEARN, PREDICT, Layout
from adaptd.kernels import scoring
from adaptd.numerics import same_state
from adaptd.scores import Scores

ROWS = 4000


def judged(confidence_gap: float = 0.0, cuts=(), grown: float = 0.0):
    """Scores of two learners and a blend, and what the blend said of which truth.

    confidence_gap: how much more often the blend is wrong than it says.
    """
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3) * 0.7, size=(3, ROWS))
    wrong = rng.random(ROWS) < confidence_gap
    y = np.array([rng.choice(3, p=row) for row in p[2]], float)
    y[wrong] = rng.integers(3, size=wrong.sum())
    p[0, 100:200] = np.nan
    op = np.where(rng.random(ROWS) < 0.1, PREDICT, PREDICT | LEARN).astype(np.uint8)
    scores = Scores(Layout("classification", n_classes=3), 3)
    scores.sums[:, scoring.GROWTH] = grown
    for start, stop in zip([0, *cuts], [*cuts, ROWS], strict=True):
        part = np.ascontiguousarray(p[:2, start:stop]), p[2, start:stop], y[start:stop], op[start:stop]
        scores.step(*part, np.zeros(stop - start))
    learned = op & LEARN > 0
    return scores, p[2][learned], y[learned].astype(int)


def calibration_error(p, y, weights):
    """By its definition: the mean distance of confidence and accuracy over 15 bins of confidence."""
    top, hit = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((top * 15).astype(int), 14)
    parts = [
        abs((weights * (top - hit))[bins == b].sum()) / weights.sum() for b in range(15) if (bins == b).any()
    ]
    return sum(parts)


def test_calibration_error_and_log_loss_are_their_definitions():
    scores, p, y = judged(0.3)
    whole = scores.cumulative(2)
    assert whole["calibration_error"] == pytest.approx(calibration_error(p, y, np.ones(len(y))))
    assert whole["log_loss"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean())
    recent = scores.fading(2)
    weights = 0.999 ** np.arange(len(y))[::-1]
    assert recent["calibration_error"] == pytest.approx(calibration_error(p, y, weights))
    assert recent["log_loss"] == pytest.approx(np.average(-np.log(p[np.arange(len(y)), y]), weights=weights))


def test_confidence_that_is_worth_less_than_it_says_shows():
    honest, _, _ = judged(0.0)
    boastful, _, _ = judged(0.5)
    assert honest.fading(2)["calibration_error"] < 0.05
    assert boastful.fading(2)["calibration_error"] > 0.1
    assert boastful.cumulative(2)["calibration_error"] > 0.1


def test_growing_weights_start_anew_before_they_overflow():
    usual, late = judged()[0], judged(grown=scoring.GROWTH_MAX / 10)[0]
    assert late.sums[2, scoring.GROWTH] < scoring.GROWTH_MAX
    assert late.fading(2)["calibration_error"] == pytest.approx(usual.fading(2)["calibration_error"])


def test_any_cut_gives_the_same_bits():
    cuts = sorted(np.random.default_rng(2).choice(np.arange(1, ROWS), 50, replace=False).tolist())
    assert same_state(judged()[0].state(), judged(cuts=cuts)[0].state())


def test_sleepers_are_judged_on_what_they_said_and_new_ones_start_anew():
    scores, *_ = judged()
    assert scores.sums[0, scoring.SCORED] < scores.sums[1, scoring.SCORED]
    scores.reset_learner(0)
    assert math.isnan(scores.fading(0)["calibration_error"])
    other = Scores(Layout("classification", n_classes=3), 4)
    other.load_state(scores.state(), [-1, 1, 0])
    assert other.fading(3) == scores.fading(2)
    assert other.fading(1) == scores.fading(1)
    assert math.isnan(other.fading(0)["calibration_error"])
