"""Kubernetes' quantities: `500m`, `16`, `64Gi`."""

from __future__ import annotations

from decimal import Decimal

_UNITS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3)}
_UNITS |= {name: Decimal(1000 ** (power + 2)) for power, name in enumerate("MGTPE")}
_UNITS |= {f"{name}i": Decimal(1024 ** (power + 1)) for power, name in enumerate("KMGTPE")}


def parts(quantity: str) -> tuple[Decimal, str]:
    """The number of a quantity and its unit."""
    unit = quantity.lstrip("0123456789.")
    return Decimal(quantity.removesuffix(unit)), unit


def amount(quantity: str | float) -> Decimal:
    """A quantity in cores, bytes or pieces."""
    number, unit = parts(str(quantity))
    return number * _UNITS[unit]
