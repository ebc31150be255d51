"""Hoeffding tree: a decision tree that splits a leaf as soon as enough rows have shown which split is best.

*How*: a leaf keeps, for each feature, what its values say of the target (a normal distribution a class; for
regression a histogram of the target's sums; counts of a category's codes). Every `grace` rows the two
features with the highest gain G are compared, and the leaf is split when

    G(best) - G(second) > eps   or   eps < tie,      eps = R sqrt(ln(1 / delta) / (2 n)),

with n the rows seen and R = log2(classes). Gain is the entropy that a split takes away; for regression, the
share of the variance, and the ratio of the two is compared. A leaf answers with its class counts or with
naive Bayes (regression: its mean or a linear model), whichever has been better there. A category splits by
"is it this code" (codes from 48 on share 16 buckets); a missing value goes to the heavier child.

*Use it when* rules on single features decide, the world stands still, and it should be cheap.
*Do not use it when* the concept drifts: nothing that was split is ever taken back. `forest` does that.
*Cost*: about 1 us a row with 8 numbers and 2 classes. A leaf takes 40 bytes a feature and class, 8 more for
each code; for regression 800 bytes a feature.
*Reference*: P. Domingos, G. Hulten, "Mining high-speed data streams" (KDD 2000); J. Gama et al., "Accurate
decision trees for mining high-speed data streams" (KDD 2003); E. Ikonomovska et al., "Learning model trees
from evolving data streams" (DMKD 23, 2011).
"""

from typing import Annotated

import msgspec

from adaptd.contracts import Layout
from adaptd.kernels import tree
from adaptd.kernels.tree_members import Members, Options

TASKS = ("classification", "regression")
MUTABLE = ("grace", "delta", "tie")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    grace: Annotated[float, msgspec.Meta(ge=1)] = 50.0
    """Weight of the rows that a leaf takes in between two attempts to split."""
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    """Chance that the Hoeffding bound lets the wrong split through."""
    tie: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    """When the bound falls below this, the best feature is taken though another is as good."""
    leaves_max: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 2000
    """A full tree goes on learning in the leaves it has."""
    cells_max: Annotated[int, msgspec.Meta(ge=1)] = 5_000
    """Sums (features x classes) that a row may touch; above that each leaf watches a random choice."""
    state_bytes_max: Annotated[int, msgspec.Meta(ge=100_000)] = 30_000_000
    """Bound on the bytes of the tree; it stops splitting before."""


def build(config: Config, layout: Layout, seed: int) -> Members:
    """A forest of one that sees every feature and every row once, and never drops its tree."""
    options = Options(
        members=1,
        max_features=1.0,
        bagging=0.0,
        grace=config.grace,
        delta=config.delta,
        tie=config.tie,
        leaves_max=config.leaves_max,
        cells_max=config.cells_max,
        state_bytes_max=config.state_bytes_max,
        warning_delta=0.0,
        drift_delta=0.0,
        fading=1.0,
    )
    return Members(options, layout, seed, {"leaves": tree.LEAVES})
