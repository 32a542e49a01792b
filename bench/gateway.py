"""What the gateway costs: Envoy as compiled, feature by feature, beside bare Envoy and LiteLLM.

All on loopback before one fast mock model: each proxy alone has one core, the load and the model
another. Every round starts each proxy anew, in turn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bench.gateway_litellm import LITELLM, litellm
from bench.gateway_load import Load
from bench.gateway_parts import (
    ASKED,
    AUTHORISE,
    MODELS,
    TENANTS,
    Compiled,
    Issuer,
    Running,
    beside,
    cores,
    table,
    until_answered,
)
from bench.gateway_wire import EVENTS, PACE, quantile
from bench.results import machine, ratio, save, spread
from kuznia.contracts.limits import Limits
from kuznia.progress import say

RATES = (500, 200, 100, 50)
"""Requests a second; a proxy gets the highest that it can answer with something to spare."""
SPARE = 0.8
CLIENTS = 32
WARM = 500
"""Requests before any is measured: LiteLLM imports much on its first ones."""
STREAMS = 10
ROUNDS = 3
SECONDS = 3.0
"""Of each phase of load."""
JWT = "envoy.filters.http.jwt_authn"
STEPS = (
    ("bare Envoy", ()),
    ("+ audit lines before and after", ("record",)),
    ("+ key verified", (JWT,)),
    ("+ model and tokens read from bodies", ("model", "streamed-usage")),
    (f"+ authorised, {TENANTS * MODELS:,} releases to choose from", (AUTHORISE,)),
)
"""Envoy with one filter more each time; the router is always there."""
NATIVE = "+ access log: the native path"
LIMITS = "native path, limits asked"
GUARD = "native path and guard"
OTHER = f"LiteLLM proxy {LITELLM}"


def main() -> None:
    """Every proxy in turn, in each of several rounds."""
    ours, theirs = cores()
    os.sched_setaffinity(0, {theirs})
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        load = Load()
        issuer = Issuer()
        try:
            for turn in range(ROUNDS):
                for name, start in _proxies(load, issuer, ours).items():
                    place = Path(folder) / f"{turn}-{len(found)}"
                    with start(place) as running:
                        rounds = found.setdefault(name, [])
                        rate = rounds[0]["rate"] if rounds else None
                        rounds.append(_measure(name, load, running, rate))
                    shutil.rmtree(place, ignore_errors=True)
                    say(f"{turn + 1}/{ROUNDS} {name}: {rounds[-1]}")
        finally:
            load.close()
    save(
        "gateway",
        "What the gateway adds",
        _rows(found),
        machine("cryptography", "pyjwt"),
        f"Chat questions of 2 KB over loopback to a mock model. Milliseconds are what a proxy adds "
        f"to asking the model directly (whose own are in the first row): of an answer with "
        f"requests at fixed times, at the rate named, and of each of {EVENTS} events of a stream, "
        f"one every {PACE * 1000:g} ms. A proxy with all its processes has one core, with "
        f"real-time priority as root, so that the machine's own work does not count; CPU and "
        f"requests a second are those of {CLIENTS} clients who ask again when they are answered. "
        f"Limits: every counter of tenant and caller asked, in services/limits. Guard: the policy "
        f"`default`. Native path: the whole "
        f"compiled configuration for {TENANTS:,} tenants with {MODELS} releases each, {ASKED} of "
        f"them asked. LiteLLM with one model, a master key and no database, callbacks or logs. "
        f"Median (minimum to maximum) of {ROUNDS} rounds.",
    )


def _measure(name: str, load: Load, running: Running, rate: float | None) -> dict[str, float]:
    """Figures of one proxy in one round, times in ms; `rate` is that of the rounds before."""
    port, requests, warm = running.port, running.requests, 0
    while warm < WARM:
        warm += load.closed_loop(port, requests, CLIENTS, 0.5).sound(name).done
    before = running.cpu()
    full = load.closed_loop(port, requests, CLIENTS, SECONDS).sound(name)
    used = running.cpu() - before
    kept_up = [each for each in RATES if each <= SPARE * full.done / full.seconds]
    rate = rate or (kept_up or RATES)[0 if kept_up else -1]
    steady = load.open_loop(port, requests, rate, SECONDS).sound(name)
    before = running.cpu()
    streams = load.streams(port, running.streamed, STREAMS).sound(name)
    return {
        "rate": rate,
        "p50": 1000 * quantile(steady.latencies, 0.5),
        "p99": 1000 * quantile(steady.latencies, 0.99),
        "rps": full.done / full.seconds,
        "cpu": 1000 * used / full.done,
        "event p50": 1000 * quantile(streams.gaps, 0.5),
        "event p99": 1000 * quantile(streams.gaps, 0.99),
        "stream cpu": 1000 * (running.cpu() - before) / STREAMS,
        "mib": running.mib(),
    }


def _rows(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    direct = found["direct"]

    def added(rounds: list[dict[str, float]], what: str) -> dict[str, float]:
        if rounds is direct:
            return spread([each[what] for each in rounds])
        return spread([a[what] - b[what] for a, b in zip(rounds, direct, strict=True)])

    def cost(rounds: list[dict[str, float]], what: str) -> Any:
        return "" if rounds is direct else spread([each[what] for each in rounds])

    def per_core(rounds: list[dict[str, float]]) -> list[float]:
        return [1000 / each["cpu"] for each in rounds]

    def times(rounds: list[dict[str, float]]) -> Any:
        return "" if rounds is direct else ratio(per_core(rounds), per_core(found[OTHER]))

    def quicker(rounds: list[dict[str, float]], what: str) -> Any:
        """How many times as much LiteLLM adds."""
        if rounds is direct:
            return ""
        theirs, ours = (
            [a[what] - b[what] for a, b in zip(each, direct, strict=True)]
            for each in (found[OTHER], rounds)
        )
        return ratio(theirs, ours)

    return [
        {
            "": name,
            "at requests/s": int(rounds[0]["rate"]),
            "p50, ms": added(rounds, "p50"),
            "p99, ms": added(rounds, "p99"),
            "an event p50, ms": added(rounds, "event p50"),
            "p99, ms ": added(rounds, "event p99"),
            "CPU ms a request": cost(rounds, "cpu"),
            "CPU ms a stream": cost(rounds, "stream cpu"),
            "requests/s": spread([each["rps"] for each in rounds]),
            "requests per core second": "" if rounds is direct else spread(per_core(rounds)),
            "MiB": cost(rounds, "mib"),
            "x LiteLLM's requests per core second": times(rounds),
            "LiteLLM adds at p50, x": quicker(rounds, "p50"),
            "at p99, x": quicker(rounds, "p99"),
        }
        for name, rounds in found.items()
    ]


Start = Callable[[Path], AbstractContextManager[Running]]


def _proxies(load: Load, issuer: Issuer, core: int) -> dict[str, Start]:
    """Ways to start each, by name, in the order of the table."""

    @contextmanager
    def direct(_: Path) -> Iterator[Running]:
        yield Running(load.port, (), *issuer.questions())

    def envoy(names: frozenset[str] | None, **target: Any) -> Start:
        @contextmanager
        def start(folder: Path) -> Iterator[Running]:
            whole = names is None or AUTHORISE in names
            gateway = Compiled(folder, table(load.port, issuer, whole, **target))
            if names is not None:
                gateway.reduce(names)
            with beside(gateway, core) as others, gateway.envoy(core) as process:
                questions, port = issuer.questions(), gateway.places.port
                mark = b"x-ratelimit-" if target.get("limited") else b""
                until_answered(load, port, questions[0][0], folder, mark)
                yield Running(port, (process, *others), *questions)
                # What was measured was still all of it.
                until_answered(load, port, questions[0][0], folder, mark)

        return start

    found: dict[str, Start] = {"direct": direct}
    names: frozenset[str] = frozenset(("router",))
    for name, more in STEPS:
        names |= frozenset(more)
        found[name] = envoy(names)
    found[NATIVE] = envoy(None)
    found[LIMITS] = envoy(None, limited=tuple(sorted(Limits.model_fields)))
    found[GUARD] = envoy(None, guard="default")
    found[OTHER] = lambda folder: litellm(load, folder, core)
    return found


if __name__ == "__main__":
    main()
