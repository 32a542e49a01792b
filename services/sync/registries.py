"""Looking at every tenant's MLflow: one that is silent is left alone for a while, others go on."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from kuznia.errors import KuzniaError
from kuznia.registry import RegisteredModel, Registry
from services.sync import metrics

AT_ONCE = 8
LONGEST = 600.0
"""Seconds at most until a silent MLflow is asked again."""
FAILURES = (KuzniaError, MlflowException, ValueError)
"""What a server that is away, old, or no MLflow at all makes its client raise."""
Models = dict[str, RegisteredModel]


@dataclass(frozen=True)
class _Pause:
    failures: int
    until: float


class Registries:
    """The MLflows of all tenants."""

    def __init__(
        self,
        template: str,
        pause: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        first: Callable[[Registry], None] = lambda _: None,
    ) -> None:
        """`template`: an address with {tenant}, or one for all; `pause`: seconds after the first
        failure, doubled by each; `first`: called when an MLflow answers for the first time."""
        self._template, self._pause, self._clock, self._first = template, pause, clock, first
        self._known: dict[str, Registry] = {}
        self._pauses: dict[str, _Pause] = {}

    def look(self, tenants: Collection[str], say: Callable[[str], None]) -> dict[str, Models]:
        """The models of each tenant whose MLflow answers, by their name without the tenant's.

        A tenant that is not in the result has no opinion. Names that begin with another tenant's
        are not looked at: nobody speaks for others.
        """
        addresses = {tenant: self._template.replace("{tenant}", tenant) for tenant in tenants}
        due = [each for each in sorted(set(addresses.values())) if self._is_due(each)]
        with _without_collector(), ThreadPoolExecutor(AT_ONCE) as pool:
            listed = dict(zip(due, pool.map(self._list, due), strict=True))
        for address in due:
            self._note(address, listed[address], say)
        answers: dict[str, Models] = {}
        for tenant, address in addresses.items():
            found = listed.get(address)
            metrics.MLFLOW_UP.labels(tenant).set(isinstance(found, list))
            if isinstance(found, list):
                own = f"{tenant}."
                answers[tenant] = {
                    model.name.removeprefix(own): model
                    for model in found
                    if model.name.startswith(own)
                }
        return answers

    def of(self, tenant: str) -> Registry:
        """The registry of a tenant that `look` has found."""
        return self._known[self._template.replace("{tenant}", tenant)]

    def _is_due(self, address: str) -> bool:
        return address not in self._pauses or self._clock() >= self._pauses[address].until

    def _list(self, address: str) -> list[RegisteredModel] | Exception:
        try:
            known = self._known.get(address)
            registry = known or Registry(address)
            found = registry.models()
        except FAILURES as error:
            return error
        if known is None:
            self._known[address] = registry
            self._first(registry)
        return found

    def _note(
        self, address: str, found: list[RegisteredModel] | Exception, say: Callable[[str], None]
    ) -> None:
        if isinstance(found, list):
            if self._pauses.pop(address, None):
                say(f"MLflow at {address} answers again")
            return
        failures = self._pauses[address].failures + 1 if address in self._pauses else 1
        wait = min(self._pause * 2 ** (failures - 1), LONGEST)
        self._pauses[address] = _Pause(failures, self._clock() + wait)
        metrics.FAULTS.labels("mlflow").inc()
        first = (str(found) or type(found).__name__).splitlines()[0]
        say(f"{first}; asked again in {wait:.0f} s, nothing of it changes")


@contextmanager
def _without_collector() -> Iterator[None]:
    """A list of 10,000 models is 200,000 objects that all stay; looking for garbage among them
    took more than half of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
