"""Memory goes back to the system: `allocator.py`, and what a whole process takes at most."""

import os
import subprocess
import sys

import numpy as np
import pytest

# Blocks of 4 MB with something small behind each, freed after one of 16 MB was: what is still resident?
HOLES = """
import sys
import numpy as np
from adaptd import allocator

if sys.argv[1] == "told":
    allocator.return_large_blocks()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
np.ones(1 << 21)
before = resident()
blocks = [(np.ones(1 << 19), np.ones(1 << 13)) for _ in range(20)]
small = [behind for _, behind in blocks]
del blocks
print(resident() - before)
"""

# The most that was ever resident, in KiB. What `wait4` tells counts the process that it was forked from.
REPLAY = """
import re, sys
from adaptd.cli import main

main(["replay", sys.argv[1], "--format", "json"])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells it in /proc")


def left_resident(told: str) -> int:
    """Bytes."""
    done = subprocess.run([sys.executable, "-c", HOLES, told], capture_output=True, check=True)
    return int(done.stdout)


@linux
def test_large_blocks_go_back_to_the_system_when_they_are_freed():
    assert left_resident("told") < 10_000_000


@linux
def test_the_default_pool_stays_below_400_megabytes_on_500_features_and_40_classes(tmp_path):
    """With a change of all classes in the middle, which starts trials and ends a concept."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 40, 4000)
    x = random.normal(size=(40, 500))[labels] * 0.35 + random.normal(size=(4000, 500))
    labels[2000:] = (labels[2000:] + 1) % 40
    path = tmp_path / "wide.npy"
    np.save(path, np.column_stack([x, labels]).astype(np.float32))
    done = subprocess.run([sys.executable, "-c", REPLAY, str(path)], capture_output=True, check=True)
    assert int(done.stdout.split()[-1]) * 1024 < 400e6
