"""No stream: rows come over HTTP only.

How: waits for a request, a tenth of a second at most, and never has rows of its own.
Use it when: a service asks for each prediction, and labels are sent as they become known.
Do not use it when: the rows are in a file, a pipe or a log anyway; the API works beside those too.
Cost: nothing.
Guarantee: what was answered with success is in the durable input log and survives a crash, when there is
a checkpoint directory.
"""

import select
from collections.abc import Mapping

import msgspec

from adaptd.contracts import Fields, Rows, State
from adaptd.lines import WAIT_SECONDS, no_rows


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose."""


def build(config: Config, fields: Fields) -> "NoSource":
    return NoSource()


class NoSource:
    """See the module."""

    def __init__(self) -> None:
        self.stopped = False
        self._poll = select.poll()

    def wake_on(self, descriptor: int) -> None:
        """`poll` returns as soon as `descriptor` can be read."""
        self._poll.register(descriptor, select.POLLIN)

    def poll(self, kinds: Mapping[str, int]) -> Rows | None:
        if self.stopped:
            return None
        self._poll.poll(WAIT_SECONDS * 1000)
        return no_rows()

    def stop(self) -> None:
        self.stopped = True

    def position(self) -> State:
        return {}

    def seek(self, position: State) -> None:
        """There is only one place."""

    def lag_bytes(self) -> int:
        return 0

    def close(self) -> None:
        return
