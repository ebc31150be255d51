"""What of a configuration can be taken live, and how two configurations differ.

Some keys are taken at once, since no prediction depends on them. Those of the lane change predictions: they
take effect at a control point, after a checkpoint that holds them is durable. All others need a restart.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from adaptd import challengers, memory, pool, rates, student
from adaptd import config as configuration
from adaptd.config import Config
from adaptd.contracts import CATEGORY, Layout, State
from adaptd.errors import CheckpointError

if TYPE_CHECKING:
    from adaptd.engine import Lane

# Keys, or sections with all that is in them.
LANE_KEYS = (
    "pool.learners", "pool.lagged_labels", "pool.learner_bytes_max", "controller", "drift", "rates", "memory",
    "challengers", "control.pin", "journal.weights_rows", "output", "student",
)  # fmt: skip
AT_ONCE_KEYS = (
    "checkpoint.interval_seconds", "checkpoint.keep", "http.body_bytes_max", "http.requests_per_second",
    "http.concurrency_max", "log.level",
)  # fmt: skip


def differences(old: Config, new: Config) -> list[str]:
    """Keys that differ, with dots; a learner counts as one key."""
    return sorted(_differences(msgspec.to_builtins(old), msgspec.to_builtins(new), ""))


def _differences(old: Any, new: Any, place: str) -> list[str]:
    if old == new:
        return []
    sections = isinstance(old, dict) and isinstance(new, dict) and place.count(".") < 2
    if not sections or place.startswith("pool.learners."):
        return [place]
    keys = dict.fromkeys([*old, *new])
    before = f"{place}." if place else ""
    return [key for name in keys for key in _differences(old.get(name), new.get(name), before + name)]


def within(key: str, known: tuple[str, ...]) -> bool:
    return any(key == entry or key.startswith(entry + ".") for entry in known)


def faults(changed: list[str], name: str) -> list[str]:
    """One for each key that cannot be taken live."""
    return [
        f"{name}: {key} must stay as it is while adaptd runs. Restart it to change this key."
        for key in changed
        if not within(key, LANE_KEYS + AT_ONCE_KEYS)
    ]


def concerns_lane(changed: list[str]) -> bool:
    return any(within(key, LANE_KEYS) for key in changed)


def schema_told(config: Config) -> dict[str, Any]:
    """What a checkpoint's columns and classes rest on, beside the rows."""
    return {"target": config.fields.target, "categories_max": config.schema.categories_max}


def check_schema(config: Config, layout: Layout, told: dict[str, Any], names: list[str]) -> None:
    """Raises CheckpointError when the configuration contradicts the columns and labels of a checkpoint.

    layout, names: those of the checkpoint; told: its `schema_told`.
    """
    wanted, types = config.schema, config.schema.types
    pairs: list[tuple[str, Any, Any]] = [("fields.target", told["target"], config.fields.target)]
    if wanted.task != "auto":
        pairs.append(("schema.task", layout.task, wanted.task))
    if CATEGORY in layout.kinds:
        pairs.append(("schema.categories_max", told["categories_max"], wanted.categories_max))
    for name, kind in zip(names, layout.kinds, strict=False):
        same = "category" if kind == CATEGORY else "number"
        if name in types and ("number" if types[name] == "boolean" else types[name]) != same:
            pairs.append((f"schema.types.{name}", same, types[name]))
    for key, former, now in pairs:
        if former != now:
            raise CheckpointError(
                f"{key} must be {former!r} as in the checkpoint; got {now!r}. "
                "Keep it, or start fresh in another checkpoint.directory."
            )


def resume(lane: "Lane", state: State) -> list[str]:
    """As `Lane.load_state`, with what a checkpoint holds; CheckpointError too where it lacks something."""
    try:
        return lane.load_state(state)
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint lacks {error}: another version of adaptd wrote it. Run that one, or choose "
            "another checkpoint directory to start anew."
        ) from error


def rehearse(old: Config, new: Config, task: str) -> None:
    """Build what is new once, so that what cannot be built is known before anything has changed.

    It also compiles kernels that were not needed so far, outside the loop. Raises whatever building does.
    """
    layout = Layout("regression" if task == "regression" else "classification")
    known = pool.chosen(old, task)
    wanted = pool.chosen(new, task)
    if not wanted:
        raise ValueError(f"pool.learners must hold a learner for {task}. `adaptd learners` lists them.")
    joining = {} if new.pool.learners else pool.FOR_MANY_CODES
    for name, options in {**wanted, **joining}.items():
        if known.get(name) != options:
            pool.build_slot(name, options, layout, new.seed)
    module, options = configuration.built("controllers", new.controller)
    module.build(options, layout, len(wanted))
    module, options = configuration.built("detectors", new.drift, configuration.DRIFT_KEYS)
    module.build(options)
    rates.Config(**new.rates)
    memory.Config(**new.memory)
    challengers.Config(**new.challengers)
    student.build(new, layout)


def lane_part(config: Config) -> dict[str, Any]:
    """What the lane takes from a configuration, as plain data for a checkpoint."""
    tree = msgspec.to_builtins(config)
    return {
        "pool": {key: tree["pool"][key] for key in ("learners", "lagged_labels", "learner_bytes_max")},
        "controller": tree["controller"],
        "drift": tree["drift"],
        "rates": tree["rates"],
        "output": tree["output"],
        "memory": tree["memory"],
        "challengers": tree["challengers"],
        "student": tree["student"],
        "pin": config.control.pin,
        "weights_rows": config.journal.weights_rows,
    }


def with_lane_part(config: Config, saved: dict[str, Any]) -> Config:
    """`config` with what the lane takes from `saved`."""
    replace = msgspec.structs.replace
    return replace(
        config,
        pool=replace(config.pool, **saved["pool"]),
        controller=saved["controller"],
        drift=saved["drift"],
        rates=saved["rates"],
        output=replace(config.output, **saved["output"]),
        memory=saved["memory"],
        challengers=saved["challengers"],
        student=replace(config.student, **saved["student"]),
        control=replace(config.control, pin=saved["pin"]),
        journal=replace(config.journal, weights_rows=saved["weights_rows"]),
    )
