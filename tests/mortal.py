"""Commands that end with the process that started them, even when that one is killed.

subprocess.Popen(mortal(["java", ...]))
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def mortal(command: Sequence[str]) -> list[str]:
    """`command`, to be run by the calling thread; its process id is that of the command."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before it was asked for.
    if os.getppid() == parent:
        os.execvp(command[0], command)
