"""How answers are scored, how sure the scores are, and what verdict follows.

Scores. `exact_match` is 1 when answer and expected answer are equal after `normalise`, which
forgives only what no reader would call a mistake: Unicode form (NFC), case, runs of white space,
and one full stop at the end. `token_f1` is SQuAD's: the harmonic mean of precision and recall
over the bags of casefolded Unicode words.

Intervals are 95 %. The bootstrap (BCa, 10,000 resamples, seeded) resamples rows; a difference is
paired, row by row. It cannot leave the range of the scores seen: where all are the same it would
claim certainty, and from a few alike ones nearly so. There, and below 10 rows always, the rule of
three stands in, as distribution-free tolerance limits (Wilks 1941) extend it: of all rows up to
1 - 0.025^(1/n) may lie below the lowest score seen, as low as the metric allows, and as many above
the highest. It holds the whole range seen, so it is never narrower than the bootstrap's.

Verdict. Each rule of the gate is shown (the whole interval satisfies it), refuted (none of it
does) or open. `at_least` looks at the candidate's mean; `not_worse_than` at the paired difference,
which must not lie below -margin. Any rule refuted: hold. All shown: promote (each rule must pass,
so testing several needs no correction). Else not enough evidence, and the reason says about how
many rows would settle it if the scores stayed as they are (interval width taken to shrink with
the square root of the rows). Without a gate: hold if a metric is below the base with its whole
interval, promote if one is above it with its whole interval, else not enough evidence.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from kuznia.contracts.runspec import GateRule, Metric
from kuznia.contracts.steps import MetricResult, Verdict

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEW_ROWS = 10
"""Below that a resample is no picture of the rows that were not seen."""

Finding = tuple[Verdict, str]
"""What one rule leads to, and the sentence that says why."""


def normalise(text: str) -> str:
    """`text` as `exact_match` compares it."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(text.split()).removesuffix(".").rstrip()


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores in `text`, casefolded."""
    return re.findall(r"\w+", normalise(text))


def exact_match(expected: str, answer: str) -> float:
    """1.0 if both are equal after `normalise`, else 0.0."""
    return float(normalise(expected) == normalise(answer))


def token_f1(expected: str, answer: str) -> float:
    """Harmonic mean of word precision and recall; texts without words must match exactly."""
    wanted, found = words(expected), words(answer)
    if not wanted or not found:
        return exact_match(expected, answer)
    shared = sum((Counter(wanted) & Counter(found)).values())
    return 2 * shared / (len(wanted) + len(found))


SCORES: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
}
"""Each metric as a function of expected answer and answer, from 0 to 1."""


def interval(
    values: Sequence[float], bounds: tuple[float, float], seed: int
) -> tuple[float, float]:
    """95 % interval of the mean of `values`, which all lie within `bounds`."""
    lowest, highest, rows = min(values), max(values), len(values)
    if rows < FEW_ROWS or highest - lowest < 1e-9:
        unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / rows)
        return lowest - unseen * (lowest - bounds[0]), highest + unseen * (bounds[1] - highest)
    import numpy
    from scipy.stats import bootstrap

    found = bootstrap(
        (numpy.asarray(values, dtype=numpy.float64),),
        numpy.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**7 // rows),
        confidence_level=CONFIDENCE,
        rng=numpy.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def measure(base: Sequence[float], candidate: Sequence[float], seed: int) -> MetricResult:
    """Means, paired difference and intervals of one metric; both score the same rows in order."""
    rows = len(base)
    differences = [after - before for before, after in zip(base, candidate, strict=True)]
    low, high = interval(differences, (-1.0, 1.0), seed)
    candidate_low, candidate_high = interval(candidate, (0.0, 1.0), seed)
    return MetricResult(
        base=math.fsum(base) / rows,
        candidate=math.fsum(candidate) / rows,
        difference=math.fsum(differences) / rows,
        low=low,
        high=high,
        candidate_low=candidate_low,
        candidate_high=candidate_high,
    )


def judge(
    metrics: Mapping[Metric, MetricResult], gate: Mapping[Metric, GateRule], rows: int
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict over all rules and one plain sentence a rule (see the module's docstring)."""
    findings: list[Finding] = []
    for name, rule in gate.items():
        found = metrics[name]
        if rule.at_least is not None:
            findings.append(_at_least(name, found, rule.at_least, rows))
        if rule.not_worse_than is not None:
            findings.append(_not_worse(name, found, rule, rows))
    if not gate:
        findings = [_not_below_base(name, found) for name, found in metrics.items()]
        if not any(found.low > 0 for found in metrics.values()):
            why = "no metric is shown to be better than the base; add test rows, or set a gate"
            findings.append(("not enough evidence", why))
    verdicts = [verdict for verdict, _ in findings]
    reasons = tuple(reason for _, reason in findings)
    for verdict in ("hold", "not enough evidence"):
        if verdict in verdicts:
            return verdict, reasons
    return "promote", reasons


def rows_needed(mean: float, low: float, high: float, threshold: float, rows: int) -> int | None:
    """About how many rows would move `threshold` out of the interval; None if no number would."""
    gap = mean - threshold
    half = mean - low if gap > 0 else high - mean
    if abs(gap) < 1e-9:
        return None
    return max(rows + 1, math.ceil(rows * (half / gap) ** 2))


def _at_least(name: Metric, found: MetricResult, threshold: float, rows: int) -> Finding:
    low, high = found.candidate_low, found.candidate_high
    seen = f"{name}: {found.candidate:.3f} on {rows} rows (95 % interval {low:.3f} to {high:.3f})"
    if low >= threshold:
        return "promote", f"{seen} is at least {threshold:g}"
    if high < threshold:
        return "hold", f"{seen} is below the wanted {threshold:g}"
    return "not enough evidence", (
        f"{seen} leaves open whether it is at least {threshold:g}; "
        + _settle(rows_needed(found.candidate, low, high, threshold, rows))
    )


def _not_worse(name: Metric, found: MetricResult, rule: GateRule, rows: int) -> Finding:
    other = "base"
    if rule.not_worse_than == "deployed":
        other = "base (compared with it because this run knows of no deployed version)"
    seen = (
        f"{name}: {found.difference:+.3f} against the {other} on {rows} rows "
        f"(95 % interval {found.low:+.3f} to {found.high:+.3f})"
    )
    if found.low >= -rule.margin:
        return "promote", f"{seen} is not worse by more than {rule.margin:g}"
    if found.high < -rule.margin:
        return "hold", f"{seen} is worse by more than {rule.margin:g}"
    return "not enough evidence", (
        f"{seen} leaves open whether it is worse by more than {rule.margin:g}; "
        + _settle(rows_needed(found.difference, found.low, found.high, -rule.margin, rows))
    )


def _not_below_base(name: Metric, found: MetricResult) -> Finding:
    seen = (
        f"{name}: {found.candidate:.3f}, {found.difference:+.3f} against the base "
        f"(95 % interval {found.low:+.3f} to {found.high:+.3f})"
    )
    if found.high < 0:
        return "hold", f"{seen} is worse than the base"
    return "promote", f"{seen} is not shown to be worse than the base; no gate is set"


def _settle(rows: int | None) -> str:
    if rows is None:
        return "no number of rows would settle it, as the score is the threshold itself"
    return f"about {rows} rows would settle it"
