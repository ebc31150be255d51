"""Streams for the tests: seeded, generated, with drift."""

import json

import numpy as np


def classes(n: int, seed: int = 0, drift_at: int = 0) -> list[dict]:
    """Flat records: two numbers and a category tell the class; after `drift_at` the rule is reversed."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(n):
        a, b = rng.normal(), rng.normal()
        colour = ["red", "green", "blue"][rng.integers(3)]
        score = a + b + {"red": 1, "green": 0, "blue": -1}[colour]
        if drift_at and i >= drift_at:
            score = -score
        label = "up" if score + rng.normal() * 0.2 > 0 else "down"
        records.append({"id": i, "a": round(a, 6), "b": round(b, 6), "colour": colour, "y": label})
    return records


def reversals(times: int, stretch: int) -> list[dict]:
    """The rule is turned round every `stretch` rows."""
    records = []
    for k in range(times):
        for record in classes(stretch, seed=k):
            if k % 2:
                record["y"] = {"up": "down", "down": "up"}[record["y"]]
            records.append({**record, "id": len(records)})
    return records


def numbers(n: int, seed: int = 0) -> list[dict]:
    """Flat records whose target is a number."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(n):
        a, b = rng.normal(), rng.normal()
        target = round(float(3 * a - 2 * b + 10 + rng.normal() * 0.1), 4)
        records.append({"id": f"r{i}", "a": round(a, 6), "b": round(b, 6), "y": target})
    return records


def with_late_labels(records: list[dict], delay: int, share: float = 0.5, seed: int = 0) -> list[dict]:
    """A share of the labels comes `delay` records after its row, by id."""
    rng = np.random.default_rng(seed)
    late: list[tuple[int, dict]] = []
    stream = []
    for at, record in enumerate(records):
        while late and late[0][0] <= at:
            stream.append(late.pop(0)[1])
        if rng.random() < share:
            late.append((at + delay, {"id": record["id"], "y": record["y"]}))
            record = {key: value for key, value in record.items() if key != "y"}
        stream.append(record)
    return stream + [label for _, label in late]


def lines(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
