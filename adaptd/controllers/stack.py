"""Stacks the learners: mixes their log-probabilities, or regresses on their predicted numbers.

How, classification (a product of experts with learned exponents; p[n]: what learner n said, floored):

    l[n,c] = log p[n,c]^a[n], sent through the confidence map of learner n, centred over c
    m[k]   = softmax(b[k] + sum_n w[k,n] l[n])        one mixer for each of `rates`
    g[n]   = sum_c m[k,c] l[n,c] - l[n,y]             gradient of the log loss by w[k,n]
    v[n]   = 0.999 v[n] + 0.001 g[n]^2
    w[k,n] -= rates[k] g[n] / sqrt(v[n])

One more mixer takes the log-probabilities as they were said, and one member is fixed share towards its own
past. A top layer blends the members by fixed share, and a confidence map corrects what comes out. The
exponents a[n] learn by AdaGrad. While all this does worse than usual, what `kernels/crisis.py` makes of it is
said in its place. Mixers sharpen what learners agree on and cancel what two of them repeat,
so the blend is often better than every learner; shares alone never are.

How, regression: c is the fixed-share blend of the predictions (kept within the targets' widened range), S
the running size of its error, and

    m[k] = c + S (u[k] + sum_n w[k,n] (p[n] - c) / S)     one member for each of `forgetting`

where w[k] and u[k] come from recursive least squares with a prior at 0; with `loss = "absolute"` each row
weighs 1 / max(error, 1), which seeks the median where errors are large. Fixed share blends the members to b.
Where little can be predicted all of them fit noise, so how much of b is right is learned too. h is the blend
of the predictions by shares that forget slowly, t the least-squares factor of b - h, from 0 to 1, and

    out = a[0] b + a[1] (h + t (b - h))                 by fixed share, most of it a[1] at the start

Labels may be late: a row is mixed anew, with today's weights, when it is learned.

Use it when: nearly always; it is the default.
Do not use it when: one learner's own words must come out (`champion`), or weights must be easy to explain
(`fixed_share`).
Cost: 3 us a row for 10 learners and 2 classes, 16 us for 12 and 40; 1 us in regression. Bytes: 8 (mixers
(2 learners + classes) + 60 learners); regression 8 members learners^2.
Example: `tests/test_controller_contract.py` holds it to less loss than the best of its learners.
Reference: Mattern, "Linear and geometric mixtures" (DCC 2013, arXiv:1302.2820); Bousquet and Warmuth,
"Tracking a small set of experts by mixing past posteriors" (JMLR 2002); Mahoney, "Adaptive weighing of
context models for lossless data compression" (2005), for mixers and confidence maps in layers.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from adaptd.contracts import Bytes, Controller, Floats, Habits, Layout, State
from adaptd.kernels.crisis import Crisis
from adaptd.kernels.explaining import NOT_ASKED
from adaptd.kernels.mixing import Title, enter_evenly, new_map, new_seen, normalised, restore_shares
from adaptd.kernels.stack_classes import EXPONENT_MAX, EXPONENT_MIN, walk_classes
from adaptd.kernels.stack_numbers import ANSWERS_START, PRIOR, WORTH_PRIOR, WORTH_START, walk_numbers
from adaptd.numerics import adopt, enlarged, habits, pack, unpack

# Where the running square of a gradient starts, and the sum of an exponent's: small enough to move at once.
V_START = 0.03
SQUARES_START = 0.01
# What is adopted from other streams: greatest weight, and rows that it counts for in a confidence map.
WEIGHT_ADOPTED_MAX = 3.0
MAP_ROWS_ADOPTED = 30.0
# What is leaned on after a drift: of weights and maps the stream itself knows more by then.
LEANING = ("exponents", "shares", "past")

Rate = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Fading = Annotated[float, msgspec.Meta(ge=0.9, lt=1.0)]


# Held by `tests/test_controller_contract.py`, which says what is summed.
REGRET_MAX = 0.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rates: Annotated[tuple[Rate, ...], msgspec.Meta(max_length=8)] = (0.001, 0.003, 0.01)
    """Step sizes of the mixers that take corrected log-probabilities."""
    plain_rate: Rate = 0.003
    """Step size of the mixer that takes log-probabilities as they were said."""
    floor: Annotated[float, msgspec.Meta(ge=1e-9, le=0.1)] = 0.001
    """Probability spread evenly over all classes, in what goes in and in what each member says."""
    loss: Literal["absolute", "squared"] = "absolute"
    """Regression: which error to keep small."""
    forgetting: Annotated[tuple[Fading, ...], msgspec.Meta(min_length=1, max_length=8)] = (0.997, 0.9995)
    """Regression: fading factors of the least-squares members."""
    share_rate: Rate = 0.02
    """Part of the learners' shares that is dealt out anew each row."""
    threshold: Annotated[float, msgspec.Meta(ge=1.0, le=1e12)] = 1e4
    """Evidence, for each challenger there is, that changes the champion; about the rows between changes
    when all are equally good."""
    dwell_rows: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 500
    """Labelled rows from one change of champion to the next, at least."""


def build(config: Config, layout: Layout, n_learners: int) -> Controller:
    if layout.task == "classification":
        return ClassStack(config, layout, n_learners)
    return NumberStack(config, n_learners)


class ClassStack:
    """Geometric mixers, fixed share and confidence maps."""

    def __init__(self, config: Config, layout: Layout, n_learners: int) -> None:
        self.config = config
        self.rates = np.array([*config.rates, config.plain_rate])
        mixers = len(self.rates)
        self.title = Title(n_learners, config.threshold, config.dwell_rows)
        self.w = np.full((mixers, n_learners), 1.0 / n_learners)
        self.v = np.full((mixers, n_learners), V_START)
        self.b = np.zeros((mixers, layout.width))
        self.exponents = np.ones(n_learners)
        self.squares = np.full(n_learners, SQUARES_START)
        self.shares = np.full(n_learners, 1.0 / n_learners)
        self.past = np.full(n_learners, 1.0 / n_learners)
        self.top = np.full(mixers + 1, 1.0 / (mixers + 1))
        self.maps = np.stack([new_map() for _ in range(n_learners + 1)])
        self.map_shares = np.full((n_learners + 1, 2), 0.5)
        self.spread = np.ones(n_learners)
        self.set_aside = np.zeros(n_learners, np.bool_)
        self.rows = np.zeros(1, np.int64)
        self.crisis = Crisis(n_learners)
        self.calm = np.zeros((0, layout.width))

    _names = (
        "w", "v", "b", "exponents", "squares", "shares", "past", "top", "maps", "map_shares", "spread",
        "set_aside", "rows",
    )  # fmt: skip

    def step(self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        self.step_explained(predictions, y, op, weight, out, NOT_ASKED)

    def step_explained(
        self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, parts: Floats
    ) -> None:
        self.calm = np.empty_like(out)
        walk_classes(
            predictions, y, op, weight, out, self.calm, parts, self.config.floor, self.config.share_rate,
            self.rates, self.w, self.v, self.b, self.exponents, self.squares, self.shares, self.past,
            self.top, self.maps, self.map_shares, self.spread, self.title.means, self.title.counts,
            self.title.evidence, self.title.champion, self.rows, self.crisis.usual, self.crisis.w,
            self.crisis.squares, self.crisis.shares, self.crisis.steps, self.crisis.columns,
        )  # fmt: skip

    def review(self, awake: npt.NDArray[np.bool_]) -> None:
        self.set_aside = ~awake
        self.title.review(awake, int(self.rows[0]))

    def weights(self) -> Floats:
        # What a learner moves: its weight times how far its log-probabilities usually lie apart.
        moves = np.abs(self.w) * np.sqrt(self.spread)
        moves[:, self.set_aside] = 0.0
        totals = moves.sum(axis=1, keepdims=True)
        moves = np.divide(moves, totals, out=np.zeros_like(moves), where=totals > 0.0)
        shares = np.where(self.set_aside, 0.0, self.shares)
        return normalised(self.top[:-1] @ moves + self.top[-1] * shares, self.set_aside)

    def champion(self) -> int:
        return self.title.champion

    def speaker(self) -> int:
        return -1

    def grow(self, layout: Layout) -> None:
        self.b = enlarged(self.b, (len(self.rates), layout.width))

    def reset_learner(self, index: int) -> None:
        n_learners = len(self.shares)
        # From weight 0 a new learner cannot hurt; it earns what it gets.
        self.w[:, index] = 0.0
        self.v[:, index] = V_START
        self.exponents[index] = 1.0
        self.squares[index] = SQUARES_START
        self.maps[index] = new_map()
        self.map_shares[index] = 0.5
        self.spread[index] = 1.0
        enter_evenly(self.shares, index)
        self.past[index] = 1.0 / n_learners
        self.title.reset_learner(index)
        self.crisis.reset_learner(index)

    def challenge(self, index: int, of: int, part: float) -> None:
        self.w[:, index] = part * self.w[:, of]
        self.w[:, of] *= 1.0 - part
        self.crisis.welcome(index)

    def replace_learner(self, index: int, by: int) -> None:
        # Both spoke for the same family: what they had together is the newcomer's.
        self.w[:, index] += self.w[:, by]
        self.shares[index] += self.shares[by]
        self.past[index] += self.past[by]
        for own in (self.v.T, self.exponents, self.squares, self.maps, self.map_shares, self.spread):
            own[index] = own[by]
        self.title.replace_learner(index, by)

    def add_learner(self) -> None:
        mixers, n = self.w.shape[0], self.w.shape[1] + 1
        self.w, self.v = enlarged(self.w, (mixers, n)), enlarged(self.v, (mixers, n), V_START)
        self.exponents = enlarged(self.exponents, (n,), 1.0)
        self.squares = enlarged(self.squares, (n,), SQUARES_START)
        self.shares, self.past = enlarged(self.shares, (n,)), enlarged(self.past, (n,))
        # The last map is the blend's.
        self.maps = np.concatenate([self.maps[:-1], new_map()[None], self.maps[-1:]])
        self.map_shares = np.concatenate([self.map_shares[:-1], [[0.5, 0.5]], self.map_shares[-1:]])
        self.spread = enlarged(self.spread, (n,), 1.0)
        self.set_aside = enlarged(self.set_aside, (n,))
        self.title.add_learner()
        self.crisis.add_learner()

    def trust(self, n: int) -> State:
        return {
            "w": self.w[:, :n].copy(),
            "b": self.b.copy(),
            "exponents": self.exponents[:n].copy(),
            "maps": self.maps[[*range(n), -1]],
            "map_shares": self.map_shares[[*range(n), -1]],
            "shares": self.shares[:n].copy(),
            "top": self.top.copy(),
        }

    def restore_trust(self, n: int, trust: State) -> None:
        # What stood in for the learners that come back would count twice.
        self.w[:, n:] = 0.0
        self.w[:, :n] = trust["w"]
        self.b = enlarged(trust["b"], self.b.shape)
        self.exponents[:n] = trust["exponents"]
        self.maps[[*range(n), -1]] = trust["maps"]
        self.map_shares[[*range(n), -1]] = trust["map_shares"]
        restore_shares(self.shares, n, trust["shares"])
        self.top = trust["top"].copy()

    def _of_each(self) -> dict[str, Floats]:
        """What is known of learners, each learner's first; views, not copies."""
        return {
            "w": self.w.T, "v": self.v.T, "exponents": self.exponents, "shares": self.shares,
            "past": self.past, "maps": self.maps, "map_shares": self.map_shares, "spread": self.spread,
        }  # fmt: skip

    def habits(self, n: int) -> tuple[list[Habits], Habits]:
        return habits(self._of_each(), n), {"top": self.top.tolist()}

    def adopt(self, learners: Sequence[Habits | None], blend: Habits) -> None:
        adopt(self._of_each(), learners[: len(self.shares)])
        np.clip(self.w, -WEIGHT_ADOPTED_MAX, WEIGHT_ADOPTED_MAX, out=self.w)
        np.maximum(self.v, 1e-4, out=self.v)
        np.clip(self.maps[:, 0], 0.0, 1.0, out=self.maps[:, 0])
        # So that this stream's own rows soon count for more.
        np.clip(self.maps[:, 1], 0.0, MAP_ROWS_ADOPTED, out=self.maps[:, 1])
        np.maximum(self.spread, 0.0, out=self.spread)
        both = np.zeros(2, np.bool_)
        self.map_shares = np.stack([normalised(np.maximum(pair, 0.0), both) for pair in self.map_shares])
        self.lean(learners, blend, 1.0)

    def lean(self, learners: Sequence[Habits | None], blend: Habits, part: float) -> None:
        n = len(self.shares)
        each = {name: of for name, of in self._of_each().items() if name in LEANING}
        adopt(each, learners[:n], part)
        adopt({"top": self.top[None]}, [blend], part)
        np.clip(self.exponents, EXPONENT_MIN, EXPONENT_MAX, out=self.exponents)
        nobody = np.zeros(n, np.bool_)
        self.shares = normalised(np.maximum(self.shares, 0.0), nobody)
        self.past = normalised(np.maximum(self.past, 0.0), nobody)
        self.top = normalised(np.maximum(self.top, 0.0), np.zeros(len(self.top), np.bool_))

    def state(self) -> State:
        return {**pack(self, self._names), "title": self.title.state(), "crisis": self.crisis.state()}

    def load_state(self, state: State) -> None:
        unpack(self, self._names, state)
        self.title.load_state(state["title"])
        self.crisis.load_state(state["crisis"])


class NumberStack:
    """Recursive least squares around the fixed-share blend, held back to what it proves to be worth."""

    def __init__(self, config: Config, n_learners: int) -> None:
        self.config = config
        self.forgetting = np.array(config.forgetting)
        mixers = len(self.forgetting)
        self.title = Title(n_learners, config.threshold, config.dwell_rows)
        self.w = np.zeros((mixers, n_learners + 1))
        self.covariance = np.stack([np.eye(n_learners + 1) / PRIOR for _ in range(mixers)])
        self.shares = np.full(n_learners, 1.0 / n_learners)
        self.top = np.full(mixers + 1, 1.0 / (mixers + 1))
        self.lasting = np.full(n_learners, 1.0 / n_learners)
        self.worth = np.array([WORTH_START, WORTH_PRIOR])
        self.answers = np.array(ANSWERS_START)
        self.seen = new_seen()
        self.set_aside = np.zeros(n_learners, np.bool_)
        self.rows = np.zeros(1, np.int64)

    _names = (
        "w", "covariance", "shares", "top", "lasting", "worth", "answers", "seen", "set_aside", "rows",
    )  # fmt: skip

    def step(self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        self.step_explained(predictions, y, op, weight, out, NOT_ASKED)

    def step_explained(
        self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, parts: Floats
    ) -> None:
        walk_numbers(
            predictions, y, op, weight, out, parts, self.config.share_rate, self.config.loss == "squared",
            self.forgetting, self.w, self.covariance, self.shares, self.top, self.lasting, self.worth,
            self.answers, self.seen, self.title.means, self.title.counts, self.title.evidence,
            self.title.champion, self.rows,
        )  # fmt: skip

    def review(self, awake: npt.NDArray[np.bool_]) -> None:
        self.set_aside = ~awake
        self.title.review(awake, int(self.rows[0]))

    def weights(self) -> Floats:
        # The factor of p[n] in m[k] is s[n] + w[k,n] - s[n] sum(w[k]); the members share by `top`.
        shares = normalised(self.shares, self.set_aside)
        w = np.where(self.set_aside, 0.0, self.top[:-1] @ self.w[:, :-1])
        trust = self.answers[0] + self.answers[1] * self.worth[0]
        lasting = normalised(self.lasting, self.set_aside)
        factors = trust * (shares + w - shares * w.sum()) + (1.0 - trust) * lasting
        return normalised(np.abs(factors), self.set_aside)

    def champion(self) -> int:
        return self.title.champion

    def speaker(self) -> int:
        return -1

    def grow(self, layout: Layout) -> None:
        pass

    def reset_learner(self, index: int) -> None:
        for w, covariance in zip(self.w, self.covariance, strict=True):
            w[index] = 0.0
            covariance[index, :] = 0.0
            covariance[:, index] = 0.0
            covariance[index, index] = 1.0 / PRIOR
        enter_evenly(self.shares, index)
        enter_evenly(self.lasting, index)
        self.title.reset_learner(index)

    def challenge(self, index: int, of: int, part: float) -> None:
        self.w[:, index] = part * self.w[:, of]
        self.w[:, of] *= 1.0 - part

    def replace_learner(self, index: int, by: int) -> None:
        self.w[:, index] += self.w[:, by]
        self.shares[index] += self.shares[by]
        self.lasting[index] += self.lasting[by]
        for covariance in self.covariance:
            covariance[index, :] = covariance[by, :]
            covariance[:, index] = covariance[:, by]
            covariance[index, index] = covariance[by, by]
        self.title.replace_learner(index, by)

    def add_learner(self) -> None:
        n = len(self.shares)
        # The constant's place is behind the learners'.
        self.w = np.insert(self.w, n, 0.0, axis=1)
        self.covariance = np.insert(np.insert(self.covariance, n, 0.0, axis=1), n, 0.0, axis=2)
        self.covariance[:, n, n] = 1.0 / PRIOR
        self.shares = enlarged(self.shares, (n + 1,))
        self.lasting = enlarged(self.lasting, (n + 1,))
        self.set_aside = enlarged(self.set_aside, (n + 1,))
        self.title.add_learner()

    def trust(self, n: int) -> State:
        return {
            "w": self.w[:, [*range(n), -1]],
            "shares": self.shares[:n].copy(),
            "top": self.top.copy(),
            "lasting": self.lasting[:n].copy(),
        }

    def restore_trust(self, n: int, trust: State) -> None:
        self.w[:, n:-1] = 0.0
        self.w[:, [*range(n), -1]] = trust["w"]
        restore_shares(self.shares, n, trust["shares"])
        self.top = trust["top"].copy()
        restore_shares(self.lasting, n, trust["lasting" if "lasting" in trust else "shares"])

    def habits(self, n: int) -> tuple[list[Habits], Habits]:
        # Weights and shares of other streams were no better to begin with than none.
        return [{} for _ in range(n)], {}

    def adopt(self, learners: Sequence[Habits | None], blend: Habits) -> None:
        pass

    def lean(self, learners: Sequence[Habits | None], blend: Habits, part: float) -> None:
        pass

    def state(self) -> State:
        return {**pack(self, self._names), "title": self.title.state()}

    def load_state(self, state: State) -> None:
        # A checkpoint may be older than the shares that last and what comes of them: these begin as new.
        unpack(self, self._names, pack(self, self._names) | state)
        self.title.load_state(state["title"])
