"""Runs the learners over a block, side by side, and sets a failed one aside."""

import collections
import concurrent.futures
import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from adaptd import config as configuration
from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Ints, Layout, Learner, State, Vitals
from adaptd.errors import ConfigError
from adaptd.kernels.blocks import silence, thin
from adaptd.kernels.category_effects import FEW_CODES
from adaptd.lags import lagged

# The default pool, one setting for all streams: families that are wrong in different ways.
# What each is worth: docs/decisions/0004-default-pool.md.
DEFAULT_LEARNERS: dict[str, dict[str, Any]] = {
    "prior": {"kind": "prior"},
    "last_value": {"kind": "last_value"},
    "linear": {"kind": "linear"},
    "linear_lagged": {"kind": "linear", "lagged": True},
    "pairs": {"kind": "linear", "interactions": True, "learning_rate": 0.001},
    "naive_bayes": {"kind": "naive_bayes"},
    "tree": {"kind": "hoeffding_tree"},
    "forest": {"kind": "forest"},
    "boosting": {"kind": "boosting", "work": 8000.0},
    "boosting_lagged": {"kind": "boosting", "work": 8000.0, "lagged": True},
    "neighbours": {"kind": "knn"},
    "memories": {"kind": "sam_knn"},
    "mlp": {"kind": "mlp"},
}
# Where there are classes, forest and boosting say all that a single tree does (the same page).
FOR_NUMBERS_ONLY = ("tree",)
# Who joins the default pool where a category has more than `FEW_CODES` codes: docs/decisions/0017-factors.md.
# The second expects little of single codes and much of what they do together.
FOR_MANY_CODES: dict[str, dict[str, Any]] = {
    "factors": {"kind": "factors"},
    "factors_bold": {"kind": "factors", "prior": 0.1, "vector_prior": 0.5, "start": 0.1},
}
# Curves and products tell numbers too. Before so many rows a machine of a thousand weights knows little, and
# one more to listen to costs something (the same page).
FOR_NUMBERS, NUMBERS_AFTER = {"factors": FOR_MANY_CODES["factors"]}, 512
# Why an operator's learner rests: it keeps what it has learned, unlike one that failed.
DISABLED = "disabled"
# Nobody is in this place now.
EMPTY = "empty"
# The learners are shared out among the threads anew after so many blocks.
SHARED_BLOCKS = 16
# Handing work to another thread costs some 50 microseconds; below this a block is walked in one.
THREAD_SECONDS_MIN = 0.0005


class Nobody:
    """Stands in an empty place: asleep, and learns nothing."""

    rate_scale = 1.0

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None: ...

    def grow(self, layout: Layout) -> None: ...

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None: ...

    def vitals(self) -> Vitals:
        return Vitals()


class Slot(msgspec.Struct):
    """A place in the pool and the learner in it."""

    name: str
    kind: str
    options: dict[str, Any]
    """Those it was built with: the configuration's, or a mutation of these."""
    learner: Learner
    frozen: bool = False
    frozen_told: bool = False
    """What the configuration says; a command may say otherwise."""
    options_told: dict[str, Any] = {}
    """What the configuration says; a challenger with others may have come."""
    lagged: bool = False
    """Whether it sees the last labels before the features."""
    set_aside: str = ""
    """Why it is no longer used; empty while it is."""
    failed: str = ""
    """An exception's text; the learner sleeps from that row on and is set aside at the control point."""
    seconds: float = 0.0
    """Fading mean time of a row, for sharing the work among threads; never decides what is computed."""
    has_learned: bool = False
    """Before its first lesson a learner may well have nothing to say."""
    asleep_rows: int = 0
    predicted_rows: int = 0
    """Since the last control point, after the first lesson."""
    is_place: bool = False
    """Whether learners come and go here: one of those behind the configured ones."""
    stride: int = 1
    """In a place only every so many rows that ask are answered; elsewhere a learner rests in an overload, and
    works on every so many operations."""
    asked_rows: int = 0
    """Rows that asked, or operations, so far, modulo `stride`."""


class Pool:
    """All learners of a lane."""

    def __init__(self, config: configuration.Config, layout: Layout) -> None:
        self.config = config
        self.layout = layout
        self.slots: list[Slot] = []
        faults: list[str] = []
        for name, options in chosen(config, layout.task).items():
            try:
                self.slots.append(build_slot(name, options, layout, config.seed))
            except ConfigError as error:
                faults += [f"pool.learners.{name}.{fault}" for fault in error.faults]
        if faults:
            raise ConfigError(faults)
        if not self.slots:
            raise ConfigError(
                [
                    f"pool.learners must hold a learner for {layout.task}; got none. Add one (`adaptd "
                    "learners` lists them), or set schema.task: until the labels tell, it is classification."
                ]
            )
        self.is_lagged = any(slot.lagged for slot in self.slots)
        threads = config.pool.threads or configuration.processors()
        self.threads = min(threads, len(self.slots))
        self.shared: list[list[int]] = []
        """Learner indices for each thread."""
        self.shared_blocks = 0
        """Blocks that were walked so."""
        self.row_seconds = 0.0
        """What a row takes, by all learners."""
        self.workers = (
            concurrent.futures.ThreadPoolExecutor(self.threads - 1, "learner") if self.threads > 1 else None
        )

    @property
    def names(self) -> list[str]:
        return [slot.name for slot in self.slots]

    def step(self, x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats, n_asked: int = 0) -> Floats:
        """Every learner walks the block; returns predictions [n_learners, n, width], NaN where asleep.

        lags [n, LAGS]: what lagged learners see before the features. The first `n_asked` operations are
        PREDICT alone and leave no trace, as in `preview`.
        """
        n = len(op)
        after_lags = np.hstack([lags, x]) if self.is_lagged else x
        predictions = np.full((len(self.slots), n, self.layout.width), np.nan)

        shares = self.shares(n)

        def walk_share(own: int) -> None:
            # First its own, the dearest first, then what others have not come to: a block's cost varies.
            for share in shares[own:] + shares[:own]:
                take = share.popleft if share is shares[own] else share.pop
                with contextlib.suppress(IndexError):
                    while True:
                        index = take()
                        slot = self.slots[index]
                        seen = after_lags if slot.lagged else x
                        self.walk(slot, seen, y, op, weight, predictions[index], n_asked)

        others = [self.workers.submit(walk_share, k) for k in range(1, len(shares))] if self.workers else []
        walk_share(0)
        for other in others:
            other.result()
        return predictions

    def walk(
        self, slot: Slot, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, n_asked: int
    ) -> None:
        if slot.set_aside or slot.failed:
            return
        start = time.perf_counter()
        told = op & np.uint8(PREDICT) if slot.frozen else op
        try:
            if slot.stride > 1:
                # Who works on some rows only is asleep on the most, and on those who only ask.
                wanted, told = told, np.empty_like(told)
                slot.asked_rows = thin(wanted, n_asked, slot.is_place, slot.stride, slot.asked_rows, told)
                step_on(slot.learner, np.flatnonzero(told), x, y, told, weight, out)
            else:
                slot.learner.step(x, y, told, weight, out)
        except Exception as error:  # a guest may raise anything, and the rest of the pool goes on
            slot.failed = f"{type(error).__name__}: {error}"
            # Where in a block it failed must not show: the counts end with it.
            slot.has_learned, slot.asleep_rows, slot.predicted_rows = False, 0, 0
            silence(out, op, 0)
            return
        asked, asleep = silence(out, told, n_asked)
        if not slot.has_learned:
            lessons = np.flatnonzero((told & LEARN != 0) & (weight > 0))
            slot.has_learned = bool(len(lessons))
            first = int(lessons[0]) + 1 if slot.has_learned else len(told)
            asked, asleep = silence(out, told, first)
        slot.predicted_rows += asked
        slot.asleep_rows += asleep
        slot.seconds += 0.1 * ((time.perf_counter() - start) / len(op) - slot.seconds)

    @property
    def has_no_guests(self) -> bool:
        """No learner here is another library's, which may raise anything."""
        return all(slot.kind != "river" for slot in self.slots)

    def preview(self, x: Floats, lags: Floats) -> Floats:
        """What every learner says of the rows; changes nothing, not even a count of failures."""
        n = len(x)
        after_lags = np.hstack([lags, x]) if self.is_lagged else x
        predictions = np.full((len(self.slots), n, self.layout.width), np.nan)
        y, op, weight = np.full(n, np.nan), np.full(n, PREDICT, np.uint8), np.ones(n)
        for slot, out in zip(self.slots, predictions, strict=True):
            # Who is asked on some rows only is asleep on the most.
            if slot.set_aside or slot.failed or slot.stride > 1:
                continue
            # A guest that raises here raises on the stream too, where it counts.
            with contextlib.suppress(Exception):
                slot.learner.step(after_lags if slot.lagged else x, y, op, weight, out)
            silence(out, op, 0)
        return predictions

    def add_place(self, name: str) -> None:
        """An empty place behind all others; `fill` puts a learner there."""
        self.slots.append(Slot(name, "", {}, Nobody(), set_aside=EMPTY, is_place=True))

    def fill(self, index: int, slot: Slot, stride: int = 1) -> None:
        """Put what is in `slot` into the place at `index`, under the place's own name."""
        name = self.slots[index].name
        self.slots[index] = msgspec.structs.replace(
            slot, name=name, is_place=True, stride=stride, asked_rows=0, asleep_rows=0, predicted_rows=0
        )
        self.is_lagged = any(slot.lagged for slot in self.slots)

    def vacate(self, index: int) -> None:
        """The place at `index` is empty again."""
        self.slots[index] = Slot(self.slots[index].name, "", {}, Nobody(), set_aside=EMPTY, is_place=True)

    def revive(self, name: str, saved: State) -> Slot:
        """A slot with the learner that `saved` (see `remembered`) was taken from, under the layout of now."""
        task, kinds, capacities, n_classes = saved["layout"]
        layout = Layout(task, tuple(kinds), tuple(capacities), n_classes)
        options = {"kind": saved["kind"], **saved["options"]}
        slot = build_slot(name, options, layout, self.config.seed)
        slot.learner.load_state(saved["learner"])
        if layout != self.layout:
            slot.learner.grow(lagged(self.layout) if slot.lagged else self.layout)
        slot.has_learned = True
        return slot

    def remembered(self, slot: Slot) -> State:
        """The learner in `slot` as plain data, with all that it takes to build it again."""
        layout = self.layout
        return {
            "kind": slot.kind,
            "options": slot.options,
            "options_told": slot.options_told,
            "layout": [layout.task, list(layout.kinds), list(layout.capacities), layout.n_classes],
            "learner": slot.learner.state(),
        }

    def shares(self, n: int) -> list[collections.deque[int]]:
        """Learner indices for each thread, so that all finish at about the same time.

        They are the same from block to block, so that what a learner knows stays in a processor's cache.
        """
        self.shared_blocks += 1
        if sum(map(len, self.shared)) != len(self.slots) or self.shared_blocks >= SHARED_BLOCKS:
            self.share_out()
        if self.workers is None or self.row_seconds * n < THREAD_SECONDS_MIN:
            return [collections.deque(range(len(self.slots)))]
        return [collections.deque(share) for share in self.shared]

    def share_out(self) -> None:
        """By what the learners' rows have taken."""
        self.row_seconds, self.shared_blocks = sum(slot.seconds for slot in self.slots), 0
        loads = [0.0] * self.threads
        self.shared = [[] for _ in loads]
        costs = sorted(((slot.seconds, index) for index, slot in enumerate(self.slots)), reverse=True)
        for seconds, index in costs:
            least = loads.index(min(loads))
            loads[least] += seconds
            self.shared[least].append(index)

    def review(self) -> list[tuple[str, str, str]]:
        """A control point: sets aside what failed, sleeps on, or grew too large; (name, reason, detail)."""
        removed = []
        for slot in self.slots:
            if slot.set_aside:
                continue
            reason, detail = ("raised", slot.failed) if slot.failed else ("", "")
            if not reason and slot.predicted_rows and slot.asleep_rows == slot.predicted_rows:
                reason, detail = "not_finite", f"none of {slot.predicted_rows} predictions is finite"
            size = slot.learner.vitals().state_bytes
            if not reason and size > self.config.pool.learner_bytes_max:
                reason, detail = "too_big", f"{size} bytes of state, above pool.learner_bytes_max"
            slot.predicted_rows = slot.asleep_rows = 0
            if reason:
                slot.set_aside = reason
                removed.append((slot.name, reason, detail))
        return removed

    def awake(self) -> npt.NDArray[np.bool_]:
        """[n_learners]: not set aside."""
        return np.array([not slot.set_aside for slot in self.slots])

    def rest(self, names: list[str], stride: int) -> None:
        """These learners work on every `stride`-th operation, all others but those in places on each."""
        for slot in self.slots:
            if not slot.is_place:
                slot.stride, slot.asked_rows = stride if slot.name in names else 1, 0

    def scale_rates(self, scales: Floats) -> None:
        for slot, scale in zip(self.slots, scales, strict=True):
            slot.learner.rate_scale = float(scale)

    def grow(self, layout: Layout) -> None:
        self.layout = layout
        for slot in self.slots:
            if is_kept(slot):
                slot.learner.grow(lagged(layout) if slot.lagged else layout)

    def state(self) -> State:
        return {
            slot.name: {
                "kind": slot.kind,
                "options": slot.options,
                "options_told": slot.options_told,
                "rate_scale": slot.learner.rate_scale,
                "frozen": slot.frozen,
                "frozen_told": slot.frozen_told,
                "set_aside": slot.set_aside,
                "failed": slot.failed,
                "has_learned": slot.has_learned,
                "asleep_rows": slot.asleep_rows,
                "predicted_rows": slot.predicted_rows,
                "is_place": slot.is_place,
                "stride": slot.stride,
                "asked_rows": slot.asked_rows,
                "learner": slot.learner.state() if is_kept(slot) else None,
            }
            for slot in self.slots
        }

    def load_state(self, state: State) -> list[str]:
        """Take over what fits by name, kind and options; returns the names that start fresh."""
        fresh = []
        for index, slot in enumerate(self.slots):
            saved = state.get(slot.name)
            if slot.is_place and saved is not None and saved["is_place"] and saved["kind"]:
                options = {"kind": saved["kind"], **saved["options"]}
                self.fill(index, build_slot(slot.name, options, self.layout, self.config.seed))
                slot = self.slots[index]
                slot.stride, slot.asked_rows = saved["stride"], saved["asked_rows"]
                # What the configuration told, which is nothing, has not changed.
                slot.frozen_told = saved["frozen_told"]
            if saved is None or (saved["kind"], saved["options_told"]) != (slot.kind, slot.options_told):
                fresh.append(slot.name)
                continue
            if saved["options"] != slot.options:
                # A challenger with other options has come to this slot.
                self.use_options(slot, saved["options"])
            if not slot.is_place:
                slot.stride, slot.asked_rows = saved["stride"], saved["asked_rows"]
            slot.set_aside, slot.failed = saved["set_aside"], saved["failed"]
            # A command holds until the configuration says something else than it did.
            if saved["frozen_told"] == slot.frozen_told:
                slot.frozen = saved["frozen"]
            slot.has_learned = saved["has_learned"]
            slot.asleep_rows, slot.predicted_rows = saved["asleep_rows"], saved["predicted_rows"]
            slot.learner.rate_scale = saved["rate_scale"]
            if saved["learner"] is not None:
                slot.learner.load_state(saved["learner"])
        return fresh

    def follow(self, before: "Pool") -> None:
        """What was commanded of the learners of another pool holds for those of the same name here."""
        former = {slot.name: slot for slot in before.slots}
        for slot in self.slots:
            if slot.name in former:
                slot.frozen, slot.stride = former[slot.name].frozen, former[slot.name].stride
                slot.set_aside = DISABLED if former[slot.name].set_aside == DISABLED else ""

    def rebuild(self, index: int) -> None:
        """The learner at `index` as new, under the layout of now."""
        slot = self.slots[index]
        self.use_options(slot, slot.options_told)
        slot.set_aside = slot.failed = ""
        slot.has_learned = False
        slot.asleep_rows = slot.predicted_rows = 0

    def use_options(self, slot: Slot, options: dict[str, Any]) -> None:
        """A new learner in `slot`, of the same kind, built with `options`."""
        built = build_slot(slot.name, {"kind": slot.kind, **options}, self.layout, self.config.seed)
        slot.options, slot.learner = built.options, built.learner

    def close(self) -> None:
        if self.workers is not None:
            self.workers.shutdown()


def step_on(learner: Learner, at: Ints, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
    """The operations at `at` only. A learner passes over the others too, but some look at them first."""
    own = np.full((len(at), out.shape[1]), np.nan)
    learner.step(x[at], y[at], op[at], weight[at], own)
    out[at] = own


def is_kept(slot: Slot) -> bool:
    """Whether it has a state worth keeping."""
    return slot.set_aside in ("", DISABLED) and not slot.failed


def chosen(config: configuration.Config, task: str) -> dict[str, dict[str, Any]]:
    """The configured learners, or those of the default pool, that serve `task`."""
    learners = config.pool.learners or {
        name: options
        for name, options in DEFAULT_LEARNERS.items()
        if (config.pool.lagged_labels or not looks_at_labels(options))
        and (task == "regression" or name not in FOR_NUMBERS_ONLY)
    }
    return {name: options for name, options in learners.items() if task in tasks_of(options)}


def joining(config: configuration.Config, layout: Layout, learned: int) -> dict[str, dict[str, Any]]:
    """Those who join the pool, once it is there, for what the stream has turned out to be."""
    if config.pool.learners:
        return {}
    if max(layout.capacities, default=0) > FEW_CODES:
        return FOR_MANY_CODES
    if layout.task == "regression" and learned >= NUMBERS_AFTER:
        return FOR_NUMBERS
    return {}


def looks_at_labels(options: dict[str, Any]) -> bool:
    """Whether it predicts from the last labels; `pool.lagged_labels` switches these in the default pool."""
    return bool(options.get("lagged")) or options["kind"] == "last_value"


def tasks_of(options: dict[str, Any]) -> tuple[str, ...]:
    module, config = configuration.built("learners", options, configuration.LEARNER_KEYS)
    tasks: tuple[str, ...] = module.tasks(config) if hasattr(module, "tasks") else module.TASKS
    return tasks


def build_slot(name: str, options: dict[str, Any], layout: Layout, seed: int) -> Slot:
    module, config = configuration.built("learners", options, configuration.LEARNER_KEYS)
    sees_lags = bool(options.get("lagged", False))
    # Each learner has its own seed, by its name, so that adding one leaves the others' numbers alone.
    own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
    build: Callable[[Any, Layout, int], Learner] = module.build
    own = {key: value for key, value in options.items() if key not in ("kind", "frozen")}
    return Slot(
        name,
        options["kind"],
        own,
        build(config, lagged(layout) if sees_lags else layout, own_seed),
        bool(options.get("frozen", False)),
        bool(options.get("frozen", False)),
        own,
        sees_lags,
    )
