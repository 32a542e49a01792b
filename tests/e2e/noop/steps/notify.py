"""The exit handler, in no time: a summary with everything that the metrics read."""

import json
import sys
from pathlib import Path

summary = {"tenant": "load", "model": "noop", "result": "success", "seconds": 1, "trained": False}
Path(sys.argv[sys.argv.index("--outputs") + 1]).write_text(
    json.dumps(summary | {"queue_seconds": 0, "samples_per_second": 0})
)
