"""What the machine under us has: cores, memory, disk, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from kuznia.errors import DependencyError

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory_gib: float


def cores() -> int:
    """Physical cores that this process may use, at least 1.

    Two threads on one core share its arithmetic units, so more threads than cores do not help a
    trainer. A container's CPU limit counts as well.
    """
    allowed = len(os.sched_getaffinity(0))
    physical = psutil.cpu_count(logical=False) or allowed
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    limit = int(quota) / int(period) if quota.isdigit() else float("inf")
    return max(1, int(min(allowed, physical, limit)))


def multiplies_bfloat16() -> bool:
    """Whether these cores multiply bfloat16 matrices about twice as fast as float32, or better.

    Those with AMX do, and AMD's with AVX512-BF16 (measured on Zen 4: 390 against 180 GFLOP/s on two
    cores). Intel's with AVX512-BF16 alone do not: there LLaMA-Factory's bfloat16 was the slower.
    """
    words = set(_read(_CPUINFO).split())
    return "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words


def memory_gib() -> float:
    """Memory that a process here can have at most, GiB: the machine's or the container's."""
    limit = _read(_CGROUP / "memory.max")
    total = psutil.virtual_memory().total
    return (min(total, int(limit)) if limit.isdigit() else total) / GIB


def free_memory_gib() -> float:
    """Memory that is free just now, GiB."""
    return psutil.virtual_memory().available / GIB


def free_disk_gib(path: Path) -> float:
    """Free space on the disk that holds `path` (which need not exist yet), GiB."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / GIB


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs here, by nvidia-smi; none where there is no driver.

    Raises DependencyError where the driver is there and does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        raise DependencyError(
            f"nvidia-smi: {said}; repair the GPU driver or set hardware: cpu and run again"
        )
    return [_gpu(line) for line in done.stdout.splitlines() if line.strip()]


def _gpu(line: str) -> Gpu:
    name, _, mebibytes = (part.strip() for part in line.rpartition(","))
    # One that uses the machine's memory says [N/A] of its own.
    return Gpu(name, float(mebibytes) / 1024 if mebibytes.isdigit() else memory_gib())


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""
