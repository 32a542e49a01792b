"""Scores, intervals and verdicts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kuznia.contracts.runspec import GateRule
from kuznia.contracts.steps import MetricResult
from steps.metrics import exact_match, interval, judge, measure, rows_needed, token_f1
from workflows.environments import ROOT


@pytest.mark.parametrize(
    ("expected", "answer", "score"),
    [
        ("exit code 75", "exit code 75", 1),
        ("Exit code 75.", "  exit   CODE\n75", 1),
        ("Zażółć", "Za\u017c\u00f3\u0142c\u0301", 1),
        ("STRASSE", "straße", 1),
        ("75", "75..", 0),
        ("75", "75!", 0),
        ("75", "exit code 75", 0),
        ("no", "yes", 0),
        (".", "", 1),
    ],
)
def test_exact_match_forgives_only_form(expected: str, answer: str, score: int) -> None:
    assert exact_match(expected, answer) == score


@pytest.mark.parametrize(
    ("expected", "answer", "score"),
    [
        ("the red fox", "The fox, red!", 1.0),
        ("a b", "b c", 0.5),
        ("a a b", "a b b", 2 / 3),
        ("gęślą jaźń", "GĘŚLĄ", 2 / 3),
        ("fox", "dog", 0.0),
        ("fox", "", 0.0),
        ("->", "->", 1.0),
        ("->", "<-", 0.0),
    ],
)
def test_token_f1_counts_shared_words(expected: str, answer: str, score: float) -> None:
    assert token_f1(expected, answer) == pytest.approx(score)


def test_equal_scores_keep_some_doubt() -> None:
    low, high = interval([1.0] * 64, (0.0, 1.0), 0)
    assert (low, high) == (pytest.approx(0.9440, abs=1e-4), 1.0)
    low, high = interval([0.0] * 64, (-1.0, 1.0), 0)
    assert (low, high) == (pytest.approx(-0.0560, abs=1e-4), pytest.approx(0.0560, abs=1e-4))
    assert interval([1.0], (0.0, 1.0), 0)[0] == pytest.approx(0.025)


def test_few_rows_leave_more_doubt_than_their_own_range() -> None:
    assert interval([0.9, 1.0], (0.0, 1.0), 0) == (pytest.approx(0.1423, abs=1e-4), 1.0)
    gains = [0.2, 0.3, 0.25, 0.2, 0.3, 0.25, 0.2, 0.3, 0.25]
    low, high = interval(gains, (-1.0, 1.0), 0)
    assert (low, high) == (pytest.approx(-0.204, abs=1e-3), pytest.approx(0.535, abs=1e-3))
    found = measure([0.0, 0.0], [0.9, 1.0], 0)
    rule = GateRule(at_least=0.8, not_worse_than="base")
    assert judge({"token_f1": found}, {"token_f1": rule}, 2)[0] == "not enough evidence"


def test_scores_that_differ_by_rounding_are_equal() -> None:
    third = [0.1 + 0.2, 0.3] * 32
    assert interval(third, (0.0, 1.0), 0) == pytest.approx(interval([0.3] * 64, (0.0, 1.0), 0))


def test_bootstrap_is_seeded_paired_and_near_the_normal_interval(train_python: Path) -> None:
    code = """
import json, warnings
warnings.simplefilter("error")
from steps.metrics import interval, measure
even = [(number * 37 % 100) / 99 for number in range(100)]
base, better = [0.0] * 50 + [1.0] * 50, [0.0] * 45 + [1.0] * 55
paired = measure(base, better, 7)
print(json.dumps({
    "even": interval(even, (0.0, 1.0), 7),
    "again": interval(even, (0.0, 1.0), 7),
    "other": interval(even, (0.0, 1.0), 8),
    "two": interval([0.0, 1.0], (0.0, 1.0), 7),
    "paired": paired.model_dump(),
}))
"""
    done = subprocess.run(
        [train_python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["even"] == found["again"] != found["other"]
    assert found["even"] == [pytest.approx(0.443, abs=0.01), pytest.approx(0.557, abs=0.01)]
    assert found["two"] == [0.0, 1.0]
    paired = found["paired"]
    assert paired["difference"] == pytest.approx(0.05)
    # Unpaired, the interval would be about 0.28 wide on either side.
    assert (paired["low"], paired["high"]) == (
        pytest.approx(0.01, abs=0.015),
        pytest.approx(0.10, abs=0.02),
    )


def result(**values: float) -> MetricResult:
    plain = {"base": 0.5, "candidate": 0.9, "difference": 0.4, "low": 0.3, "high": 0.5}
    return MetricResult(**{**plain, "candidate_low": 0.84, "candidate_high": 0.95, **values})


@pytest.mark.parametrize(
    ("rule", "values", "verdict", "words"),
    [
        (
            {"at_least": 0.8},
            {},
            "promote",
            "exact_match: 0.900 on 100 rows (95 % interval 0.840 to 0.950) is at least 0.8",
        ),
        ({"at_least": 0.84}, {}, "promote", "is at least 0.84"),
        ({"at_least": 0.96}, {}, "hold", "is below the wanted 0.96"),
        (
            {"at_least": 0.85},
            {},
            "not enough evidence",
            "leaves open whether it is at least 0.85; about 144 rows would settle it",
        ),
        ({"at_least": 0.9}, {}, "not enough evidence", "no number of rows would settle it"),
        (
            {"not_worse_than": "base"},
            {},
            "promote",
            "exact_match: +0.400 against the base on 100 rows (95 % interval +0.300 to +0.500) "
            "is not worse by more than 0",
        ),
        (
            {"not_worse_than": "base", "margin": 0.02},
            {"difference": -0.01, "low": -0.015, "high": 0.0},
            "promote",
            "is not worse by more than 0.02",
        ),
        (
            {"not_worse_than": "base", "margin": 0.02},
            {"difference": -0.01, "low": -0.03, "high": 0.01},
            "not enough evidence",
            "leaves open whether it is worse by more than 0.02; about 400 rows would settle it",
        ),
        (
            {"not_worse_than": "base", "margin": 0.02},
            {"difference": -0.1, "low": -0.15, "high": -0.05},
            "hold",
            "is worse by more than 0.02",
        ),
        (
            {"not_worse_than": "deployed"},
            {},
            "promote",
            "compared with it because this run knows of no deployed version",
        ),
        (
            {"at_least": 0.96, "not_worse_than": "base"},
            {"difference": 0.01, "low": -0.1, "high": 0.1},
            "hold",
            "leaves open",
        ),
    ],
)
def test_verdict_follows_the_whole_interval(
    rule: dict[str, Any], values: dict[str, float], verdict: str, words: str
) -> None:
    found, reasons = judge(
        {"exact_match": result(**values)}, {"exact_match": GateRule(**rule)}, 100
    )
    assert found == verdict
    assert any(words in reason for reason in reasons)
    assert len(reasons) == len([key for key in rule if key != "margin"])


def test_without_a_gate_a_sure_gain_promotes_and_a_sure_loss_holds() -> None:
    unsure = result(difference=-0.1, low=-0.3, high=0.1)
    worse = result(difference=-0.2, low=-0.3, high=-0.1)
    better = result(difference=0.2, low=0.1, high=0.3)
    assert judge({"exact_match": unsure, "token_f1": better}, {}, 10)[0] == "promote"
    verdict, reasons = judge({"exact_match": unsure}, {}, 10)
    assert verdict == "not enough evidence"
    assert reasons[1].startswith("no metric is shown to be better than the base; ")
    verdict, reasons = judge({"exact_match": unsure, "token_f1": worse}, {}, 10)
    assert verdict == "hold"
    assert "worse than the base" in reasons[1]


def test_rows_needed_shrinks_the_interval_with_the_root_of_the_rows() -> None:
    assert rows_needed(0.9, 0.8, 0.95, 0.85, 100) == 400
    assert rows_needed(0.9, 0.8, 0.95, 0.91, 100) == 2500
