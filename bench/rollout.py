"""A new version by a commit, and back by `git revert`: seconds from push to first answer, by cause.

Runs the cluster test that promises no lost request (tests/e2e/test_rollouts.py) and keeps its
figures. Needs what `make e2e` needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.results import machine, save

TEST = "test_a_new_version_takes_over_and_comes_back_without_a_lost_request"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "cluster"),
                f"tests/e2e/test_rollouts.py::{TEST}",
            ],
            check=True,
            env=os.environ | {"KUZNIA_E2E_FIGURES": folder},
        )
        keep(Path(folder) / "rollout.json")


def keep(path: Path) -> None:
    """Make the table from the figures that the test wrote."""
    figures = json.loads(path.read_text("utf-8"))
    moves = ("to a new version", "back by git revert")
    rows = [
        {"seconds from push until": step} | {move: figures[move][step] for move in moves}
        for step in figures[moves[0]]
    ]
    save(
        "rollout",
        "A release moves by a commit, under load",
        rows,
        machine("httpx"),
        f"Ten questions a second, every second one streamed, through both moves: "
        f"{figures['answers']} answers, none lost, median {figures['median answer']} s, slowest "
        f"{figures['slowest answer']} s while a second vLLM starts on the same two cores. A tiny "
        "model, so what is left is Argo CD, Kubernetes and vLLM's start; Argo CD looks at git "
        "every 10 s here, every 3 minutes or at a webhook elsewhere.",
    )


if __name__ == "__main__":
    main()
