"""How memory that is no longer used goes back to the system: at once, not by and by.

glibc gives a large block pages of its own and returns them when it is freed; but each one that is freed
raises the size from which a block counts as large, up to 32 MiB. After the first drift, with its copies of
learners on trial, blocks of megabytes come from one heap, which cannot shrink as long as anything lives
behind them: a fifth of the resident memory was such holes. Arrow's own allocator keeps what it freed.
"""

import contextlib
import ctypes
import os

# glibc's malloc.h: M_MMAP_THRESHOLD. Set once, it no longer rises. What a read takes is smaller: pages of its
# own for each array of a block, given back at once, cost a tenth of a linear learner's time.
MMAP_THRESHOLD = -3
LARGE_BYTES = 1 << 21


def return_large_blocks() -> None:
    """Call before the first import of Arrow; where the C library is another one, its own ways stay."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BYTES)
