"""The learner that trees and forests are: its members' arrays, how these grow, and the walk over a block."""

import importlib
from typing import ClassVar, NamedTuple

import numpy as np

from adaptd.contracts import NUMBER, Bytes, Floats, Ints, Layout, State, Vitals
from adaptd.kernels import tree
from adaptd.kernels.adwin import ADWIN_SIZE
from adaptd.kernels.random import generator
from adaptd.numerics import total_bytes

# Leaves that a member has room for at first; then a quarter more comes on, and again. All members have the
# room of the largest: doubled, more of it would lie idle than when each had its own.
FIRST_LEAVES = 8
GROWTH = 4
# Room for what one row passes on its way down, and more.
PATH = 80


class Options(NamedTuple):
    """What the learners of trees set differently; the words are those of `learners/forest.py`."""

    members: int
    max_features: float
    bagging: float
    grace: float
    delta: float
    tie: float
    leaves_max: int
    cells_max: int
    state_bytes_max: int
    warning_delta: float
    drift_delta: float
    fading: float


class Members:
    """All members, walked one after the other over a block: a tree stays in the processor's cache that way,
    and as members share nothing, each comes out the same however the rows are cut.

    Each array is one for all of them, the member its first axis: a block is one call of one kernel.

    details: the counters that its vitals tell, by their names.
    """

    KERNELS: ClassVar = {
        "classification": "adaptd.kernels.tree_classify",
        "regression": "adaptd.kernels.tree_regress",
    }
    NODE_SIZE = tree.NODE_SIZE
    # Arrays with a row for each node, for each leaf.
    OF_NODES: tuple[str, ...] = ("nodes",)
    OF_LEAVES = ("leaves", "slots", "observers")

    nodes: Floats
    leaves: Floats
    slots: np.ndarray
    observers: Floats
    counters: Ints
    windows: Floats
    record: Floats
    scale: Floats
    random: np.ndarray
    NAMES = ("nodes", "leaves", "slots", "observers", "counters", "windows", "record", "scale", "random")

    def __init__(self, options: Options, layout: Layout, seed: int, details: dict[str, int]) -> None:
        self.rate_scale = 1.0
        self.options = options
        self.details = details
        # Only the task's own kernels are imported: importing compiles them, for seconds on a new machine.
        self.kernels = importlib.import_module(self.KERNELS[layout.task])
        self.cumulative = tree.poisson_cumulative(options.bagging)
        self.set_layout(layout)
        none = np.zeros(tree.N_COUNTERS, dtype=np.int64)
        streams = range(options.members)
        self.settle([{"counters": none, "random": generator(seed, stream)} for stream in streams])
        for m in range(options.members):
            tree.plant(
                self.nodes[m], self.leaves[m], self.slots[m], self.observers[m], self.counters[m],
                layout.n_features, self.random[m],
            )  # fmt: skip

    def set_layout(self, layout: Layout) -> None:
        """Sizes of the arrays under `layout`, and what the kernels need to know of it."""
        o = self.options
        self.layout = layout
        self.capacities = np.array(layout.capacities, dtype=np.int64)
        buckets = min(tree.BUCKETS, max((0, *layout.capacities)))
        affordable = o.cells_max // (o.members * max(1, layout.n_classes))
        wanted = min(round(o.max_features * layout.n_features), affordable)
        n_slots = min(layout.n_features, max(1, wanted))
        self.columns, self.shape = self.kernels.sizes(
            n_slots, layout.n_features, layout.n_classes, NUMBER in layout.kinds, buckets
        )
        self.work = np.zeros((6, max(PATH, self.columns, n_slots)))
        # A leaf's observers, its columns and slots, and two nodes. Two trees a member, and there may be room
        # for more leaves than there are, for twice as many at most.
        leaf_bytes = 8 * (int(np.prod(self.shape)) + self.columns + 8) + 4 * n_slots
        leaves_max = max(2, min(o.leaves_max, o.state_bytes_max // (4 * o.members * leaf_bytes)))
        self.numbers = np.array(
            [o.grace, o.delta, o.tie, leaves_max, o.warning_delta, o.drift_delta, o.fading], dtype=np.float64
        )

    def window_shape(self, n_nodes: int) -> tuple[int, int]:
        """ADWIN for the warning and for the drift, over a tree's errors."""
        return 2, ADWIN_SIZE

    def settle(self, members: list[State]) -> None:
        """New arrays under the layout of now for what `members` hold, and room for the next row.

        How much room there is follows from the counters alone, so it need not be in a checkpoint.
        """
        counters = np.array([member["counters"] for member in members])
        leaves = counters[:, tree.LEAVES_USED].max() + tree.LEAVES_A_ROW
        nodes = counters[:, tree.NODES_USED].max() + tree.NODES_A_ROW
        n = FIRST_LEAVES
        while n < leaves or 2 * n < nodes:
            n += max(FIRST_LEAVES, n // GROWTH)
        settled = {
            "nodes": np.zeros((len(members), 2 * n, self.NODE_SIZE)),
            "leaves": np.zeros((len(members), n, self.columns)),
            "slots": np.full((len(members), n, self.shape[1]), -1, dtype=np.int32),
            "observers": np.zeros((len(members), n, *self.shape)),
            "counters": counters,
            "windows": np.zeros((len(members), *self.window_shape(2 * n))),
            "record": np.zeros((len(members), 2)),
            "scale": np.zeros((len(members), self.layout.n_features, 3)),
            "random": np.zeros((len(members), 1), dtype=np.uint64),
        }
        for m, member in enumerate(members):
            for name, array in self.used(member).items():
                settled[name][m][tuple(slice(size) for size in array.shape)] = array
        for name, array in settled.items():
            setattr(self, name, array)

    def used(self, member: State) -> State:
        """Of a member's arrays the rows that it ever used."""
        counters = member["counters"]
        rows = dict.fromkeys(self.OF_NODES, counters[tree.NODES_USED])
        rows |= dict.fromkeys(self.OF_LEAVES, counters[tree.LEAVES_USED])
        return {name: array[: rows.get(name)] for name, array in member.items()}

    def members(self) -> list[State]:
        """What each member holds: parts of the arrays, not copies."""
        return [
            self.used({name: getattr(self, name)[m] for name in self.NAMES})
            for m in range(self.options.members)
        ]

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        votes = np.zeros((len(x), self.kernels.vote_columns(self.layout.n_classes)))
        starts = np.zeros(self.options.members, dtype=np.int64)
        while not self.kernels.walk_block(
            x, y, op, weight, votes, out, starts, self.nodes, self.leaves, self.slots, self.observers,
            self.counters, self.windows, self.record, self.scale, self.random, self.capacities, self.numbers,
            self.cumulative, self.work,
        ):  # fmt: skip
            self.settle(self.members())

    def grow(self, layout: Layout) -> None:
        known = self.layout.n_features
        self.set_layout(layout)
        if self.shape[1] < self.slots.shape[2]:
            self.narrow(self.shape[1])
        n_slots = self.slots.shape[2]
        self.settle(self.members())
        # The places that leaves gain go to the new features; a leaf that starts later chooses among all.
        for place, feature in zip(
            range(n_slots, self.shape[1]), range(known, layout.n_features), strict=False
        ):
            for slots, counters in zip(self.slots, self.counters, strict=True):
                slots[: counters[tree.LEAVES_USED], place] = feature

    def narrow(self, n_slots: int) -> None:
        """Watch fewer features: of each leaf's own, in ascending order, some at even distances."""
        kept = np.arange(n_slots) * self.slots.shape[2] // n_slots
        self.slots = self.slots[:, :, kept]
        self.observers = self.observers[:, :, :, kept]

    def state(self) -> State:
        members = [{name: array.copy() for name, array in member.items()} for member in self.members()]
        return {"members": members, "rate_scale": self.rate_scale}

    def load_state(self, state: State) -> None:
        self.rate_scale = state["rate_scale"]
        self.settle(state["members"])

    def vitals(self) -> Vitals:
        counted = self.counters.sum(axis=0)
        details = {name: float(counted[counter]) for name, counter in self.details.items()}
        size = total_bytes(*(getattr(self, name) for name in self.NAMES))
        return Vitals(state_bytes=size, details=details)
