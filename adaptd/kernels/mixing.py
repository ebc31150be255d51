"""Steps that controllers share: fixed share, confidence maps, and who is champion."""

import math

import numpy as np
import numpy.typing as npt

from adaptd.contracts import Floats, State
from adaptd.kernels.compile import subkernel
from adaptd.numerics import enlarged, pack, unpack

# Bets on a challenger, each a share of the loss difference. Betting on several sizes at once costs little
# and finds both a clear and a slight advantage. (Waudby-Smith and Ramdas 2024, section 4.)
BETS = np.array([0.05, 0.25, 0.5])
# A confidence map has a point at each of these logits of the greatest probability.
MAP_LOGITS = np.linspace(-4.0, 6.0, 24)
MAP_RATE = 0.005
MAP_SHARE = 0.001
# Part of the shares of a stack's members that is dealt out anew each row.
MEMBER_SHARE = 0.001
# Fading factor of a learner's mean loss: a memory of about 500 rows.
LOSS_FADING = 0.998
# Errors are cut at this many times their running size: one freak must not turn the weights.
ERROR_MAX = 6.0
# A row of this weight or more counts this much: one row must not rewrite what thousands taught.
WEIGHT_MAX = 10.0


@subkernel
def all_finite(predictions, i):
    """Whether each number of row `i` (of [n, width]) is finite; an infinity would poison every sum."""
    total = 0.0
    for c in range(predictions.shape[1]):
        total += predictions[i, c]
    return math.isfinite(total)


@subkernel
def half_brier(p, i, y):
    """Half the squared distance of row `i` of the probabilities `p` to class `y`: a loss in [0, 1]."""
    total = 0.0
    for c in range(p.shape[1]):
        miss = p[i, c] - (1.0 if c == y else 0.0)
        total += 0.5 * miss * miss
    return min(total, 1.0)


@subkernel
def is_wrong(p, i, y):
    """1.0 when the most probable class of row `i` of the probabilities `p` is not `y`, else 0.0."""
    top = 0
    for c in range(1, p.shape[1]):
        if p[i, c] > p[i, top]:
            top = c
    return 0.0 if top == y else 1.0


@subkernel
def softmax(z):
    """Turn the logits `z` (at least one) into probabilities in place."""
    top = z[0]
    for c in range(1, z.shape[0]):
        top = max(top, z[c])
    total = 0.0
    for c in range(z.shape[0]):
        z[c] = math.exp(z[c] - top)
        total += z[c]
    for c in range(z.shape[0]):
        z[c] /= total


@subkernel
def reward(shares, awake, losses, gain):
    """Multiply each share by exp(-gain * loss); those awake keep their common mass, the rest stay.

    Sleeping experts: what sleeps is neither praised nor blamed (Freund et al. 1997).
    """
    least = math.inf
    mass = 0.0
    for n in range(shares.shape[0]):
        if awake[n]:
            least = min(least, losses[n])
            mass += shares[n]
    if not mass > 0.0:
        return
    total = 0.0
    for n in range(shares.shape[0]):
        if awake[n]:
            shares[n] *= math.exp(-gain * (losses[n] - least))
            total += shares[n]
    if not total > 0.0:
        return
    for n in range(shares.shape[0]):
        if awake[n]:
            shares[n] *= mass / total


@subkernel
def share_out(shares, alpha):
    """Move the fraction `alpha` of every share into a common pot, dealt out evenly."""
    each = alpha / shares.shape[0]
    for n in range(shares.shape[0]):
        shares[n] = (1.0 - alpha) * shares[n] + each


@subkernel
def gather_evidence(evidence, champion, awake, losses):
    """Update what speaks for each challenger, from losses in [0, 1] of one row.

    For every bet b: `E <- (E + 1)(1 + b (loss of the champion - loss))`, a Shiryaev-Roberts e-detector:
    while the champion is no worse, the first time that the mean of E passes a threshold comes after that
    many rows on average or later, however the losses depend on each other.
    Source: Shin, Ramdas, Rinaldo, "E-detectors" (arXiv:2203.03532).
    """
    if not awake[champion]:
        return
    for n in range(evidence.shape[0]):
        if n == champion or not awake[n]:
            continue
        difference = losses[champion] - losses[n]
        for k in range(evidence.shape[1]):
            # The cap keeps E finite where nobody reviews for long; it is far above every threshold.
            evidence[n, k] = min((evidence[n, k] + 1.0) * (1.0 + BETS[k] * difference), 1e30)


@subkernel
def note_losses(means, counts, awake, losses):
    """Move the fading mean loss of every learner that is awake; the first rows weigh alike."""
    for n in range(means.shape[0]):
        if awake[n]:
            counts[n] += 1.0
            means[n] += max(1.0 - LOSS_FADING, 1.0 / counts[n]) * (losses[n] - means[n])


@subkernel
def apply_map(table, shares, p, mark):
    """Replace the greatest of the probabilities `p` by what it was worth so far; scale the others to fit.

    `table` [2, 24]: how often such a confidence was right, and the number of rows behind that. `shares`
    [2]: trust in the plain probability and in the table. `mark` [4] keeps what `learn_map` needs.
    """
    top = 0
    for c in range(1, p.shape[0]):
        if p[c] > p[top]:
            top = c
    plain = min(max(p[top], 1e-9), 1.0 - 1e-9)
    points = table.shape[1]
    place = (math.log(plain / (1.0 - plain)) - MAP_LOGITS[0]) / (MAP_LOGITS[points - 1] - MAP_LOGITS[0])
    place = min(max(place, 0.0), 1.0) * (points - 1)
    low = min(int(place), points - 2)
    mapped = table[0, low] + (place - low) * (table[0, low + 1] - table[0, low])
    blend = shares[0] * plain + shares[1] * mapped
    # Summed, not 1 - p[top]: next to certainty that difference is mostly rounding.
    rest = 0.0
    for c in range(p.shape[0]):
        if c != top:
            rest += p[c]
    scale = (1.0 - blend) / max(rest, 1e-250)
    for c in range(p.shape[0]):
        p[c] *= scale
    p[top] = blend
    mark[0] = top
    mark[1] = low
    mark[2] = plain
    mark[3] = mapped


@subkernel
def learn_map(table, shares, mark, y, gain):
    """Learn from class `y` what the confidence that `apply_map` marked was worth."""
    hit = 1.0 if int(mark[0]) == y else 0.0
    plain = mark[2] if hit > 0.0 else 1.0 - mark[2]
    mapped = max(mark[3] if hit > 0.0 else 1.0 - mark[3], 1e-6)
    if gain != 1.0:
        plain = plain**gain
        mapped = mapped**gain
    a = shares[0] * plain
    b = shares[1] * mapped
    shares[0] = (1.0 - MAP_SHARE) * a / (a + b) + 0.5 * MAP_SHARE
    shares[1] = (1.0 - MAP_SHARE) * b / (a + b) + 0.5 * MAP_SHARE
    low = int(mark[1])
    for j in range(low, low + 2):
        table[1, j] += gain
        table[0, j] += min(1.0, gain * max(MAP_RATE, 1.0 / (table[1, j] + 1.5))) * (hit - table[0, j])


@subkernel
def sized(error, squared):
    """Loss of an error in units of the running scale, cut off so that no row decides alone."""
    size = min(abs(error), ERROR_MAX)
    return 0.5 * size * size if squared else size


@subkernel
def reach(seen):
    """Between which numbers a prediction is believed: the targets' range, wider by half on each side.

    `seen` [5]: running scale of the error, least and greatest target, their number, errors noted.
    """
    if seen[3] == 0.0:
        return -math.inf, math.inf
    slack = 0.5 * (seen[2] - seen[1])
    return seen[1] - slack, seen[2] + slack


@subkernel
def note_target(seen, y):
    """Widen the range of `seen` to hold `y`."""
    seen[1] = y if seen[3] == 0.0 else min(seen[1], y)
    seen[2] = y if seen[3] == 0.0 else max(seen[2], y)
    seen[3] += 1.0


@subkernel
def note_scale(seen, miss):
    """Move the running scale of `seen` towards the absolute error `miss`, by a bounded step."""
    seen[4] += 1.0
    # The first rows may err by anything; after them a freak target must not blow up the scale. The range
    # is there for a scale that went to almost nothing while the target stood still.
    if seen[4] > 20.0:
        miss = min(miss, max(5.0 * seen[0], 0.01 * (seen[2] - seen[1])))
    seen[0] += max(0.002, 1.0 / seen[4]) * (miss - seen[0])


def new_seen() -> Floats:
    """What `reach`, `note_target` and `note_scale` need, before the first target."""
    return np.zeros(5)


def new_map() -> Floats:
    """A confidence map [2, 24] that has seen nothing: it leaves confidence as it is."""
    return np.stack([1.0 / (1.0 + np.exp(-MAP_LOGITS)), np.zeros(len(MAP_LOGITS))])


def enter_evenly(shares: Floats, index: int) -> None:
    """Give a learner that is new 1 / n of the shares; the others keep their proportions."""
    entry = 1.0 / len(shares)
    others = shares.sum() - shares[index]
    shares *= (1.0 - entry) / others if others > 0.0 else 0.0
    shares[index] = entry


def restore_shares(shares: Floats, n: int, former: Floats) -> None:
    """Deal the whole of the first `n` shares out as `former` says; nobody's share behind them changes."""
    mass = shares[:n].sum()
    total = former.sum()
    if mass > 0.0 and total > 0.0:
        shares[:n] = former * (mass / total)


def normalised(sizes: Floats, set_aside: npt.NDArray[np.bool_]) -> Floats:
    """`sizes` as shares that sum to 1, with 0 for those set aside; even where nothing is left."""
    kept = np.where(set_aside, 0.0, sizes)
    total = kept.sum()
    if not (total > 0.0 and math.isfinite(total)):
        kept = np.where(set_aside, 0.0, 1.0) if not set_aside.all() else np.ones(len(sizes))
        total = kept.sum()
    result: Floats = kept / total
    return result


class Title:
    """Who is champion: kernels write the losses down, `review` decides.

    A challenger takes the title when the evidence for it passes `threshold` times the number of
    challengers, and never sooner than `dwell_rows` labelled rows after the last change. In the first
    `dwell_rows` rows, and when the champion is set aside, the least mean loss decides at once.
    """

    def __init__(self, n_learners: int, threshold: float, dwell_rows: int) -> None:
        self.threshold = threshold
        self.dwell_rows = dwell_rows
        self.champion = 0
        self.changed_at = 0
        self.means = np.zeros(n_learners)
        self.counts = np.zeros(n_learners)
        self.evidence = np.zeros((n_learners, len(BETS)))

    _names = ("champion", "changed_at", "means", "counts", "evidence")

    def review(self, awake: npt.NDArray[np.bool_], rows: int) -> None:
        """Decide, after `rows` labelled rows in all."""
        if len(self.means) == 1 or not awake.any():
            return
        losses = np.where(awake & (self.counts > 0.0), self.means, np.inf)
        evidence = np.where(awake, self.evidence.mean(axis=1), 0.0)
        unknown = not awake[self.champion] or self.counts[self.champion] == 0.0
        if unknown or rows < self.dwell_rows:
            # Without any loss yet the first learner that is left holds the title.
            challenger = int(np.argmin(losses)) if np.isfinite(losses).any() else int(np.argmax(awake))
        elif rows - self.changed_at >= self.dwell_rows and (
            evidence.max() > self.threshold * max(1, len(evidence) - 1)
        ):
            challenger = int(np.argmax(evidence))
        else:
            return
        if challenger != self.champion:
            self.champion = challenger
            self.changed_at = rows
            self.evidence[:] = 0.0

    def reset_learner(self, index: int) -> None:
        self.means[index] = 0.0
        self.counts[index] = 0.0
        self.evidence[index] = 0.0
        if index == self.champion:
            self.evidence[:] = 0.0

    def replace_learner(self, index: int, by: int) -> None:
        """The learner at `by` has become the one at `index`."""
        self.means[index], self.counts[index] = self.means[by], self.counts[by]
        self.evidence[index] = self.evidence[by]
        if by == self.champion:
            self.champion = index
        elif index == self.champion:
            # What spoke against the former learner says nothing against this one.
            self.evidence[:] = 0.0

    def add_learner(self) -> None:
        n = len(self.means) + 1
        self.means, self.counts = enlarged(self.means, (n,)), enlarged(self.counts, (n,))
        self.evidence = enlarged(self.evidence, (n, len(BETS)))

    def state(self) -> State:
        return pack(self, self._names)

    def load_state(self, state: State) -> None:
        unpack(self, self._names, state)
