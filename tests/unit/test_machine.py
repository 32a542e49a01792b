"""nvidia-smi is stood in for by a program of the same name that prints what it prints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuznia import machine
from kuznia.errors import DependencyError


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_the_machine_has_something() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.free_memory_gib() <= machine.memory_gib() + 0.01


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.free_disk_gib(tmp_path / "a" / "b") > 0


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2 * 2**30}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.cores() == 1
    assert machine.memory_gib() == 2


def test_a_container_without_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.cores(), machine.memory_gib()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert (machine.cores(), machine.memory_gib()) == before


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("AuthenticAMD", "fma avx512f avx512_bf16", True),
        ("GenuineIntel", "fma avx512f avx512_bf16", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", True),
        ("AuthenticAMD", "fma avx2", False),
    ],
)
def test_cores_that_multiply_bfloat16(
    vendor: str, flags: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel\t\t: 17\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", info)
    assert machine.multiplies_bfloat16() is fast
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    assert not machine.multiplies_bfloat16()


def test_gpus_as_nvidia_smi_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, 'echo "NVIDIA H200, 143771"; echo "NVIDIA L4, 23034"')
    first, second = machine.gpus()
    assert (first.name, round(first.memory_gib, 1)) == ("NVIDIA H200", 140.4)
    assert (second.name, round(second.memory_gib, 1)) == ("NVIDIA L4", 22.5)


def test_a_gpu_that_uses_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, 'echo "NVIDIA GB10, [N/A]"')
    assert machine.gpus() == [machine.Gpu("NVIDIA GB10", machine.memory_gib())]


def test_a_machine_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []


def test_a_broken_driver_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, 'echo "driver/library version mismatch"; exit 18')
    with pytest.raises(DependencyError, match="mismatch; repair the GPU driver or set hardware"):
        machine.gpus()
