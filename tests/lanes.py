"""A lane without a daemon, for tests: records in, answers and events out."""

import io
import math

import numpy as np

from adaptd import config as configuration
from adaptd import events, registry
from adaptd.clock import FakeClock
from adaptd.contracts import Fields
from adaptd.engine import Lane
from adaptd.journal import Journal
from tests import streams

# Quick to build and to step; the learners' own contracts are tested elsewhere.
SMALL_POOL = {
    "prior": {"kind": "prior"},
    "linear": {"kind": "linear"},
    "tree": {"kind": "hoeffding_tree"},
    "last_value": {"kind": "last_value"},
    "lagged": {"kind": "linear", "lagged": True},
}


class Bench:
    """A lane and all that came out of it."""

    def __init__(self, tree: dict | None = None, learners: dict | None = None) -> None:
        tree = dict(tree or {})
        pool = dict(tree.pop("pool", {}))
        pool.setdefault("learners", SMALL_POOL if learners is None else learners)
        self.config = configuration.read({**tree, "pool": pool}, "test")
        self.journal = Journal(None)
        self.log = events.Events(FakeClock(), io.StringIO(), self.journal)
        self.lane = Lane(self.config, self.log)
        self.decoder = decoder(self.config.fields)
        self.values: list[np.ndarray] = []
        self.ids: list[bytes | None] = []
        self.rows: list[int] = []

    def feed(self, records: list[dict], cuts: list[int] | tuple[int, ...] = ()) -> "Bench":
        """Process `records` in reads that end at `cuts`."""
        for start, stop in zip([0, *cuts], [*cuts, len(records)], strict=True):
            read = self.decoder.decode(streams.lines(records[start:stop]), self.lane.schema.kinds)
            for part in self.lane.process(read):
                self.ids += part.ids
                self.rows += range(part.first_row, part.first_row + len(part.ids))
                self.values += list(part.values)
        return self

    def predictions(self) -> list[str | None]:
        """The predicted classes, as text."""
        spellings = self.lane.classes.spellings
        return [
            None if not len(value) or math.isnan(value[0]) else spellings[int(value.argmax())].decode()
            for value in self.values
        ]

    def numbers(self) -> list[float]:
        """The predicted numbers."""
        return [float(value[0]) for value in self.values]

    def events(self, name: str) -> list[tuple[int, dict]]:
        """Row and payload of the journal's entries of one kind."""
        return [(entry.row, entry.payload) for entry in self.journal.read(last=10_000, kind=name)]


def decoder(fields: Fields):
    module = registry.load("decoders", "json")
    return module.build(module.Config(), fields)
