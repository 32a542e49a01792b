"""One attempt of a step: its program, contained, with both pipes drained into the step's log."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kuznia import settings
from kuznia.contracts.catalogue import catalogue_path
from kuznia.progress import parse_progress
from workflows.environments import variables_of
from workflows.subset import Step, substitute

GRACE = 60.0
"""Seconds that a step has between SIGTERM and SIGKILL: time to save a checkpoint."""
_CONTAIN = Path(__file__).with_name("contain.py")
_LONGEST_LINE = 65536


@dataclass
class Attempt:
    """What one attempt left behind."""

    exit_code: int = 0
    errors: list[str] = field(default_factory=list)
    """What it said after `error: ` on standard error."""
    last: str = ""
    """Its last line on standard error."""

    def message(self) -> str:
        """Why it failed, as well as can be told."""
        if self.errors:
            return "\n".join(self.errors)
        if self.exit_code == 128 + signal.SIGKILL:
            return "was killed, most likely because memory ran out; close programs or use less"
        return self.last or f"ended with exit code {self.exit_code}"


@dataclass(frozen=True)
class Stop:
    """How the engine is told to stop: `gently` once, `now` if it is told again."""

    gently: asyncio.Event
    now: asyncio.Event


def mapped(text: str, step: Step, folder: Path) -> str:
    """A path below a mount of the container as a path in the step's folder; else `text`."""
    for mount, volume in step.mounts.items():
        if text == mount or text.startswith(f"{mount}/"):
            return f"{folder / volume}{text[len(mount) :]}"
    return text


async def run_program(
    step: Step,
    folder: Path,
    inputs: dict[str, str],
    log: BinaryIO,
    stop: Stop,
    on_progress: Callable[[dict[str, Any]], None],
) -> Attempt:
    """Start the step's program in `folder` and see it to its end.

    `inputs` holds the values of the template's input references. When `stop` is set or the step's
    deadline has passed the program gets SIGTERM, and SIGKILL after GRACE seconds.
    """
    attempt = Attempt()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", str(_CONTAIN), str(os.getpid())),
        *(substitute(mapped(word, step, folder), inputs) for word in step.argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_variables(step),
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdout and process.stderr

    def on_output(text: str) -> None:
        if facts := parse_progress(text):
            on_progress(facts)

    def on_error(text: str) -> None:
        attempt.last = text
        if text.startswith("error: "):
            attempt.errors.append(text.removeprefix("error: "))

    ended = asyncio.gather(
        process.wait(),
        _drain(process.stdout, log, on_output),
        _drain(process.stderr, log, on_error),
    )
    await first_of(ended, stop.gently.wait(), timeout=step.deadline)
    late = not ended.done() and not stop.gently.is_set()
    if not ended.done():
        process.send_signal(signal.SIGTERM)
        await first_of(ended, stop.now.wait(), timeout=GRACE)
    if not ended.done():
        process.send_signal(signal.SIGHUP)
    attempt.exit_code = (await ended)[0]
    if late:
        attempt.exit_code = 1
        attempt.errors.append(f"{step.name}: took longer than {step.deadline} s and was stopped")
    return attempt


async def first_of(work: asyncio.Future[Any], event: Any, timeout: float | None = None) -> None:
    """Return when `work` is done, `event` (a coroutine) ends or `timeout` seconds are over."""
    waiter = asyncio.ensure_future(event)
    await asyncio.wait({work, waiter}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


async def _drain(
    stream: asyncio.StreamReader, log: BinaryIO, on_line: Callable[[str], None]
) -> None:
    """Copy a pipe to the log in whole lines until it closes."""
    rest = b""
    while chunk := await stream.read(_LONGEST_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _copy(line, log, on_line)
    if rest:
        _copy(rest, log, on_line)


def _copy(line: bytes, log: BinaryIO, on_line: Callable[[str], None]) -> None:
    log.write(line + b"\n")
    # Progress bars of libraries overwrite themselves; what stands last on the line counts.
    text = line.decode(errors="replace").strip().rpartition("\r")[2]
    if text:
        on_line(text)


def _variables(step: Step) -> dict[str, str]:
    """The program's environment: ours, the image's and the template's, all paths absolute."""
    store, tracking = settings.store_uri(), settings.tracking_uri()
    database = tracking.removeprefix("sqlite:///")
    return {
        **os.environ,
        **variables_of(step.image),
        "KUZNIA_HOME": str(settings.home()),
        "KUZNIA_CACHE": str(settings.cache()),
        "KUZNIA_CATALOGUE": str(catalogue_path().resolve()),
        "KUZNIA_STORE": store if "://" in store else str(Path(store).resolve()),
        "MLFLOW_TRACKING_URI": tracking
        if database == tracking
        else f"sqlite:///{Path(database).resolve()}",
        **step.variables,
    }
