"""What is done with a change of the world, at control points: concepts recalled, challengers raised.

One object a lane. The lane hands it every block (`observe`) and every control point (`review`); what it
decides on is what `places.py` compares. It changes learners at control points only, by what labelled rows
have shown, so a lane stays a function of its configuration and its input.
"""

from typing import TYPE_CHECKING

from adaptd import challengers, memory, places
from adaptd.contracts import Bytes, Floats, Layout, State
from adaptd.experience import Experience
from adaptd.pool import FOR_MANY_CODES

if TYPE_CHECKING:
    from adaptd.config import Config
    from adaptd.engine import Lane


class Strategy:
    """Concept memory, challengers, and their comparisons."""

    def __init__(self, config: "Config", layout: Layout, n_learners: int) -> None:
        self.n_learners = n_learners
        """The configured ones; those in places are behind them."""
        self.memory_config = memory.Config(**config.memory)
        self.challengers_config = challengers.Config(**config.challengers)
        # A pool of one has nothing to blend with what comes back, or rises.
        self.families = [
            family
            for family, part in (
                (memory.FAMILY, self.memory_config), (challengers.FAMILY, self.challengers_config),
            )
            if part.enabled and n_learners > 1
        ]  # fmt: skip
        """Whose places there may be."""
        self.comparison = places.Comparison(n_learners, layout.task == "regression")
        self.experience = Experience()
        self.memory = memory.Memory(self.memory_config, layout)
        self.challengers = challengers.Challengers(self.challengers_config, layout, config.control.rows)

    def observe(
        self, layout: Layout, x: Floats, lags: Floats, predictions: Floats, blend: Floats, y: Floats,
        op: Bytes, weight: Floats,
    ) -> None:  # fmt: skip
        """A block has been walked: compare, and follow what rows are like."""
        if not self.families:
            return
        self.comparison.step(predictions, blend, y, op, weight)
        if memory.FAMILY in self.families:
            self.memory.observe(x, blend, y, op)
        if challengers.FAMILY in self.families:
            self.challengers.observe(layout, x, lags, y, op, weight)

    def review(self, lane: "Lane") -> None:
        """A control point."""
        if memory.FAMILY in self.families:
            self.memory.review(lane)
        if challengers.FAMILY in self.families:
            self.challengers.review(lane)

    def about(self, index: int) -> str:
        """What the learner at `index` is there for; empty for a configured one."""
        concept, challenger = self.memory.concepts.get(index), self.challengers.challengers.get(index)
        if challenger is not None:
            return f"{challenger.action} {challenger.relative}, row {challenger.raised_row:,}"
        return "" if concept is None else f"row {concept.first_row:,}, {concept.recalls} recalls"

    def grow(self, layout: Layout) -> None:
        self.memory.grow(layout)
        self.challengers.grow(layout)

    def state(self, lane: "Lane") -> State:
        return {
            "families": list(self.families),
            "n_learners": self.n_learners,
            "places": [slot.name for slot in lane.pool.slots if slot.is_place],
            "comparison": self.comparison.state(),
            "experience": self.experience.state(),
            "memory": self.memory.state(),
            "challengers": self.challengers.state(lane),
        }

    def load_state(self, lane: "Lane", state: State, same_pool: bool) -> None:
        """The lane's parts have their places already (`restore_places`)."""
        self.experience.load_state(state["experience"])
        if same_pool and self.families == state["families"]:
            self.comparison.load_state(state["comparison"])
        else:
            same_pool = False
        if memory.FAMILY in self.families and memory.FAMILY in state["families"]:
            # With another pool the places have moved.
            names = lane.pool.names
            indices = {
                state["n_learners"] + k: names.index(name)
                for k, name in enumerate(state["places"]) if name in names
            }  # fmt: skip
            self.memory.load_state(state["memory"], indices)
            if not same_pool:
                self.memory.adapt(lane)
        if challengers.FAMILY in self.families and challengers.FAMILY in state["families"]:
            self.challengers.load_state(lane, state["challengers"], same_pool)

    def restore_places(self, lane: "Lane", state: State) -> None:
        """Make the places that there were, before any part loads its state."""
        is_default = not lane.config.pool.learners
        for name in state["places"]:
            if name.rpartition("_")[0] in self.families or (is_default and name in FOR_MANY_CODES):
                places.add(lane, name)
