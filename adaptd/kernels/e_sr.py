"""Shiryaev-Roberts e-detector: evidence that the mean of a signal in [0, 1] has moved since the start.

With mu the mean of all values so far, for each bet b in `BETS`,

    M_b = (M_b + 1)(1 + b (value - mu - margin))

and the evidence is the mean of the M_b. While no value is expected above mu + margin, evidence passes a
threshold A after A values on average or later, however the values depend on each other; betting on several
sizes at once finds small and large rises alike. The promise is exact for the true mean; with a running mean
the margin takes up what the estimate is wrong by, and false alarms are measured
(docs/decisions/0005-drift-detection.md).

One detector is a float64 vector of `E_SR_SIZE` entries that starts as zeros. About 10 ns a value.

Reference: Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric framework for sequential change detection"
(arXiv:2203.03532).
"""

import numpy as np

from adaptd.kernels.compile import subkernel

BETS = np.array([0.1, 0.25, 0.5, 1.0])
# Evidence stops growing here, far above every threshold, so that it stays finite.
EVIDENCE_MAX = 1e30
COUNT, MEAN, FIRST_BET = 0, 1, 2
E_SR_SIZE = FIRST_BET + len(BETS)


@subkernel
def bet(evidence, excess):
    """Take how far a value lies above the bound; the mean of `evidence` [bets] afterwards."""
    # With the margin a value can lie more than 1 below; evidence is never negative.
    excess = max(excess, -1.0)
    total = 0.0
    for k in range(BETS.shape[0]):
        evidence[k] = min((evidence[k] + 1.0) * (1.0 + BETS[k] * excess), EVIDENCE_MAX)
        total += evidence[k]
    return total / BETS.shape[0]


@subkernel
def e_sr_add(state, value, margin, grace):
    """Take one value; the evidence for a rise, 0 for the first `grace` values."""
    evidence = 0.0
    if state[COUNT] >= grace:
        evidence = bet(state[FIRST_BET:], value - state[MEAN] - margin)
    state[COUNT] += 1.0
    state[MEAN] += (value - state[MEAN]) / state[COUNT]
    return evidence
