"""The half of helm/workspace where models are served: quota, walls, roles, secrets by reference."""

from __future__ import annotations

from typing import Any

import pytest

from tests.charts.charts import Objects, check, examples, folder, lint, load, refusal, render

SMALLEST = {"tenant": "acme", "store": "s3://bucket/acme"}
SERVING = SMALLEST | {"inference": {"enabled": True}}
HERE, THERE = "acme-inference", "acme-training"
READ = {"get", "list", "watch"}


def inference(**values: Any) -> Objects:
    """What a chart that serves has beyond one that only trains, by `Kind/name`."""
    made = render("workspace", SERVING | values)
    mine = [each for each in made.values() if each["metadata"].get("namespace") == HERE]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in mine}


@pytest.mark.parametrize("name", examples("workspace"))
def test_the_examples_pass_helms_strictest_look_and_kubernetes_schemas(name: str) -> None:
    assert not lint("workspace", name)
    check(render("workspace", load(folder("workspace") / "ci" / name)))


def test_a_tenant_that_only_trains_has_no_namespace_to_serve_in() -> None:
    made = render("workspace", SMALLEST)
    assert {each["metadata"].get("namespace", THERE) for each in made.values()} == {THERE}
    assert not any(HERE in name for name in made)


def test_the_namespace_is_made_only_where_nobody_else_does() -> None:
    made = render("workspace", SERVING)[f"Namespace/{HERE}"]
    assert made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    values = SERVING | {"namespace": {"create": False}}
    assert not [name for name in render("workspace", values) if name.startswith("Namespace/")]


def test_nothing_goes_in_and_only_dns_goes_out() -> None:
    made = inference()
    walls = {name: each["spec"] for name, each in made.items() if each["kind"] == "NetworkPolicy"}
    assert walls.pop("NetworkPolicy/default-deny") == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    dns = walls.pop("NetworkPolicy/dns")
    assert not walls
    (rule,) = dns["egress"]
    assert {each["port"] for each in rule["ports"]} == {53}
    blocks = [each["ipBlock"]["cidr"] for each in rule["to"] if "ipBlock" in each]
    assert blocks == ["169.254.169.254/32", "169.254.20.10/32"]
    off = inference(network={"enabled": False})
    assert not any(each["kind"] == "NetworkPolicy" for each in off.values())


def test_a_quota_is_what_is_given() -> None:
    assert "ResourceQuota/kuznia" not in inference()
    quota = {"requests.nvidia.com/gpu": "2"}
    made = inference(inference={"enabled": True, "quota": quota})
    assert made["ResourceQuota/kuznia"]["spec"] == {"hard": quota}
    (limits,) = made["LimitRange/kuznia"]["spec"]["limits"]
    assert limits["type"] == "Container"


def test_nobody_changes_what_is_served_or_reads_a_secret() -> None:
    roles = {name: each["rules"] for name, each in inference().items() if each["kind"] == "Role"}
    assert set(roles) == {
        *("Role/kuznia-data-scientist", "Role/kuznia-mlops", "Role/kuznia-compliance"),
    }
    for rules in roles.values():
        assert all(set(rule["verbs"]) == READ for rule in rules)
        resources = {resource for rule in rules for resource in rule["resources"]}
        assert {"deployments", "pods", "pods/log"} <= resources
        assert not {"secrets", "*"} & resources


def test_people_get_their_roles() -> None:
    groups = {
        "dataScientist": [{"kind": "Group", "name": "science"}],
        "compliance": [{"kind": "ServiceAccount", "name": "auditor"}],
    }
    made = inference(roles=groups)
    bound = {name: each for name, each in made.items() if each["kind"] == "RoleBinding"}
    assert set(bound) == {"RoleBinding/kuznia-data-scientist", "RoleBinding/kuznia-compliance"}
    science, compliance = (each["subjects"][0] for _, each in sorted(bound.items(), reverse=True))
    assert science["name"] == "science"
    assert compliance == {"kind": "ServiceAccount", "name": "auditor", "namespace": HERE}
    for name, each in bound.items():
        assert each["roleRef"]["name"] == name.partition("/")[2]


def test_secrets_are_references() -> None:
    values = {"externalSecrets": {"enabled": True, "key": "acme/all"}}
    (only,) = (
        each
        for each in render("workspace", SMALLEST | values).values()
        if each["kind"] == "ExternalSecret"
    )
    assert only["metadata"]["namespace"] == THERE
    values["externalSecrets"] |= {
        "inferenceKey": "acme/read",
        "store": {"kind": "ClusterSecretStore", "name": "all"},
    }
    made = render("workspace", SERVING | values)
    found = {
        each["metadata"]["namespace"]: each["spec"]
        for each in made.values()
        if each["kind"] == "ExternalSecret"
    }
    assert {place: each["dataFrom"] for place, each in found.items()} == {
        THERE: [{"extract": {"key": "acme/all"}}],
        HERE: [{"extract": {"key": "acme/read"}}],
    }
    for each in found.values():
        assert each["target"]["name"] == "kuznia"
        assert each["secretStoreRef"] == {"kind": "ClusterSecretStore", "name": "all"}


def test_the_signing_key_is_a_reference_for_training_alone() -> None:
    values = {"externalSecrets": {"enabled": True, "key": "acme/all", "signingKey": "acme/sign"}}
    made = render("workspace", SERVING | values)
    (only,) = (each for name, each in made.items() if name.endswith("/kuznia-signing"))
    assert only["metadata"]["namespace"] == THERE
    assert only["spec"]["data"] == [{"secretKey": "signing.pem", "remoteRef": {"key": "acme/sign"}}]
    for each in made.values():
        assert not (each["kind"] == "Secret" and (each.get("data") or each.get("stringData")))


def test_what_holds_data_is_not_removed_unasked() -> None:
    made = render("workspace", SERVING | {"storage": {"claim": True}})
    claims = [each for each in made.values() if each["kind"] == "PersistentVolumeClaim"]
    assert len(claims) == 2
    for each in claims:
        options = each["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
        assert options == "Prune=confirm,Delete=confirm"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"externalSecrets": {"enabled": True}},
            "workspace acme: externalSecrets.key is not set; set it to the key of the secret store "
            "that holds the tenant's variables",
        ),
        ({"inference": {"quotas": {}}}, "additional properties 'quotas' not allowed"),
        ({"externalSecrets": {"store": {"kind": "Vault"}}}, "at '/externalSecrets/store/kind'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    assert message in "\n".join(refusal("workspace", SMALLEST | values))
