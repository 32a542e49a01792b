"""Assert what `make demo` promises, from the figures it left in .kuznia/demo.json."""

from __future__ import annotations

import json
import sys

from kuznia import settings

TUNED_AT_LEAST = 0.9
BASE_AT_MOST = 0.05
ROWS_AT_LEAST = 60


def main() -> int:
    """Print each promise with its figure; 1 if one is not kept."""
    figures = json.loads((settings.home() / "demo.json").read_text("utf-8"))
    promises = [
        (f"at least {ROWS_AT_LEAST} test rows", "test_rows", figures["test_rows"] >= ROWS_AT_LEAST),
        (f"base at most {BASE_AT_MOST}", "score_base", figures["score_base"] <= BASE_AT_MOST),
        (
            f"tuned at least {TUNED_AT_LEAST}",
            "score_tuned",
            figures["score_tuned"] >= TUNED_AT_LEAST,
        ),
        (
            f"served at least {TUNED_AT_LEAST}",
            "score_served",
            figures["score_served"] >= TUNED_AT_LEAST,
        ),
        (
            "one audit record for each question",
            "audit",
            figures["audit"]["records"] == figures["test_rows"]
            and figures["audit"]["tokens"] > 0
            and not figures["audit"]["findings"],
        ),
    ]
    for words, key, kept in promises:
        print(f"{'ok  ' if kept else 'FAIL'} {words}: {figures[key]}")
    print(f"     seconds: {json.dumps(figures['seconds'])}")
    return 0 if all(kept for _, _, kept in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
