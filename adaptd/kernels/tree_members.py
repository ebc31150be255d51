"""The learner that trees and forests are: its members' arrays, how these grow, and the walk over a block."""

import importlib
from typing import NamedTuple

import numpy as np

from adaptd.contracts import NUMBER, Bytes, Floats, Layout, State, Vitals
from adaptd.kernels import tree
from adaptd.kernels.adwin import ADWIN_SIZE
from adaptd.kernels.random import generator
from adaptd.numerics import enlarged, pack, total_bytes, unpack

FIRST_LEAVES = 8
MODULES = {
    "classification": "adaptd.kernels.tree_classify",
    "regression": "adaptd.kernels.tree_regress",
}
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


class Member:
    """One place of the forest: the tree that votes and the one growing in its background."""

    NODE_SIZE = 4
    NAMES = ("nodes", "leaves", "slots", "observers", "counters", "windows", "record", "scale", "random")

    def __init__(
        self, columns: int, shape: tuple[int, int, int], n_features: int, random: np.ndarray
    ) -> None:
        self.nodes = np.zeros((2 * FIRST_LEAVES, self.NODE_SIZE))
        self.leaves = np.zeros((FIRST_LEAVES, columns))
        self.slots = np.full((FIRST_LEAVES, shape[1]), -1, dtype=np.int32)
        self.observers = np.zeros((FIRST_LEAVES, *shape))
        self.counters = np.zeros(tree.N_COUNTERS, dtype=np.int64)
        self.windows = self.new_windows()
        self.record = np.zeros(2)
        self.scale = np.zeros((n_features, 3))
        self.random = random
        tree.plant(
            self.nodes, self.leaves, self.slots, self.observers, self.counters, n_features, self.random
        )

    def new_windows(self) -> Floats:
        """ADWIN for the warning and for the drift, over the tree's errors."""
        return np.zeros((2, ADWIN_SIZE))

    def make_room(self) -> None:
        """Twice the nodes and leaves."""
        n = 2 * len(self.leaves)
        self.nodes = enlarged(self.nodes, (2 * n, self.NODE_SIZE))
        self.leaves = enlarged(self.leaves, (n, self.leaves.shape[1]))
        self.slots = enlarged(self.slots, (n, self.slots.shape[1]), -1)
        self.observers = enlarged(self.observers, (n, *self.observers.shape[1:]))

    def grow(self, columns: int, shape: tuple[int, int, int], n_features: int) -> None:
        """Go on with more columns, classes, slots, buckets and features."""
        n = len(self.leaves)
        known = len(self.scale)
        if shape[1] < self.slots.shape[1]:
            self.narrow(shape[1])
        self.leaves = enlarged(self.leaves, (n, columns))
        slots = enlarged(self.slots, (n, shape[1]), -1)
        # The places that leaves gain go to the new features; a leaf that starts later chooses among all.
        for place, feature in zip(
            range(self.slots.shape[1], shape[1]), range(known, n_features), strict=False
        ):
            slots[: self.counters[tree.LEAVES_USED], place] = feature
        self.slots = slots
        self.observers = enlarged(self.observers, (n, *shape))
        self.scale = enlarged(self.scale, (n_features, 3))

    def narrow(self, n_slots: int) -> None:
        """Watch fewer features: of each leaf's own, in ascending order, some at even distances."""
        kept = np.arange(n_slots) * self.slots.shape[1] // n_slots
        self.slots = np.ascontiguousarray(self.slots[:, kept])
        self.observers = np.ascontiguousarray(self.observers[:, :, kept])

    def n_bytes(self) -> int:
        return total_bytes(*(getattr(self, name) for name in self.NAMES))


class Members:
    """All members, walked one after the other over a block: a tree stays in the processor's cache that way,
    and as members share nothing, each comes out the same however the rows are cut.

    details: the counters that its vitals tell, by their names.
    """

    def __init__(
        self,
        options: Options,
        layout: Layout,
        seed: int,
        details: dict[str, int],
        kernels: str = "",
        member: type[Member] = Member,
    ) -> None:
        self.rate_scale = 1.0
        self.options = options
        self.details = details
        # Only the task's own kernels are imported: importing compiles them, for seconds on a new machine.
        self.kernels = importlib.import_module(kernels or MODULES[layout.task])
        self.cumulative = tree.poisson_cumulative(options.bagging)
        self.set_layout(layout)
        self.members = [
            member(self.columns, self.shape, layout.n_features, generator(seed, stream))
            for stream in range(options.members)
        ]
        self.known_bytes = 0
        """Of all members; 0 when their storage has changed since it was added up."""

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
        # A leaf's observers, its columns and slots, and two nodes. Two trees a member, and doubling may have
        # made room for twice as many as there are.
        leaf_bytes = 8 * (int(np.prod(self.shape)) + self.columns + 8) + 4 * n_slots
        leaves_max = max(2, min(o.leaves_max, o.state_bytes_max // (4 * o.members * leaf_bytes)))
        self.numbers = np.array(
            [o.grace, o.delta, o.tie, leaves_max, o.warning_delta, o.drift_delta, o.fading], dtype=np.float64
        )

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        n = len(x)
        votes = np.zeros((n, self.kernels.vote_columns(self.layout.n_classes)))
        for m in self.members:
            start = 0
            while True:
                start = self.kernels.walk_block(
                    x, y, op, weight, votes, start, m.nodes, m.leaves, m.slots, m.observers, m.counters,
                    m.windows, m.record, m.scale, m.random, self.capacities, self.numbers, self.cumulative,
                    self.work,
                )  # fmt: skip
                if start == n:
                    break
                m.make_room()
                self.known_bytes = 0
        self.kernels.answer(votes, op, out)

    def grow(self, layout: Layout) -> None:
        self.set_layout(layout)
        self.known_bytes = 0
        for member in self.members:
            member.grow(self.columns, self.shape, layout.n_features)

    def state(self) -> State:
        members = [pack(member, Member.NAMES) for member in self.members]
        return {"members": members, "rate_scale": self.rate_scale}

    def load_state(self, state: State) -> None:
        self.known_bytes = 0
        self.rate_scale = state["rate_scale"]
        for member, taken in zip(self.members, state["members"], strict=True):
            unpack(member, Member.NAMES, taken)

    def vitals(self) -> Vitals:
        if not self.known_bytes:
            self.known_bytes = sum(member.n_bytes() for member in self.members)
        counted = np.sum([member.counters for member in self.members], axis=0)
        details = {name: float(counted[counter]) for name, counter in self.details.items()}
        return Vitals(state_bytes=self.known_bytes, details=details)
