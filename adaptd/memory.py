"""Concept memory: what was known at stable points comes back when the world returns to how it was.

How: at a stable point (`stable_rows` labelled rows after the last change at least, the detector quiet, the
loss near its best since then) the state of the learners is noted. Such a note becomes a *concept* when the
next one is due or when drift is detected, so it is never taken from rows after a change. The best learner of
a concept that is quick to ask stays awake in a place of the pool, frozen, and is compared with its live
namesake. A concept like one that is known takes its place; otherwise the one least used makes room.

A concept is *recalled* at a control point when, by an e-detector on the differences of their losses, its
frozen learner is better than the live one. Then the learners that do worse now than in the concept go on
from their noted states, and the controller trusts them as then. Where the rows look more like the concept's
than like those of the regime that ends, less evidence is asked for.

Use it when concepts may come back. What it costs where they do not: one frozen learner, asked every
`stride`-th row, and a copy of the learners now and then.

Measured: `docs/decisions/0010-concept-memory.md`.
Reference: Y. Sun et al., "Concept drift adaptation by exploiting historical knowledge" (TNNLS 29, 2018);
B. Halstead et al., "Fingerprinting concepts in data streams with supervised and unsupervised
meta-information" (ICDE 2021), for fingerprints; Bousquet and Warmuth (JMLR 2002), for experts that return.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from adaptd import events, places
from adaptd.contracts import STABLE, Bytes, Floats, Layout, State
from adaptd.kernels.compare import CONFIDENCE, ERROR, N_MARKS, PRODUCT, fingerprint
from adaptd.numerics import enlarged, pack, unpack
from adaptd.places import NONE

if TYPE_CHECKING:
    from adaptd.engine import Lane

FAMILY = "concept"
# Kinds that a frozen place would be too slow with: neighbours are looked for anew for each row.
SLOW_KINDS = ("knn", "sam_knn", "river")
# Rows that a loss must rest on before it is believed.
ROWS_MIN = 24
# Least difference of mean losses for a recall: less is not worth what the live learners have learned since.
GAIN_MIN = 0.02
# A concept that holds is as good as it was: its recent loss is at most this much above the one noted then.
AS_GOOD = 0.05
# A concept whose rows look like those of now needs this part of the evidence.
ALIKE_ROWS = 0.1
# Recalls lie at least this many labelled rows apart, so that one can show what it is worth.
REST_ROWS = 512
# A live learner goes on from its noted state when it is worse now by this much.
WORSE = 0.01
# The next note is due when the regime is this much older than at the last.
NOTE_GROWTH = 1.5
# What a concept's usefulness is multiplied by whenever one has to make room.
AGEING = 0.9
# Rows after a change in which every concept answers every row.
WAKE_ROWS = 1024


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[memory]: concepts that may come back."""

    enabled: bool = True
    """Whether concepts are kept and recalled."""
    concepts_max: Annotated[int, msgspec.Meta(ge=1, le=32)] = 8
    """Concepts that are kept; the least useful one makes room."""
    bytes_max: Annotated[int, msgspec.Meta(ge=100_000)] = 40_000_000
    """Bytes of all concepts; of each, the learners with the least loss that fit its part are kept."""
    stable_rows: Annotated[int, msgspec.Meta(ge=100)] = 1000
    """Labelled rows after a change before anything is kept of it, and between two notes at least."""
    stride: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """While all is quiet a concept answers one row in so many."""
    evidence: Annotated[float, msgspec.Meta(ge=10.0, le=1e12)] = 1e3
    """Evidence that recalls a concept: about the rows between false recalls."""
    alike: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.03
    """A concept that is worse than its live namesake by no more than this is the one that holds now."""


class Concept(msgspec.Struct):
    """One concept, or the note that may become one."""

    row: int
    """Labelled row at which it was noted."""
    first_row: int
    member: str
    """The learner that answers for it."""
    learners: dict[str, State]
    """By name, what `Pool.remembered` gave."""
    losses: dict[str, float]
    """Steady losses of the learners, in `Comparison.unit`s of then: numbers of the target, or in [0, 1]."""
    trust: State
    """What the controller thought of them."""
    fingerprint: State
    alike: int = NONE
    """Place of the concept that this note is alike."""
    utility: float = 0.0
    """Fading sum of its weight at control points."""
    recalls: int = 0


class Memory:
    """All concepts of a lane, by the index of their place."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config = config
        self.concepts: dict[int, Concept] = {}
        self.notes: list[Concept] = []
        """Of this regime, the oldest first; at most two."""
        self.current = NONE
        """Place of the concept that holds now."""
        self.regime_row = 0
        self.noted_age = 0
        """How old the regime was at the last note."""
        self.best = math.inf
        """Least steady loss of the regime, as those of concepts."""
        self.recalled_row = -REST_ROWS
        self.recalls = 0
        self.features = np.zeros((0, 3))
        self.prior = np.zeros(0)
        self.marks = np.zeros(N_MARKS)
        self.grow(layout)

    STATE = (
        "current", "regime_row", "noted_age", "best", "recalled_row", "recalls", "features", "prior", "marks",
    )  # fmt: skip

    def observe(self, x: Floats, blend: Floats, y: Floats, op: Bytes) -> None:
        """Follow what rows are like."""
        is_number = not len(self.prior)
        fingerprint(x, blend, y, op, is_number, self.features, self.prior, self.marks)

    def grow(self, layout: Layout) -> None:
        self.features = enlarged(self.features, (layout.n_features, 3))
        self.prior = enlarged(self.prior, (layout.n_classes,))

    # Control points.

    def review(self, lane: "Lane") -> None:
        """Recall, store, note; in this order, since each changes what the next may look at."""
        row = lane.learned
        shares = lane.controller.weights()
        for index, concept in self.concepts.items():
            concept.utility += float(shares[index])
        index = self.due(lane)
        if index != NONE:
            self.recall(lane, index)
        elif lane.drifted:
            self.end_regime(lane, lane.detector.change_rows())
        elif lane.level == STABLE:
            self.note_if_stable(lane)
        self.set_strides(lane, row)

    def due(self, lane: "Lane") -> int:
        """Place of the concept to recall; NONE for none."""
        if lane.learned - self.recalled_row < REST_ROWS:
            return NONE
        comparison = lane.strategy.comparison
        found, most, unit = NONE, 0.0, comparison.unit
        awake = lane.pool.awake()
        for index, concept in self.concepts.items():
            relative = int(comparison.relatives[comparison.place(index)])
            if relative < 0 or not awake[relative] or comparison.rows(index) < ROWS_MIN:
                continue
            difference = float(comparison.recent[relative, 0] - comparison.recent[index, 0])
            is_as_good = comparison.recent[index, 0] * unit <= concept.losses[concept.member] + AS_GOOD * unit
            if index == self.current and comparison.recent[-1, 0] * unit < self.best + GAIN_MIN * unit:
                # The others make up for what its namesake has got worse in: nothing has to come back.
                continue
            if not is_as_good or difference < GAIN_MIN:
                continue
            evidence = comparison.is_better(index)
            needed = self.config.evidence * (ALIKE_ROWS if self.looks_like(concept) else 1.0)
            if evidence >= needed and evidence / needed > most:
                found, most = index, evidence / needed
        return found

    def recall(self, lane: "Lane", index: int) -> None:
        """The concept at the place `index` holds again."""
        concept, pool = self.concepts[index], lane.pool
        comparison, row = lane.strategy.comparison, lane.learned
        unit = comparison.unit
        evidence, distance = comparison.is_better(index), self.distance(concept)
        won = comparison.share_saved(index)
        lane.strategy.experience.note("recall", pool.slots[index].kind, won, 0.0)
        names, restored = pool.names, []
        for name, saved in concept.learners.items():
            if name not in names:
                continue
            j = names.index(name)
            slot = pool.slots[j]
            same = (slot.kind, slot.options_told) == (saved["kind"], saved["options_told"])
            worse = comparison.recent[j, 0] * unit > concept.losses[name] + WORSE * unit
            if same and not slot.set_aside and not slot.failed and (worse or name == concept.member):
                revived = pool.revive(name, saved)
                slot.learner, slot.options = revived.learner, revived.options
                lane.rates.reset_learner(j)
                restored.append(name)
        if concept.trust:
            n = len(names) - len(comparison.relatives)
            lane.controller.restore_trust(n, concept.trust)
        concept.recalls += 1
        self.recalls += 1
        self.begin_regime(lane, row)
        self.current, self.recalled_row = index, row
        lane.log.emit(
            events.ConceptRecalled(
                row=row,
                concept=names[index],
                first_seen=concept.first_row,
                learners=restored,
                evidence=evidence,
                distance=distance,
            )
        )

    def end_regime(self, lane: "Lane", change_rows: int) -> None:
        """Drift: what was noted before the change is kept, and something new begins."""
        changed = lane.learned - max(change_rows, lane.config.control.rows)
        before = [note for note in self.notes if note.row <= changed]
        if before:
            self.store(lane, before[-1])
        self.begin_regime(lane, max(changed, 0))

    def begin_regime(self, lane: "Lane", row: int) -> None:
        self.notes = []
        self.current = NONE
        self.regime_row, self.noted_age, self.best = row, 0, math.inf
        for index in self.concepts:
            lane.strategy.comparison.again(index)

    def note_if_stable(self, lane: "Lane") -> None:
        """Take a note when it is due and the loss is near its best; the one before it becomes a concept."""
        comparison = lane.strategy.comparison
        unit, rows = comparison.unit, comparison.steady[-1, 1]
        loss = float(comparison.steady[-1, 0]) * unit
        age = lane.learned - self.regime_row
        if rows < 500 or age < 500:
            return
        self.best = min(self.best, loss)
        due = max(self.noted_age + self.config.stable_rows, int(NOTE_GROWTH * self.noted_age))
        if age < due or loss > self.best + WORSE * unit:
            return
        self.noted_age = age
        alike = self.alike(lane)
        if self.notes:
            self.store(lane, self.notes.pop(0))
            if alike == NONE and not comparison.rows(self.current):
                # What has just come to its place was noted in this same regime.
                alike = self.current
        note = self.note(lane, alike)
        if note is not None:
            self.notes.append(note)
        for index in self.concepts:
            comparison.again(index)

    def note(self, lane: "Lane", alike: int) -> Concept | None:
        """What is known now, about a concept `alike` or a new one; None when no learner can answer for it."""
        pool, comparison = lane.pool, lane.strategy.comparison
        n = len(pool.slots) - len(comparison.relatives)
        awake = [k for k in range(n) if not pool.slots[k].set_aside and comparison.steady[k, 1] > 0]
        by_loss = sorted(awake, key=lambda k: (float(comparison.steady[k, 0]), k))
        left = self.config.bytes_max // (self.config.concepts_max + 2)
        learners: dict[str, State] = {}
        member = ""
        for k in by_loss:
            slot = pool.slots[k]
            size = slot.learner.vitals().state_bytes
            if size > left or slot.kind == "river":
                continue
            left -= size
            learners[slot.name] = pool.remembered(slot)
            if not member and slot.kind not in SLOW_KINDS:
                member = slot.name
        if not member:
            return None
        losses = {pool.slots[k].name: float(comparison.steady[k, 0]) * comparison.unit for k in awake}
        return Concept(
            lane.learned, lane.learned, member, learners, losses, lane.controller.trust(n), self.print_now(),
            alike,
        )  # fmt: skip

    def alike(self, lane: "Lane") -> int:
        """Place of the concept that does best on the rows since the last note, if it does well; or NONE."""
        comparison = lane.strategy.comparison
        gains = {
            index: comparison.gain(index) for index in self.concepts if comparison.rows(index) >= ROWS_MIN
        }
        if not gains:
            return NONE
        best = max(gains, key=lambda index: (gains[index], -index))
        return best if gains[best] >= -self.config.alike else NONE

    def store(self, lane: "Lane", note: Concept) -> None:
        """Make a note a concept: in place of one that it is alike, or in an empty place, made if need be."""
        index = note.alike if note.alike in self.concepts else NONE
        former = self.concepts.get(index)
        if former is not None:
            if (
                note.losses[note.member]
                > former.losses[former.member] + WORSE * lane.strategy.comparison.unit
            ):
                # What is kept was better than this.
                self.current = index
                return
            note.first_row, note.utility, note.recalls = former.first_row, former.utility, former.recalls
        else:
            index = places.vacant(lane, FAMILY, self.config.concepts_max)
            if index == NONE:
                index = self.forget(lane)
        slot = lane.pool.revive(note.member, note.learners[note.member])
        slot.frozen = True
        relative = lane.pool.names.index(note.member)
        places.enter(lane, index, slot, relative, self.config.stride)
        self.concepts[index] = note
        self.current = index
        if former is None:
            lane.log.emit(
                events.ConceptStored(
                    row=lane.learned,
                    concept=lane.pool.names[index],
                    noted=note.row,
                    member=note.member,
                    learners=list(note.learners),
                    loss=note.losses[note.member],
                )
            )

    def forget(self, lane: "Lane") -> int:
        """Empty the place of the concept that was least useful; returns it."""
        for concept in self.concepts.values():
            concept.utility *= AGEING
        others = [index for index in self.concepts if index != self.current]
        index = min(others or self.concepts, key=lambda index: (self.concepts[index].utility, index))
        concept = self.concepts.pop(index)
        places.leave(lane, index)
        if self.current == index:
            self.current = NONE
        lane.log.emit(
            events.ConceptDropped(
                row=lane.learned,
                concept=lane.pool.names[index],
                first_seen=concept.first_row,
                utility=concept.utility,
            )
        )
        return index

    def set_strides(self, lane: "Lane", row: int) -> None:
        """After a change every concept is asked every row, otherwise now and then."""
        is_awake = lane.level != STABLE or row - self.regime_row < WAKE_ROWS <= row
        for index in self.concepts:
            lane.pool.slots[index].stride = 1 if is_awake else self.config.stride

    def adapt(self, lane: "Lane") -> None:
        """The pool has changed: what does not rest on who else was in it is kept."""
        names = lane.pool.names
        self.notes = []
        for index, concept in list(self.concepts.items()):
            concept.trust = {}
            if concept.member in names and not places.is_empty(lane.pool.slots[index]):
                lane.strategy.comparison.start(index, names.index(concept.member))
            else:
                del self.concepts[index]
                places.leave(lane, index)

    # Fingerprints.

    def print_now(self) -> State:
        """Class prior, the features' means and log-deviations, confidence, errors and their correlation."""
        seen = self.features[:, 2] > 0
        variance = np.maximum(self.features[:, 1] - self.features[:, 0] ** 2, 1e-12)
        error = float(self.marks[ERROR])
        spread = error * (1.0 - error)
        return {
            "prior": self.prior.copy(),
            "means": np.where(seen, self.features[:, 0], np.nan),
            "log_deviations": np.where(seen, 0.5 * np.log(variance), np.nan),
            "confidence": float(self.marks[CONFIDENCE]),
            "error": error,
            "autocorrelation": (float(self.marks[PRODUCT]) - error**2) / spread if spread > 1e-9 else 0.0,
        }

    def distance(self, concept: Concept) -> float:
        """How unlike the concept's rows those of now are, in deviations of a feature; classes count too."""
        return unlikeness(self.print_now(), concept.fingerprint)

    def looks_like(self, concept: Concept) -> bool:
        """Whether the rows of now look like the concept's, and less like those of the one that held last."""
        own = self.distance(concept)
        others = [self.distance(other) for other in self.concepts.values() if other is not concept]
        return bool(others) and own < 0.5 * min(others)

    # State.

    def state(self) -> State:
        return {
            **pack(self, self.STATE),
            "concepts": {str(index): msgspec.structs.asdict(c) for index, c in self.concepts.items()},
            "notes": [msgspec.structs.asdict(note) for note in self.notes],
        }

    def load_state(self, state: State, indices: dict[int, int]) -> None:
        """Go on from `state`; indices: where each place of then is now."""
        unpack(self, self.STATE, state)
        self.current = indices.get(self.current, NONE)
        self.concepts = {indices[int(index)]: Concept(**saved) for index, saved in state["concepts"].items()}
        self.notes = [Concept(**saved) for saved in state["notes"]]
        for note in self.notes:
            note.alike = indices.get(note.alike, NONE)


def unlikeness(first: State, second: State) -> float:
    """Distance of two fingerprints; features and classes that only one of them knows do not count."""
    n, k = min(len(first["means"]), len(second["means"])), min(len(first["prior"]), len(second["prior"]))
    spread = np.exp(2.0 * first["log_deviations"][:n]) + np.exp(2.0 * second["log_deviations"][:n])
    squares = (first["means"][:n] - second["means"][:n]) ** 2 / spread
    shapes = (first["log_deviations"][:n] - second["log_deviations"][:n]) ** 2
    parts: list[Any] = [*squares[~np.isnan(squares)], *shapes[~np.isnan(shapes)]]
    classes = float(np.abs(first["prior"][:k] - second["prior"][:k]).sum())
    return math.sqrt(float(np.mean(parts))) + classes if parts else classes
