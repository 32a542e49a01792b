"""LLaMA-Factory as it comes, timed by the callback that times our trainer.

python -m bench.stock_trainer SETTINGS EVENTS SUPERVISOR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llamafactory.train.tuner import run_exp

from steps.supervisor import end_with
from steps.trainer import Reporter, opened

if __name__ == "__main__":
    settings, events, supervisor = sys.argv[1:]
    end_with(int(supervisor))
    run_exp(json.loads(Path(settings).read_text("utf-8")), callbacks=[Reporter(opened(events))])
