"""The chart tests need the program helm; `make charts` runs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here renders charts."""
    absent = pytest.mark.skip(reason="helm: is not on this machine; install Helm 4")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chart)
            if shutil.which("helm") is None:
                item.add_marker(absent)
