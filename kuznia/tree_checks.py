"""What must hold between the files of the registry in git, and what a change to it may do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from kuznia.contracts.catalogue import Catalogue
from kuznia.contracts.release import Release
from kuznia.contracts.tenant import Tenant
from kuznia.errors import InputError
from kuznia.gateway.softly import unknown
from kuznia.registry import Registry
from kuznia.tree import REGISTRY, SOFT, Deployed, Tree, tenant_file

RESERVED = ("default", "kuznia", "platform")
"""Names of Argo CD's and our own projects."""


def problems_of_tree(tree: Tree, catalogue: Catalogue) -> list[str]:
    """One line for each thing in the registry that contradicts another."""
    found: list[str] = []
    for name, tenant in tree.tenants.items():
        found += _of_tenant(name, tenant, tree, catalogue)
    found += _alike(tree)
    for deployed in tree.releases:
        if owner := tree.tenants.get(deployed.tenant):
            found += _of_release(deployed, owner, catalogue)
            found += _of_card(deployed, tree)
    return found + unknown(tree.soft, (each.asked for each in tree.releases), str(SOFT))


def problems_of_change(old: Tree, new: Tree) -> list[str]:
    """One line for each thing that the change from `old` to `new` must not do."""
    found: list[str] = []
    for name, tenant in old.tenants.items():
        if name not in new.tenants and tenant.state != "retired":
            found.append(
                f"{tenant_file(name)}: is gone, and it was {tenant.state}; set state: retired "
                "first, a tenant cannot be renamed"
            )
    before = {each.path: each for each in old.releases}
    after = {each.path: each for each in new.releases}
    kept = {name for name, tenant in old.tenants.items() if tenant.state != "retired"}
    gone = [each for path, each in before.items() if path not in after and each.tenant in kept]
    added = [each for path, each in after.items() if path not in before]
    for each in gone:
        for other in added:
            if (other.tenant, other.stage) == (each.tenant, each.stage) and (
                other.release.digest == each.release.digest
            ):
                found.append(
                    f"{each.path}: is renamed to {other.path}, which would end the one before the "
                    "other answers; add the new name first and remove the old one in a later change"
                )
    if len(gone) > new.platform.removals:
        names = ", ".join(each.name for each in gone)
        found.append(
            f"{REGISTRY}: {len(gone)} releases are removed ({names}), {new.platform.removals} may "
            "be in one change; remove fewer, or raise removals in platform.yaml by a change of "
            "its own"
        )
    return found


def problems_of_approval(old: Tree, new: Tree, approvers: set[str]) -> list[str]:
    """One line for each production release that changes with fewer people behind it than it needs.

    Two must approve where the card's risk is one of the tenant's `two_people_for`; the forge sees
    to the first by CODEOWNERS.
    """
    found = []
    before = {each.path: each.release for each in old.releases}
    for each in new.releases:
        if each.stage != "production" or before.get(each.path) == each.release:
            continue
        tenant = new.tenants[each.tenant]
        risk = new.risk_of(each.release)
        if risk in tenant.two_people_for and len(approvers) < 2:
            names = ", ".join(sorted(approvers)) or "nobody"
            found.append(
                f"{each.path}: its risk is {risk}, which two people must approve, and {names} did; "
                "ask another reviewer"
            )
    return found


def problems_of_registration(releases: list[Deployed], registry: Registry) -> list[str]:
    """One line for each release that MLflow does not know as it is written."""
    problems = []
    names = {f"{each.tenant}.{each.model}" for each in releases}
    known = {(found.name, found.version): found for found in registry.versions(*sorted(names))}
    for each in releases:
        name = f"{each.tenant}.{each.model}"
        version = known.get((name, each.release.version))
        if version is None:
            problems.append(
                f"{each.path}: version: {each.release.version} of {name} is not registered in "
                f"MLflow at {registry.uri}; promote a version that is, `kuznia runs` lists them"
            )
        elif version.digest != each.release.digest:
            problems.append(
                f"{each.path}: digest: {each.release.digest[:12]}... is not the registered "
                f"{version.digest[:12]}...; copy both lines from one version"
            )
    return problems


def _of_tenant(name: str, tenant: Tenant, tree: Tree, catalogue: Catalogue) -> Iterator[str]:
    place = tenant_file(name)
    if name in RESERVED:
        yield f"{place}: {name} is a name that Argo CD or the platform uses; choose another"
    if tenant.cluster not in tree.platform.clusters:
        known = ", ".join(tree.platform.clusters)
        yield (
            f"{place}: cluster: {tenant.cluster!r} is not in platform.yaml; choose one of {known}"
        )
    for gpu_class in tenant.gpu_classes:
        if gpu_class not in catalogue.gpu_classes:
            known = ", ".join(catalogue.gpu_classes)
            fault = f"{gpu_class!r} is not in the catalogue"
            yield f"{place}: gpu_classes: {fault}; choose one of {known}"
    storage = tenant.storage
    on_a_volume = storage.store.startswith("file:")
    if on_a_volume and not (storage.claim_gib or storage.existing_claim):
        yield (
            f"{place}: storage.store: {storage.store} needs a claim; set storage.claim_gib, or "
            "storage.existing_claim"
        )
    if on_a_volume and tree.of(name) and not storage.serving_claim:
        yield (
            f"{place}: storage.serving_claim: is missing, so no release reaches the store on a "
            "volume; name a claim in the inference namespace"
        )
    yield from _quota(name, tenant, tree)


def _quota(name: str, tenant: Tenant, tree: Tree) -> Iterator[str]:
    """Whether all releases fit at once, the replica that a rollout adds included."""
    releases = [each.release for each in tree.of(name)]
    share = tenant.quota.inference
    needs = {
        "gpus": (sum(r.gpus * r.replicas_at_once for r in releases if r.on_gpu), share.gpus),
        "cpu": (sum(r.cpu * r.replicas_at_once for r in releases), share.cpu),
        "memory_gib": (sum(r.memory_gib * r.replicas_at_once for r in releases), share.memory_gib),
    }
    for key, (need, has) in needs.items():
        if need > has:
            yield (
                f"{tenant_file(name)}: quota.inference.{key}: {has:g} is below the {need:g} that "
                f"its {len(releases)} releases need with a rollout's; raise it or make them smaller"
            )


def _alike(tree: Tree) -> Iterator[str]:
    """Things of which there may be one."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for name, tenant in tree.tenants.items():
        for host in tenant.hosts:
            hosts[host].append(name)
    for host, names in hosts.items():
        if len(names) > 1:
            yield (
                f"{tenant_file(names[1])}: hosts: {host} belongs to {names[0]}; choose another name"
            )
    stores = sorted(
        (f"{tenant.storage.store.rstrip('/')}/", name)
        for name, tenant in tree.tenants.items()
        if not tenant.storage.store.startswith("file:")
    )
    # Sorted, so one that lies in another follows it.
    for (store, name), (other, second) in pairwise(stores):
        if other.startswith(store):
            yield (
                f"{tenant_file(second)}: storage.store: {other} lies in {name}'s {store}; give "
                "each tenant a prefix of its own"
            )
    applications: dict[str, Deployed] = {}
    for each in tree.releases:
        first = applications.setdefault(each.name, each)
        if first is not each:
            yield (
                f"{each.path}: its Application {each.name} is also that of {first.path}; rename "
                "one of the models"
            )


def _of_release(deployed: Deployed, tenant: Tenant, catalogue: Catalogue) -> Iterator[str]:
    place, release = deployed.path, deployed.release
    store = f"{tenant.storage.store.rstrip('/')}/"
    for key in ("uri", "base_uri", "answers_uri"):
        uri = getattr(release, key)
        if uri is not None and not uri.startswith(store):
            yield f"{place}: {key}: {uri} is not in the tenant's store {store}; serve from there"
    own = f"/models/{deployed.tenant}/{deployed.model}/{release.version}"
    if not release.uri.endswith(own):
        yield f"{place}: uri: does not end in {own}; copy it from the version"
    if release.on_gpu and release.hardware not in tenant.gpu_classes:
        known = ", ".join(("cpu", *tenant.gpu_classes))
        yield (
            f"{place}: hardware: {release.hardware!r} is not open to {deployed.tenant}; choose one "
            f"of {known}"
        )
    yield from _of_base(place.as_posix(), release, catalogue)


def _of_base(place: str, release: Release, catalogue: Catalogue) -> Iterator[str]:
    try:
        base = catalogue.base(release.base, place)
    except InputError as error:
        yield from error.problems
        return
    if release.context_length > base.context_length:
        yield (
            f"{place}: context_length: {release.context_length} is above the {base.context_length} "
            f"of {release.base}; set that or less"
        )
    if release.base_digest is not None and release.base_digest != base.digest:
        yield (
            f"{place}: base_digest: {release.base_digest[:12]}... is not the catalogue's "
            f"{base.digest[:12]}... of {release.base}; promote a version that was trained on it"
        )
    gpu_class = catalogue.gpu_classes.get(release.hardware)
    needs = catalogue.memory_for("inference", base.parameters)
    if gpu_class and needs > (has := gpu_class.memory_gib * release.gpus):
        yield (
            f"{place}: hardware: {release.gpus} x {release.hardware} has {has:g} GiB, and "
            f"{release.base} needs about {needs:.1f} GiB; choose a larger class or more gpus"
        )


def _of_card(deployed: Deployed, tree: Tree) -> Iterator[str]:
    """A production release needs the card of its version, with the verdict to promote."""
    place, release = deployed.path, deployed.release
    try:
        card = tree.card_of(release)
    except FileNotFoundError:
        yield f"{place}: card: {release.card} is not here; `kuznia promote` brings it along"
        return
    except InputError as error:
        yield from error.problems
        return
    if card is None:
        if deployed.stage == "production":
            yield f"{place}: card: is missing; `kuznia promote` brings it along"
        return
    of = (deployed.tenant, deployed.model, release.version, release.digest)
    identity = card.identity
    says = (identity.tenant, identity.model, identity.version, identity.manifest_sha256)
    if tuple(leaf.value for leaf in says) != of:
        yield f"{place}: card: {release.card} is of another version; promote again"
    verdict = card.evaluation.verdict.value
    if verdict != "promote":
        why = "; ".join(card.evaluation.reasons.value or ())
        yield f"{place}: the card's verdict is {verdict} ({why}); train or measure again"
