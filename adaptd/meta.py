"""Meta-knowledge: what a lane has learned of learning, for lanes on other streams to start with.

What it holds, all of it plain numbers by names of learners, kinds and actions, nothing of any row:

    actions   the share of the loss that each action saved, by kind of learner (`experience.py`)
    boosts    the share of the loss that each boost saved after a drift, by learner (`boosts.py`)
    trust     what the controller thought of each learner after the first `TRUST_ROWS` labelled rows, by task

A lane that starts fresh with `meta.path` begins from these. What it then learns itself is added to them: the
mean over streams, each counted once. `adaptd meta export` writes a lane's, `adaptd meta merge` puts files
together.

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

if TYPE_CHECKING:
    from adaptd.engine import Lane

FORMAT = "adaptd meta-knowledge"
VERSION = 1
# When trust is noted: late enough to mean something, early enough to be about beginnings.
TRUST_ROWS = 1024
# Outcomes of an action that what was given counts for, at most: the new stream is to have its say soon.
OUTCOMES_MAX = 1.0
TRIALS_MAX = 2.0
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
    """By task."""


# A lane's part.


class Meta:
    """What a lane started with, and what its controller thought after its own beginnings."""

    def __init__(self, given: Knowledge | None) -> None:
        self.given = given
        self.noted: Trust | None = None

    def adopt(self, lane: "Lane") -> None:
        """A lane that has just been built begins with what it was given."""
        if self.given is None:
            return
        for action, kinds in self.given.actions.items():
            for kind, mean in kinds.items():
                n = min(mean.outcomes, OUTCOMES_MAX)
                lane.strategy.experience.sums[action][kind] = [mean.saved * n, mean.part * n, n]
        if [tuple(arm) for arm in self.given.boosts.arms] == list(boosts.ARMS):
            for name, gains in self.given.boosts.gains.items():
                n = min(self.given.boosts.trials[name], TRIALS_MAX)
                sums = np.append(np.array(gains) * n, n)
                best = int(sums[:-1].argmax())
                lane.boosts.gains[name] = sums
                lane.boosts.arms[name] = best if sums[best] > boosts.GAIN_MIN * (n + 1.0) else 0
        trust = self.given.trust.get(lane.layout.task)
        if trust is not None and trust.controller == lane.config.controller["kind"]:
            learners = [trust.learners.get(name) for name in lane.pool.names]
            lane.controller.adopt(learners, trust.blend)

    def review(self, lane: "Lane") -> None:
        """A control point: note the trust, once."""
        if self.noted is None and lane.learned >= TRUST_ROWS:
            n = lane.strategy.n_learners
            learners, blend = lane.controller.habits(n)
            named = dict(zip(lane.pool.names[:n], learners, strict=True))
            self.noted = Trust(lane.config.controller["kind"], 1.0, named, blend)

    def state(self) -> State:
        return {
            "given": None if self.given is None else msgspec.to_builtins(self.given),
            "noted": None if self.noted is None else msgspec.to_builtins(self.noted),
        }

    def load_state(self, state: State) -> None:
        self.given = None if state["given"] is None else msgspec.convert(state["given"], Knowledge)
        self.noted = None if state["noted"] is None else msgspec.convert(state["noted"], Trust)


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
    actions = {
        action: {kind: Mean(saved / n, part / n, n) for kind, (saved, part, n) in kinds.items() if n}
        for action, kinds in state["strategy"]["experience"].items()
    }
    gains = {name: sums for name, sums in state["boosts"]["gains"].items() if sums[-1]}
    own = Boosts(
        list(boosts.ARMS),
        {name: (sums[:-1] / sums[-1]).tolist() for name, sums in gains.items()},
        {name: float(sums[-1]) for name, sums in gains.items()},
    )
    meta = Meta(None)
    meta.load_state(state["meta"])
    trust = {} if meta.given is None else dict(meta.given.trust)
    if meta.noted is not None:
        task = state["layout"]["task"]
        trust[task] = mean_trust([*([trust[task]] if task in trust else []), meta.noted])
    return Knowledge(FORMAT, VERSION, actions, own, trust)


def merged(parts: list[Knowledge]) -> Knowledge:
    """The mean of several, each weighted by what is behind it."""
    actions: dict[str, dict[str, Mean]] = {}
    for action in ACTIONS:
        kinds = dict.fromkeys(kind for part in parts for kind in part.actions.get(action, {}))
        actions[action] = {}
        for kind in kinds:
            means = [part.actions[action][kind] for part in parts if kind in part.actions.get(action, {})]
            saved, part = weighted([(mean.outcomes, [mean.saved, mean.part]) for mean in means])
            actions[action][kind] = Mean(saved, part, sum(mean.outcomes for mean in means))
    arms = parts[0].boosts.arms
    boosted = [part.boosts for part in parts if part.boosts.arms == arms]
    names = dict.fromkeys(name for part in boosted for name in part.gains)
    of_names = {name: [part for part in boosted if name in part.gains] for name in names}
    gains = {
        name: weighted([(part.trials[name], part.gains[name]) for part in parts])
        for name, parts in of_names.items()
    }
    trials = {name: sum(part.trials[name] for part in parts) for name, parts in of_names.items()}
    tasks = dict.fromkeys(task for part in parts for task in part.trust)
    trust = {task: mean_trust([part.trust[task] for part in parts if task in part.trust]) for task in tasks}
    return Knowledge(FORMAT, VERSION, actions, Boosts(arms, gains, trials), trust)


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
