"""What a container does for a process: when it ends, or the engine dies, all it started ends too.

Run by path as `contain.py <pid of the engine> <program> <arguments>`, in a session of its own.
SIGTERM is passed on to the program; SIGHUP, which the kernel sends when the engine has died,
kills it. Ends with the program's exit code, 128 + the signal's number if it was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(engine: int, argv: list[str]) -> int:
    """Run `argv` as long as process `engine` is our parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    program: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        if program is None:
            early.append(number)
        elif number == signal.SIGTERM:
            os.kill(program.pid, signal.SIGTERM)
        else:
            os.killpg(program.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != engine:
        return 128 + signal.SIGKILL

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # There is one thread here, so code between fork and exec is safe; in the engine it is not.
    program = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent
    )
    for number in early:
        pass_on(number, None)
    # Not reaped yet, so its process group cannot have become another's.
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    os.killpg(program.pid, signal.SIGKILL)
    code = program.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
