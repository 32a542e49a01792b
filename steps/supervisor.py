"""Watch a trainer process: drain what it says, hear its events, pass on the request to stop."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kuznia.errors import Preempted
from kuznia.progress import say

_FAULT = re.compile(
    r"^(?:\[rank\d+\]: )?(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b"
)
_PEER_LOST = re.compile(
    r"Connection (?:closed|reset) by peer|Connection refused|\bDist\w+Error|ncclRemoteError"
    r"|Timed out waiting|DependencyError"
)
"""What a trainer says when another one that trains with it, or the way to it, is gone."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How the trainer ended."""

    code: int
    """Exit status; minus the signal where one killed it."""
    stopped: bool
    """Whether we were told to stop while it ran."""
    tail: tuple[str, ...]
    """The last lines of its output."""

    @property
    def fault(self) -> str:
        """The line that names the error, or its last words.

        Of several trainers the one that failed by itself is heard, not those that it left alone.
        """
        faults = [line for line in self.tail if _FAULT.match(line)]
        faults.sort(key=lambda line: not _PEER_LOST.search(line))
        said = [line for line in self.tail if line.strip()]
        return (faults or said or ["it said nothing"])[-1].strip()

    @property
    def left_alone(self) -> bool:
        """Whether all that went wrong here is that a trainer elsewhere was lost."""
        return bool(_PEER_LOST.search(self.fault))

    def says(self, *words: str) -> bool:
        """Whether any of the words is in its last lines."""
        return any(word in line for line in self.tail for word in words)


def watch(
    command: Sequence[str],
    variables: dict[str, str],
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
) -> Ended:
    """Run a process in a session of its own until it ends; every event goes to `on_event`.

    The descriptor of the pipe that takes events and this process's id are appended to `command`.
    Both output pipes are drained all the time, into this process's standard output and `log`.
    SIGTERM and SIGINT to this process become SIGTERM to it; it is killed if `on_event` raises.
    Call it from the main thread.
    """
    reading, writing = os.pipe()
    tail: deque[str] = deque(maxlen=400)
    with (
        log.open("a", encoding="utf-8") as record,
        os.fdopen(reading) as events,
        _passing_on() as stop,
    ):
        process = subprocess.Popen(
            [*command, str(writing), str(os.getpid())],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        threads = [
            threading.Thread(target=_drain, args=(pipe, record, tail))
            for pipe in (process.stdout, process.stderr)
        ]
        threads.append(threading.Thread(target=_end_group, args=(process,)))
        for thread in threads:
            thread.start()
        stop.reaches(process)
        try:
            for line in events:
                # A process killed while it wrote leaves half a line.
                if line.endswith("\n"):
                    on_event(json.loads(line))
        finally:
            if sys.exc_info()[0]:
                process.kill()
            for thread in threads:
                thread.join()
        return Ended(process.returncode, bool(stop.asked), tuple(tail))


def end_with(supervisor: int) -> None:
    """Have the kernel kill this process when its parent, the supervisor, dies."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        sys.exit("the supervisor is gone")


@contextlib.contextmanager
def stoppable(what: str) -> Iterator[None]:
    """Outside of `watch`: SIGTERM and SIGINT raise Preempted, since `what` is safe to repeat."""

    def stop(*_: Any) -> None:
        raise Preempted(f"{what}: stopped; the same command goes on")

    with _handling(stop):
        yield


class _Stop:
    """The request to stop, passed on to the process once there is one."""

    def __init__(self) -> None:
        self.asked = 0
        self._process: subprocess.Popen[str] | None = None

    def reaches(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self.asked:
            process.terminate()

    def hear(self, number: int, _: Any) -> None:
        self.asked += 1
        if number == signal.SIGINT and self.asked > 1:
            raise KeyboardInterrupt
        if self._process:
            self._process.terminate()


@contextlib.contextmanager
def _passing_on() -> Iterator[_Stop]:
    stop = _Stop()
    with _handling(stop.hear):
        yield stop


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _drain(pipe: IO[str], record: IO[str], tail: deque[str]) -> None:
    for line in pipe:
        tail.append(line.rstrip("\n"))
        # A full disk or a reader that is gone must not stop the draining: the trainer would hang.
        with contextlib.suppress(OSError):
            record.write(line)
            record.flush()
        with contextlib.suppress(OSError):
            say(line)


def _end_group(process: subprocess.Popen[str]) -> None:
    """Wait for the process, then kill what it left running: such children hold the pipes open."""
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
