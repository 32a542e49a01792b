"""Several trainers that train as one, under torchrun, in a process that ends with its supervisor.

    python -m steps.launcher TORCHRUN... SETTINGS EVENTS SUPERVISOR

TORCHRUN are torchrun's own words, the others those of `steps/trainer.py`. SIGTERM goes on to every
trainer; torchrun ends all when one has ended. This process ends as the first of them did.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from steps.supervisor import end_with

PR_SET_CHILD_SUBREAPER = 36


def main(*words: str) -> None:
    """Start the trainers, wait for them, and leave nothing running."""
    *torchrun, settings, descriptor, supervisor = words
    end_with(int(supervisor))
    # What a killed trainer has left running becomes ours, to be killed at the end.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, pass_on)
    # torchrun hands on no descriptors; under this path the first trainer finds the pipe.
    events = f"/proc/{os.getpid()}/fd/{descriptor}"
    logs = Path(settings).with_name("torchrun")
    trainer = ("-m", "steps.trainer", settings, events, str(os.getpid()))
    code = 0
    try:
        # SIGTERM is ours: torchrun would give the trainers 30 s to save.
        run(parse_args(["--signals-to-handle=SIGINT", f"--log-dir={logs}", *torchrun, *trainer]))
    except ChildFailedError as error:
        code = first_end(list(error.failures.values()))
    finally:
        tell(psutil.Process().children(recursive=True), signal.SIGKILL)
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def pass_on(number: int, _: Any) -> None:
    """Tell every trainer to stop; without any, stop."""
    # Not what they have started: a trainer whose data loaders end cannot save.
    trainers = psutil.Process().children()
    if not trainers:
        sys.exit(128 + number)
    tell(trainers, number)


def tell(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to those of the processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def first_end(failures: list[ProcessFailure]) -> int:
    """How the first trainer ended, and not those that then lost it or that torchrun ended.

    Times are whole seconds: of those that ended at once, a killed one took the others with it.
    """
    first = min(failure.timestamp for failure in failures)
    codes = [failure.exitcode for failure in failures if failure.timestamp <= first + 1]
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    ended = [code for code in codes if code > 0]
    return int((killed or ended or codes)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
