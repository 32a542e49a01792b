"""What a pod asks for, in Kubernetes' quantities: checked, multiplied, told to its steps."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kuznia.quantities import amount, parts

SIZES = {
    "cpu": ("--cpu", "CPU", r"\d+(\.\d{1,3})?|\d+m", "cores; write 4 or 500m"),
    "memory": ("--memory", "MEMORY", r"\d+(\.\d+)?[MGT]i?", "memory; write 16Gi or 512Mi"),
    "ephemeral-storage": ("--disk", "DISK", r"\d+(\.\d+)?[MGT]i?", "disk; write 100Gi or 500Mi"),
}
"""Resource of a container to its option, its KUZNIA_POD_*, its form, and what to write."""


def size_problems(given: Mapping[str, str]) -> list[str]:
    """One line for each that is no amount above nothing; `given` is by resource."""
    problems = []
    for resource, quantity in given.items():
        option, _, form, words = SIZES[resource]
        if not re.fullmatch(form, quantity) or not amount(quantity):
            problems.append(f"{option} {quantity!r}: is no amount of {words}")
    return problems


def times(quantity: str, factor: int) -> str:
    """So many times as much, in the same unit."""
    number, unit = parts(quantity)
    return f"{number * factor:f}{unit}"


def variables(limits: Mapping[str, str]) -> list[dict[str, str]]:
    """The settings that tell a step what a pod has with one GPU or none."""
    return [
        {"name": f"KUZNIA_POD_{name}", "value": limits[of]} for of, (_, name, _, _) in SIZES.items()
    ]
