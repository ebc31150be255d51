"""The nouns of adaptd and what each part promises. Read this first, `engine.py` second.

A *row* is one sample. What happens to it is a sequence of *operations in arrival order*: PREDICT when
its features arrive, LEARN when its label arrives, both at once for a row that comes labelled. Rows that
are worked on together form a *block*: plain arrays, one entry an operation.

However the input is cut into blocks, every bit of every output and of every state is the same. All
protocols below rest on that promise, and `tests/` holds every component to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# What state is made of: None, bool, int, float, str, bytes, NumPy arrays, and lists and string-keyed
# mappings of these. Never a pickled object (`learners/river.py` says how it meets this).
State = dict[str, Any]

# Arrays by name, each flattened.
Habits = dict[str, list[float]]

Task = Literal["classification", "regression"]

# Operation bits: what happens to a row at one place of a block.
PREDICT = 1
LEARN = 2

# Kinds of a feature column.
NUMBER = 0  # float64; missing is NaN; a boolean is 0.0 or 1.0
CATEGORY = 1  # code by first appearance, as float64; missing is NaN

# Levels of a drift detector.
STABLE = 0
WARNING = 1
DRIFT = 2


class Layout(msgspec.Struct, frozen=True):
    """The shape of rows and predictions, fixed within a block.

    It only ever grows: features and classes are appended, capacities are raised.
    """

    task: Task
    kinds: tuple[int, ...] = ()
    """NUMBER or CATEGORY, one a feature."""
    capacities: tuple[int, ...] = ()
    """One a feature: 0 for a number; for a category an upper bound (a power of two, at least 4) that
    every code of the column stays below."""
    n_classes: int = 0
    """Classes that have been learned; 0 for regression."""

    @property
    def n_features(self) -> int:
        return len(self.kinds)

    @property
    def width(self) -> int:
        """Columns of a prediction: one probability a class, or the one predicted number."""
        return self.n_classes if self.task == "classification" else 1


class Vitals(msgspec.Struct):
    """What a learner tells of itself, for metrics and the journal. NaN: has no such thing."""

    learning_rate: float = float("nan")
    """The rate in force, `rate_scale` included."""
    step_norm: float = float("nan")
    """Fading mean of the Euclidean length of a gradient step."""
    gradient_norm: float = float("nan")
    """Fading mean of the Euclidean length of a loss gradient."""
    state_bytes: int = 0
    details: dict[str, float] = {}
    """More numbers of its own by a plain name (`leaves`, `drifts`, ...); bounded in number."""


class Learner(Protocol):
    """Predicts and learns row by row. Built by its module's `build(config, layout, seed)`.

    A learner module holds `Config` (a frozen msgspec Struct, unknown keys forbidden, each field with a
    default), `TASKS` (a tuple of the tasks it serves; where that depends on the configuration, also
    `tasks(config)` with those that this one serves) and `build(config: Config, layout: Layout, seed:
    int) -> Learner`.
    """

    rate_scale: float
    """The controller's factor on the learner's own learning rate; 1.0 when built. A gradient learner
    with 0.0 changes nothing it predicts with. Learners without a rate keep it and ignore it."""

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        """Walk the operations in order: predict where PREDICT is set, then learn where LEARN is.

        x: [n, n_features], C-contiguous. y: [n], the class code or the target; NaN without LEARN.
        op: [n], bits. weight: [n], at least 0. out: [n, width], written where PREDICT is set and left
        alone elsewhere: probabilities that are at least 0 and sum to 1, or the predicted number. A
        learner that has nothing to say on a row (nothing learned yet, lost in overflow) writes NaN
        into the whole row: it is asleep there.

        Predicting changes nothing. Nothing of the arguments is kept or changed but `out`.
        """

    def grow(self, layout: Layout) -> None:
        """Go on under a grown layout. What was learned stays; new features count as never seen."""

    def state(self) -> State:
        """All that it is, its layout and configuration excepted; arrays are copies or never change."""

    def load_state(self, state: State) -> None:
        """Become what `state` was taken from. The learner was built with the same config, seed, layout."""

    def vitals(self) -> Vitals:
        """Cheap: asked for every few hundred rows."""


class Detector(Protocol):
    """Watches one signal for an upward change. Built by its module's `build(config)`."""

    def step(self, values: Floats, levels: Bytes) -> None:
        """Take `values` [n] in order; write STABLE, WARNING or DRIFT into `levels` [n] for each.

        Signals lie in [0, 1]. Classification: 1 where the blend was wrong; its log loss over its greatest,
        4 ln C, cut at 1. Regression: the absolute error over four times the usual one, cut at 1. After DRIFT
        it behaves as new.
        """

    def change_rows(self) -> int:
        """Values from the estimated change point to the last WARNING or DRIFT; 0 when unknown."""

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...


class Controller(Protocol):
    """Learns from the losses whom to trust. Built by `build(config, layout, n_learners)`."""

    def step(self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        """Walk the operations in order: blend where PREDICT is set, then learn where LEARN is.

        predictions: [n_learners, n, width], for each operation what each learner predicted when the
        row's features came; a row of NaN: that learner is asleep there. out: [n, width], written where
        PREDICT is set. When all are asleep the row of `out` is NaN.
        """

    def review(self, awake: npt.NDArray[np.bool_]) -> None:
        """A control point: slow decisions (who is champion) are taken here and nowhere else.

        awake: [n_learners]; False for a learner that was set aside.
        """

    def weights(self) -> Floats:
        """[n_learners], at least 0, summing to 1; 0 for one that was set aside: its share in the blend."""

    def champion(self) -> int:
        """The learner trusted most. Changes at control points only."""

    def speaker(self) -> int:
        """The learner whose prediction is the output, or -1 when it is a blend."""

    def grow(self, layout: Layout) -> None: ...

    def reset_learner(self, index: int) -> None:
        """The learner at `index` was built anew: forget what was learned about it."""

    def challenge(self, index: int, of: int, part: float) -> None:
        """The learner at `index` has just come as a challenger, with `part` of the weight of that at `of`."""

    def replace_learner(self, index: int, by: int) -> None:
        """The learner at `by` has become the one at `index`: it has the trust that the two had together."""

    def add_learner(self) -> None:
        """One more place at the end, asleep until `reset_learner` says that somebody has come to it."""

    def trust(self, n: int) -> State:
        """What has been learned of the first `n` learners, as plain data for `restore_trust`."""

    def restore_trust(self, n: int, trust: State) -> None:
        """Trust the first `n` learners as then, and those behind them not until they have earned it."""

    def habits(self, n: int) -> tuple[list[Habits], Habits]:
        """What has been learned of each of the first `n` learners, and of their blend, as plain numbers."""

    def adopt(self, learners: Sequence[Habits | None], blend: Habits) -> None:
        """Begin with the habits of other streams; with None, or where they do not fit, as built.

        They come from a file: whatever they say, what is promised above holds.
        """

    def lean(self, learners: Sequence[Habits | None], blend: Habits, part: float) -> None:
        """As `adopt`, in the middle of a stream: go a part of the way, in what changes with a drift."""

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...


class Calm(Protocol):
    """A controller may have this too: it speaks otherwise while it does worse than usual."""

    calm: Floats
    """[n, width], of the block of the last step: what it would have said all the same. What looks for changes
    of the world and answers them goes by this, so that a cure does not hide the illness."""


class Explaining(Protocol):
    """A controller may have this too: it can say who contributed what to a prediction."""

    def step_explained(
        self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, parts: Floats
    ) -> None:
        """As `Controller.step`, to the same bits; also writes `parts` [n, n_learners + 1] where PREDICT is.

        Entry k is what learner k brings to the whole, 0 when it is asleep; the last one is the bias, what no
        learner brings. The entries add up to the whole: in classification the log-odds of the predicted
        class against the next one, log(p[a] / p[b]), probabilities of less than 1e-15 counted as that (0
        as long as only one class is known); in regression the predicted number. NaN where `out` is.
        """


REJECT_REASONS = (
    "bad_encoding", "bad_feature", "bad_id", "bad_label", "bad_quoting", "bad_weight", "label_without_id",
    "no_features", "not_an_object", "not_json", "sparse_row", "too_long", "too_many_classes", "unknown_id",
    "wrong_field_count",
)  # fmt: skip
"""Why a record can be rejected; the label of a metric, so all are known beforehand."""


class Reject(msgspec.Struct):
    """A record that could not be used, for the dead letters."""

    reason: str
    """One of REJECT_REASONS."""
    detail: str
    """What is wrong, for a person."""
    position: int
    """The record's number in the input, from 1 (rejects count)."""
    raw: bytes
    """The record as it came, cut to a bounded length."""


# A decoded column: float64 with NaN for missing, or Python values (float, int, bool, str, None).
Column = Floats | list[Any]


class Rows(msgspec.Struct):
    """Decoded records in arrival order, column by column. `n` entries everywhere."""

    n: int
    columns: dict[str, Column]
    """Features by name. A name appears when any of the records has it."""
    ids: list[bytes | None]
    """The id as raw JSON text (`17`, `"a-1"`); it is echoed as it came."""
    labels: list[bytes | None]
    """The label as raw JSON text (`"up"`, `3.5`, `true`); None when there is none."""
    has_features: npt.NDArray[np.bool_]
    """False for a record that brings only a label for an earlier row."""
    times: Floats
    """Event time in seconds since 1970; NaN when the record has none."""
    weights: Floats
    echo: list[bytes] | None = None
    """Fields to repeat in the output, as the inside of a JSON object (`"a":1,"b":2`), or None."""
    positions: Ints | None = None
    """The record's number in the input, from 1."""
    rejects: list[Reject] = []


class Fields(msgspec.Struct, frozen=True):
    """Which names of a record mean what. Everything else in a flat record is a feature."""

    target: str = "y"
    """What is predicted."""
    id: str = "id"
    """Joins a late label to its row; echoed as it came."""
    time: str = "ts"
    """Event time: ISO 8601, or seconds since 1970."""
    weight: str = ""
    """A row's weight, a number of at least 0; empty: every row counts 1."""
    features: str = "x"
    """An object under this name holds the features; without one the record is flat."""
    ignore: tuple[str, ...] = ()
    """Names that are no features."""
    echo: tuple[str, ...] = ()
    """Names that are repeated in the output, and are no features."""


class Decoder(Protocol):
    """Bytes of whole lines to rows. Built by `build(config, fields: Fields)`."""

    def decode(self, lines: bytes, kinds: Mapping[str, int]) -> Rows:
        """Decode `lines`, whole lines, the last one too. `kinds`: columns known so far, by name.

        `kinds` is there for speed only: the same records give the same columns of the same values
        whatever it says, up to the form of a column (array or list). Never raises for what is in the
        bytes: a bad record becomes a Reject.
        """

    def state(self) -> State:
        """What was learned from earlier lines (a CSV header), and the number of records seen."""

    def load_state(self, state: State) -> None: ...


class Source(Protocol):
    """Where rows come from."""

    def poll(self, kinds: Mapping[str, int]) -> Rows | None:
        """The next rows; a `Rows` with n = 0 when nothing came in time; None at the end of input.

        Returns within about a tenth of a second when there is nothing.
        """

    def stop(self) -> None:
        """Read no more from outside: `poll` returns what was read and cannot be read again, then None."""

    def position(self) -> State:
        """Where `seek` resumes: just after the last row that `poll` returned."""

    def seek(self, position: State) -> None:
        """The next `poll` returns the very next row. Raises `InputError` when this is another input."""

    def lag_bytes(self) -> int:
        """Bytes known to wait; -1 when unknown."""

    def close(self) -> None: ...


class Sink(Protocol):
    """Where output lines go."""

    def write(self, lines: bytes) -> None: ...

    def push(self, wait: bool = False) -> None:
        """Hand on what was written, to be seen soon; nothing is promised about a crash.

        What nobody takes at once is kept; with `wait` it is tried for about half a second more.
        """

    def waiting_bytes(self) -> int:
        """What a `push` could not hand on, because nobody reads it. As long as it is not 0 the daemon reads
        no input, and its loop turns."""

    def flush(self) -> None:
        """All that was written has arrived for good. What failed to go out is kept."""

    def position(self) -> State:
        """What `seek` cuts back to, valid after `flush`."""

    def seek(self, position: State) -> None:
        """Forget what was written after `position`, where the medium can."""

    def close(self) -> None: ...
