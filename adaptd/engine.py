"""One row's life, top to bottom: encoded, predicted, blended, scored, learned, answered.

A `Lane` owns the state: schema, pool, controller, detector, scores, label buffer. It is a function of the
configuration and the ordered input and of nothing else: no clock, no thread timing, no read size changes a
bit of what it gives. `daemon.py` feeds it from a source and writes its answers to a sink.
"""

import math

import msgspec
import numpy as np

from adaptd import (
    asking,
    boosts,
    commands,
    coverage,
    drift,
    events,
    explain,
    meta,
    places,
    rates,
    reload,
    schema,
    strategy,
    student,
)
from adaptd import config as configuration
from adaptd.answers import Answers, Beside, merged
from adaptd.contracts import (
    LEARN,
    PREDICT,
    Bytes,
    Controller,
    Floats,
    Ints,
    Layout,
    Reject,
    Rows,
    State,
)
from adaptd.kernels.blocks import LAGS
from adaptd.labels import LabelBuffer
from adaptd.lags import Lags
from adaptd.operations import NEW_CLASS, NONE, HeldLabel, Late, Plan, Planner
from adaptd.pool import Pool
from adaptd.scores import Scores

# Within so many labelled rows the task may turn from classification to regression, and not later.
TASK_ROWS = 200
# More distinct whole numbers than this are quantities, not classes.
TASK_INTEGERS_MAX = 50


class Lane:
    """One pool with its controller, its label buffer and its schema: the unit that owns state."""

    def __init__(self, config: configuration.Config, log: events.Emitter) -> None:
        self.config = config
        self.log = log
        told = config.schema
        self.schema = schema.Schema(schema.Config(told.types, told.categories_max, told.features_max))
        self.classes = schema.Classes(told.classes_max)
        self.task_is_fixed = config.schema.task != "auto"
        self.rows = 0
        self.learned = 0
        self.rejected: dict[str, int] = {}
        self.dead: list[Reject] = []
        self.delays: list[int] = []
        self.first_rows: list[FirstRow] = []
        self.pin = config.control.pin
        """The learner that speaks whatever the controller says: the configuration's, or a command's."""
        self.commands: list[tuple[str, str]] = []
        """(action, learner) that take effect at the next control point."""
        self.asked: asking.Asked | None = None
        """Goes along with the next block."""
        self.is_overloaded = False
        """The student answers, and dear learners rest (`overload.py`)."""
        self.next_config: configuration.Config | None = None
        """Takes effect at the next control point."""
        self.meta = meta.Meta(meta.given(config.meta.path))
        # Until the first labels tell, the task counts as a classification without classes.
        self.build(Layout("regression" if config.schema.task == "regression" else "classification"))
        self.labels = LabelBuffer(config.labels, len(self.pool.slots))
        self.planner = Planner(self.labels, self.target_of, self.reject)
        self.labels.grow(0, self.layout.width)

    def build(self, layout: Layout) -> None:
        """Make everything that depends on the task, as new."""
        self.layout = layout
        self.pool = Pool(self.config, layout)
        self.lags = Lags(layout)
        n = len(self.pool.slots)
        # A pool of one needs nobody to weigh it: its learner answers.
        chosen = self.config.controller if n > 1 else {"kind": "champion"}
        module, options = configuration.built("controllers", chosen)
        self.controller: Controller = module.build(options, layout, n)
        self.detector = drift.Watch(self.config, layout)
        self.boosts = boosts.Boosts(rates.Config(**self.config.rates), self.pool)
        self.rates = self.boosts.rates
        self.scores = Scores(layout, n + 1)
        self.coverage = coverage.build(self.config.output.coverage, layout)
        self.strategy = strategy.Strategy(self.config, layout, n)
        self.student = student.build(self.config, layout)
        self.champion = NONE
        self.counts = {"switches": 0} | dict.fromkeys(drift.COUNTED.values(), 0)
        self.pinned = self.pool.names.index(self.pin) if self.pin in self.pool.names else NONE
        self.meta.adopt(self)

    # A row's way.

    def process(self, rows: Rows) -> list[Answers]:
        """Predict, score and learn `rows` in order; answers to those with features, in order."""
        for reject in rows.rejects:
            self.reject(reject)
        answers: list[Answers] = []
        targets = self.targets(rows)
        for segment in self.schema.encode(rows):
            if (segment.kinds, segment.capacities) != (self.layout.kinds, self.layout.capacities):
                self.grow(msgspec.structs.replace(
                    self.layout, kinds=segment.kinds, capacities=segment.capacities
                ))  # fmt: skip
            at, held = segment.start, None
            while at < segment.stop or held is not None:
                if self.next_config is not None and held is None and self.is_at_control_point:
                    self.reconfigure()
                quota = self.rows_to_control
                plan = self.planner.plan(rows, targets, at, segment.stop, held, self.rows, quota)
                if len(plan.op):
                    answers += self.run(plan, rows, segment.x, segment.start)
                at, held = plan.stop, plan.held
                self.labels.reclaim(keep=NONE if held is None else held.slot)
                if held is not None:
                    held = held if self.accept(held) else None
                    targets = self.targets(rows)
        return merged(answers)

    def blended(
        self, predictions: Floats, y: Floats, op: Bytes, weight: Floats
    ) -> tuple[Floats, Floats | None]:
        """What is said of each operation, and who contributed what, where `output.explain` asks for it."""
        blend, wanted = np.full((len(op), self.layout.width), np.nan), self.config.output.explain
        parts = explain.blend(self.controller, wanted, predictions, y, op, weight, blend)
        if self.pinned != NONE:
            pinned = predictions[self.pinned]
            spoken = ((op & PREDICT) != 0) & ~np.isnan(pinned).any(axis=1)
            blend[spoken] = pinned[spoken]
            explain.credit(parts, spoken, self.pinned, pinned[spoken], self.layout.task)
        return blend, parts

    @property
    def speaker(self) -> int:
        """Index of the learner whose prediction is the output, -1 for the blend."""
        return self.pinned if self.pinned != NONE else self.controller.speaker()

    @property
    def student_serves(self) -> bool:
        return self.config.output.serve == "student" or self.is_overloaded

    @property
    def speaker_name(self) -> str | None:
        if self.student_serves:
            return student.NAME
        return None if self.speaker == NONE else self.pool.slots[self.speaker].name

    @property
    def rows_to_control(self) -> int:
        """Labelled rows up to the next control point."""
        return self.config.control.rows - self.learned % self.config.control.rows

    @property
    def is_at_control_point(self) -> bool:
        return self.learned % self.config.control.rows == 0

    def run(self, plan: Plan, rows: Rows, segment_x: Floats, start: int) -> list[Answers]:
        """One block: the learners walk it, then the controller, the scores and the detector."""
        source, slot = np.asarray(plan.source), np.asarray(plan.slot)
        op, y = np.asarray(plan.op, np.uint8), np.asarray(plan.y, np.float64)
        late: Late | None = None
        if plan.is_plain:
            part = slice(int(source[0]), int(source[-1]) + 1)
            x, weight = segment_x[part.start - start : part.stop - start], rows.weights[part]
        else:
            late = Late(source == NONE, slot, self.origins(source, slot))
            x, weight = self.gathered(rows, segment_x, source - start, source, late)
        lags = np.full((len(op), LAGS), np.nan)
        if self.pool.is_lagged:
            self.lags.step(y, op, lags)
        if late is not None:
            lags[late.waited], lags[late.here] = self.labels.lags[late.slots], lags[late.origins]
        predictions = asking.walk(self, x, lags, y, op, weight)
        self.boosts.step(x, lags, y, op, weight)
        if late is not None:
            predictions[:, late.waited] = self.labels.predictions[late.slots].swapaxes(0, 1)
            predictions[:, late.here] = predictions[:, late.origins]
        blend, parts = asking.blended(self, predictions, y, op, weight)
        predictions = np.ascontiguousarray(predictions)
        calm = blend if self.pinned != NONE else getattr(self.controller, "calm", blend)[-len(op) :]
        if late is not None:
            blend[late.waited] = self.labels.blend[late.slots]
            blend[late.here] = blend[late.origins]
            calm = np.where(late.is_late[:, None], blend, calm)
            waits = ~late.is_late & (slot != NONE)
            self.labels.x[slot[waits]], self.labels.lags[slot[waits]] = x[waits], lags[waits]
            self.labels.predictions[slot[waits]] = predictions[:, waits].swapaxes(0, 1)
            self.labels.blend[slot[waits]] = blend[waits]
        said = blend
        if self.student is not None:
            own = self.student.step(x, y, op, weight, blend, slot, late, self.labels)
            said = own if self.student_serves else blend
        given = coverage.step(self.coverage, said, y, op, slot, late, self.labels)
        answers = self.answers(rows, source, said, Beside(tuple(self.pool.names), parts, given), late)
        if late is not None:
            asked = self.rows + np.cumsum((op & PREDICT) != 0)
            self.delays += (asked[late.is_late] - self.labels.row[slot[late.is_late]]).tolist()
        self.rows += len(answers.ids)
        self.remember_first_rows(x, y, op, weight, blend)
        self.strategy.observe(self.layout, x, lags, predictions, calm, y, op, weight)
        self.evaluate(x, predictions, blend, calm, y, op)
        return [answers] if answers.ids else []

    def gathered(
        self, rows: Rows, segment_x: Floats, place: Ints, source: Ints, late: Late
    ) -> tuple[Floats, Floats]:
        """Features and weights of a block, from the read and from the label buffer."""
        x, weight = np.empty((len(source), self.layout.n_features)), np.empty(len(source))
        x[~late.is_late] = segment_x[place[~late.is_late]]
        weight[~late.is_late] = rows.weights[source[~late.is_late]]
        x[late.waited], weight[late.waited] = self.labels.x[late.slots], self.labels.weight[late.slots]
        x[late.here], weight[late.here] = x[late.origins], weight[late.origins]
        return x, weight

    def answers(self, rows: Rows, source: Ints, blend: Floats, beside: Beside, late: Late | None) -> Answers:
        """What is said of the block's rows that asked."""
        if late is None:
            part = slice(int(source[0]), int(source[-1]) + 1)
            ids, echo, values = rows.ids[part], rows.echo and rows.echo[part], blend
        else:
            asked = source[~late.is_late].tolist()
            ids, echo = [rows.ids[i] for i in asked], rows.echo and [rows.echo[i] for i in asked]
            values, beside = blend[~late.is_late], beside.taken(~late.is_late)
        return Answers(ids, self.rows + 1, values, self.layout.task, self.speaker_name, echo, beside)

    def origins(self, source: Ints, slot: Ints) -> Ints:
        """[n]: for a late label whose row came in this same block, that row's place; else NONE."""
        origin = np.full(len(source), NONE)
        place: dict[int, int] = {}
        for i, (row, where) in enumerate(zip(source.tolist(), slot.tolist(), strict=True)):
            if row == NONE:
                origin[i] = place.get(where, NONE)
            elif where != NONE:
                place[where] = i
        return origin

    def evaluate(
        self, x: Floats, predictions: Floats, blend: Floats, calm: Floats, y: Floats, op: Bytes
    ) -> None:
        """Score the labelled rows, look for drift, and come to the control point when it is due."""
        labelled = np.flatnonzero(op & LEARN)
        signal = np.zeros(len(op))
        if len(labelled):
            self.scores.step(predictions, blend, y, op, signal)
        # Who comes and goes would look like disagreement that changes.
        lasting = predictions[: self.strategy.n_learners]
        for event in self.detector.step(
            x, lasting, calm, y, op, signal, labelled, self.learned, self.schema.names
        ):
            self.counts[drift.COUNTED[type(event)]] += 1
            self.log.emit(event)
        self.learned += len(labelled)
        if len(labelled) and self.is_at_control_point:
            self.control()

    @property
    def level(self) -> int:
        """STABLE, WARNING or DRIFT, at the last labelled row."""
        return self.detector.level

    @property
    def drifted(self) -> bool:
        """Whether there was a DRIFT since the last control point."""
        return self.detector.drifted

    # The control point: whatever changes learners or roles, at fixed labelled-row numbers.

    def control(self) -> None:
        """Set failed learners aside, look for a new champion, set the learning rates."""
        row = self.learned
        for action, name in self.commands:
            commands.obey(self, action, name)
        self.commands = []
        for name, reason, detail in self.pool.review():
            self.log.emit(events.LearnerSetAside(row=row, learner=name, reason=reason, detail=detail))
        self.strategy.review(self)
        places.admit(self)
        self.meta.review(self)
        self.controller.review(self.pool.awake())
        champion = self.pinned if self.pinned != NONE else self.controller.champion()
        if champion != self.champion:
            names = self.pool.names
            previous = None if self.champion == NONE else names[self.champion]
            self.counts["switches"] += previous is not None
            self.log.emit(events.ChampionChanged(row=row, champion=names[champion], previous=previous))
            self.champion = champion
        for event in self.boosts.review(self.pool, self.drifted, row, self.config.control.rows):
            self.log.emit(event)
        self.detector.drifted = False
        if row % self.weights_rows == 0:
            self.report_weights()

    def reconfigure(self) -> None:
        """Go on under the next configuration: what fits it is kept, the rest starts fresh."""
        assert self.next_config is not None
        config, self.next_config = self.next_config, None
        state = self.state()
        self.config = config
        fresh = self.load_state(state)
        places.admit(self)
        self.log.emit(events.LaneReconfigured(row=self.learned, learners=self.pool.names, fresh=fresh))

    @property
    def weights_rows(self) -> int:
        """Labelled rows between two reports of weights: a whole number of control points."""
        control_rows = self.config.control.rows
        return max(1, self.config.journal.weights_rows // control_rows) * control_rows

    def report_weights(self) -> None:
        names = self.pool.names
        loss = "log_loss" if self.layout.task == "classification" else "mae"
        vitals = [slot.learner.vitals() for slot in self.pool.slots]
        self.log.emit(
            events.WeightsReported(
                row=self.learned,
                weights=dict(zip(names, self.controller.weights().tolist(), strict=True)),
                losses={name: self.scores.fading(k)[loss] for k, name in enumerate(names)},
                learning_rates={
                    name: vital.learning_rate
                    for name, vital in zip(names, vitals, strict=True)
                    if not math.isnan(vital.learning_rate)
                },
            )
        )

    # Growth: new features, new classes, another task.

    def grow(self, layout: Layout) -> None:
        """Everything goes on under a grown layout, between two blocks."""
        if layout == self.layout:
            return
        old, self.layout = self.layout, layout
        self.pool.grow(layout)
        self.detector.grow(layout)
        self.strategy.grow(layout)
        self.boosts.grow()
        if layout.width != old.width:
            self.controller.grow(layout)
            self.scores.grow(layout)
        self.labels.grow(layout.n_features, layout.width)
        if self.student is not None:
            self.student.grow(layout)
        places.admit(self)
        features = self.schema.names[old.n_features : layout.n_features]
        # A regression may have begun as a classification; the classes of then are no news.
        classes = self.classes.spellings[old.n_classes : layout.n_classes]
        if features or classes:
            self.log.emit(
                events.LayoutGrown(
                    row=self.learned,
                    features=features[:10],
                    classes=[spelling.decode() for spelling in classes[:10]],
                    n_features=layout.n_features,
                    n_classes=layout.n_classes,
                )
            )

    def targets(self, rows: Rows) -> Floats:
        """[n]: class code or number; NaN without a label or with an unusable one; NEW_CLASS."""
        if self.layout.task == "classification":
            codes = self.classes.codes(rows.labels)
            codes[codes < 0] = NEW_CLASS
            return codes
        try:
            numbers = np.array(rows.labels, dtype=np.bytes_).astype(np.float64)
        except ValueError:  # a row without a label, or one that is not plainly a number: one by one
            return np.array([math.nan if raw is None else self.target_of(raw) for raw in rows.labels])
        numbers[np.isinf(numbers)] = math.nan
        return numbers

    def target_of(self, label: bytes) -> float:
        """As `targets`, for one label."""
        if self.layout.task == "regression":
            return schema.label_number(label)
        code = self.classes.code(label)
        return NEW_CLASS if code < 0 else float(code)

    def accept(self, held: HeldLabel) -> bool:
        """Change the layout for a label that does not fit; False when the label cannot be accepted."""
        reason = self.is_quantity(held.label)
        if reason:
            self.become_regression(reason)
            return True
        if self.classes.add(held.label) < 0:
            detail = f"a class beyond schema.classes_max = {self.config.schema.classes_max}"
            self.reject(Reject("too_many_classes", detail, held.position, held.label))
            return False
        if self.layout.n_classes == 0 and not self.task_is_fixed:
            self.log.emit(events.TaskDecided(row=0, task="classification", reason="first_label"))
        self.grow(msgspec.structs.replace(self.layout, n_classes=len(self.classes.spellings)))
        return True

    def is_quantity(self, label: bytes) -> str:
        """Why `label` shows that the target is a quantity; empty when it does not."""
        if self.task_is_fixed or self.learned >= TASK_ROWS or self.layout.task == "regression":
            return ""
        number = schema.label_number(label)
        numbers = [schema.label_number(spelling) for spelling in self.classes.spellings]
        if math.isnan(number) or any(map(math.isnan, numbers)):
            return ""
        if number != math.floor(number):
            return "non_integer_label"
        return "distinct_integers" if len(numbers) >= TASK_INTEGERS_MAX else ""

    def remember_first_rows(self, x: Floats, y: Floats, op: Bytes, weight: Floats, blend: Floats) -> None:
        """Keep what a change of task would have to learn anew, as long as it can still change."""
        if self.task_is_fixed or self.layout.task == "regression":
            return
        if self.learned >= TASK_ROWS:
            self.first_rows.clear()
            return
        values = np.array([schema.label_number(spelling) for spelling in self.classes.spellings])
        for i in np.flatnonzero(op & LEARN).tolist():
            printed = math.nan if np.isnan(blend[i]).any() else values[int(blend[i].argmax())]
            self.first_rows.append(FirstRow(x[i].copy(), values[int(y[i])], weight[i], printed))

    def become_regression(self, reason: str) -> None:
        """The labels are quantities: build all anew, and learn the rows so far for what they are.

        The blend is scored on them by what was printed then; it was a class, which is a number too.
        """
        values = np.array([schema.label_number(spelling) for spelling in self.classes.spellings])
        waiting = self.labels.blend
        printed = np.full(len(waiting), np.nan)
        known = ~np.isnan(waiting).any(axis=1) & (waiting.shape[1] > 0)
        if known.any():
            printed[known] = values[waiting[known].argmax(axis=1)]
        first_rows, self.first_rows, self.task_is_fixed = self.first_rows, [], True
        self.log.emit(events.TaskDecided(row=self.learned, task="regression", reason=reason))
        before = self.pool
        before.close()
        self.build(Layout("regression", self.layout.kinds, self.layout.capacities))
        self.pool.follow(before)
        self.labels.become_numbers(printed, len(self.pool.slots))
        places.admit(self)
        self.learned = 0
        for first in first_rows:
            x = np.full((1, self.layout.n_features), np.nan)
            x[0, : len(first.x)] = first.x
            y, weight = np.array([first.y]), np.array([first.weight])
            op = np.array([PREDICT | LEARN], np.uint8)
            lags = np.full((1, LAGS), np.nan)
            self.lags.step(y, op, lags)
            predictions = self.pool.step(x, lags, y, op, weight)
            blend = np.full((1, 1), np.nan)
            self.controller.step(predictions, y, op, weight, blend)
            blend[0, 0] = first.printed
            self.evaluate(x, predictions, blend, blend, y, op)

    def close(self) -> None:
        """Ends the threads of the pool."""
        self.pool.close()

    # What is not learned.

    def reject(self, reject: Reject) -> None:
        """A record, or a label, that cannot be used: counted, and kept for the dead letters."""
        self.rejected[reject.reason] = self.rejected.get(reject.reason, 0) + 1
        self.dead.append(reject)

    def end_of_input(self) -> None:
        """No row will come any more: labels that wait for one have waited in vain."""
        for unknown in self.labels.give_up(0):
            self.reject(unknown)

    # State.

    def state(self) -> State:
        return {
            "layout": {
                "task": self.layout.task,
                "kinds": list(self.layout.kinds),
                "capacities": list(self.layout.capacities),
                "n_classes": self.layout.n_classes,
            },
            "task_is_fixed": self.task_is_fixed,
            "rows": self.rows,
            "learned": self.learned,
            "champion": self.champion,
            "counts": dict(self.counts),
            "rejected": dict(self.rejected),
            "first_rows": [msgspec.structs.asdict(first) for first in self.first_rows],
            "schema": self.schema.state(),
            "schema_told": reload.schema_told(self.config),
            "classes": self.classes.state(),
            "labels": self.labels.state(),
            "lags": self.lags.state(),
            "learners": self.pool.names,
            "pool": self.pool.state(),
            "controller": {"of": self.config.controller, "state": self.controller.state()},
            "detector": self.detector.state(),
            "strategy": self.strategy.state(self),
            "boosts": self.boosts.state(),
            "meta": self.meta.state(),
            "scores": self.scores.state(),
            "coverage": None if self.coverage is None else self.coverage.state(),
            "student": None if self.student is None else self.student.state(self.labels.slots),
            "pin": self.pin,
            "pin_told": self.config.control.pin,
            "commands": [list(command) for command in self.commands],
            "is_overloaded": self.is_overloaded,
            "config": reload.lane_part(self.config),
            "next_config": None if self.next_config is None else reload.lane_part(self.next_config),
        }

    def load_state(self, state: State) -> list[str]:
        """Go on from `state`; returns what starts fresh because the configuration has changed.

        Raises CheckpointError for a state of another task or schema.
        """
        saved = state["layout"]
        layout = Layout(saved["task"], tuple(saved["kinds"]), tuple(saved["capacities"]), saved["n_classes"])
        reload.check_schema(self.config, layout, state["schema_told"], state["schema"]["names"])
        if state["next_config"] is not None and state["next_config"] == reload.lane_part(self.config):
            # A change that had been told and waited for its control point: it finds the same one again.
            self.next_config, self.config = self.config, reload.with_lane_part(self.config, state["config"])
        self.commands = [(action, name) for action, name in state["commands"]]
        told = self.config.control.pin
        self.pin = state["pin"] if state["pin_told"] == told else told
        self.pool.close()
        self.meta.load_state(state["meta"])
        self.build(layout)
        self.schema.load_state(state["schema"])
        self.classes.load_state(state["classes"])
        self.lags.load_state(state["lags"])
        self.strategy.restore_places(self, state["strategy"])
        fresh = self.pool.load_state(state["pool"])
        self.is_overloaded = state["is_overloaded"] and self.config.output.serve == "auto"
        if not self.is_overloaded:
            self.pool.rest([], 1)
        for name in ("task_is_fixed", "rows", "learned"):
            setattr(self, name, state[name])
        self.counts, self.rejected = self.counts | state["counts"], dict(state["rejected"])
        self.first_rows = [FirstRow(**first) for first in state["first_rows"]]
        same_pool = state["learners"] == self.pool.names and not fresh
        self.boosts.load_state(state["boosts"], self.pool, same_pool)
        if same_pool:
            self.labels.load_state(state["labels"])
            self.scores.load_state(state["scores"])
            self.champion = state["champion"]
            self.pool.scale_rates(self.rates.scales)
        else:
            places = [
                state["learners"].index(name) if name in state["learners"] and name not in fresh else NONE
                for name in self.pool.names
            ]
            self.labels.load_state(state["labels"], places)
            self.scores.load_state(state["scores"], places)
        self.strategy.load_state(self, state["strategy"], same_pool)
        if same_pool and state["controller"]["of"] == self.config.controller:
            self.controller.load_state(state["controller"]["state"])
        else:
            fresh.append("controller")
        if not self.detector.load_state(state["detector"]):
            fresh.append("drift")
        saved = state["student"]
        if self.student is not None and (saved is None or not self.student.load_state(saved)):
            fresh.append("student")
        saved, serves = state["coverage"], state["config"]["output"]["serve"] == self.config.output.serve
        if not serves:
            # Bounds that went with another speaker's words say nothing of these.
            self.labels.given[:] = np.nan
        if self.coverage and saved is not None and serves and saved["asked"] == self.coverage.asked:
            self.coverage.load_state(saved)
        elif self.coverage is not None:
            fresh.append("coverage")
        return fresh


class FirstRow(msgspec.Struct):
    """One of the first labelled rows, kept until the task is certain."""

    x: Floats
    y: float
    weight: float
    printed: float
    """The class that was predicted, as a number."""
