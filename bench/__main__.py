"""Run every benchmark, or those named: `python -m bench [NAME ...]`; --list names them.

Each leaves bench/results/<name>.json; docs/reference/performance.md is made from these files by
`make generate`. Those that need a cluster are left out of "every" where KUBECONFIG is not set.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

HERE = Path(__file__).parent
HELPERS = {"__init__", "__main__", "results", "stock_trainer"} | {
    f"gateway_{name}" for name in ("litellm", "load", "names", "parts", "wire")
}
ON_CLUSTER = {"appset_scale", "argo_scale", "rollout"}


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"no benchmark {', '.join(unknown)}; choose from {', '.join(names)}")
    if arguments.list:
        print("\n".join(names))
        return
    for name in arguments.names or names:
        if name in ON_CLUSTER and not arguments.names and "KUBECONFIG" not in os.environ:
            print(f"{name}: left out, as it needs a cluster: set KUBECONFIG")
        else:
            importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main()
