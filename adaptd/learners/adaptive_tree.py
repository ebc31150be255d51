"""Adaptive Hoeffding tree: every node watches its own error and is replaced where a new subtree does better.

*How*: a Hoeffding tree (see `hoeffding_tree`) with ADWIN on the errors of the rows that pass each node. Where
the error rises (`warning_delta`) an alternate starts at that node, an empty leaf at first, and learns the
same rows. With e0 and e1 the errors in the windows of n0 and n1 rows, the alternate takes the node's place
when

    e0 - e1 > sqrt(2 e0 (1 - e0) ln(2 / replace_delta) (1 / n0 + 1 / n1)),

and is dropped when it is worse by as much. So a change that touches one part of the rows costs only the
branches that tell of that part. There is none for regression: a tree replaced as a whole lost against one
that stays on every stream measured.

*Use it when* rules on single features decide, they change in places, and it should be cheap.
*Do not use it when* many features add up (`linear`); `forest` is better and ten times as dear.
*Cost*: about 2 us a row with 8 numbers and 2 classes. A leaf takes 40 bytes a feature and class; each node
has a window of 1.3 KB.
*Reference*: A. Bifet, R. Gavalda, "Adaptive learning from evolving data streams" (IDA 2009).
"""

from typing import Annotated, ClassVar

import msgspec

from adaptd.contracts import Layout
from adaptd.kernels import tree
from adaptd.kernels.tree_adaptive import NODE_SIZE, WINDOW_SIZE
from adaptd.kernels.tree_members import Members, Options

TASKS = ("classification",)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    grace: Annotated[float, msgspec.Meta(ge=1)] = 50.0
    """Weight of the rows that a leaf takes in between two attempts to split."""
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    """Chance that the Hoeffding bound lets the wrong split through."""
    tie: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    """When the bound falls below this, the best feature is taken though another is as good."""
    leaves_max: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 1000
    """A full tree goes on learning in the leaves it has."""
    cells_max: Annotated[int, msgspec.Meta(ge=1)] = 5_000
    """Sums (features x classes) that a row may touch; above that each leaf watches a random choice."""
    state_bytes_max: Annotated[int, msgspec.Meta(ge=100_000)] = 30_000_000
    """Bound on the bytes of the tree; it stops splitting before."""
    warning_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    """Confidence of ADWIN for raising an alternate."""
    replace_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05
    """Chance that the bound replaces a node by an alternate that is no better."""


class Watched(Members):
    """A tree whose nodes have a window each, and a column for what may replace them."""

    KERNELS: ClassVar = {"classification": "adaptd.kernels.tree_adaptive"}
    NODE_SIZE = NODE_SIZE
    OF_NODES = ("nodes", "windows")

    def window_shape(self, n_nodes: int) -> tuple[int, int]:
        return n_nodes, WINDOW_SIZE


def build(config: Config, layout: Layout, seed: int) -> Members:
    """One watched tree that sees every feature."""
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
        warning_delta=config.warning_delta,
        drift_delta=config.replace_delta,
        fading=1.0,
    )
    details = {"leaves": tree.LEAVES, "alternates": tree.WARNINGS, "replaced": tree.DRIFTS}
    return Watched(options, layout, seed, details)
