"""What was learned of actions: how much each saved, with which kind of learner, and what to try next.

How: an action's outcome is the share of the loss that it saved against the learner it was compared with, on
the same rows, or 0 where it was worse, since the blend did not listen to it then. For an action and a kind of
learner

    S <- fading S + outcome        W <- fading W + part        n <- fading n + 1        fading = 0.9

where part is the newcomer's, in the end, of the weight that it and its relative have: so much of it the next
one begins with, W / (n + 1), which is 0 while nothing is known here or given from elsewhere. What is expected
of an action is optimistic while it has hardly been tried:

    value = S / (n + 1) + WIDTH sqrt(log(2 + all trials) / (n + 1))

In both, what the action did with other kinds counts as one more outcome. So whatever has not been tried is
tried, and what keeps losing is left alone for ever longer. Nothing here is random. Challengers choose by it;
what recalls of concepts saved is taken down beside them.
"""

import math

from adaptd.contracts import State

FADING = 0.9
# Half of the usual spread of an outcome.
WIDTH = 0.05
ACTIONS = ("fresh", "warm", "mutate", "recall")
# Entries of the sums.
SAVED, PART, OUTCOMES = range(3)


class Experience:
    """Fading sums by action and kind of learner."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, list[float]]] = {action: {} for action in ACTIONS}
        """By action and kind: the fading sums of what was saved, of the parts, and of ones."""
        self.given: dict[str, float] = {}
        """By action, the part that newcomers came to have on other streams."""

    def note(self, action: str, kind: str, saved: float, part: float) -> None:
        """An action with a learner of this kind has saved such a share of the loss; below 0: it was worse.

        part: of the weight that it and its relative had in the end, the newcomer's.
        """
        before = self.sums[action].get(kind, [0.0, 0.0, 0.0])
        # Nobody listens to one that is worse: it has saved nothing, and cost nothing.
        outcome = (min(max(saved, 0.0), 1.0), part, 1.0)
        self.sums[action][kind] = [FADING * old + new for old, new in zip(before, outcome, strict=True)]

    def value(self, action: str, kind: str) -> float:
        """What may be hoped for."""
        saved, n = self.mean(action, kind, SAVED)
        trials = sum(sums[OUTCOMES] for kinds in self.sums.values() for sums in kinds.values())
        return saved + WIDTH * math.sqrt(math.log(2.0 + trials) / (n + 1.0))

    def part(self, action: str, kind: str) -> float:
        """The part of its relative's weight that it may begin with."""
        return self.mean(action, kind, PART)[0]

    def mean(self, action: str, kind: str, of: int) -> tuple[float, float]:
        """What is expected, and the outcomes of this very kind."""
        own = self.sums[action].get(kind, [0.0, 0.0, 0.0])
        total = [sum(sums[i] for sums in self.sums[action].values()) for i in (of, OUTCOMES)]
        # What an action saved elsewhere says nothing of here: it does not speak in the choice.
        given = self.given.get(action, 0.0) if of == PART else 0.0
        others = (total[0] + given) / (total[1] + 1.0)
        return (own[of] + others) / (own[OUTCOMES] + 1.0), own[OUTCOMES]

    def state(self) -> State:
        sums = {action: {kind: list(of) for kind, of in kinds.items()} for action, kinds in self.sums.items()}
        return {"sums": sums, "given": dict(self.given)}

    def load_state(self, state: State) -> None:
        self.sums = {
            action: {kind: list(of) for kind, of in kinds.items()} for action, kinds in state["sums"].items()
        }
        self.given = dict(state["given"])
