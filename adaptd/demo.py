"""Streams to try adaptd with, as JSON lines: real ones that River bundles, and a generated one with drift."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

STREAMS = {
    "phishing": "1,250 real web pages, phishing or not (River's Phishing)",
    "segments": "2,310 real image segments, seven kinds (River's ImageSegments)",
    "approval": "1,001 real days of poll figures and the approval rate they led to (River's TrumpApproval)",
    "drift": "endless; generated: three rules that take turns every 5,000 rows",
}
CONCEPT_ROWS = 5_000


def records(name: str) -> Iterator[dict[str, Any]]:
    """The records of a stream of `STREAMS`: `id`, the features, the target `y`."""
    if name == "drift":
        return drift()
    from river import datasets

    bundled: dict[str, Any] = {
        "phishing": datasets.Phishing,
        "segments": datasets.ImageSegments,
        "approval": datasets.TrumpApproval,
    }
    dataset = bundled[name]()
    return ({"id": i, **x, "y": y} for i, (x, y) in enumerate(dataset, 1))


def drift(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Readings of a machine; which of them mean trouble depends on the regime, and regimes come back."""
    rng = np.random.default_rng(seed)
    for i in itertools.count(1):
        load, heat, noise = rng.random(3).round(4).tolist()
        shift = ("early", "late", "night")[int(rng.integers(3))]
        regime = (i - 1) // CONCEPT_ROWS % 3
        trouble = (load + heat > 1.2, noise > 0.6 and shift != "night", load - heat > 0.1)[regime]
        if rng.random() < 0.05:
            trouble = not trouble
        yield {
            "id": i, "load": load, "heat": heat, "noise": noise, "shift": shift,
            "y": "trouble" if trouble else "fine",
        }  # fmt: skip
