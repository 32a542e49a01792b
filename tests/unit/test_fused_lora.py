"""LoRA's products in one function a layer: the numbers of PEFT's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import said_by


@pytest.fixture(scope="module")
def said(tiny_base: Path, train_python: Path) -> dict[str, Any]:
    """What fixtures/fused_lora_case.py found."""
    return said_by(train_python, "fused_lora_case.py", tiny_base)


@pytest.mark.parametrize(("dtype", "exact"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_loss_and_gradients_are_those_of_peft(
    dtype: str, exact: float, said: dict[str, Any]
) -> None:
    found = said[dtype]
    theirs, ours = found["losses"]
    assert found["layers"] > 0
    assert ours == pytest.approx(theirs, rel=exact)
    assert found["apart"] < exact


def test_only_layers_of_a_weight_and_two_factors(said: dict[str, Any]) -> None:
    assert said["plain"] == {
        "{}": True,
        "{'lora_dropout': 0.1}": False,
        "{'use_dora': True}": False,
    }
