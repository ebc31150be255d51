"""Generated streams with known changes: concepts of River's generators, mixed by a schedule.

A stretch of rows holds one concept. Where the next begins, the rows change over at once (`width_rows` 0), or
row by row with a probability that follows a sigmoid of `width_rows` around the change point. A concept that
comes back goes on with new rows of the same rule.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.suite.streams import Stream, encoded


def sea(concept: int, seed: int) -> Iterator:
    """Two of three numbers against a threshold, a tenth of the labels wrong; 4 concepts."""
    from river.datasets import synth

    return iter(synth.SEA(variant=(2, 3, 0, 1)[concept], noise=0.1, seed=seed))


def agrawal(concept: int, seed: int) -> Iterator:
    """Rules on nine columns of a loan. The seed chooses which of the first seven rules take part: of the
    other three one class is rare."""
    from river.datasets import synth

    rules = np.random.default_rng(seed // 1000).permutation(7)
    return iter(synth.Agrawal(classification_function=int(rules[concept]), seed=seed))


def rbf(concept: int, seed: int) -> Iterator:
    """30 balls in ten dimensions, three classes; a concept has balls of its own."""
    from river.datasets import synth

    return iter(
        synth.RandomRBF(seed_model=seed, seed_sample=seed + 1, n_classes=3, n_features=10, n_centroids=30)
    )


def led(concept: int, seed: int) -> Iterator:
    """Seven segments, a tenth inverted, and 17 that mean nothing; a concept swaps segments with those."""
    from river.datasets import synth

    return iter(
        synth.LEDDrift(
            seed=seed, noise_percentage=0.1, irrelevant_features=True, n_drift_features=(0, 3, 5, 7)[concept]
        )
    )


def rotating(concept: int, seed: int) -> Iterator:
    """A plane in ten dimensions, half of it turning all the time, 5 % of the labels wrong."""
    from river.datasets import synth

    return iter(
        synth.Hyperplane(
            seed=seed, n_features=10, n_drift_features=5 if concept else 0, mag_change=0.001,
            noise_percentage=0.05,
        )
    )  # fmt: skip


def moving(concept: int, seed: int) -> Iterator:
    """Balls that move all the time, three classes."""
    from river.datasets import synth

    return iter(
        synth.RandomRBFDrift(
            seed_model=seed, seed_sample=seed + 1, n_classes=3, n_features=10, n_centroids=30,
            change_speed=0.001, n_drift_centroids=15,
        )
    )  # fmt: skip


def sine(concept: int, seed: int) -> Iterator:
    """Above or below one of two curves in two of four numbers; 4 concepts."""
    from river.datasets import synth

    return iter(synth.Sine(classification_function=concept, seed=seed, has_noise=True))


def tree(concept: int, seed: int) -> Iterator:
    """The leaves of a random tree over five numbers and five codes; a concept has a tree of its own."""
    from river.datasets import synth

    return iter(
        synth.RandomTree(
            seed_tree=seed, seed_sample=seed + 1, n_classes=2, n_num_features=5, n_cat_features=5
        )
    )


def plane(concept: int, seed: int) -> Iterator:
    """A plane in ten dimensions, 5 % of the labels wrong; a concept has a plane of its own."""
    from river.datasets import synth

    return iter(synth.Hyperplane(seed=seed, n_features=10, noise_percentage=0.05))


def stagger(concept: int, seed: int) -> Iterator:
    """Three rules on size, colour and shape, without noise; the fourth stretch has the first rule again."""
    from river.datasets import synth

    return iter(synth.STAGGER(classification_function=concept % 3, seed=seed))


RULES = {
    "sea": sea, "agrawal": agrawal, "rbf": rbf, "led": led, "rotating": rotating, "moving": moving,
    "sine": sine, "tree": tree, "plane": plane, "stagger": stagger,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a generated stream is made."""

    rule: str
    order: tuple[int, ...]
    """Concepts, one a stretch; the last goes on to the end."""
    stretch_rows: int
    width_rows: int = 0
    no_changes: bool = False
    """The concept never changes."""


def plans(stretch_rows: int = 5000) -> dict[str, Plan]:
    """Generated streams by name."""
    made: dict[str, Plan] = {}
    for rule in ("sea", "agrawal", "rbf", "led"):
        made[f"{rule}_abrupt"] = Plan(rule, (0, 1, 2, 3), stretch_rows)
        made[f"{rule}_recurring"] = Plan(rule, (0, 1, 0, 1, 0, 1), stretch_rows)
        made[f"{rule}_stationary"] = Plan(rule, (0,), stretch_rows, no_changes=True)
    for rule in ("sea", "agrawal"):
        made[f"{rule}_gradual"] = Plan(rule, (0, 1, 2, 3), stretch_rows, width_rows=stretch_rows // 5)
    made["hyperplane_rotating"] = Plan("rotating", (1,), stretch_rows)
    made["hyperplane_stationary"] = Plan("rotating", (0,), stretch_rows, no_changes=True)
    made["rbf_moving"] = Plan("moving", (0,), stretch_rows)
    return made


def more_plans(stretch_rows: int = 5000) -> dict[str, Plan]:
    """Further streams with abrupt changes, for `transfer.py`, which needs many families."""
    return {
        f"{rule}_abrupt": Plan(rule, (0, 1, 2, 3), stretch_rows)
        for rule in ("sine", "tree", "plane", "stagger")
    }


def generate(name: str, plan: Plan, seed: int, rows: int) -> tuple[Stream, np.ndarray, np.ndarray]:
    """The first `rows` rows of the stream of `plan`."""
    # Far apart, since a generator may use the numbers next to its own.
    sources = {
        concept: RULES[plan.rule](concept, 1000 * (seed + 1) + 100 * concept) for concept in set(plan.order)
    }
    rng = np.random.default_rng(seed)
    points = [k * plan.stretch_rows for k in range(1, len(plan.order)) if k * plan.stretch_rows < rows]
    stretch = np.searchsorted(points, np.arange(rows), side="right")
    if plan.width_rows:
        for k, point in enumerate(points):
            near = np.arange(max(0, point - 2 * plan.width_rows), min(rows, point + 2 * plan.width_rows))
            later = 1 / (1 + np.exp(-4 * (near - point) / plan.width_rows))
            stretch[near] = k + (rng.random(len(near)) < later)
    records: list[dict[str, Any]] = []
    targets: list[Any] = []
    for k in stretch.tolist():
        x, y = next(sources[plan.order[k]])
        # Numbers only: a truth value of a generator is 0 or 1 here.
        records.append({f"f{key}": float(value) for key, value in x.items()})
        targets.append(int(y))
    fields = encoded(records, targets, "classification")
    x, y = fields.pop("x"), fields.pop("y")
    stream = Stream(
        name=f"{name}@{seed}", task="classification", rows=rows, change_points=points,
        changes_known=bool(points) or plan.no_changes, concepts=list(plan.order[: len(points) + 1]),
        source="generated", **fields,
    )  # fmt: skip
    return stream, x, y


def friedman(name: str, kind: str, seed: int, rows: int) -> tuple[Stream, np.ndarray, np.ndarray]:
    """River's FriedmanDrift: a sum of five of ten numbers, changed locally or globally at known rows."""
    from river.datasets import synth

    # Local changes come in three steps, global ones in two.
    n = 3 if kind == "lea" else 2
    points = [rows * (k + 1) // (n + 1) for k in range(n)]
    width = {"transition_window": rows // 20} if kind == "gsg" else {}
    source = synth.FriedmanDrift(drift_type=kind, position=tuple(points), seed=seed + 1, **width)
    pairs = list(itertools.islice(iter(source), rows))
    fields = encoded([{f"f{key}": value for key, value in x.items()} for x, _ in pairs],
                     [y for _, y in pairs], "regression")  # fmt: skip
    x, y = fields.pop("x"), fields.pop("y")
    concepts = list(range(n + 1))
    stream = Stream(
        name=f"{name}@{seed}", task="regression", rows=rows, change_points=points, changes_known=True,
        concepts=concepts, source="generated", **fields,
    )  # fmt: skip
    return stream, x, y
