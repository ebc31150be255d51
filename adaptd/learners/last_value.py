"""The last learned label, with the learned probabilities of what follows it; the last target in regression.

How: `count[a, b]` are fading counts of "b was learned right after a". With a the last learned class, the
probability of b leans on counts of its own row and, while these are few, on what all classes share: how
often a label repeats (`stay`) and how often each class comes (`prior`):

    base[b] = stay [b = a] + (1 - stay) prior[b] / (1 - prior[a])  for b other than a
    p[b]    = (count[a, b] + strength base[b]) / (sum(count[a]) + strength)

Use it when: labels come in runs or cycles. Then "the same as before" beats many published learners.
Do not use it when: the order of rows is an artefact of the file and will not be there in service.
Only labels that arrived are used: with late labels "the last" is the last learned one.
Cost: O(K) a row, about 0.1 microseconds for few classes; 8 K^2 bytes.
Reference: Žliobaitė et al., "Evaluation methods and decision theory for classification of streaming data with
temporal dependence", Machine Learning 98 (2015).
"""

from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import Bytes, Floats, Layout, State, Vitals
from adaptd.kernels.compile import kernel
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")
# Tests that ask whether features are used leave this kind out.
USES_FEATURES = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fading_factor: Annotated[float, msgspec.Meta(ge=0.5, le=1.0)] = 0.999
    """Weight that the past keeps at each learned row (of the same last label, for the transitions)."""
    strength: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)] = 5.0
    """Rows that the shared frequencies count for beside a class's own transitions."""


def build(config: Config, layout: Layout, seed: int) -> "LastValue":
    return LastValue(config, layout)


class LastValue:
    _NAMES = ("rate_scale", "_counts", "_prior", "_last")

    def __init__(self, config: Config, layout: Layout) -> None:
        self.rate_scale = 1.0
        self._config = config
        self._classifies = layout.task == "classification"
        self._counts = np.zeros((layout.n_classes, layout.n_classes))
        self._prior = np.zeros(layout.n_classes)
        # The last label or target (NaN: none yet), fading counts of repeats and of changes.
        self._last = np.array([np.nan, 0.0, 0.0])

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        if self._classifies:
            config = self._config
            _step_classes(
                y,
                op,
                weight,
                config.fading_factor,
                config.strength,
                self._counts,
                self._prior,
                self._last,
                out,
            )
        else:
            _step_target(y, op, weight, self._last, out)

    def grow(self, layout: Layout) -> None:
        k = layout.n_classes
        if k > self._prior.size:
            self._counts = enlarged(self._counts, (k, k))
            self._prior = enlarged(self._prior, (k,))

    def state(self) -> State:
        return pack(self, self._NAMES)

    def load_state(self, state: State) -> None:
        unpack(self, self._NAMES, state)

    def vitals(self) -> Vitals:
        return Vitals(state_bytes=total_bytes(self._counts, self._prior, self._last))


@kernel("void(f8[::1], u1[::1], f8[::1], f8, f8, f8[:,::1], f8[::1], f8[::1], f8[:,::1])")
def _step_classes(y, op, weight, fading_factor, strength, counts, prior, last, out):
    n_classes = prior.size
    for i in range(op.size):
        if op[i] & 1:
            if np.isnan(last[0]):
                for c in range(n_classes):
                    out[i, c] = np.nan
            else:
                a = np.int64(last[0])
                # Both counts start at one half: one repeat is no certainty. Alone, a class always stays.
                stay = (last[1] + 0.5) / (last[1] + last[2] + 1.0) if n_classes > 1 else 1.0
                others = 0.0
                own = 0.0
                for k in range(n_classes):
                    own += counts[a, k]
                    if k != a:
                        others += prior[k] + 0.5
                for k in range(n_classes):
                    base = stay if k == a else (1.0 - stay) * (prior[k] + 0.5) / others
                    out[i, k] = (counts[a, k] + strength * base) / (own + strength)
        if op[i] & 2 and weight[i] > 0.0:
            b = np.int64(y[i])
            if not np.isnan(last[0]):
                a = np.int64(last[0])
                for k in range(n_classes):
                    counts[a, k] *= fading_factor
                counts[a, b] += weight[i]
                last[1] *= fading_factor
                last[2] *= fading_factor
                last[1 if a == b else 2] += weight[i]
            for k in range(n_classes):
                prior[k] *= fading_factor
            prior[b] += weight[i]
            last[0] = y[i]


@kernel("void(f8[::1], u1[::1], f8[::1], f8[::1], f8[:,::1])")
def _step_target(y, op, weight, last, out):
    for i in range(op.size):
        if op[i] & 1:
            out[i, 0] = last[0]
        if op[i] & 2 and weight[i] > 0.0:
            last[0] = y[i]
