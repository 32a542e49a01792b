"""The gateway with ten thousand releases: what it takes to compile, check, start and change it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.gateway_load import Load
from bench.gateway_names import name_server
from bench.gateway_parts import (
    ASKED,
    MODELS,
    TENANTS,
    Compiled,
    Issuer,
    cores,
    table,
    until_answered,
)
from bench.gateway_wire import request
from bench.results import machine, save, spread
from kuznia.gateway.folder import compiled, validate
from kuznia.gateway.table import Table
from kuznia.progress import say
from workflows.environments import envoy

RATE = 100
CHANGES = 20
ORDER = ("clusters.json", "routes.json", "listeners.json", "policy.lua")
"""How a changed folder comes into force: what is named before what names it."""
PROBES = 0.01
"""Seconds between two looks whether a change is in force."""
PATIENCE = 30.0
TIMES = 3


def main() -> None:
    """Compile, check and start; then change it under load again and again."""
    ours, theirs = cores()
    made = [_compile() for _ in range(TIMES)]
    os.sched_setaffinity(0, {theirs})
    load, issuer = Load(), Issuer()
    with tempfile.TemporaryDirectory() as name, name_server(theirs) as names:
        folder = Path(name)
        gateway = Compiled(folder / "0", _by_name(table(load.port, issuer)))
        _ask_names(gateway, names)
        checked = [_seconds(lambda: _validate(gateway)) for _ in range(TIMES)]
        plain, streamed = issuer.questions()
        with gateway.envoy(ours) as envoy:
            port = gateway.places.port
            started = _seconds(lambda: until_answered(load, port, plain[0], folder / "0"))
            before = envoy.memory_info().rss / 2**20
            say("making the changes")
            versions = [_version(folder, gateway, number) for number in range(CHANGES)]
            changes = Changes(load, gateway, issuer, versions)
            mixed = [*plain[1:], streamed[1]]
            used = sum(envoy.cpu_times()[:2])
            measured = load.steadily(port, mixed, RATE, changes.over)
            used = (sum(envoy.cpu_times()[:2]) - used) / CHANGES
            after = envoy.memory_info().rss / 2**20
        load.close()
    lost = len(measured.failed)
    for fault in measured.failed[:3]:
        say(f"lost: {fault}")
    rows = [
        ("compile, s", spread([seconds for seconds, _ in made])),
        ("compile, most memory, MiB", spread([mib for _, mib in made])),
        ("envoy --mode validate, s", spread(checked)),
        ("Envoy's start until it answers, s", round(started, 2)),
        ("Envoy's memory, MiB", round(before)),
        (f"its memory after {CHANGES} changes, MiB", round(after)),
        ("CPU of a change and a second's requests, s", round(used, 2)),
        ("a new release answers after, s", spread(changes.routed)),
        ("a revoked key is refused after, s", spread(changes.revoked)),
        ("requests meanwhile", measured.done + lost),
        ("of them lost", lost),
        ("slowest answer, s", round(max(measured.latencies), 3)),
    ]
    save(
        "gateway_reload",
        f"The gateway with {TENANTS:,} tenants of {MODELS} releases each",
        [{"what": what, "value": value} for what, value in rows],
        machine("cryptography"),
        f"{CHANGES} changes of the watched files under {RATE} requests a second, every "
        f"{len(mixed)}th streamed: each adds a release, removes one, changes the cluster of "
        "another that is being asked and revokes a key; every fifth changes the keys that are "
        "trusted, and so the listener. From the files' renaming until what was asked every "
        f"{PROBES * 1000:g} ms was so. Releases have names, which a name server knows. "
        "Envoy has one core, the load another.",
    )


def _by_name(table: Table) -> Table:
    """Releases with the names of their Services, as on a cluster."""
    targets = tuple(
        each.model_copy(
            update={
                "address": f"{each.model}-{each.stage}.{each.tenant}-inference.svc"
                f":{each.address.rpartition(':')[2]}"
            }
        )
        for each in table.targets
    )
    return table.model_copy(update={"targets": targets})


def _ask_names(gateway: Compiled, names: dict[str, Any]) -> None:
    path = gateway.places.folder / "envoy.json"
    start = json.loads(path.read_text("utf-8")) | {"typed_dns_resolver_config": names}
    path.write_text(json.dumps(start), "utf-8")


def _compile() -> tuple[float, float]:
    """Seconds and most memory (MiB) of compiling, in a process of its own."""
    code = "from bench.gateway_reload import compile_once; compile_once()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        seconds = float(child.stdout.read())
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return seconds, used.ru_maxrss / 1024


def compile_once() -> None:
    """Compile once and print the seconds."""
    with tempfile.TemporaryDirectory() as name:
        made = table(9, Issuer())
        print(_seconds(lambda: Compiled(Path(name), made)))


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def _validate(gateway: Compiled) -> None:
    validate(compiled(gateway.table, gateway.places, {}), envoy(say))


def _version(folder: Path, gateway: Compiled, number: int) -> dict[Path, Path]:
    """A changed configuration beside the one in force: its files, and which each replaces."""
    base = gateway.table
    first, asked, *others = base.targets
    # One of those that the load asks: its cluster is made anew while it answers.
    index = next(
        i
        for i, each in enumerate(others)
        if each.model == first.model and each.tenant == f"t{TENANTS // ASKED:04}"
    )
    others[index] = others[index].model_copy(update={"concurrency": 1000 + number})
    new = first.model_copy(update={"model": f"new{number}"})
    access = base.access
    if number % 5 == 4:
        access = access.model_copy(update={"keys": (*access.keys, Issuer().public)})
    made = Table.model_validate(
        base.model_dump() | {"targets": [first, asked, *others, new], "access": access}
    )
    revoked = {f"revoked-{each}": 2**31 for each in range(number + 1)}
    beside = folder / f"version-{number}"
    beside.mkdir()
    found = {}
    for name, text in compiled(made, gateway.places, revoked).items():
        if name in ORDER:
            (beside / name).write_text(text, "utf-8")
            found[beside / name] = gateway.places.folder / name
    return found


@dataclass
class Changes:
    """Brings one version after the other into force and watches it come."""

    load: Load
    gateway: Compiled
    issuer: Issuer
    versions: list[dict[Path, Path]]
    routed: list[float] = field(default_factory=list)
    revoked: list[float] = field(default_factory=list)
    _since: float = 0.0
    _looked: float = 0.0
    _number: int = -1
    _waits: set[str] = field(default_factory=set)
    _asking: set[str] = field(default_factory=set)

    def over(self) -> bool:
        """Called between requests: go on with the next change, or say that all are in force."""
        now = time.perf_counter()
        if self._waits:
            if now > self._since + PATIENCE:
                raise AssertionError(
                    f"change {self._number}: {self._waits} not within {PATIENCE} s"
                )
            if now > self._looked + PROBES:
                self._looked = now
                self._probe()
            return False
        if now < self._since + 1.0:
            return False
        if self._number + 1 == len(self.versions):
            return True
        self._number += 1
        for beside, place in self.versions[self._number].items():
            beside.replace(place)
        self._since, self._waits = time.perf_counter(), {"route", "key"}
        return False

    def _probe(self) -> None:
        port = self.gateway.places.port
        for what in self._waits - self._asking:
            self._asking.add(what)
            jti = f"revoked-{self._number}" if what == "key" else "key"
            model = "t0000/m0" if what == "key" else f"t0000/new{self._number}"
            question = request("127.0.0.1", self.issuer.token("t0000", jti), model)
            self.load.probe(port, question, partial(self._seen, what))

    def _seen(self, what: str, answer: bytes) -> None:
        self._asking.discard(what)
        status = answer.split(b" ", 2)[1]
        if status == (b"401" if what == "key" else b"200") and what in self._waits:
            self._waits.discard(what)
            found = self.revoked if what == "key" else self.routed
            found.append(time.perf_counter() - self._since)


if __name__ == "__main__":
    main()
