"""What is done with a change of the world, at control points: concepts recalled, challengers raised.

One object a lane. The lane hands it every block (`observe`) and every control point (`review`); what it
decides on is what `places.py` compares. It changes learners at control points only, by what labelled rows
have shown, so a lane stays a function of its configuration and its input.
"""

from typing import TYPE_CHECKING

from adaptd import memory, places
from adaptd.contracts import Bytes, Floats, Layout, State

if TYPE_CHECKING:
    from adaptd.config import Config
    from adaptd.engine import Lane


class Strategy:
    """Concept memory and its comparisons."""

    def __init__(self, config: "Config", layout: Layout, n_learners: int) -> None:
        self.n_learners = n_learners
        """The configured ones; those in places are behind them."""
        self.memory_config = memory.Config(**config.memory)
        # A pool of one has nothing to blend with what comes back.
        self.is_on = self.memory_config.enabled and n_learners > 1
        self.comparison = places.Comparison(n_learners, layout.task == "regression")
        self.memory = memory.Memory(self.memory_config, layout)

    def observe(
        self, x: Floats, predictions: Floats, blend: Floats, y: Floats, op: Bytes, weight: Floats
    ) -> None:
        """A block has been walked: compare, and follow what rows are like."""
        if not self.is_on:
            return
        self.comparison.step(predictions, blend, y, op, weight)
        self.memory.observe(x, blend, y, op)

    def review(self, lane: "Lane") -> None:
        """A control point."""
        if self.is_on:
            self.memory.review(lane)

    def about(self, index: int) -> str:
        """What the learner at `index` is there for; empty for a configured one."""
        concept = self.memory.concepts.get(index)
        return "" if concept is None else f"row {concept.first_row:,}, {concept.recalls} recalls"

    def grow(self, layout: Layout) -> None:
        self.memory.grow(layout)

    def state(self, lane: "Lane") -> State:
        return {
            "is_on": self.is_on,
            "places": [slot.name for slot in lane.pool.slots if slot.is_place],
            "comparison": self.comparison.state(),
            "memory": self.memory.state(),
        }

    def load_state(self, lane: "Lane", state: State, same_pool: bool) -> None:
        """The lane's parts have their places already (`restore_places`)."""
        if not (state["is_on"] and self.is_on):
            return
        self.memory.load_state(state["memory"])
        if same_pool:
            self.comparison.load_state(state["comparison"])
        else:
            self.memory.adapt(lane)

    def restore_places(self, lane: "Lane", state: State) -> None:
        """Make the places that there were, before any part loads its state."""
        if state["is_on"] and self.is_on:
            for name in state["places"]:
                places.add(lane, name)
