"""libnuma, which vLLM needs on a CPU: the system's, or a copy that needs no root.

Debian and Ubuntu have it as libnuma1, which a desktop may lack. Whoever cannot install packages
gets it unpacked into the cache, downloaded by apt-get from the machine's own sources.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from kuznia.errors import DependencyError

LIBRARY = "libnuma.so.1"


def numa_variables(cache: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Environment variables under which a process finds libnuma; none where the system has it.

    Raises DependencyError where it is absent and cannot be fetched.
    """
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        folder = unpacked(cache / "libnuma", say)
        before = os.environ.get("LD_LIBRARY_PATH")
        return {"LD_LIBRARY_PATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}
    return {}


def unpacked(target: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder below `target` that holds the library, fetched if it is not there yet."""
    if found := sorted(target.rglob(LIBRARY)):
        return found[0].parent
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise _absent("and there is no apt-get to fetch it with")
    say(f"fetching {LIBRARY} into {target}")
    state, packages = target / "state", target / "cache"
    for folder in (state / "lists" / "partial", packages / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        *("-o", f"Dir::State={state}", "-o", "Dir::State::status=/var/lib/dpkg/status"),
        *("-o", f"Dir::Cache={packages}", "-o", "Debug::NoLocking=1"),
    ]
    for line in (["apt-get", *options, "update"], ["apt-get", *options, "download", "libnuma1"]):
        done = subprocess.run(line, cwd=target, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise _absent(f"and apt-get cannot fetch it ({said})")
    for package in target.glob("libnuma1_*.deb"):
        subprocess.run(["dpkg", "-x", package, target], check=True)
    shutil.rmtree(state)
    shutil.rmtree(packages)
    found = sorted(target.rglob(LIBRARY))
    if not found:
        raise _absent("and the package libnuma1 does not hold it")
    return found[0].parent


def _absent(why: str) -> DependencyError:
    return DependencyError(
        f"{LIBRARY}: is not installed {why}; vLLM on a CPU needs it: install the package libnuma1 "
        "(Debian, Ubuntu) or numactl-libs (Fedora)"
    )
