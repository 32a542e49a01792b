from __future__ import annotations

import pytest

from kuznia.progress import parse_progress, progress


def test_what_is_said_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    progress("train", 12, 60, "steps", loss=1.93)
    line = capsys.readouterr().out.rstrip("\n")
    assert parse_progress(line) == {
        "step": "train",
        "done": 12,
        "total": 60,
        "unit": "steps",
        "loss": 1.93,
    }


@pytest.mark.parametrize(
    "line", ["", "loading weights", "progress: ", "progress: {", "progress: [1]", "progress: 3"]
)
def test_other_lines_are_left_alone(line: str) -> None:
    assert parse_progress(line) is None
