"""Adaptive random forest: bagged Hoeffding trees, each replaced when its own error rises.

*How*: every tree (see `hoeffding_tree`) learns a row Poisson(`bagging`) times, and every leaf watches a
random share `max_features` of the features (fewer when features and classes are many: `cells_max`). ADWIN on
a tree's own errors warns at `warning_delta`: a new tree starts to grow in the background; at `drift_delta` it
replaces the old one. Trees vote with probabilities weighed by fading accuracy; for regression with answers
weighed by 1 / (fading absolute error)^2. Naive Bayes in the leaves starts each class's variance from the
leaf's own spread, and its scores are tempered for the number of features: worth 1 to 10 points over plain
naive Bayes leaves, most with many classes.

*Use it when* the concept drifts, features interact, and some microseconds a row are there.
*Do not use it when* the target is a smooth sum of many features (`linear`), or neighbours decide (`knn`).
*Cost*: about 10 us a row with 8 numbers, 2 classes and 10 trees; 25 us with 54 numbers and 7 classes. At most
`leaves_max` leaves a tree and `state_bytes_max` in all; `hoeffding_tree` says what a leaf takes.
*Reference*: H. M. Gomes et al., "Adaptive random forests for evolving data stream classification" (Machine
Learning 106, 2017); H. M. Gomes et al., "Adaptive random forests for data stream regression" (ESANN 2018).
"""

from typing import Annotated

import msgspec

from adaptd.contracts import Layout
from adaptd.kernels import tree
from adaptd.kernels.tree_members import Members, Options

TASKS = ("classification", "regression")
MUTABLE = ("bagging", "grace", "delta", "tie", "warning_delta", "drift_delta", "fading")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trees: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    """Trees that vote."""
    max_features: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.6
    """Share of the features that each leaf watches, drawn anew for each leaf."""
    bagging: Annotated[float, msgspec.Meta(ge=0, le=100)] = 6.0
    """Each tree learns a row so many times on average (a Poisson number); 0: once, no bagging."""
    grace: Annotated[float, msgspec.Meta(ge=1)] = 50.0
    """Weight that a leaf takes in between two attempts to split."""
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    """Confidence of a split (Hoeffding's bound)."""
    tie: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    """When the bound falls below this, the best feature is taken though another is as good."""
    leaves_max: Annotated[int, msgspec.Meta(ge=2)] = 2000
    """Leaves a tree; a full tree goes on learning in the leaves it has."""
    cells_max: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    """Sums (trees x features that a leaf watches x classes) that a row may touch; leaves watch fewer features
    for it."""
    state_bytes_max: Annotated[int, msgspec.Meta(ge=1_000_000)] = 60_000_000
    """Bound on the bytes of the whole forest; trees stay smaller for it."""
    warning_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    """Confidence of ADWIN for planting a tree in the background."""
    drift_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.001
    """Confidence of ADWIN for replacing the tree."""
    fading: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.999
    """Fading factor a row of the record that a tree's vote is weighed by."""


def build(config: Config, layout: Layout, seed: int) -> Members:
    options = Options(
        members=config.trees,
        max_features=config.max_features,
        bagging=config.bagging,
        grace=config.grace,
        delta=config.delta,
        tie=config.tie,
        leaves_max=config.leaves_max,
        cells_max=config.cells_max,
        state_bytes_max=config.state_bytes_max,
        warning_delta=config.warning_delta,
        drift_delta=config.drift_delta,
        fading=config.fading,
    )
    details = {"leaves": tree.LEAVES, "warnings": tree.WARNINGS, "drifts": tree.DRIFTS}
    return Members(options, layout, seed, details)
