"""`python -m adaptd.kernels.warm`: compile every kernel into the cache, with a line for each component."""

import importlib
import time

from adaptd import registry

FAMILIES = ("detectors", "learners", "controllers")


def main() -> None:
    for family in FAMILIES:
        for kind in registry.kinds(family):
            start = time.perf_counter()
            importlib.import_module(f"adaptd.{family}.{kind}")
            print(f"{family}/{kind}: {time.perf_counter() - start:.1f} s")
    importlib.import_module("adaptd.engine")
    importlib.import_module("adaptd.predictions")


if __name__ == "__main__":
    main()
