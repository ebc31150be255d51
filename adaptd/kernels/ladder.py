"""The ladder: three copies of a learner at neighbouring rates that find the right rate together.

Rungs 0, 1, 2 learn at eta / 2, eta, 2 eta. They predict as a fixed-share mixture: each row multiplies a
rung's share by its likelihood, and a little of all shares is handed round, so that the mixture can turn to
another rung at any time. When the fading loss of an outer rung beats the middle one's by a margin, the ladder
moves: eta doubles or halves, the copies shift by one, and the copy at the new end starts as its neighbour.
One copy is a ladder that never moves.

Reference: M. Herbster, M. Warmuth, "Tracking the best expert", Machine Learning 32 (1998).
"""

import numpy as np

from adaptd.kernels.compile import subkernel

SHARE = 0.01
LOSS_FADE = 0.005
LOWEST_RATE = 1e-4
HIGHEST_RATE = 1.0

# Places in the array of what moves; a learner appends its own.
ETA, SINCE_MOVE, OWN = range(3)
# Rows of the array of what is known of the rungs.
SHARES, LOSSES = range(2)


def rungs(n: int) -> np.ndarray:
    """Shares and fading losses of `n` rungs, 1 or 3, before any row: [2, n]."""
    return np.array([np.full(n, 1.0 / n), np.zeros(n)])


@subkernel
def climb(rungs, likelihoods, row_losses, moving, margin, cool_down):
    """Judge the rungs by one row. Returns where the ladder moves: 1 up, -1 down, 0 stays.

    After 1 or -1 the caller has to `shift` every array that belongs to the rungs.
    """
    if rungs.shape[1] == 1:
        rungs[LOSSES, 0] += LOSS_FADE * (row_losses[0] - rungs[LOSSES, 0])
        return 0
    total = 0.0
    for r in range(3):
        rungs[SHARES, r] *= likelihoods[r]
        total += rungs[SHARES, r]
        rungs[LOSSES, r] += LOSS_FADE * (row_losses[r] - rungs[LOSSES, r])
    for r in range(3):
        rungs[SHARES, r] = (1.0 - SHARE) * rungs[SHARES, r] / total + SHARE / 3.0
    moving[SINCE_MOVE] += 1.0
    if moving[SINCE_MOVE] <= cool_down:
        return 0
    bar = rungs[LOSSES, 1] - margin
    if rungs[LOSSES, 2] < bar and moving[ETA] * 2.0 <= HIGHEST_RATE:
        moving[ETA] *= 2.0
        outer, inner, move = 0, 2, 1
    elif rungs[LOSSES, 0] < bar and moving[ETA] * 0.5 >= LOWEST_RATE:
        moving[ETA] *= 0.5
        outer, inner, move = 2, 0, -1
    else:
        return 0
    # The copy that wins is on two rungs now; they halve its share.
    rungs[SHARES, outer] += rungs[SHARES, 1]
    rungs[SHARES, inner] *= 0.5
    rungs[SHARES, 1] = rungs[SHARES, inner]
    rungs[LOSSES, outer] = rungs[LOSSES, 1]
    rungs[LOSSES, 1] = rungs[LOSSES, inner]
    moving[SINCE_MOVE] = 0.0
    return move


@subkernel
def shift(copies, move):
    """Shift `copies` [3, n] by one rung; the winning outer copy keeps its place too."""
    if move == 0:
        return
    # Loops, not slices: an array assigned to a slice costs the compiler seconds.
    outer, inner = (0, 2) if move == 1 else (2, 0)
    for i in range(copies.shape[1]):
        copies[outer, i] = copies[1, i]
        copies[1, i] = copies[inner, i]
