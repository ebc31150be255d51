"""What a blend owes to each learner: a sum that comes out, taken from the numbers that made the blend.

Classification: the whole is the log-odds of the predicted class a against the next one b,
R = log(p[a] / p[b]). A blend is a sum of parts, p = sum_j p_j, and each part's share of R is

    R_j = (p_j[a] - p_j[b]) / L(p[a], p[b])          L(u, v) = (u - v) / log(u / v), the logarithmic mean

which add up to R exactly, with no remainder and no order of learners. Where a part is itself a product of
experts, so that log(p_j[a] / p_j[b]) is a sum of terms, R_j is split as those terms are.

Regression: the whole is the predicted number, which is a sum of terms as it stands.

Reference: B. W. Ang, "The LMDI approach to decomposition analysis: a practical guide" (Energy Policy 33,
2005).
"""

import math

import numpy as np

from adaptd.contracts import Floats
from adaptd.kernels.compile import subkernel

# As in the scores: what is less likely counts as just so likely.
LEAST_PROBABILITY = 1e-15
# Below this distance of two log-probabilities their quotient of differences is mostly rounding.
NEAR = 1e-6
# Handed in where nobody asks.
NOT_ASKED: Floats = np.zeros((0, 0))


@subkernel
def two_greatest(said):
    """The predicted class and the next one, of at least two; the lower code among equals."""
    first = 0
    second = 1
    if said[1] > said[0]:
        first = 1
        second = 0
    for c in range(2, said.shape[0]):
        if said[c] > said[first]:
            second = first
            first = c
        elif said[c] > said[second] or (said[c] == said[second] and c < second):
            second = c
    return first, second


@subkernel
def log_odds(u, v):
    return math.log(max(u, LEAST_PROBABILITY)) - math.log(max(v, LEAST_PROBABILITY))


@subkernel
def log_mean(u, v):
    """The logarithmic mean of two numbers above 0."""
    distance = math.log(u) - math.log(v)
    return (u - v) / distance if abs(distance) > NEAR else 0.5 * (u + v)


@subkernel
def credit_alone(said, learner, part):
    """`part` [n_learners + 1] of a row of probabilities that one learner said by itself."""
    for n in range(part.shape[0]):
        part[n] = 0.0
    if said.shape[0] > 1:
        first, second = two_greatest(said)
        part[learner] = log_odds(said[first], said[second])
