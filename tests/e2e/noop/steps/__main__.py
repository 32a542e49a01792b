"""Any step of the chain, in no time: writes outputs that Argo's expressions can read.

NOOP_QUEUE is the queue that `plan` names, NOOP_SECONDS how long `train` takes.
"""

import json
import os
import sys
import time
from pathlib import Path

step = sys.argv[1]
if step == "train":
    time.sleep(float(os.environ.get("NOOP_SECONDS", "0")))
path = Path(sys.argv[sys.argv.index("--outputs") + 1])
pod = {"patch": "{}", "queue": os.environ.get("NOOP_QUEUE", "")}
path.write_text(json.dumps({"step": step, "pod": pod}))
