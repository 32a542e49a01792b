"""The Python environment of an image, made on first use from the image's lock.

A container on a cluster and an environment on a laptop hold the same packages: both are installed
from `images/<name>/requirements.lock`. An environment is named by its lock's digest, so a new lock
makes a new one and checkouts share what is equal.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kuznia import settings
from kuznia.errors import DependencyError, InputError
from kuznia.sources import uv_program

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: what is on PYTHONPATH in every environment."""


def images() -> list[str]:
    """Names of the images that have a lock."""
    return sorted(lock.parent.name for lock in ROOT.glob("images/*/requirements.lock"))


def environment_folder(image: str) -> Path:
    """Where the environment of `image` is or will be."""
    lock = ROOT / "images" / image / "requirements.lock"
    if not lock.exists():
        raise InputError(f"image {image!r} has no lock; known images: {', '.join(images())}")
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    return settings.cache() / "envs" / f"{image}-{digest}"


def is_ready(image: str) -> bool:
    """Whether the environment is installed whole."""
    return (environment_folder(image) / ".complete").exists()


def python_of(image: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The Python of `image`'s environment, installed first if need be.

    Two processes that ask at once install once. Raises DependencyError if the installation
    fails, with what uv said; the next call starts it anew.
    """
    folder = environment_folder(image)
    python = folder / "bin" / "python"
    if is_ready(image):
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{image}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(image):
            say(f"installing the environment {image} into {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            _uv("venv", "--quiet", "--python", "3.11", str(folder))
            _uv(
                *("pip", "install", "--quiet", "--no-deps", "--require-hashes"),
                *("--python", str(python)),
                *("-r", str(ROOT / "images" / image / "requirements.lock")),
            )
            (folder / ".complete").touch()
    return python


def envoy(say: Callable[[str], None] = lambda _: None) -> Path:
    """Envoy of the image `gateway`, installed on first use: the program itself, no wrapper."""
    folder = python_of("gateway", say).parents[1]
    (found,) = folder.glob("lib/python3*/site-packages/envoy/_bin/envoy")
    return found


def variables_of(image: str) -> dict[str, str]:
    """Environment variables under which a process of `image` starts."""
    folder = environment_folder(image)
    return {
        # A thread that waits sleeps. With another program on the same cores those that spin
        # instead take up to ninety times as long. The image `train` sets it too.
        **({"OMP_WAIT_POLICY": "PASSIVE"} if image == "train" else {}),
        # Modules are compiled once, whatever this process was told: a trainer needs 25 s for that.
        "PYTHONDONTWRITEBYTECODE": "",
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": str(folder),
    }


def _uv(*arguments: str) -> None:
    uv = uv_program()
    done = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise DependencyError(
            f"uv {arguments[0]} failed; check network and disk, run again\n{last}"
        )


def main() -> int:
    """Install the environments of all images and say where they are; the exit code."""
    try:
        for image in images():
            print(f"{image:<9} {python_of(image).parents[1]}")
    except DependencyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
