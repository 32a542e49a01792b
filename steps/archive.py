"""Keep what a retired tenant's MLflow knew: `python -m steps.archive --tenant NAME`.

Reads: every registered model and version of the tenant in MLflow, their manifests in the store.
Writes: archive/<tenant>/registry.json, and archive/<tenant>/manifests/<model>/<version>.json.
Fails when: MLflow or the store does not answer (3); a version's folder is gone (2, after all
    others are kept).
Safe to repeat because: it writes the same again, and touches nothing else.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from kuznia import settings
from kuznia.contracts.base import canonical_json
from kuznia.errors import InputError, KuzniaError
from kuznia.manifest import MANIFEST
from kuznia.progress import progress
from kuznia.registry import Registry
from kuznia.store import Store, open_store, root_and_key
from kuznia.termination import report_bugs, report_failure


def archive(tenant: str, registry: Registry, store: Store) -> int:
    """Write the archive; the number of versions in it. Raises InputError for every lost folder."""
    versions = [version for version in registry.versions() if version.tenant == tenant]
    problems = []
    for done, version in enumerate(versions, 1):
        key = f"archive/{tenant}/manifests/{version.model}/{version.version}.json"
        try:
            store.write(key, store.read(f"{root_and_key(version.uri)[1]}/{MANIFEST}"))
        except FileNotFoundError:
            problems.append(
                f"{version.uri}: is gone from the store; nothing is left of {version.name} "
                f"{version.version} but its entry in registry.json"
            )
        progress("archive", done, len(versions), "versions")
    store.write(f"archive/{tenant}/registry.json", canonical_json([asdict(v) for v in versions]))
    if problems:
        raise InputError(problems)
    return len(versions)


def main(argv: list[str] | None = None) -> int:
    """Parse, archive, and turn failures into exit codes."""
    parser = argparse.ArgumentParser(prog="python -m steps.archive", description=__doc__)
    parser.add_argument("--tenant", required=True, help="whose registry is kept")
    tenant = parser.parse_args(argv).tenant
    try:
        store = open_store(settings.store_uri())
        count = archive(tenant, Registry(settings.tracking_uri()), store)
    except KuzniaError as error:
        return report_failure(error)
    print(f"archive: {count} versions in {store.uri_of(f'archive/{tenant}')}", flush=True)
    return 0


if __name__ == "__main__":
    report_bugs()
    sys.exit(main())
