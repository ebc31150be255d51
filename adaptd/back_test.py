"""The report of a back-test: one HTML file with curves, weights, rates and decisions, to be sent round.

It holds the live page's own charts, its style and its data, and asks nobody for anything.
"""

import importlib.resources
import json
import math
import pathlib
from typing import Any

import adaptd
from adaptd.engine import Lane
from adaptd.errors import InputError
from adaptd.journal import Journal

# No screen shows more; beyond it every other point goes, and the step between them doubles.
POINTS_MAX = 600
STEP_ROWS = 16
DECISIONS_MAX = 1000


class Curves:
    """Scores, weights and learning rates along a lane's rows; bounded, however long the file is."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.step_rows = STEP_ROWS
        self.points: list[dict[str, Any]] = []
        self.learners: list[str] = []
        self.score_name = ""

    def add(self) -> None:
        """Keep a point when the lane has come a step further."""
        row = self.lane.learned
        if not self.lane.learned:
            return
        score_name = next(iter(self.lane.scores.fading(0)))
        if score_name != self.score_name:
            # The task was found to be another: the pool is new, and learned those rows again.
            self.points.clear()
            self.learners, self.score_name = self.lane.pool.names, score_name
        if row < (self.points[-1]["row"] if self.points else 0) + self.step_rows:
            return
        self.points.append(self.point())
        if len(self.points) > POINTS_MAX:
            del self.points[::2]
            self.step_rows *= 2

    def finish(self) -> None:
        """The last row is a point, wherever the steps fell."""
        if self.lane.learned > (self.points[-1]["row"] if self.points else 0):
            self.points.append(self.point())

    def point(self) -> dict[str, Any]:
        lane, slots = self.lane, self.lane.pool.slots
        blend, n = lane.scores.fading(len(slots)), len(self.learners)
        return {
            "row": lane.learned,
            "blend": known(blend[self.score_name]),
            # Places that came later are behind these.
            "score": [known(lane.scores.fading(index)[self.score_name]) for index in range(n)],
            "weight": [known(weight) for weight in lane.controller.weights()[:n].tolist()],
            "learning_rate": [known(slot.learner.vitals().learning_rate) for slot in slots[:n]],
            "champion": slots[lane.champion].name if lane.champion >= 0 else None,
        }


def known(value: float) -> float | None:
    """Six digits, as many as a picture can show; None when it is not a finite number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def write(path: str, file: str, seed: int, result: dict[str, Any], curves: Curves, journal: Journal) -> None:
    """Write the report of `result` (that of `replay`) to `path`. Raises InputError when it cannot.

    The configuration is not in it: it may hold what is not to be sent round.
    """
    decisions = [entry for entry in journal.read(journal.rows_max) if entry.kind != "weights_reported"]
    data = {
        "version": adaptd.__version__,
        "file": pathlib.PurePath(file).name,
        "seed": seed,
        "result": result,
        "curves": {"learners": curves.learners, "score_name": curves.score_name, "points": curves.points},
        "journal": [
            {"seq": entry.seq, "row": entry.row, "kind": entry.kind, "payload": entry.payload}
            for entry in decisions[-DECISIONS_MAX:]
        ],
        "decisions": len(decisions),
    }
    try:
        pathlib.Path(path).write_text(page(data), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}. Choose a file that can be written.") from None


def page(data: dict[str, Any]) -> str:
    """The HTML with everything in it."""
    folder = importlib.resources.files("adaptd") / "page"
    text = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("style.css", "charts.js", "decisions.js", "report.js"):
        text = text.replace(f"/*{name}*/", (folder / name).read_text(encoding="utf-8"))
    # Names come from the data: none of them may end the script that they stand in.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return text.replace("/*data*/", encoded)
