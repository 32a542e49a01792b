"""Many releases on one Argo CD: seconds from a push until all are Applications, and all are synced.

One tenant that sleeps, so that nothing but objects is made. Needs what `make e2e` needs.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.results import machine, save
from kuznia.progress import say
from kuznia.tree import REGISTRY
from tests.e2e.cluster import kubectl, s3_server, wait_for
from tests.e2e.forge import forge
from tests.e2e.platform import ARGO_CD, platform, read_yaml
from tests.fixtures.checkouts import release

SIZES = [int(size) for size in os.environ.get("KUZNIA_BENCH_RELEASES", "50 200 500").split()]


def main() -> None:
    """Grow one tenant's releases from size to size."""
    name = f"load-{secrets.token_hex(2)}"
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        s3_server(f"{name}-store") as s3,
        forge(f"{name}-forge") as server,
        platform(Path(folder), [name], server, s3) as made,
    ):
        path = f"{name}/tenant.yaml"
        tenant = read_yaml(made.checkout / REGISTRY / path)
        share = {"cpu": 10_000, "memory_gib": 40_000}
        quota = {"training": share, "inference": share}
        made.write({path: tenant | {"state": "hibernated", "quota": quota}})
        made.push("It sleeps")
        for size in SIZES:
            files = {
                f"{name}/m{number}/staging.yaml": _release(name, f"m{number}")
                for number in range(size)
            }
            made.write(files)
            _, pushed = made.push(f"{size} releases")
            times = {}
            for what, ready in (("exist", _exists), ("are synced", _synced)):
                wait_for(f"{size} that {what}", lambda r=ready, s=size: _count(r) >= s, 1500)
                times[f"until all {what}, s"] = round(time.time() - pushed, 1)
            rows.append({"releases": size, "new": size - (rows[-1]["releases"] if rows else 0)})
            rows[-1] |= times
            say(json.dumps(rows[-1]))
    save(
        "appset_scale",
        "Many releases on one Argo CD",
        rows,
        machine("httpx"),
        "From the push; Argo CD looks at git every 10 s here. Upstream's settings: 10 operations "
        "at a time and one repo-server, which renders a chart for each release.",
    )


def _release(tenant: str, model: str) -> dict[str, Any]:
    made = release(tenant, model)
    return made | {"uri": made["uri"].replace(f"s3://kuznia/{tenant}", f"s3://{tenant}")}


def _exists(application: dict[str, Any]) -> bool:
    return True


def _synced(application: dict[str, Any]) -> bool:
    found: bool = application.get("status", {}).get("sync", {}).get("status") == "Synced"
    return found


def _count(ready: Any) -> int:
    listed = kubectl("get", "applications", "-n", ARGO_CD, "-l", "kuznia.release", "-o", "json")
    time.sleep(2)
    found = sum(1 for each in json.loads(listed)["items"] if ready(each))
    say(f"{found} releases")
    return found


if __name__ == "__main__":
    main()
