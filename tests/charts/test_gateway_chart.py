"""The chart helm/gateway: nothing by default, what each value does, what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kuznia.contracts.tenant import Access
from kuznia.gateway.shards import shards, text_of
from kuznia.gateway.table import Table
from scripts.images import NAMES as NAMES_OF_IMAGES
from services.audit.__main__ import options
from services.guard.__main__ import options as guard_options
from tests.charts.charts import (
    Objects,
    check,
    example,
    examples,
    folder,
    lint,
    load,
    render,
    text,
)

SMALLEST = {"tables": {"access": '{"access":{}}'}, "store": "s3://audit/gateway"}
PARTS = ("StatefulSet/gateway", "Deployment/gateway-guard", "Deployment/gateway-limits")
NAMES = {"gateway": "gateway", "guard": "gateway-guard"} | {
    name: name for name in ("gateway-limits", "gateway-redis")
}
"""Labels and the objects that have them."""


def made(**values: Any) -> Objects:
    return render("gateway", SMALLEST | values)


def pod(name: str, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = made(**values)[name]["spec"]["template"]["spec"]
    return found


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (
        each
        for each in (*pod.get("initContainers", []), *pod["containers"])
        if each["name"] == name
    )
    return dict(found)


def words(each: dict[str, Any]) -> list[str]:
    return [*each["command"], *each.get("args", [])]


def mounts(each: dict[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in each["volumeMounts"]}


def wall(name: str, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = made(**values)[f"NetworkPolicy/{name}"]["spec"]
    return found


def test_nothing_by_default() -> None:
    assert render("gateway", {}) == {}
    assert lint("gateway") == ""


@pytest.mark.parametrize("name", examples("gateway"))
def test_examples_pass_every_check(name: str) -> None:
    assert lint("gateway", name) == ""
    objects = render("gateway", load(folder("gateway") / "ci" / name))
    assert {*PARTS, "Service/gateway", "ServiceAccount/gateway"} <= set(objects)
    check(objects)


def test_the_table_is_one_config_map_a_part_in_one_volume_whatever_parts_there_are() -> None:
    table = Table(access=Access(hosts=("llm.example.org",)), hosts={"a.example.org": "acme"})
    tables = {name: text_of(part) for name, part in shards(table).items()}
    objects = made(tables=tables)
    for name, content in tables.items():
        assert objects[f"ConfigMap/gateway-table-{name}"]["data"] == {f"{name}.json": content}
    for name in PARTS:
        (volume,) = (v for v in pod(name, tables=tables)["volumes"] if v["name"] == "table")
        sources = volume["projected"]["sources"]
        assert [each["configMap"]["name"] for each in sources] == [
            *(f"gateway-table-{part}" for part in ("access", *"01234567")),
            "gateway-soft",
        ]
        assert all(each["configMap"]["optional"] for each in sources)
        assert made(tables=tables)[name] == made()[name], "a new part starts pods anew"


def test_the_configurer_makes_a_first_configuration_and_follows() -> None:
    for name in PARTS:
        first = words(container(pod(name), "first"))
        follows = container(pod(name), "configure")
        assert follows["restartPolicy"] == "Always"
        assert {"--table=/etc/kuznia/table", "--folder=/gateway/conf", "--once"} <= set(first)
        assert "--metrics-port=9905" in words(follows)
        for each in (first, words(follows)):
            assert {"--guard=gateway-guard:8090", "--limits=gateway-limits:8081"} <= set(each)
            checked = {"--envoy=/usr/local/bin/envoy", "--store=s3://audit/gateway"} <= set(each)
            assert checked is (name == "StatefulSet/gateway")


def test_envoy_starts_a_new_epoch_and_drains_before_it_ends() -> None:
    values = {"drain": {"wait_seconds": 7, "finish_seconds": 90}, "threads": 4}
    spec = pod("StatefulSet/gateway", **values)
    envoy = container(spec, "envoy")
    assert "random/uuid >/gateway/spool/epoch && exec" in envoy["command"][2]
    # Envoy does not know the form --name=value.
    line = " ".join(envoy["args"])
    assert line.startswith(
        "/usr/local/bin/envoy --config-path /gateway/conf/envoy.json --concurrency 4 "
    )
    for option in (
        "file-flush-interval-msec 1000",
        "file-flush-min-size-kb 4",
        "drain-time-s 30",
        "drain-strategy immediate",
    ):
        assert f" --{option} " in line
    assert envoy["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "stats"}
    drain = envoy["lifecycle"]["preStop"]["exec"]["command"]
    compile(drain[2], "drain.py", "exec")
    assert drain[3:] == ["/gateway/run/admin.sock", "7", "90"]
    assert spec["terminationGracePeriodSeconds"] > 7 + 90 + 20
    # Kubernetes ends them in the opposite order, after Envoy.
    assert [each["name"] for each in spec["initContainers"]] == ["first", "configure", "audit"]


def test_the_collector_is_told_what_it_takes() -> None:
    collector = container(pod("StatefulSet/gateway"), "audit")
    given = options().parse_args(collector["args"])
    assert (given.to, given.secrets) == ("s3://audit/gateway", "s3://audit/gateway")
    assert (str(given.spool), str(given.state)) == ("/gateway/spool", "/gateway/state")
    assert (given.port, str(given.key)) == (9903, "/etc/kuznia/audit/key.pem")
    assert not (given.ephemeral or given.copy or given.anchors)
    more = example("gateway", "route") | {"volume": {"size": ""}}
    collector = container(pod("StatefulSet/gateway", **more), "audit")
    given = options().parse_args(collector["args"])
    assert given.ephemeral and given.copy
    assert (given.anchors, given.secrets) == (
        "gs://kuznia-anchors/gateway",
        "gs://kuznia-names/gateway",
    )


def test_what_is_not_in_the_store_yet_outlives_its_pod() -> None:
    spec = made(volume={"size": "3Gi", "storageClass": "fast"})["StatefulSet/gateway"]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["resources"] == {"requests": {"storage": "3Gi"}}
    assert claim["spec"]["storageClassName"] == "fast"
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    spec = made(volume={"size": ""})["StatefulSet/gateway"]["spec"]
    assert "volumeClaimTemplates" not in spec
    assert {"name": "gateway", "emptyDir": {}} in spec["template"]["spec"]["volumes"]


def test_pods_are_confined() -> None:
    for name in (*PARTS, "StatefulSet/gateway-redis"):
        spec = pod(name, **example("gateway", "plain"))
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["topologySpreadConstraints"]
        for each in (*spec.get("initContainers", []), *spec["containers"]):
            assert each["imagePullPolicy"] == "IfNotPresent"
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["limits"]["memory"]


def test_secrets_are_named_never_made_and_mounted_only_where_they_are_used() -> None:
    values = example("gateway", "plain")
    assert "kind: Secret" not in text("gateway", SMALLEST | values)
    places = {
        "kuznia-audit": {"audit"},
        "gateway-tls": {"envoy"},
        "kuznia-guard": {"guard"},
        "kuznia-gateway": {"first", "configure", "audit"},
    }
    found: dict[str, set[str]] = {name: set() for name in places}
    for name in PARTS:
        spec = pod(name, **values)
        volumes = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
        for each in (*spec["initContainers"], *spec["containers"]):
            for mount in each["volumeMounts"]:
                if secret := volumes.get(mount["name"]):
                    found[secret].add(each["name"])
            for source in each.get("envFrom", []):
                found[source["secretRef"]["name"]].add(each["name"])
    assert found == places


def test_a_service_or_a_load_balancer_or_a_route_leads_to_envoy() -> None:
    service = made()["Service/gateway"]["spec"]
    assert service["type"] == "ClusterIP"
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    service = made(**example("gateway", "plain"))["Service/gateway"]["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert service["ports"] == [{"name": "https", "port": 443, "targetPort": "http"}]
    outside = {"type": "LoadBalancer", "annotations": {"ends-tls": "yes"}}
    service = made(service=outside)["Service/gateway"]["spec"]
    assert service["ports"] == [{"name": "http", "port": 443, "targetPort": "http"}]
    objects = made(**example("gateway", "route"))
    route = objects["HTTPRoute/gateway"]
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["parentRefs"][0]["name"] == "external"
    assert route["spec"]["hostnames"] == ["llm.example.org", "acme.llm.example.org"]
    (rule,) = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "gateway", "port": 80}]
    assert "HTTPRoute/gateway" not in made()


def test_every_service_finds_its_pods() -> None:
    objects = made()
    for label, name in NAMES.items():
        selector = objects[f"Service/{name}"]["spec"]["selector"]
        assert selector == {"app.kubernetes.io/name": label}
        (workload,) = (
            each
            for kind in ("Deployment", "StatefulSet")
            if (each := objects.get(f"{kind}/{name}"))
        )
        template = workload["spec"]["template"]
        assert template["metadata"]["labels"].items() >= selector.items()
        assert workload["spec"]["selector"]["matchLabels"] == selector
        ports = {p["name"] for c in template["spec"]["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in objects[f"Service/{name}"]["spec"]["ports"]} <= ports


def test_replicas_are_fixed_or_follow_the_load() -> None:
    assert made(replicas=3)["StatefulSet/gateway"]["spec"]["replicas"] == 3
    objects = made(**example("gateway", "route"))
    for name, kind, busy, most in (
        ("gateway", "StatefulSet", "envoy", 12),
        ("gateway-guard", "Deployment", "guard", 20),
    ):
        assert "replicas" not in objects[f"{kind}/{name}"]["spec"]
        assert objects[f"{kind}/{name}"]["metadata"]["annotations"] == {"kuznia.autoscaled": "true"}
        spec = objects[f"HorizontalPodAutoscaler/{name}"]["spec"]
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": kind, "name": name}
        assert (spec["minReplicas"], spec["maxReplicas"]) == (3, most)
        assert spec["metrics"][0]["containerResource"]["container"] == busy


def test_only_what_has_two_replicas_has_a_budget() -> None:
    budgets = {f"PodDisruptionBudget/{n}" for n in ("gateway", "gateway-guard", "gateway-limits")}
    assert budgets <= set(made())
    assert not budgets & set(made(**example("gateway", "small")))


def test_nobody_reaches_guard_limits_and_redis_but_who_asks_them() -> None:
    gateway = wall("gateway")
    assert gateway["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8080}]}]
    for name, caller, port in (
        ("gateway-guard", "gateway", 8090),
        ("gateway-limits", "gateway", 8081),
        ("gateway-redis", "gateway-limits", 6379),
    ):
        spec = wall(name)
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["ingress"] == [
            {
                "from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": caller}}}],
                "ports": [{"protocol": "TCP", "port": port}],
            }
        ]
    assert "egress" not in wall("gateway-redis")
    scraped = example("gateway", "route")
    assert "gmp-system" in json.dumps(wall("gateway-guard", **scraped)["ingress"][1:])
    (caller,) = wall("gateway", **scraped)["ingress"][0]["from"]
    assert "gateways" in json.dumps(caller)
    assert not [name for name in made(network={"enabled": False}) if "NetworkPolicy" in name]


def test_gateway_and_guard_reach_models_and_no_other_pod_of_a_tenant() -> None:
    models = {
        "to": [{"namespaceSelector": {"matchLabels": {"kuznia.workspace": "inference"}}}],
        "ports": [{"protocol": "TCP", "port": 8000}],
    }
    for name in ("gateway", "gateway-guard"):
        assert models in wall(name)["egress"]
    assert len(wall("gateway-guard")["egress"]) == 2
    ports = {p["port"] for rule in wall("gateway")["egress"] for p in rule["ports"]}
    assert ports == {53, 8000, 8090, 8081, 443}


def test_limits_read_what_the_configurer_writes_and_count_in_a_redis() -> None:
    limits = container(pod("Deployment/gateway-limits"), "limits")
    given = {each["name"]: each["value"] for each in limits["env"]}
    place = "/".join(given[key] for key in ("RUNTIME_ROOT", "RUNTIME_SUBDIRECTORY"))
    assert f"{place}/config/kuznia.yaml" == "/gateway/conf/limits/config/kuznia.yaml"
    assert given["REDIS_URL"] == "gateway-redis:6379"
    redis = container(pod("StatefulSet/gateway-redis"), "redis")
    assert redis["args"][:2] == ["--appendonly", "yes"]
    objects = made(**example("gateway", "route"))
    assert not [name for name in objects if "redis" in name]
    spec = objects["Deployment/gateway-limits"]["spec"]["template"]["spec"]
    limits = container(spec, "limits")
    given = {each["name"]: each["value"] for each in limits["env"]}
    assert (given["REDIS_URL"], given["REDIS_TLS"]) == ("redis.cache:6380", "true")
    assert limits["envFrom"] == [{"secretRef": {"name": "redis"}}]


def test_a_store_on_a_claim_is_mounted_where_it_is_used() -> None:
    spec = pod("StatefulSet/gateway", **example("gateway", "small"))
    for name, expected in (("first", True), ("configure", True), ("audit", True), ("envoy", False)):
        assert ("/storage" in mounts(container(spec, name))) is expected


def test_the_guard_is_told_what_it_takes() -> None:
    guard = container(pod("Deployment/gateway-guard", **example("gateway", "plain")), "guard")
    given = guard_options(guard["args"])
    assert (str(given.config), given.port) == ("/gateway/conf/guard.json", 8090)
    assert (str(given.keys), given.content) == ("/etc/kuznia/pseudonyms", None)
    assert not {"env", "envFrom"} & set(guard)
    values = example("gateway", "route") | {"secret": "store"}
    spec = pod("Deployment/gateway-guard", **values)
    guard = container(spec, "guard")
    given = guard_options(guard["args"])
    assert given.content == "gs://kuznia-content/gateway"
    assert given.content_keys == "gs://kuznia-content-keys/gateway"
    assert guard["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert spec["serviceAccountName"] == "gateway"
    assert len(wall("gateway-guard", **values)["egress"]) == 4


@pytest.mark.parametrize("chart", ["shared", "workspace", "vllm"])
def test_every_chart_takes_the_images_that_are_printed(chart: str) -> None:
    names = set(NAMES_OF_IMAGES) - {"torch"}
    printed = {name: f"registry.example.org/{name}@sha256:1" for name in names}
    assert text(chart, {"images": printed}).strip() == ""


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"store": ""}, "store is not set; set access.store in argocd/registry/platform.yaml"),
    (
        {"store": "file:///storage/log"},
        "store: file:///storage/log is on a volume claim; set claim to its name",
    ),
    (
        {"guard": {"content": "s3://content"}},
        "guard.content and guard.content_keys go together; add the other",
    ),
    (
        {"guard": {"content": "s3://content", "content_keys": "s3://content"}},
        "guard.content_keys: s3://content is where the content is; name another store",
    ),
    (
        {"guard": {"content": "file:///storage/c", "content_keys": "s3://keys"}},
        "guard.content is not kept on a claim; name a store with s3:// or gs://",
    ),
    (
        {"route": {"parentRefs": [{"name": "external"}]}, "tls": "tls"},
        "route: the Gateway it names ends TLS and would not trust ours; remove tls, or route",
    ),
    (
        {"service": {"type": "LoadBalancer"}},
        "service.type: LoadBalancer without tls would take keys in the clear; set tls, or "
        "annotations that end TLS at the load balancer",
    ),
    (
        {"autoscaling": {"most": 1}},
        "autoscaling.most: 1 is below replicas: 2; raise it",
    ),
    (
        {"guard": {"replicas": 4, "autoscaling": {"most": 3}}},
        "guard.autoscaling.most: 3 is below guard.replicas: 4; raise it",
    ),
    (
        {"redis": {"url": "redis.cache:6379"}},
        "redis.url: redis.cache:6379 cannot be reached; allow it in network.redis",
    ),
    (
        {"redis": {"tls": True}},
        "redis.tls and redis.secret are for redis.url; set it, or remove them",
    ),
]


def said(values: dict[str, Any]) -> str:
    with pytest.raises(AssertionError) as caught:
        text("gateway", SMALLEST | values)
    return str(caught.value)


@pytest.mark.parametrize(("values", "fault"), REFUSALS, ids=lambda each: str(each)[:30])
def test_wrong_values_are_refused(values: dict[str, Any], fault: str) -> None:
    assert f"gateway: {fault}\n" in said(values) + "\n"


def test_all_faults_are_named_at_once() -> None:
    found = said({"store": "", "redis": {"tls": True}, "autoscaling": {"most": 1}})
    assert found.count("gateway: ") >= 3


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"tables": {"8": "{}"}}, "additional properties '8' not allowed"),
        ({"store": "https://example.org"}, "at '/store'"),
        ({"service": {"type": "NodePort"}}, "at '/service/type'"),
        ({"redis": {"url": "redis://cache:6379"}}, "at '/redis/url'"),
    ],
)
def test_the_schema_refuses_what_is_no_value(values: dict[str, Any], fault: str) -> None:
    assert fault in said(values)
