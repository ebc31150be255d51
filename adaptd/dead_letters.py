"""Dead letters: records that could not be used, each with its reason, in a file of bounded size.

One JSON object a line: `{"reason": ..., "detail": ..., "position": ..., "raw": ...}`; a record that is not
UTF-8 has `raw_base64` instead of `raw`. There is no time in it, so that a replay writes the same bytes.

When the file has reached its size it becomes `<path>.<number>` and a new one is begun; the newest
`files_keep` of these are kept. The numbers go up for ever: by them a checkpoint knows which file it means.
"""

import base64
import os
import pathlib
from collections import Counter

import msgspec

from adaptd.contracts import Reject, State
from adaptd.errors import AdaptdError
from adaptd.events import Emitter, RecordRejected
from adaptd.sinks.file import FileSink

SHOWN_MAX = 10
SHOWN_BYTES = 200


class DeadLetters:
    """Writes to `path`; when it is None only counts, and shows the first ten through `events`.

    `counts` is by reason, since the start of the run and across restarts. Raises ConfigError when the
    file cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        events: Emitter,
        bytes_max: int = 64 << 20,
        files_keep: int = 3,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._events = events
        self._bytes_max = bytes_max
        self._files_keep = max(1, files_keep)
        self._path = None if path is None else pathlib.Path(path)
        if self._path is not None:
            self._sink = FileSink(self._path)
            self._file = max(self._rotated(), default=-1) + 1
            self._size = self._sink.position()["bytes"]

    def write(self, reject: Reject) -> None:
        """Count it, and keep it or show it. Raises AdaptdError when the disk refuses; it is kept."""
        self.counts[reject.reason] += 1
        if self._path is None:
            if self.counts.total() <= SHOWN_MAX:
                self._events.emit(
                    RecordRejected(
                        reason=reject.reason,
                        detail=reject.detail,
                        position=reject.position,
                        raw=reject.raw[:SHOWN_BYTES].decode("utf-8", "backslashreplace"),
                    )
                )
            return
        line = _line(reject)
        self._size += len(line)
        self._sink.write(line)
        # Afterwards, so that a rotation that fails has lost nothing.
        if self._size >= self._bytes_max:
            self._rotate()

    def flush(self) -> None:
        """What was written is on disk. Raises AdaptdError, and then keeps it for the next flush."""
        if self._path is not None:
            self._sink.flush()

    def position(self) -> State:
        """Valid after `flush`."""
        state: State = {"counts": dict(self.counts)}
        if self._path is not None:
            state |= {"file": self._file, "bytes": self._sink.position()["bytes"]}
        return state

    def seek(self, position: State) -> None:
        """Forget what was written after `position`, across rotation as far as the files are kept.

        Dead letters that somebody took away in the meantime stop nothing.
        """
        self.counts = Counter(position["counts"])
        if self._path is None or "file" not in position:
            return
        wanted = position["file"]
        if self._file > wanted:
            self._sink.close()
            rotated = self._rotated()
            self._path.unlink(missing_ok=True)
            for number in rotated:
                if number == wanted:
                    self._numbered(number).rename(self._path)
                elif number > wanted:
                    self._numbered(number).unlink(missing_ok=True)
            self._sink = FileSink(self._path)
        self._file = wanted
        self._size = min(position["bytes"], self._sink.position()["bytes"])
        self._sink.seek({"bytes": self._size})

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        if self._path is not None:
            self._sink.close()

    def _rotate(self) -> None:
        assert self._path is not None
        # Nothing is renamed before all of it is on disk.
        self._sink.flush()
        try:
            self._path.rename(self._numbered(self._file))
            self._sink.close()
            self._sink = FileSink(self._path)
            self._file += 1
            self._size = 0
            for number in self._rotated()[: -self._files_keep]:
                self._numbered(number).unlink(missing_ok=True)
        except OSError as error:
            raise AdaptdError(
                f"{self._path} could not be rotated: {error.strerror}. Correct its directory's permissions."
            ) from error

    def _numbered(self, number: int) -> pathlib.Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.{number}")

    def _rotated(self) -> list[int]:
        """Numbers of the full files, ascending."""
        assert self._path is not None
        prefix = self._path.name + "."
        names = (path.name for path in self._path.parent.iterdir() if path.name.startswith(prefix))
        return sorted(int(name[len(prefix) :]) for name in names if name[len(prefix) :].isdecimal())


def _line(reject: Reject) -> bytes:
    entry: dict[str, str | int] = {
        "reason": reject.reason,
        "detail": reject.detail,
        "position": reject.position,
    }
    try:
        entry["raw"] = reject.raw.decode()
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(reject.raw).decode()
    return msgspec.json.encode(entry) + b"\n"
