"""The local engine: runs a compiled template here, each step in the environment of its image.

What it understands is in `workflows/subset.py`. Steps that are ready run at once, up to the
template's parallelism; a failed step lets the running ones finish and starts no other, as Argo
does. Everything a step prints goes to `<home>/runs/<run>/<step>.log`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kuznia import settings
from kuznia.errors import DependencyError
from workflows import state
from workflows.environments import is_ready, python_of
from workflows.program import Attempt, Stop, first_of, mapped, run_program
from workflows.subset import Chain, Step, substitute

INTERRUPTED = 130
"""Exit code of a run that was stopped by a signal."""


class Watcher:
    """Hears what happens in a run, as it happens; this one keeps it to itself."""

    def say(self, text: str) -> None:
        """Something worth knowing about the run."""

    def step(self, name: str, facts: dict[str, Any]) -> None:
        """A step's entry in the state has changed."""

    def progress(self, name: str, facts: dict[str, Any]) -> None:
        """A step said how far it is (kuznia.progress)."""

    def log(self, name: str, line: str) -> None:
        """A step on a cluster printed a line; one that runs here prints into its log file."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: str
    phase: str
    exit_code: int
    """0, the first failed step's exit code, or 130 if the run was stopped."""
    failed: str | None
    """The first step that failed."""
    outputs: dict[str, str]
    """`<step>.<output>` to its text, for every step that succeeded."""


def execute(
    chain: Chain,
    run: str,
    parameters: dict[str, str],
    about: dict[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Result:
    """Run `chain` under the name `run`; `about` is kept in the run's state.

    To be called on the main thread, since it listens to signals. SIGINT, SIGTERM and SIGHUP stop
    the run; a second one kills what still runs. Raises DependencyError if the run is already
    running or the disk is full.
    """
    with state.lock(run):
        try:
            return asyncio.run(_Engine(chain, run, parameters, about, watcher or Watcher()).run())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DependencyError(
                f"{settings.home()}: no space left; free some and run the same command again"
            ) from error


class _Engine:
    def __init__(
        self,
        chain: Chain,
        run: str,
        parameters: dict[str, str],
        about: dict[str, Any] | None,
        watcher: Watcher,
    ) -> None:
        self.chain, self.name, self.watcher = chain, run, watcher
        self.values = {"workflow.name": run}
        for name, default in chain.parameters.items():
            given = parameters[name] if default is None else parameters.get(name)
            text = substitute(str(default), self.values) if given is None else given
            self.values[f"workflow.parameters.{name}"] = text
        self.outputs: dict[str, str] = {}
        self.failed: str | None = None
        self.exit_code = 0
        self.places: dict[str, asyncio.Task[Path]] = {}
        self.written = 0.0
        self.state: dict[str, Any] = (about or {}) | {
            "run": run,
            "template": chain.name,
            "phase": "Running",
            "pid": os.getpid(),
            "started": state.now(),
            "finished": None,
            "exit_code": None,
            "steps": {
                step.name: {
                    "phase": "Pending",
                    "attempts": 0,
                    "seconds": 0.0,
                    "exit_code": None,
                    "message": "",
                }
                for step in chain.steps
            },
        }

    async def run(self) -> Result:
        self.stop = Stop(asyncio.Event(), asyncio.Event())
        self.slots = asyncio.Semaphore(self.chain.parallelism or len(self.chain.steps))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        self._write()
        tasks: dict[str, asyncio.Task[bool]] = {}
        for step in self.chain.steps:
            needed = [tasks[name] for name in step.dependencies]
            tasks[step.name] = asyncio.create_task(self._when_ready(step, needed))
        succeeded = await asyncio.gather(*tasks.values())
        phase = "Failed" if self.failed else "Succeeded"
        if self.stop.gently.is_set() and not all(succeeded):
            phase, self.exit_code = "Interrupted", INTERRUPTED
        self.state |= {"phase": phase, "finished": state.now(), "exit_code": self.exit_code}
        self._write()
        if any(not place.done() for place in self.places.values()):
            self.watcher.say("waiting for an environment to be installed; the next run needs it")
        return Result(self.name, phase, self.exit_code, self.failed, self.outputs)

    def _on_signal(self) -> None:
        if self.stop.gently.is_set():
            self.stop.now.set()
            return
        self.stop.gently.set()
        self.watcher.say("stopping: each running step may save its work (again: stop at once)")

    async def _when_ready(self, step: Step, needed: Iterable[asyncio.Task[bool]]) -> bool:
        """Wait for what the step needs, then run it; whether it succeeded."""
        for task in needed:
            if not await task:
                return False
        async with self.slots:
            if self.stop.gently.is_set() or self.failed:
                return False
            return await self._with_retries(step)

    async def _with_retries(self, step: Step) -> bool:
        number = 0
        while True:
            number += 1
            attempt = await self._attempt(step, number)
            if attempt.exit_code == 0:
                self._update(step.name, phase="Succeeded", message="")
                # A first success shows that the run spec is sound: worth installing for.
                for other in self.chain.steps:
                    self._place(other.image)
                return True
            again = attempt.exit_code in step.retry.codes and number <= step.retry.limit
            if again and not self.failed and not self.stop.gently.is_set():
                pause = step.retry.pause(number)
                self.watcher.say(
                    f"{step.name}: {attempt.message()} (exit code {attempt.exit_code}); "
                    f"again in {pause:g} s, retry {number} of {step.retry.limit}"
                )
                self._update(step.name, message=attempt.message())
                await first_of(asyncio.ensure_future(asyncio.sleep(pause)), self.stop.gently.wait())
            if self.stop.gently.is_set():
                self._update(step.name, phase="Pending", message="stopped")
                return False
            if not again or self.failed:
                self.exit_code = self.exit_code or attempt.exit_code
                self.failed = self.failed or step.name
                self._update(step.name, phase="Failed", message=attempt.message())
                return False

    async def _attempt(self, step: Step, number: int) -> Attempt:
        """Run the step's program once and keep its outputs."""
        place = self._place(step.image)
        await first_of(place, self.stop.gently.wait())
        if self.stop.gently.is_set():
            return Attempt(INTERRUPTED)
        try:
            await place
        except DependencyError as error:
            del self.places[step.image]
            return Attempt(error.exit_code, [str(error)])
        folder = state.run_folder(self.name) / step.name
        outputs = {name: Path(mapped(path, step, folder)) for name, path in step.outputs.items()}
        for volume in step.mounts.values():
            (folder / volume).mkdir(parents=True, exist_ok=True)
        for path in outputs.values():
            path.unlink(missing_ok=True)
        inputs = {
            f"inputs.parameters.{name}": substitute(text, self.values)
            for name, text in step.arguments.items()
        }
        self._update(step.name, phase="Running", attempts=number)
        began = time.monotonic()
        with state.log_path(self.name, step.name).open("ab", buffering=0) as log:
            log.write(f"attempt {number}, {state.now()}\n".encode())
            attempt = await run_program(
                step, folder, inputs, log, self.stop, lambda facts: self._progress(step.name, facts)
            )
        if attempt.exit_code == 0:
            self._keep(step, folder, outputs, attempt)
        facts = self.state["steps"][step.name]
        facts["exit_code"] = attempt.exit_code
        facts["seconds"] = round(facts["seconds"] + time.monotonic() - began, 3)
        return attempt

    def _keep(self, step: Step, folder: Path, outputs: dict[str, Path], attempt: Attempt) -> None:
        """Take the outputs; volumes without any are removed, as a pod's are."""
        for name, path in outputs.items():
            if not path.exists():
                attempt.exit_code = 1
                attempt.errors.append(f"{step.name}: did not write {path}; this is our bug")
                return
            text = path.read_text("utf-8")
            self.outputs[f"{step.name}.{name}"] = text
            self.values[f"tasks.{step.name}.outputs.parameters.{name}"] = text
        for volume in step.mounts.values():
            if folder / volume not in {path.parent for path in outputs.values()}:
                shutil.rmtree(folder / volume, ignore_errors=True)

    def _place(self, image: str) -> asyncio.Task[Path]:
        """The installation of an environment, begun by whoever asks first."""
        if image not in self.places:
            if not is_ready(image):
                self.watcher.say(f"installing the environment {image} (first use, a minute or so)")
            place = asyncio.create_task(asyncio.to_thread(python_of, image))
            # A failure that nobody waits for is not worth a traceback: the next use tries again.
            place.add_done_callback(lambda task: task.cancelled() or task.exception())
            self.places[image] = place
        return self.places[image]

    def _progress(self, name: str, facts: dict[str, Any]) -> None:
        self.state["steps"][name]["progress"] = facts
        self.watcher.progress(name, facts)
        if time.monotonic() - self.written > 1:
            self._write()

    def _update(self, name: str, **facts: Any) -> None:
        self.state["steps"][name] |= facts
        self._write()
        self.watcher.step(name, self.state["steps"][name])

    def _write(self) -> None:
        self.written = time.monotonic()
        state.write(self.name, self.state)
