"""Build the container images: `python -m scripts.images`, or `make images`.

The builder is the command in KUZNIA_IMAGE_BUILDER, else docker, else buildah. Versions come from
images/versions.env and kuznia.__version__.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from kuznia import __version__, settings
from kuznia.contracts.base import digest_of
from kuznia.errors import DependencyError, InputError, KuzniaError
from kuznia.manifest import file_digest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("torch", "platform", "gateway", "mlflow", "train", "serve")
"""In the order of building: `train` and `serve` stand on `torch`."""
TORCH = "kuznia/torch"
EXAMPLE = """examples:
  python -m scripts.images                                         all of them
  python -m scripts.images platform train                          only these, after an edit
  python -m scripts.images serve --variant cuda                    vLLM for NVIDIA GPUs
  python -m scripts.images --once-for kind-1                       what has changed since
  python -m scripts.images --variant cuda --push registry.example.org/team
                                                                   for a cluster; prints `images:`
"""


def main(argv: list[str] | None = None) -> int:
    """Build, push if asked to, and say how long each took; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.images",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all by default"
    )
    parser.add_argument(
        "--variant", choices=("cpu", "cuda"), default="cpu", help="of serve; cpu by default"
    )
    parser.add_argument(
        "--push", metavar="REGISTRY", help="push to REGISTRY/kuznia-NAME and print the digests"
    )
    parser.add_argument(
        "--once-for",
        metavar="PLACE",
        help="leave out what was built before from the same files for PLACE, e.g. a cluster's name",
    )
    arguments = parser.parse_args(argv)
    try:
        names = in_order(arguments.names)
        tool, build = builder(os.environ)
        if arguments.push and tool is None:
            raise InputError(
                "--push: KUZNIA_IMAGE_BUILDER only builds; unset it, so that docker or buildah "
                "builds and pushes"
            )
        built = Built(arguments.once_for) if arguments.once_for else None
        seconds = {}
        for name in names:
            stamp = inputs_digest(name, arguments.variant)
            if built and built.get(name) == stamp:
                print(
                    f"== kuznia/{name}: built before for {arguments.once_for} ==", file=sys.stderr
                )
                continue
            seconds[name] = _build(name, build, arguments.variant)
            if built:
                built.put(name, stamp)
        for name, taken in seconds.items():
            print(f"{name:<9} {taken:6.0f} s", file=sys.stderr)
        if arguments.push and tool:
            pushed = {
                name: push(tool, name, arguments.push, _tag(name, arguments.variant))
                for name in names
                if name != "torch"
            }
            print("images:", *(f"  {name}: {uri}" for name, uri in pushed.items()), sep="\n")
    except KuzniaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def in_order(names: list[str]) -> list[str]:
    """The images to build, in order: those named and no others, all if none is.

    Raises InputError for names that are no image.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise InputError(
            f"{name}: is no image; give one of {', '.join(NAMES)}, or none for all"
            for name in unknown
        )
    return [name for name in NAMES if name in names or not names]


def builder(environment: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The tool, None for a person's own command, and the words that start a build.

    Raises InputError for a command that is not there, DependencyError where there is nothing to
    build with.
    """
    if own := shlex.split(environment.get("KUZNIA_IMAGE_BUILDER", "")):
        if not shutil.which(own[0]):
            raise InputError(
                f"KUZNIA_IMAGE_BUILDER: {own[0]}: no such command; correct or unset it"
            )
        return None, own
    # A docker command without its daemon builds nothing.
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "info"], capture_output=True).returncode
    ):
        return "docker", ["docker", "build"]
    if shutil.which("buildah"):
        return "buildah", ["buildah", "build", "--layers", "--format", "docker"]
    raise DependencyError(
        "images: neither a running docker nor buildah is here; install one, or set "
        "KUZNIA_IMAGE_BUILDER to a command that takes --file, --build-arg, CONTEXT and NAME:TAG"
    )


def build_arguments(variant: str) -> dict[str, str]:
    """What every Dockerfile may ask for; the package index only where one is set."""
    lines = (ROOT / "images" / "versions.env").read_text("utf-8").splitlines()
    pinned = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    index = {
        name: os.environ[name]
        for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")
        if os.environ.get(name)
    }
    return pinned | {"VERSION": __version__, "VARIANT": variant} | index


class Built:
    """Which images were built for a place, and from what; kept in the cache."""

    def __init__(self, place: str) -> None:
        self._path = settings.cache() / "images" / f"{digest_of(place)[:12]}.json"
        known = self._path.read_text("utf-8") if self._path.exists() else "{}"
        self._stamps: dict[str, str] = json.loads(known)

    def get(self, name: str) -> str | None:
        return self._stamps.get(name)

    def put(self, name: str, stamp: str) -> None:
        self._stamps[name] = stamp
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._stamps), "utf-8")


def inputs_digest(name: str, variant: str) -> str:
    """Digest of all that decides what is in an image: its files, its arguments, the one below."""
    dockerfile = ROOT / "images" / name / "Dockerfile"
    text = dockerfile.read_text("utf-8")
    words = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    copied = [word for line in words for word in line if not word.startswith("--")]
    copied = [word for word in copied if (ROOT / word).exists()]
    files = [path for word in copied for path in sorted([ROOT / word, *(ROOT / word).rglob("*")])]
    index = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")
    return digest_of(
        {
            "files": {
                str(path.relative_to(ROOT)): file_digest(path)
                for path in [dockerfile, *files]
                if path.is_file() and "__pycache__" not in path.parts
            },
            "arguments": {k: v for k, v in build_arguments(variant).items() if k not in index},
            "below": inputs_digest("torch", variant) if TORCH in text and name != "torch" else "",
        }
    )


def _build(name: str, build: list[str], variant: str) -> float:
    """Build one image; the seconds it took."""
    image, start = f"kuznia/{name}:{__version__}", time.monotonic()
    print(f"== {image} ==", file=sys.stderr, flush=True)
    declared = (ROOT / "images" / name / "Dockerfile").read_text("utf-8")
    options = ["--file", f"images/{name}/Dockerfile"]
    for key, value in build_arguments(variant).items():
        if f"ARG {key}" in declared:
            options += ["--build-arg", f"{key}={value}"]
    tag = ["-t", image, "."] if build[0] in ("docker", "buildah") else [".", image]
    code = subprocess.run([*build, *options, *tag], cwd=ROOT, stdout=sys.stderr).returncode
    if code:
        missing = f" (`make images NAMES=torch` if {TORCH} is missing)" if TORCH in declared else ""
        raise DependencyError(
            f"images/{name}/Dockerfile: {build[0]} ended with exit code {code}; its output above "
            f"says why: mend that and run `make images NAMES={name}`{missing}"
        )
    return time.monotonic() - start


def _tag(name: str, variant: str) -> str:
    """The tag in a registry, which keeps both variants of serve."""
    return f"{__version__}-cuda" if (name, variant) == ("serve", "cuda") else __version__


def push(tool: str, name: str, registry: str, tag: str) -> str:
    """Push one image under a tag; returns where it is, by digest.

    Raises DependencyError if the registry does not take it.
    """
    image = f"kuznia/{name}:{__version__}"
    place = f"{registry.rstrip('/')}/kuznia-{name}"
    target = f"{place}:{tag}"
    if tool == "docker":
        _run("docker", "tag", image, target)
        _run("docker", "push", "--quiet", target)
        form = "{{range .RepoDigests}}{{println .}}{{end}}"
        known = _run("docker", "inspect", "--format", form, target).split()
        return next(digest for digest in known if digest.startswith(f"{place}@"))
    with tempfile.NamedTemporaryFile("r") as file:
        _run("buildah", "push", "--quiet", "--digestfile", file.name, image, f"docker://{target}")
        return f"{place}@{file.read().strip()}"


def _run(*words: str) -> str:
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DependencyError(
            f"{shlex.join(words)}: ended with exit code {done.returncode}; its output above says "
            f"why (`{words[0]} login REGISTRY` if you are not known there)"
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
