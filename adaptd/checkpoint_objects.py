"""Checkpoints of many lanes in a store that several replicas share: `checkpoint.url`.

An object holds one checkpoint, in the format of `checkpoint.py`, and never changes: its name has the
lane, a number that grows with the lane's progress, and a token that nobody draws twice,

    GROUP/TOPIC/PARTITION/00000000000000012345-9f86d081884c7d65.adaptd

So a replica that lost its lane can write what it likes: it overwrites nothing, and nobody reads it, for
the valid checkpoint of a lane is the one that the committed offsets name. The store itself needs no locks
and no order of writes, which is all that object stores promise.

An object appears whole or not at all. Where a rename does that (a directory, SFTP, SMB, HDFS) it is
written under another name first; elsewhere (S3 and its like) one put does it.
"""

import contextlib
import hashlib
import pathlib
import posixpath
import queue
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, cast

import fsspec

from adaptd.checkpoint import TEMPORARY, decoded, encoded, write_whole
from adaptd.contracts import State
from adaptd.errors import CheckpointError

# No part is `..`: whoever may commit offsets must not lead a replica out of the store.
NAME = re.compile(r"((?:(?!\.+/)[\w.~-]+/)+)(\d{20})-([0-9a-f]{16})\.adaptd", re.ASCII)
# Protocols whose rename is one step; for all others a put is.
RENAMING = {"arrow_hdfs", "ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs"}
LOCAL = {"file", "local"}
# A part of a path that file systems take, with room for what is appended.
PART_BYTES_MAX = 200

Result = TypeVar("Result")


class Saved(NamedTuple):
    """`seconds`: from the call to the object's being there."""

    name: str
    bytes: int
    seconds: float


class Pending(Generic[Result]):
    """A call that runs beside the caller, with a time limit."""

    def __init__(self, call: Callable[[], Result], place: str, seconds_max: float) -> None:
        self._place = place
        self._seconds_max = seconds_max
        self._until = time.monotonic() + seconds_max
        self._answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
        # Not joined at the end of the process: what hangs in a dead network share must not hold it up.
        threading.Thread(target=self._run, args=(call,), name="checkpoint store", daemon=True).start()

    def _run(self, call: Callable[[], Result]) -> None:
        try:
            answer: tuple[Result | None, BaseException | None] = (call(), None)
        except BaseException as error:
            answer = (None, error)
        self._answers.put(answer)

    def is_done(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return not self._answers.empty() or time.monotonic() >= self._until

    def result(self) -> Result:
        """What the call gave; waits for it, once only. Raises CheckpointError when the time is over."""
        try:
            value, error = self._answers.get(timeout=max(0.0, self._until - time.monotonic()))
        except queue.Empty:
            raise CheckpointError(
                f"{self._place} must answer within {self._seconds_max:g} seconds, and did not. Look at the "
                "network and at the store; checkpoint.seconds_max is the limit."
            ) from None
        if error is not None:
            raise error
        return cast(Result, value)


class CheckpointObjects:
    """Checkpoints at `url`, any that fsspec knows (`/srv/adaptd`, `file://`, `s3://`, `memory://`).

    options: what fsspec's file system takes; credentials are best left to where it finds them by itself.
    seconds_max: the time limit of one call. Any number of processes may use the same URL.

    Raises CheckpointError when there is no such file system, or it lacks a package.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, seconds_max: float = 60.0) -> None:
        self.shown = without_secrets(url)
        self.seconds_max = seconds_max
        try:
            # Listings that are kept would show what other replicas have long deleted.
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **(options or {}))
        except (ImportError, ValueError, TypeError, OSError) as error:
            reason = hidden(str(error), url, options)
            raise CheckpointError(
                f"checkpoint.url must be a URL that fsspec can open; got {self.shown!r}: {reason}. "
                "Correct it or checkpoint.options, or install the package that it names."
            ) from None
        self._root = root.rstrip("/")
        self._hide = (url, options)
        names = self._files.protocol
        self._protocols = {names} if isinstance(names, str) else set(names)

    def save(self, lane: str, number: int, state: State) -> Saved:
        """Publish `state` as a new object of `lane`; it is there, whole, when this returns.

        lane: any text; `/` makes folders. number: at least 0, greater the further the lane has come.
        Raises CheckpointError: not plain, not written, not in time.
        """
        return self.start(lane, number, state).result()

    def start(self, lane: str, number: int, state: State) -> Pending[Saved]:
        """`save` that returns at once. The arrays of `state` must not change before it is done."""
        begun = time.monotonic()
        name = f"{folder(lane)}/{number:020d}-{secrets.token_hex(8)}.adaptd"
        blocks, size = encoded(state)

        def call() -> Saved:
            self._publish(name, blocks, size)
            return Saved(name, size, time.monotonic() - begun)

        return self._pending(
            call, name, "could not be written", "The checkpoint before it stays the valid one."
        )

    def load(self, name: str) -> State:
        """The state in the object that `save` called `name`.

        Raises CheckpointError: no such name, no such object, damaged in any way, not in time.
        """
        if not NAME.fullmatch(name):
            raise CheckpointError(
                f"{name!r:.200} must be the name of a checkpoint, as adaptd writes it into the metadata of "
                "committed offsets. Something else has committed offsets for this group: give adaptd a group "
                "of its own."
            )

        def call() -> bytes:
            return cast(bytes, self._files.cat_file(self._path(name)))

        content = self._pending(call, name, "could not be read", _INSTEAD).result()
        return decoded(content, self._place(name), _INSTEAD)

    def names(self, lane: str) -> list[str]:
        """Names of the objects of `lane`, ascending by number; whether they are whole is not looked at."""
        found = self._pending(lambda: self._list(folder(lane)), folder(lane), "could not be listed", _LOOK)
        return [name for name in found.result() if NAME.fullmatch(name)]

    def drop_older(self, lane: str, name: str, keep: int) -> int:
        """Delete what is older than `name`, but for the newest `keep` - 1 of it; how many were deleted.

        name: the checkpoint that committed offsets name. It stays, and so does every one of its number or
        above: one that is about to be named is among them. What cannot be deleted is tried again with the
        next call. Raises CheckpointError when the lane cannot be listed in time.
        """
        limit = number_of(name)
        below = folder(lane)

        def call() -> int:
            everything = self._list(below)
            older = [other for other in everything if NAME.fullmatch(other) and number_of(other) < limit]
            # What a writer left behind when it died is of no use to anybody.
            torn = [other for other in everything if is_temporary(other) and number_of(other) < limit]
            dropped = 0
            for other in older[: max(0, len(older) - max(0, keep - 1))] + torn:
                with contextlib.suppress(Exception):
                    self._files.rm_file(self._path(other))
                    dropped += 1
            return dropped

        return self._pending(call, below, "could not be listed", _LOOK).result()

    def check(self) -> None:
        """Write, read and delete a small object. Raises CheckpointError when any of it fails."""
        saved = self.save("adaptd-check", 0, {"check": 1})
        if self.load(saved.name) != {"check": 1}:
            raise CheckpointError(f"{self._place(saved.name)} must give back what was written. {_LOOK}")
        path = self._path(saved.name)
        self._pending(
            lambda: self._files.rm_file(path), saved.name, "could not be deleted", "Grant deleting too."
        ).result()

    def _pending(self, call: Callable[[], Result], name: str, failed: str, advice: str) -> Pending[Result]:
        """`call` with whatever a file system raises made a CheckpointError."""
        place = self._place(name)

        def guarded() -> Result:
            try:
                return call()
            except CheckpointError:
                raise
            except FileNotFoundError:
                raise CheckpointError(f"{place} {failed}: there is none. {advice}") from None
            except Exception as error:
                # Every file system has errors of its own, and some repeat what they were given.
                reason = hidden(str(error) or type(error).__name__, *self._hide)
                raise CheckpointError(f"{place} {failed}: {reason:.500}. {advice}") from None

        return Pending(guarded, place, self.seconds_max)

    def _publish(self, name: str, blocks: list[bytes | memoryview], size: int) -> None:
        path = self._path(name)
        if self._protocols & LOCAL:
            # Ours knows how to make a file safe against a power cut.
            pathlib.Path(path).parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            write_whole(pathlib.Path(path), blocks)
            return
        content = b"".join(blocks)
        if self._protocols & RENAMING:
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
            self._files.pipe_file(path + TEMPORARY, content)
            self._files.mv(path + TEMPORARY, path)
        else:
            self._files.pipe_file(path, content)
        if (there := self._files.info(path)["size"]) != size:
            raise CheckpointError(f"{self._place(name)} has {there} of {size} bytes. {_LOOK}")

    def _list(self, below: str) -> list[str]:
        """Names of all that lies in the folder `below`, ascending."""
        path = self._path(below)
        self._files.invalidate_cache(path)
        try:
            found = self._files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(f"{below}/{posixpath.basename(str(entry))}" for entry in found)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _place(self, name: str) -> str:
        return f"{self.shown.rstrip('/')}/{name}"


_INSTEAD = "Put it back from a backup of the store, or point checkpoint.url at the store that has it."
_LOOK = "Look at the store, and at what adaptd may do there."


def folder(lane: str) -> str:
    """The path of a lane's objects: its text with what a path cannot take as `~` and hexadecimal digits.

    Two lanes never share one. A part that is too long for a file name is cut and told apart by a digest.
    """
    parts = []
    for part in lane.split("/"):
        text = urllib.parse.quote(part, safe="").replace("~", "%7E").replace("%", "~")
        if set(text) <= {"."}:
            text = "~" + text.replace(".", "~2E")
        if len(text) > PART_BYTES_MAX:
            text = text[: PART_BYTES_MAX - 33] + "~" + hashlib.sha256(part.encode()).hexdigest()[:32]
        parts.append(text)
    return "/".join(parts)


def number_of(name: str) -> int:
    """The number in an object's name. Raises CheckpointError when it is no such name."""
    match = NAME.fullmatch(name.removesuffix(TEMPORARY))
    if match is None:
        raise CheckpointError(f"{name!r:.200} must be the name of a checkpoint.")
    return int(match[2])


def is_temporary(name: str) -> bool:
    return name.endswith(TEMPORARY) and NAME.fullmatch(name.removesuffix(TEMPORARY)) is not None


def without_secrets(url: str) -> str:
    """`url` as it may be shown: without what stands before an `@`, and without a query."""
    scheme, mark, rest = url.rpartition("://")
    rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return scheme + mark + (host.rpartition("@")[2] if mark else host) + slash + path


def hidden(text: str, url: str, options: dict[str, Any] | None) -> str:
    """`text` without the URL's secrets and without values of options."""
    text = text.replace(url, without_secrets(url))
    credentials = url.rpartition("://")[2].partition("/")[0].rpartition("@")[0]
    for secret in [credentials.partition(":")[2], *_texts(options or {})]:
        if len(secret) > 3:
            text = text.replace(secret, "(hidden)")
    return text


def _texts(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [text for value in tree.values() for text in _texts(value)]
    return [tree] if isinstance(tree, str) else []
