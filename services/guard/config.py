"""The guard's configuration: one JSON file, watched; the last good one is kept."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from kuznia.contracts.base import parse
from kuznia.contracts.guard import GuardConfig, GuardedRelease
from kuznia.errors import InputError
from kuznia.guard.rules import Compiled, built_in, compile_policy
from kuznia.guard.scanner import Naming
from kuznia.guard.verdict import pseudonyms
from services.guard import metrics

EVERY = 0.5
"""Seconds between looks at the file."""
EAGER = 20
"""Policies with words of their own that are compiled before a request asks: 0.1 s each."""
MASTER = "KUZNIA_GUARD_KEY"
"""Variable whose value stands in for the folder of keys: each tenant's key is made from it."""
SHORTEST = 32
"""Bytes of a key at least."""


class Keys:
    """The tenants' keys for pseudonyms: `<folder>/<tenant>.key`, or made from $KUZNIA_GUARD_KEY."""

    def __init__(self, folder: Path | None, master: str = "") -> None:
        if master and len(master.encode()) < SHORTEST:
            raise InputError(f"{MASTER}: is shorter than {SHORTEST} bytes; take a random one")
        self._folder, self._master = folder, master.encode()

    def naming(self, tenant: str) -> Naming | None:
        """How the tenant's values are named; None without a key, as when it was destroyed."""
        if self._folder is not None:
            path = self._folder / f"{tenant}.key"
            key = path.read_bytes().strip() if path.is_file() else b""
            return pseudonyms(key) if len(key) >= SHORTEST else None
        if not self._master:
            return None
        return pseudonyms(hmac.new(self._master, tenant.encode(), hashlib.sha256).digest())


class Guarded:
    """A release ready to use; its policy is compiled when the first request comes."""

    def __init__(self, name: str, release: GuardedRelease, config: Config) -> None:
        self.name, self.release, self._config = name, release, config
        self.served = frozenset(release.served)

    @cached_property
    def compiled(self) -> Compiled:
        return compile_policy(self._config.policies[self.release.policy], self.release.deny_words)

    @property
    def naming(self) -> Naming | None:
        """Read each time, since a key may be destroyed; InputError where it is needed and gone."""
        if not self.compiled.policy.pseudonymises:
            return None
        naming = self._config.keys.naming(self.release.tenant)
        if naming is None:
            raise InputError(
                f"{self.release.tenant}: has no key for pseudonyms, which the policy "
                f"{self.release.policy} asks for; put {SHORTEST} random bytes into "
                f"{self.release.tenant}.key"
            )
        return naming


class Config:
    """One configuration that was found good."""

    def __init__(self, value: GuardConfig, keys: Keys, place: str) -> None:
        """Raises InputError with everything that is wrong."""
        self.policies = built_in() | value.policies
        self.keys = keys
        problems: list[str] = []
        for name, policy in value.policies.items():
            if policy.name != name:
                problems.append(f"{place}: policies.{name}: is named {policy.name}; use one name")
            try:
                compile_policy(policy)
            except InputError as error:
                problems += [f"{place}: {line}" for line in error.problems]
        for name, release in value.releases.items():
            if name != f"{release.tenant}/{release.model}@{release.stage}":
                problems.append(f"{place}: releases.{name}: is not named after what it serves")
            if release.policy not in self.policies:
                known = ", ".join(sorted(self.policies))
                problems.append(
                    f"{place}: releases.{name}.policy: {release.policy!r} is none of {known}"
                )
        if problems:
            raise InputError(problems)
        self.releases = {
            name: Guarded(name, release, self) for name, release in value.releases.items()
        }
        used = {(each.release.policy, each.release.deny_words) for each in self.releases.values()}
        for policy_name, words in sorted(used)[:EAGER]:
            compile_policy(self.policies[policy_name], words)


class Watched:
    """The configuration in use, renewed when the file changes."""

    def __init__(self, path: Path, keys: Keys, say: Callable[[str], None]) -> None:
        """Raises InputError if there is no good one to begin with."""
        self._path, self._keys, self._say = path, keys, say
        self._seen = self._stamp()
        self.current = self._load()
        self._since()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _load(self) -> Config:
        found = self._read()
        # Ten thousand releases stay as they are: no later collection looks at them, and waits.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return found

    def _read(self) -> Config:
        place = str(self._path)
        try:
            value = json.loads(self._path.read_bytes())
        except OSError as error:
            raise InputError(f"{place}: {error.strerror}; write it, or name another") from None
        except ValueError as error:
            raise InputError(f"{place}: not JSON ({error}); correct it") from None
        return Config(parse(GuardConfig, value, place), self._keys, place)

    def _since(self) -> None:
        written = self._seen[0] / 1e9 if self._seen else time.time()
        metrics.AGE.set_function(lambda: time.time() - written)

    async def watch(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            stamp = self._stamp()
            if stamp in (None, self._seen):
                continue
            self._seen = stamp
            try:
                self.current = await asyncio.to_thread(self._load)
            except InputError as error:
                metrics.RELOADS.labels("refused").inc()
                for problem in error.problems:
                    self._say(f"kept the last good configuration: {problem}")
            else:
                metrics.RELOADS.labels("taken").inc()
                self._since()
                self._say(f"took a configuration with {len(self.current.releases)} releases")
