"""What the Kafka source and the Kafka sink share: options, secrets, what an error means, who is there.

Options go to librdkafka as they are written. A secret need not stand in the configuration: `{ file =
"/run/secrets/kafka" }` is read from a file, `{ credential = "kafka" }` from the directory that systemd's
`LoadCredential=` fills. Neither is ever logged, and no message of this module shows a value.
"""

import logging
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from adaptd.errors import ConfigError, InputError

LOG = logging.getLogger("adaptd.kafka")
"""What librdkafka has to say; silent until somebody adds a handler."""
LOG.propagate = False
LOG.addHandler(logging.NullHandler())

REACH_SECONDS = 10.0
# What every client begins with; the options of the configuration come after. When no broker can be reached
# librdkafka since 2.10 forgets all it knows and begins anew with the first ones, but what waits for a group's
# coordinator goes on waiting for the forgotten one, for ever (librdkafka issues 5456 and 5511). With "none"
# the known ones are tried until they are back, and those that are back are found within a second, not ten.
STEADY = {"metadata.recovery.strategy": "none", "reconnect.backoff.max.ms": 1000}


def client_options(
    servers: str, options: dict[str, Any], section: str, reserved: Iterable[str]
) -> dict[str, Any]:
    """Options for a client of `servers`; `section` is where they stand in the configuration.

    reserved: what adaptd sets itself, since its guarantee rests on it. Raises ConfigError.
    """
    faults: list[str] = []
    result: dict[str, Any] = {"bootstrap.servers": servers}
    for key, value in options.items():
        place = f"{section}.options.{key}"
        if key in reserved:
            faults.append(f"{place} must be left out: adaptd sets it. Remove the key.")
        elif isinstance(value, dict):
            try:
                result[key] = secret(value)
            except ConfigError as error:
                faults += [f"{place} {fault}" for fault in error.faults]
        elif isinstance(value, str | int | float):
            result[key] = value
        else:
            faults.append(f"{place} must be a text, a number or a boolean. Write it as librdkafka wants it.")
    if faults:
        raise ConfigError(faults)
    return result


def secret(place: dict[str, Any]) -> str:
    """The secret in `{ file = ... }` or `{ credential = ... }`. Raises ConfigError, never with a value."""
    match place:
        case {"file": str(path)} if len(place) == 1:
            pass
        case {"credential": str(name)} if len(place) == 1:
            directory = os.environ.get("CREDENTIALS_DIRECTORY")
            if directory is None:
                raise ConfigError(
                    [
                        f"must be a credential of the service; there is no CREDENTIALS_DIRECTORY. Add "
                        f"LoadCredential={name}:/path/to/secret to the unit, or use {{ file = ... }}."
                    ]
                )
            path = os.path.join(directory, name)
        case _:
            raise ConfigError(['must be a value, { file = "PATH" } or { credential = "NAME" }.'])
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError([f"must name a readable file; {path}: {reason}. Correct it."]) from None


# Options of every client. The rest concerns consumers or producers only; others complain of it.
REACHING = (
    "bootstrap.",
    "broker.",
    "client.",
    "enable.ssl",
    "metadata.",
    "reconnect.",
    "sasl.",
    "security.",
    "socket.",
    "ssl.",
)


def reaching(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that lead to the brokers."""
    return {key: value for key, value in options.items() if key.startswith(REACHING)}


def built(make: Any, options: dict[str, Any], section: str) -> Any:
    """A client of librdkafka. Raises ConfigError for an option that it does not take."""
    try:
        return make({**STEADY, **options}, logger=LOG)
    except (KafkaException, ValueError, TypeError) as error:
        fault = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        for value in options.values():
            # librdkafka repeats a value that it does not take.
            if isinstance(value, str) and len(value) > 1:
                fault = fault.replace(f'"{value}"', "(hidden)")
        raise ConfigError(
            [f"{section}.options must be options of librdkafka: {fault}. Correct it."]
        ) from None


def words(error: BaseException | KafkaError) -> str:
    """What a Kafka error says: its text and its name."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        error = error.args[0]
    return f"{error.str()} ({error.name()})" if isinstance(error, KafkaError) else str(error)


def partition_counts(options: dict[str, Any], topics: Iterable[str], section: str) -> dict[str, int]:
    """Partitions of each topic. Raises InputError when the brokers or a topic cannot be reached."""
    admin = built(AdminClient, reaching(options), section)
    servers = options["bootstrap.servers"]
    try:
        found = admin.list_topics(timeout=REACH_SECONDS).topics
    except KafkaException as error:
        raise InputError(
            f"{section}.servers must be brokers that answer; {servers}: {words(error)}. Check the address, "
            "the network and the security options."
        ) from None
    counts = {}
    for topic in topics:
        about = found.get(topic)
        if about is None or about.error is not None or not about.partitions:
            why = "there is none" if about is None or about.error is None else words(about.error)
            raise InputError(
                f"{section}: the topic {topic!r} must be on {servers}; {why}. Create it, or correct its name."
            )
        counts[topic] = len(about.partitions)
    return counts


class Reporter(logging.Handler):
    """Hands warnings of the Kafka client to `tell`, one a second at most."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell
        self.last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.created - self.last >= 1.0:
            self.last = record.created
            self.tell(record.getMessage()[:500])


class Caller:
    """Makes calls in a thread of its own, for those that might never return.

    One that does not return keeps its thread, which does not hold up the end of the process; one that
    returns late ends it, and lets go of what it was called with.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="kafka caller", daemon=True).start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:
                self._answers.put(error)
            else:
                self._answers.put(None)

    def call(self, call: Callable[[], None], seconds_max: float) -> None:
        """Returns when `call` has, and raises what it raises. TimeoutError: make another `Caller`."""
        self._calls.put(call)
        try:
            error = self._answers.get(timeout=seconds_max)
        except queue.Empty:
            self._calls.put(None)
            raise TimeoutError from None
        if error is not None:
            raise error
