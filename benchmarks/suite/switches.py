"""adaptd's mechanisms and how each is switched off, for ablations.

A switch that the installed adaptd does not have is left out.
"""

from adaptd import config as configuration
from adaptd.errors import AdaptdError
from adaptd.pool import DEFAULT_LEARNERS

# Readiness for change: what a stationary stream needs none of.
ADAPTATION = (
    "rates.enabled=false", "drift.enabled=false", "memory.enabled=false", "challengers.enabled=false",
)  # fmt: skip
SWITCHES = {
    "no lagged labels": ["pool.lagged_labels=false"],
    "no rate boost": ["rates.enabled=false"],
    "no drift detection": ["drift.enabled=false"],
    "no label-free detection": ["drift.unlabelled=false"],
    "no concept memory": ["memory.enabled=false"],
    "no challengers": ["challengers.enabled=false"],
    "one mixer": ["controller.rates=[0.003]"],
    "no plain mixer": ["controller.plain_rate=0.0"],
    "fixed share, no mixers": ["controller.kind=fixed_share"],
    "champion, no blend": ["controller.kind=champion"],
}


def is_known(assignment: str) -> bool:
    """Whether the installed adaptd has this key."""
    try:
        configuration.load(None, [assignment])
    except AdaptdError:
        return False
    return True


def adaptation_off() -> list[str]:
    """Assignments that switch all readiness for change off."""
    return [assignment for assignment in ADAPTATION if is_known(assignment)]


def ablations() -> dict[str, list[str]]:
    """Assignments by what is gone: each mechanism, the ladders' rungs, each learner of the pool."""
    found = {name: parts for name, parts in SWITCHES.items() if all(map(is_known, parts))}
    rungs = {
        name: {**options, "ladder": False}
        for name, options in DEFAULT_LEARNERS.items()
        if is_known(f"pool.learners.{name}={toml({**options, 'ladder': False})}")
    }
    if rungs:
        found["no rate ladder"] = pool(DEFAULT_LEARNERS | rungs)
    for name in DEFAULT_LEARNERS:
        found[f"without {name}"] = pool(
            {key: value for key, value in DEFAULT_LEARNERS.items() if key != name}
        )
    return found


def pool(learners: dict[str, dict]) -> list[str]:
    return [f"pool.learners.{name}={toml(options)}" for name, options in learners.items()]


def toml(value: object) -> str:
    """An inline table, as `--set` takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
