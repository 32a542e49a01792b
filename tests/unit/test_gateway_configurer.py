"""The configurer when it is started anew, and when what it reads or asks is away or wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kuznia.errors import DependencyError
from kuznia.gateway.folder import GUARD
from kuznia.gateway.table import Table
from services.gateway.configurer import REVOKED_EVERY, Configurer
from tests.fixtures.gateway_case import CHAT, Running, Upstream, running, target

STOLEN = {"stolen": 2_000_000_000}


@dataclass
class Sources:
    """What a configurer reads; `said` is what it says."""

    table: Table
    soft: Path
    revoked: dict[str, int] | None = None
    """None: the store does not answer."""
    said: list[str] = field(default_factory=list)

    def read_revoked(self) -> dict[str, int]:
        if self.revoked is None:
            raise DependencyError("the store is away")
        return self.revoked

    def configurer(self, made: Running, envoy: Path | None = None) -> Configurer:
        return Configurer(
            made.places,
            lambda: self.table,
            self.read_revoked,
            self.soft,
            envoy or made.envoy,
            self.said.append,
            pause=2,
        )


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Running]:
    with Upstream() as upstream:
        table = Table(
            targets=(
                target("acme/support", upstream.port),
                target("acme/guarded", upstream.port, guard="default"),
                target("globex/guarded", upstream.port, guard="default"),
            )
        )
        with running(tmp_path / "gateway", table) as found:
            yield found


@pytest.fixture
def sources(made: Running, tmp_path: Path) -> Sources:
    return Sources(made.table, tmp_path / "soft.yaml", {})


def status(made: Running, jti: str) -> int:
    with made.client(jti=jti) as client:
        return client.post(CHAT, json={"model": "acme/support", "messages": []}).status_code


def statuses(made: Running, *jtis: str) -> list[int]:
    """How keys are answered once every thread of Envoy has looked at policy.lua again."""
    time.sleep(1.1)
    return [status(made, jti) for jti in jtis]


def refused_by_envoy(table: Table) -> Table:
    return table.model_copy(update={"targets": (*table.targets, target("acme/odd", 99_999))})


def guarded(made: Running) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.places.folder / GUARD).read_text())["releases"]
    return found


def test_a_restart_without_the_store_knows_what_was_revoked(
    made: Running, sources: Sources
) -> None:
    sources.revoked = STOLEN
    sources.configurer(made).look()
    assert statuses(made, "stolen") == [401]
    sources.revoked = None
    again = sources.configurer(made)
    again.look()
    assert again.ready
    assert statuses(made, "stolen", "good") == [401, 200]
    more = (*made.table.targets, target("acme/more", 1))
    sources.table = made.table.model_copy(update={"targets": more})
    assert "routes.json" in again.look()
    assert statuses(made, "stolen", "good") == [401, 200]


def test_a_key_is_revoked_while_envoy_refuses_the_table(made: Running, sources: Sources) -> None:
    first = sources.configurer(made)
    first.look()
    sources.table = refused_by_envoy(made.table)
    first.look()
    assert any("Envoy refuses the configuration" in line for line in sources.said)
    sources.revoked = STOLEN
    time.sleep(REVOKED_EVERY)
    assert first.look() == ["policy.lua", "revoked.json"]
    assert statuses(made, "stolen", "good") == [401, 200]
    sources.revoked = STOLEN | {"lost": 2_000_000_000}
    again = sources.configurer(made)
    assert again.look() == ["policy.lua", "revoked.json"], "also after a restart"
    assert not again.ready
    assert statuses(made, "lost", "stolen", "good") == [401, 401, 200]


def test_a_table_that_nobody_refused_is_tried_again(
    made: Running, sources: Sources, tmp_path: Path
) -> None:
    """Envoy's check is killed once; later a table is refused, and asked about once."""
    envoy, asked = tmp_path / "envoy", tmp_path / "asked"
    killed = f"#!/bin/sh\necho >> {asked}\ntest $(wc -l < {asked}) = 1 && kill -9 $$\n"
    envoy.write_text(f'{killed}exec {made.envoy} "$@"\n')
    envoy.chmod(0o755)
    configurer = sources.configurer(made, envoy)

    def ready() -> bool:
        configurer.look()
        return configurer.ready

    assert [ready(), ready()] == [False, False], "before the pause is over"
    deadline = time.monotonic() + 15
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert len(asked.read_text()) == 2
    sources.table = refused_by_envoy(made.table)
    for _ in range(6):
        ready()
        time.sleep(0.5)
    assert len(asked.read_text()) == 3


def test_a_guard_that_would_not_start_gets_no_configuration(
    made: Running, sources: Sources
) -> None:
    configurer = sources.configurer(made)
    configurer.look()
    before = guarded(made)
    # Not by soft.yaml, which refuses it: whatever may come one day.
    blank = tuple(each.model_copy(update={"deny_words": ("  ",)}) for each in made.table.targets)
    sources.table = made.table.model_copy(update={"targets": blank})
    assert configurer.look() == []
    assert guarded(made) == before
    assert "'  ': is a denied word with nothing to see" in sources.said[-1]


def test_soft_words_of_all_do_not_go_with_one_model(made: Running, sources: Sources) -> None:
    sources.soft.write_text(
        "models: {acme/guarded: {deny_words: [secret]}, globex/guarded: {deny_words: [secret]}}"
    )
    configurer = sources.configurer(made)
    configurer.look()
    assert [each["deny_words"] for each in guarded(made).values()] == [["secret"]] * 2
    asleep = tuple(each for each in made.table.targets if each.tenant == "acme")
    sources.table = made.table.model_copy(update={"targets": asleep})
    configurer.look()
    assert guarded(made)["acme/guarded@production"]["deny_words"] == ["secret"]
    assert list(guarded(made)) == ["acme/guarded@production"]
    said = f"{sources.soft}: no release of globex/guarded is awake; their words wait"
    assert sources.said.count(said) == 1
    # The guard is taken from one tenant, and then the file is broken.
    bare = tuple(
        each.model_copy(update={"guard": "off"}) if each.tenant == "globex" else each
        for each in made.table.targets
    )
    sources.table = made.table.model_copy(update={"targets": bare})
    configurer.look()
    assert guarded(made)["acme/guarded@production"]["deny_words"] == ["secret"]
    assert any("models.globex/guarded: system_prompt" in line for line in sources.said)
    sources.soft.write_text("models: [")
    sources.table = made.table
    configurer.look()
    assert [each["deny_words"] for each in guarded(made).values()] == [["secret"]] * 2
