"""What was learned of actions: how much each saved, with which kind of learner, and what to try next.

How: an action's outcome is the share of the loss that it saved against the learner it was compared with, on
the same rows. For an action and a kind of learner

    S <- fading S + outcome        n <- fading n + 1        fading = 0.9 an outcome

and what is expected of it next is optimistic while it has hardly been tried:

    value = (S + mean of the action) / (n + 1) + WIDTH sqrt(log(2 + all trials) / (n + 1))

so what an action saved with other kinds counts as one outcome, whatever has not been tried is tried, and what
keeps losing is left alone for ever longer. Nothing here is random. Challengers choose by it; what recalls of
concepts saved is taken down beside them.
"""

import math

from adaptd.contracts import State

FADING = 0.9
# Half of the usual spread of an outcome.
WIDTH = 0.05
ACTIONS = ("fresh", "warm", "mutate", "recall")


class Experience:
    """Fading sums by action and kind of learner."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, list[float]]] = {action: {} for action in ACTIONS}
        """By action and kind: the fading sum of outcomes, and the fading number of them."""

    def note(self, action: str, kind: str, saved: float) -> None:
        """An action with a learner of this kind has saved such a share of the loss; below 0: cost it."""
        total, n = self.sums[action].get(kind, (0.0, 0.0))
        # One freak outcome must not decide for long.
        outcome = min(max(saved, -1.0), 1.0)
        self.sums[action][kind] = [FADING * total + outcome, FADING * n + 1.0]

    def value(self, action: str, kind: str) -> float:
        """What may be hoped for."""
        total, n = self.sums[action].get(kind, (0.0, 0.0))
        kinds = self.sums[action].values()
        mean = sum(part for part, _ in kinds) / (sum(count for _, count in kinds) + 1.0)
        trials = sum(count for others in self.sums.values() for _, count in others.values())
        return (total + mean) / (n + 1.0) + WIDTH * math.sqrt(math.log(2.0 + trials) / (n + 1.0))

    def state(self) -> State:
        return {
            action: {kind: list(sums) for kind, sums in kinds.items()} for action, kinds in self.sums.items()
        }

    def load_state(self, state: State) -> None:
        self.sums = {
            action: {kind: list(sums) for kind, sums in kinds.items()} for action, kinds in state.items()
        }
