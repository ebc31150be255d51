"""Meta-knowledge: what a lane has learned of learning, for lanes on other streams to start with.

What it holds, all of it plain numbers by names of learners, kinds and actions, nothing of any row:

    actions   the share of the loss that each action saved, by kind of learner, and the part of the weight
              that its newcomers came to have (`experience.py`): a lane lets its own begin with that part
    boosts    the share of the loss that each boost saved after a drift, by learner (`boosts.py`)
    trust     what the controller thought of each learner after the first `TRUST_ROWS` labelled rows, by task
    after     the mean of what it thought `AFTER_ROWS` rows after drifts; at a drift a lane leans towards it
    crises    whom it came to listen to while the blend did worse than usual (`kernels/crisis.py`)

A lane that starts fresh with `meta.path` begins from these. What it then learns itself is added to them: the
mean over streams, each counted once. `adaptd meta export` writes a lane's, `adaptd meta merge` puts files
together. The mixers of crises learn slowly and go on where those before them stopped: handed from stream to
stream they come to know more than the mean of as many beginners does.

Measured: `docs/decisions/0012-challengers.md`.
"""

import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from adaptd import boosts
from adaptd.checkpoint import NAME, read_checkpoint
from adaptd.contracts import State
from adaptd.errors import ConfigError, InputError
from adaptd.experience import ACTIONS
from adaptd.kernels.crisis import Crisis

if TYPE_CHECKING:
    from adaptd.engine import Lane

FORMAT = "adaptd meta-knowledge"
VERSION = 1
# When trust is noted: late enough to mean something, early enough to be about beginnings.
TRUST_ROWS = 1024
AFTER_ROWS = 256
# How far a lane goes at a drift towards what others thought after theirs.
LEAN = 0.6
# Trials of boosts that what was given counts for, at most: the new stream is to have its say soon.
TRIALS_MAX = 2.0
# How far what is told of crises moves from what was given to what this lane made of it: half way, since the
# newest of several streams is not worth all of the others.
CRISES_PART = 0.5
BYTES_MAX = 10_000_000

Number = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


class Mean(msgspec.Struct, frozen=True):
    """Outcomes of an action."""

    saved: Number
    """Mean share of the loss."""
    part: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    """Mean part of its relative's weight and its own that a newcomer had in the end."""
    outcomes: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class Boosts(msgspec.Struct, frozen=True):
    """Mean gains of each arm, by learner."""

    arms: list[tuple[float, float]]
    """Factor and half-life of each."""
    gains: dict[str, list[Number]]
    trials: dict[str, Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]]


class Trust(msgspec.Struct, frozen=True):
    """Means over streams of what a controller thought of learners, each array flattened."""

    controller: str
    streams: Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
    learners: dict[str, dict[str, list[Number]]]
    blend: dict[str, list[Number]]


class Knowledge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of meta-knowledge."""

    format: str
    version: int
    actions: dict[str, dict[str, Mean]]
    boosts: Boosts
    trust: dict[str, Trust]
    """After the beginnings, by task."""
    after: dict[str, Trust]
    """After drifts, by task."""
    crises: Trust | None = None
    """Weights of the mixers of crises; None as long as there was none."""


# A lane's part.


class Meta:
    """What a lane was given, and what its own controller thought after its beginnings and after drifts."""

    def __init__(self, given: Knowledge | None) -> None:
        self.given = given
        self.noted: Trust | None = None
        """After the beginnings."""
        self.after: Trust | None = None
        """The mean after drifts."""
        self.drifts = 0
        """Behind that mean."""
        self.drift_row = 0
        """Labelled rows at the control point of the drift whose trust is still to be noted; 0: none."""

    def adopt(self, lane: "Lane") -> None:
        """A lane that has just been built begins with what it was given."""
        if self.given is None:
            return
        for action, kinds in self.given.actions.items():
            if kinds:
                part = weighted([(mean.outcomes, [mean.part]) for mean in kinds.values()])[0]
                lane.strategy.experience.given[action] = part
        if [tuple(arm) for arm in self.given.boosts.arms] == list(boosts.ARMS):
            for name, gains in self.given.boosts.gains.items():
                n = min(self.given.boosts.trials[name], TRIALS_MAX)
                sums = np.append(np.array(gains) * n, n)
                best = int(sums[:-1].argmax())
                lane.boosts.gains[name] = sums
                lane.boosts.arms[name] = best if sums[best] > boosts.GAIN_MIN * (n + 1.0) else 0
        trust = fitting(self.given.trust, lane)
        if trust is not None:
            lane.controller.adopt([trust.learners.get(name) for name in lane.pool.names], trust.blend)
        crises, crisis = self.given.crises, getattr(lane.controller, "crisis", None)
        if crises is not None and crisis is not None:
            crisis.adopt([crises.learners.get(name) for name in lane.pool.names], crises.blend)

    def review(self, lane: "Lane") -> None:
        """A control point: lean on what was given after a drift, and note what the controller thinks."""
        row = lane.learned
        if self.noted is None and row >= TRUST_ROWS:
            self.noted = thought(lane)
        if lane.drifted:
            self.drift_row = row
            known = None if self.given is None else fitting(self.given.after, lane)
            # A concept that has just come back has brought its own trust.
            if known is not None and lane.strategy.memory.recalled_row != row:
                learners = [known.learners.get(name) for name in lane.pool.names]
                lane.controller.lean(learners, known.blend, LEAN)
        elif self.drift_row and row - self.drift_row >= AFTER_ROWS:
            now, before = thought(lane), self.after
            if before is not None:
                now = mean_trust([msgspec.structs.replace(before, streams=float(self.drifts)), now])
            self.after = msgspec.structs.replace(now, streams=1.0)
            self.drifts, self.drift_row = self.drifts + 1, 0

    def state(self) -> State:
        return {
            "given": None if self.given is None else msgspec.to_builtins(self.given),
            "noted": None if self.noted is None else msgspec.to_builtins(self.noted),
            "after": None if self.after is None else msgspec.to_builtins(self.after),
            "drifts": self.drifts,
            "drift_row": self.drift_row,
        }

    def load_state(self, state: State) -> None:
        self.given = None if state["given"] is None else msgspec.convert(state["given"], Knowledge)
        self.noted = None if state["noted"] is None else msgspec.convert(state["noted"], Trust)
        self.after = None if state["after"] is None else msgspec.convert(state["after"], Trust)
        self.drifts, self.drift_row = state["drifts"], state["drift_row"]


def fitting(known: dict[str, Trust], lane: "Lane") -> Trust | None:
    """What was known for the lane's task and under its controller."""
    trust = known.get(lane.layout.task)
    return trust if trust is not None and trust.controller == lane.config.controller["kind"] else None


def thought(lane: "Lane") -> Trust:
    """What the lane's controller thinks now of the configured learners."""
    n = lane.strategy.n_learners
    learners, blend = lane.controller.habits(n)
    named = dict(zip(lane.pool.names[:n], learners, strict=True))
    return Trust(lane.config.controller["kind"], 1.0, named, blend)


# Files.


def read(path: str) -> Knowledge:
    """The file at `path`. Raises InputError."""
    try:
        content = pathlib.Path(path).read_bytes()[: BYTES_MAX + 1]
    except OSError as error:
        raise InputError(
            f"{path} must be a file of meta-knowledge; {error.strerror}. Make one with `adaptd meta export`."
        ) from None
    try:
        if len(content) > BYTES_MAX:
            raise ValueError(f"it has more than {BYTES_MAX} bytes")
        head: Any = msgspec.json.decode(content)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError(f"it does not say `format: {FORMAT}`")
        if head.get("version") != VERSION:
            raise ValueError(f"it has version {head.get('version')!r}, this adaptd reads {VERSION}")
        knowledge = msgspec.json.decode(content, type=Knowledge)
        check(knowledge)
    except (ValueError, msgspec.DecodeError) as error:
        raise InputError(
            f"{path} must be a file of meta-knowledge; {error}. Make one with `adaptd meta export`."
        ) from None
    return knowledge


def check(knowledge: Knowledge) -> None:
    """Raises ValueError for what types alone do not say."""
    unknown = [action for action in knowledge.actions if action not in ACTIONS]
    if unknown:
        raise ValueError(f"actions must be of {', '.join(ACTIONS)}; got {unknown[0]!r}")
    for name, gains in knowledge.boosts.gains.items():
        if len(gains) != len(knowledge.boosts.arms) or name not in knowledge.boosts.trials:
            raise ValueError(f"boosts.gains.{name} must hold a gain for each arm")


def given(path: str) -> Knowledge | None:
    """What the configuration names; None for no path. Raises ConfigError."""
    if not path:
        return None
    try:
        return read(path)
    except InputError as error:
        raise ConfigError([f"meta.path: {error}"]) from None


def write(path: str | None, knowledge: Knowledge) -> None:
    """To the file at `path`, or to stdout. Raises InputError."""
    text = msgspec.json.format(msgspec.json.encode(knowledge), indent=1).decode() + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    try:
        pathlib.Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}. Choose a file that can be written.") from None


def of_checkpoint(directory: str) -> Knowledge:
    """Of the lane whose newest checkpoint is in `directory`, which a daemon may use meanwhile.

    Raises InputError when there is none, CheckpointError when it is damaged.
    """
    path = pathlib.Path(directory)
    found = sorted(entry for entry in path.glob("checkpoint-*.adaptd") if NAME.fullmatch(entry.name))
    if not found:
        raise InputError(f"{directory} must hold a checkpoint; there is none. Name checkpoint.directory.")
    state, _ = read_checkpoint(found[-1])
    return of_state(state["lane"])


def of_state(state: State) -> Knowledge:
    """What the lane has learned that `state` was taken from, what it was given included."""
    meta, task = Meta(None), state["layout"]["task"]
    meta.load_state(state["meta"])
    actions = {
        action: {kind: Mean(saved / n, part / n, n) for kind, (saved, part, n) in kinds.items() if n}
        for action, kinds in state["strategy"]["experience"]["sums"].items()
    }
    if meta.given is not None:
        actions = mean_of_actions([meta.given.actions, actions])
    gains = {name: sums for name, sums in state["boosts"]["gains"].items() if sums[-1]}
    own = Boosts(
        list(boosts.ARMS),
        {name: (sums[:-1] / sums[-1]).tolist() for name, sums in gains.items()},
        {name: float(sums[-1]) for name, sums in gains.items()},
    )
    trust, after = ({}, {}) if meta.given is None else (dict(meta.given.trust), dict(meta.given.after))
    for known, noted in ((trust, meta.noted), (after, meta.after)):
        if noted is not None:
            known[task] = mean_trust([*([known[task]] if task in known else []), noted])
    return Knowledge(FORMAT, VERSION, actions, own, trust, after, crises_of_state(state, meta.given))


def crises_of_state(state: State, given: Knowledge | None) -> Trust | None:
    """What the lane makes of crises now, between that and what it was given."""
    before = None if given is None else given.crises
    saved = state["controller"]["state"].get("crisis")
    if saved is None or not saved["steps"].sum():
        return before
    names = state["learners"][: state["strategy"]["n_learners"]]
    crisis = Crisis(len(names))
    crisis.load_state(saved)
    learners, blend = crisis.habits(len(names))
    now = Trust(state["controller"]["of"]["kind"], 1.0, dict(zip(names, learners, strict=True)), blend)
    if before is None:
        return now
    mean = mean_trust([
        msgspec.structs.replace(before, streams=1.0 - CRISES_PART),
        msgspec.structs.replace(now, streams=CRISES_PART),
    ])  # fmt: skip
    return msgspec.structs.replace(mean, streams=before.streams + 1.0)


def merged(parts: list[Knowledge]) -> Knowledge:
    """The mean of several, each weighted by what is behind it."""
    arms = parts[0].boosts.arms
    boosted = [part.boosts for part in parts if part.boosts.arms == arms]
    names = dict.fromkeys(name for part in boosted for name in part.gains)
    of_names = {name: [part for part in boosted if name in part.gains] for name in names}
    gains = {
        name: weighted([(part.trials[name], part.gains[name]) for part in parts])
        for name, parts in of_names.items()
    }
    trials = {name: sum(part.trials[name] for part in parts) for name, parts in of_names.items()}
    trust = mean_of_tasks([part.trust for part in parts])
    after = mean_of_tasks([part.after for part in parts])
    actions = mean_of_actions([part.actions for part in parts])
    known = [part.crises for part in parts if part.crises is not None]
    crises = mean_trust(known) if known else None
    return Knowledge(FORMAT, VERSION, actions, Boosts(arms, gains, trials), trust, after, crises)


def mean_of_actions(parts: list[dict[str, dict[str, Mean]]]) -> dict[str, dict[str, Mean]]:
    """By action and kind; each part counts with its outcomes."""
    actions: dict[str, dict[str, Mean]] = {}
    for action in ACTIONS:
        of_kinds: dict[str, list[Mean]] = {}
        for part in parts:
            for kind, mean in part.get(action, {}).items():
                of_kinds.setdefault(kind, []).append(mean)
        actions[action] = {}
        for kind, means in of_kinds.items():
            saved, share = weighted([(mean.outcomes, [mean.saved, mean.part]) for mean in means])
            actions[action][kind] = Mean(saved, share, sum(mean.outcomes for mean in means))
    return actions


def mean_of_tasks(parts: list[dict[str, Trust]]) -> dict[str, Trust]:
    tasks = dict.fromkeys(task for part in parts for task in part)
    return {task: mean_trust([part[task] for part in parts if task in part]) for task in tasks}


def mean_trust(parts: list[Trust]) -> Trust:
    """The mean over streams; of parts by different controllers the last one's kind counts."""
    parts = [part for part in parts if part.controller == parts[-1].controller]
    names = dict.fromkeys(name for part in parts for name in part.learners)
    learners = {
        name: mean_arrays([(part.streams, part.learners[name]) for part in parts if name in part.learners])
        for name in names
    }
    blend = mean_arrays([(part.streams, part.blend) for part in parts])
    return Trust(parts[-1].controller, sum(part.streams for part in parts), learners, blend)


def mean_arrays(parts: list[tuple[float, dict[str, list[float]]]]) -> dict[str, list[float]]:
    """Of arrays by name; where lengths differ the last one's count."""
    found = {}
    for key, values in parts[-1][1].items():
        same = [(n, arrays[key]) for n, arrays in parts if len(arrays.get(key, ())) == len(values)]
        found[key] = weighted(same)
    return found


def weighted(parts: list[tuple[float, list[float]]]) -> list[float]:
    """The weighted mean of lists of one length."""
    total = sum(weight for weight, _ in parts)
    if not total:
        return list(parts[-1][1])
    return [sum(weight * values[i] for weight, values in parts) / total for i in range(len(parts[-1][1]))]
