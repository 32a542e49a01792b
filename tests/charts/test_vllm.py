"""The chart helm/vllm: nothing by default, what each value does, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

from kuznia.contracts.base import Contract
from kuznia.contracts.release import Autoscaling, Release
from tests.charts.charts import (
    Objects,
    check,
    example,
    examples,
    folder,
    lint,
    load,
    refusal,
    render,
)
from workflows.environments import ROOT, python_of, variables_of

SMALLEST = {
    "tenant": "acme",
    "model": "support",
    "release": "production",
    "version": "3f9a6c0d1e2b",
    "digest": "3f9a6c0d1e2b" + "0" * 52,
    "uri": "s3://models/acme/support/3f9a6c0d1e2b",
    "base": "tiny",
}
ADAPTER = {
    "mode": "adapter",
    "base_uri": "s3://models/bases/tiny",
    "base_digest": "1" * 64,
    "lora_rank": 8,
}
GPU = {
    "hardware": "l4",
    "gpu_classes": {
        "l4": {
            "memory_gib": 22.4,
            "node_selector": {"gpu": "l4"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        }
    },
}
SCALED = {"autoscaling": {"most": 4}, "prometheus": "http://prometheus:9090"}
NAME = "support-production"
PLACE = "vllm acme/support production: "
PARSER = Path(__file__).parent / "parse_arguments.py"


def made(**values: Any) -> Objects:
    return render("vllm", SMALLEST | values)


def deployment(**values: Any) -> dict[str, Any]:
    name = f"Deployment/support-{values.get('release', 'production')}"
    found: dict[str, Any] = made(**values)[name]["spec"]
    return found


def pod(**values: Any) -> dict[str, Any]:
    found: dict[str, Any] = deployment(**values)["template"]["spec"]
    return found


def server(**values: Any) -> dict[str, Any]:
    (found,) = pod(**values)["containers"]
    return dict(found)


def fetch(**values: Any) -> dict[str, Any]:
    (found,) = pod(**values)["initContainers"]
    return dict(found)


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", [])}


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {each["mountPath"]: each["name"] for each in container["volumeMounts"]}


@pytest.mark.parametrize("name", [[], *([name] for name in examples("vllm"))])
def test_the_chart_passes_helms_strictest_look(name: list[str]) -> None:
    assert not lint("vllm", *name)


@pytest.mark.parametrize("name", examples("vllm"))
def test_kubernetes_knows_every_field_of_every_example(name: str) -> None:
    objects = render("vllm", load(folder("vllm") / "ci" / name))
    assert len(objects) >= 5
    check(objects)


def test_without_a_tenant_nothing_is_rendered() -> None:
    assert render("vllm", {}) == {}


def test_the_release_file_is_a_values_file() -> None:
    values = load(folder("vllm") / "values.yaml")
    schema = json.loads((folder("vllm") / "values.schema.json").read_text("utf-8"))
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, field in Release.model_fields.items():
        default = "" if field.is_required() else field.get_default()
        if isinstance(default, Contract):
            default = default.model_dump(exclude_none=True)
        assert values[name] == (list(default) if isinstance(default, tuple) else default), name
        if closed := schema["properties"][name].get("enum"):
            assert tuple(closed) == get_args(field.annotation)
    autoscaling = schema["properties"]["autoscaling"]
    assert set(autoscaling["properties"]) == set(Autoscaling.model_fields)


@pytest.mark.parametrize("tenant", ["acme", "globex"])
def test_the_generated_values_are_the_charts(tenant: str) -> None:
    values = load(ROOT / "argocd" / "generated" / tenant / "values" / "vllm.yaml")
    assert render("vllm", SMALLEST | values)


def test_all_of_a_release_is_named_after_it_in_the_tenants_namespace() -> None:
    objects = made(**ADAPTER, **SCALED, replicas=2)
    kinds = "ConfigMap Deployment NetworkPolicy PodDisruptionBudget ScaledObject Service"
    assert {name.partition("/")[0] for name in objects} == {*kinds.split(), "ServiceAccount"}
    for each in objects.values():
        assert each["metadata"]["name"] == NAME
        assert each["metadata"]["namespace"] == "acme-inference"
        labels = each["metadata"]["labels"]
        assert labels.items() >= deployment()["selector"]["matchLabels"].items()
        assert ("kuznia.version" in labels) == (each["kind"] == "Deployment")


def test_a_new_version_makes_new_pods_behind_the_same_selector() -> None:
    newer = {"version": "a" * 12, "digest": "a" * 64}
    old, new = deployment(), deployment(**newer)
    before, after = made(), made(**newer)
    assert {name for name in before if before[name] != after[name]} == {f"Deployment/{NAME}"}
    assert old["selector"] == new["selector"]
    assert old["template"]["metadata"] != new["template"]["metadata"]
    service = made()[f"Service/{NAME}"]["spec"]
    assert service["selector"] == old["selector"]["matchLabels"]
    assert service["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]
    assert new["template"]["metadata"]["labels"]["kuznia.version"] == "a" * 12
    for spec in (old, new):
        assert not any("version" in key for key in spec["selector"]["matchLabels"])


def test_the_pod_checks_what_its_own_template_says() -> None:
    template = deployment()["template"]
    assert json.loads(template["metadata"]["annotations"]["kuznia.release.json"]) == {
        **{key: SMALLEST[key] for key in SMALLEST if key != "base"},
        "mode": "merged",
        "base_uri": None,
        "base_digest": None,
        "answers_uri": None,
        "answers_sha256": None,
    }
    container = fetch()
    assert container["image"].startswith("kuznia/platform:")
    assert [*container["command"], *container["args"]] == [
        *("python", "-m", "steps.fetch_model", "--release=/etc/kuznia/release.json"),
        *("--keys=/etc/kuznia/keys", "--into=/models"),
    ]
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    assert volumes["release"]["downwardAPI"]["items"] == [
        {
            "path": "release.json",
            "fieldRef": {"fieldPath": "metadata.annotations['kuznia.release.json']"},
        }
    ]
    assert mounts(container)["/etc/kuznia/keys"] == "keys"
    assert volumes["keys"] == {"name": "keys", "configMap": {"name": NAME}}


def test_keys_are_no_part_of_the_template_so_that_a_withdrawn_one_opens_no_pod() -> None:
    keys = ["-----BEGIN PUBLIC KEY-----\none", "-----BEGIN PUBLIC KEY-----\ntwo"]
    assert made()[f"ConfigMap/{NAME}"]["data"] == {}
    objects = made(signing_keys=keys)
    assert list(objects[f"ConfigMap/{NAME}"]["data"].values()) == keys
    assert objects[f"Deployment/{NAME}"]["spec"] == deployment()


def test_a_pod_is_confined() -> None:
    for values in ({}, {"engine": "llamafactory"}, {"weights": "stream"} | GPU):
        spec = pod(**values)
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["serviceAccountName"] == NAME
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["initContainers"], *spec["containers"]):
            assert container["imagePullPolicy"] == "IfNotPresent"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"/tmp", "/kuznia/work"} <= set(mounts(container))
    assert made()[f"ServiceAccount/{NAME}"]["automountServiceAccountToken"] is False


def test_keys_of_the_store_reach_only_who_reads_from_it() -> None:
    settings: dict[str, Any] = {"settings": {"AWS_REGION": "eu"}, "secret": "keys"}
    given = [{"secretRef": {"name": "keys", "optional": True}}]
    assert fetch(**settings)["envFrom"] == given
    assert environment(fetch(**settings)) == {"AWS_REGION": "eu"}
    assert "envFrom" not in server(**settings)
    assert "AWS_REGION" not in environment(server(**settings))
    settings["settings"]["HOME"] = "/root"
    streams = server(**settings, **GPU, weights="stream")
    assert streams["envFrom"] == given
    assert environment(streams).items() >= {"AWS_REGION": "eu", "HOME": "/tmp"}.items()
    assert len(environment(streams)) == len(streams["env"])


def test_ready_is_who_answers_as_recorded() -> None:
    container = server()
    probe = container["startupProbe"]
    assert probe["exec"]["command"] == [
        *("python3", "-m", "steps.prove", "--answers", "/models/answers.json"),
        *("--url", "http://127.0.0.1:8000", "--model", "acme/support"),
    ]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 900
    assert environment(container)["KUZNIA_PROVE_ENDS"] == "1"
    for name in ("readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": "http"}
    longer = server(start_seconds=3601)["startupProbe"]
    assert longer["periodSeconds"] * longer["failureThreshold"] >= 3601


def test_a_pod_ends_after_its_last_answer() -> None:
    spec = pod(drain={"wait_seconds": 20, "finish_seconds": 60})
    (container,) = spec["containers"]
    drain = container["lifecycle"]["preStop"]["exec"]["command"]
    assert drain[:3] == ["python3", "-m", "steps.drain"]
    assert drain[-4:] == ["--wait", "20", "--finish", "60"]
    assert "--enable-server-load-tracking" in container["args"]
    assert "--shutdown-timeout=60" in container["args"]
    assert spec["terminationGracePeriodSeconds"] > 20 + 60


def test_on_cpus_vllm_has_as_many_threads_as_the_pod_has_cores() -> None:
    container = server(cpu=2.5, cpu_burst=2, cpu_cache_gib=3)
    assert {"--dtype=float32", "--enforce-eager"} <= set(container["args"])
    variables = environment(container)
    assert variables["OMP_NUM_THREADS"] == "5"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environment(server(cpu=0.5))["OMP_NUM_THREADS"] == "1"


def test_amounts_become_requests_and_limits() -> None:
    values = {"cpu": 2, "cpu_burst": 1.5, "memory_gib": 4, "disk_gib": 2.5}
    for container in (fetch(**values), server(**values)):
        assert container["resources"] == {
            "requests": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "2560Mi"},
            "limits": {"cpu": "3", "memory": "4Gi", "ephemeral-storage": "2560Mi"},
        }


def test_a_gpu_class_gives_its_nodes_and_only_vllm_gets_the_gpus() -> None:
    values = GPU | {"gpus": 2}
    spec = pod(**values)
    assert spec["nodeSelector"] == {"gpu": "l4"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    container = server(**values)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in fetch(**values)["resources"]["limits"]
    assert "--tensor-parallel-size=2" in container["args"]
    assert not {"--dtype=float32", "--enforce-eager"} & set(container["args"])
    assert "OMP_NUM_THREADS" not in environment(container)
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert mounts(container)["/dev/shm"] == "shm"


@pytest.mark.parametrize(
    ("rank", "room"), [(1, 8), (8, 8), (9, 16), (64, 64), (300, 320), (321, 512), (512, 512)]
)
def test_an_adapter_is_served_beside_its_base_with_room_for_its_rank(rank: int, room: int) -> None:
    arguments = server(**ADAPTER | {"lora_rank": rank})["args"]
    assert {"--model=/models/base", "--enable-lora", f"--max-lora-rank={room}"} <= set(arguments)
    assert "--served-model-name=acme/support:base" in arguments
    assert "--max-loras=2" in arguments
    modules = arguments[arguments.index("--lora-modules") + 1 :]
    assert [json.loads(each) for each in modules] == [
        {"name": name, "path": "/models/version", "base_model_name": "acme/support:base"}
        for name in ("acme/support", "acme/support:production")
    ]


def test_a_release_answers_to_its_model_and_to_its_stage_and_counts_tokens() -> None:
    arguments = server(release="staging", arguments=["--seed=1"])["args"]
    assert arguments[-4:] == [
        *("--served-model-name", "acme/support", "acme/support:staging", "--seed=1"),
    ]
    assert "--enable-force-include-usage" in arguments


def test_streamed_weights_are_read_from_the_bucket() -> None:
    container = server(**GPU, weights="stream", gpus=2)
    assert {
        f"--model={SMALLEST['uri']}",
        "--load-format=runai_streamer",
        '--model-loader-extra-config={"distributed":true}',
    } <= set(container["args"])
    assert "--manifest-only" in fetch(**GPU, weights="stream")["args"]
    one = server(**GPU, weights="stream")["args"]
    assert not any(each.startswith("--model-loader-extra-config") for each in one)


def test_weights_by_gcs_fuse_are_mounted_where_vllm_looks() -> None:
    values = ADAPTER | {
        "weights": "fuse",
        "uri": "gs://models/acme/support/1",
        "base_uri": "gs://bases/tiny/2",
    }
    spec = pod(**values)
    volumes = {each["name"]: each.get("csi") for each in spec["volumes"]}
    for name, bucket, part in (
        ("version", "models", "acme/support/1"),
        ("base", "bases", "tiny/2"),
    ):
        assert volumes[name]["driver"] == "gcsfuse.csi.storage.gke.io"
        assert volumes[name]["readOnly"] is True
        attributes = volumes[name]["volumeAttributes"]
        assert attributes["bucketName"] == bucket
        assert f"only-dir:{part}" in attributes["mountOptions"].split(",")
        assert mounts(server(**values))[f"/models/{name}"] == name
        assert name not in mounts(fetch(**values)).values()
    annotations = deployment(**values)["template"]["metadata"]["annotations"]
    assert annotations["gke-gcsfuse/volumes"] == "true"
    assert "--manifest-only" in fetch(**values)["args"]


def test_a_claim_is_read_by_fetch_alone() -> None:
    values = {"uri": "file:///storage/store/version", "claim": "models"}
    assert mounts(fetch(**values))["/storage"] == "storage"
    assert "/storage" not in mounts(server(**values))
    volumes = {each["name"]: each for each in pod(**values)["volumes"]}
    assert volumes["storage"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


def test_compiled_kernels_are_kept_where_a_claim_is_given() -> None:
    volumes = {each["name"]: each for each in pod(cache_claim="kernels")["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "kernels"}
    assert environment(server())["VLLM_CACHE_ROOT"] == "/cache"
    assert mounts(server())["/cache"] == "cache"


def test_llama_factorys_server_answers_under_the_same_name_and_port() -> None:
    container = server(engine="llamafactory", arguments=["--template=smollm2"], **ADAPTER)
    assert container["image"].startswith("kuznia/train:")
    assert [*container["command"], *container["args"]] == [
        *("llamafactory-cli", "api", "--model_name_or_path=/models/base"),
        *("--infer_backend=huggingface", "--adapter_name_or_path=/models/version"),
        *("--infer_dtype=float32", "--template=smollm2"),
    ]
    variables = environment(container)
    assert (variables["API_MODEL_NAME"], variables["API_PORT"]) == ("acme/support", "8000")
    assert variables["LLAMAFACTORY_VERBOSITY"] == "WARN"
    assert "/dev/null" in container["startupProbe"]["exec"]["command"]
    for name in ("readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/v1/models", "port": "http"}


def test_a_rollout_starts_a_new_pod_first_or_ends_the_old_one_first() -> None:
    assert deployment()["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    assert deployment(rollout="recreate")["strategy"] == {"type": "Recreate"}
    spec = deployment(progress_deadline_seconds=600, min_ready_seconds=1)
    assert (spec["progressDeadlineSeconds"], spec["minReadySeconds"]) == (600, 1)


def test_replicas_are_fixed_or_follow_the_load() -> None:
    assert deployment(replicas=3)["replicas"] == 3
    objects = made(**SCALED, replicas=2)
    assert "replicas" not in objects[f"Deployment/{NAME}"]["spec"]
    annotations = objects[f"Deployment/{NAME}"]["metadata"]["annotations"]
    assert annotations["kuznia.autoscaled"] == "true"
    scaled = objects[f"ScaledObject/{NAME}"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": NAME}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 4)
    pods = '{namespace="acme-inference",pod=~"support-production-[0-9a-z]+-[0-9a-z]{5}"}'
    assert [
        (each["metricType"], each["metadata"]["query"], each["metadata"]["threshold"])
        for each in scaled["triggers"]
    ] == [
        ("AverageValue", f"sum(vllm:num_requests_waiting{pods})", "5"),
        ("Value", f"avg(vllm:kv_cache_usage_perc{pods})", "0.8"),
    ]


def test_kubernetes_own_autoscaler_is_the_other_way() -> None:
    objects = made(autoscaling={"most": 4, "waiting": 8, "cache": 0.75}, autoscaler="hpa")
    assert f"ScaledObject/{NAME}" not in objects
    spec = objects[f"HorizontalPodAutoscaler/{NAME}"]["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 4)
    assert [
        (each["pods"]["metric"]["name"], each["pods"]["target"]["averageValue"])
        for each in spec["metrics"]
    ] == [("vllm_num_requests_waiting", "8"), ("vllm_kv_cache_usage_perc", "750m")]


def test_only_two_replicas_have_a_budget() -> None:
    budget = f"PodDisruptionBudget/{NAME}"
    assert budget not in made()
    assert made(replicas=2)[budget]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("state", ["hibernated", "retired"])
def test_a_workspace_asleep_has_no_pods_and_keeps_the_rest(state: str) -> None:
    awake, asleep = made(**SCALED, replicas=2), made(**SCALED, replicas=2, state=state)
    assert set(awake) - set(asleep) == {f"ScaledObject/{NAME}", f"PodDisruptionBudget/{NAME}"}
    assert asleep[f"Deployment/{NAME}"]["spec"]["replicas"] == 0
    assert "kuznia.autoscaled" not in asleep[f"Deployment/{NAME}"]["metadata"]["annotations"]


def test_only_the_gateway_asks_and_nothing_but_the_store_is_asked() -> None:
    scraper = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    network = {"callers": ["gateway"], "scrapers": [scraper], "metadata_server": "169.254.169.252"}
    spec = made(gateway="edge", network=network)[f"NetworkPolicy/{NAME}"]["spec"]
    assert spec["podSelector"] == deployment()["selector"]
    gateway = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}},
        "podSelector": {
            "matchExpressions": [
                {"key": "app.kubernetes.io/name", "operator": "In", "values": ["gateway"]}
            ]
        },
    }
    ports = [{"protocol": "TCP", "port": 8000}]
    assert spec["ingress"] == [{"from": [gateway, scraper], "ports": ports}]
    dns, metadata, store = spec["egress"]
    assert {each["port"] for each in dns["ports"]} == {53}
    assert metadata["to"] == [{"ipBlock": {"cidr": "169.254.169.252/32"}}]
    assert store["ports"] == [{"protocol": "TCP", "port": 443}]
    assert "10.0.0.0/8" in store["to"][0]["ipBlock"]["except"]


def test_the_deployment_says_what_is_served() -> None:
    about = made(card="model-cards/acme/support/1.yaml")[f"Deployment/{NAME}"]["metadata"]
    assert about["annotations"] == {
        "kuznia.digest": SMALLEST["digest"],
        "kuznia.base": "tiny",
        "kuznia.card": "model-cards/acme/support/1.yaml",
    }


def test_images_and_accounts_are_the_platforms() -> None:
    values: dict[str, Any] = {
        "images": {"serve": "registry.example.org/serve@sha256:0123"},
        "service_account_annotations": {"iam": "serving"},
        "image_pull_secrets": [{"name": "registry"}],
    }
    assert server(**values)["image"] == values["images"]["serve"]
    account = made(**values)[f"ServiceAccount/{NAME}"]
    assert account["metadata"]["annotations"] == {"iam": "serving"}
    assert account["imagePullSecrets"] == [{"name": "registry"}]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"base": ""}, "base is not set; copy it from the version in the registry of models"),
    ({"release": ""}, "release is not set; --set release=..., as the release file's place says"),
    (
        {"digest": "a" * 64},
        "version 3f9a6c0d1e2b is not how digest aaaaaaaaaaaa... begins; copy both from one version",
    ),
    (ADAPTER | {"lora_rank": None}, "mode: adapter needs lora_rank; add it"),
    ({"lora_rank": 8}, "lora_rank belongs to mode: adapter; remove it"),
    (
        {"answers_uri": "s3://models/answers.json"},
        "answers_uri and answers_sha256 go together; add the other",
    ),
    (
        {"uri": "file:///data/version", "claim": "models"},
        "uri: file:///data/version is not on the claim; set file:///storage/...",
    ),
    (
        {"uri": "file:///storage/version"},
        "uri: file:///storage/version needs a claim; set claim to its name",
    ),
    (
        GPU | {"hardware": "h100"},
        "hardware: h100 is not open to the tenant; set cpu or l4, or add it to gpu_classes in "
        "argocd/registry/acme/tenant.yaml",
    ),
    (
        GPU | {"weights": "stream", "uri": "https://models.example.org/1"},
        "weights: stream reads from s3:// and gs:// alone, not from https://models.example.org/1; "
        "set weights: fetch",
    ),
    (
        GPU | ADAPTER | {"weights": "stream"},
        "weights: stream cannot bring an adapter; set weights: fetch, or serve a merged version",
    ),
    (
        {"weights": "stream"},
        "weights: stream needs a GPU class, whose image has the streamer; set weights: fetch",
    ),
    (
        GPU | {"weights": "stream", "engine": "llamafactory"},
        "weights: stream is vLLM's; set weights: fetch",
    ),
    (
        {"weights": "fuse"},
        f"weights: fuse reads from gs:// alone, not from {SMALLEST['uri']}; set weights: fetch",
    ),
    (
        {"memory_gib": 4, "cpu_cache_gib": 2},
        "memory_gib: 4 is too little on CPUs: vLLM takes 3 GiB and its cache 2; set 5 and what the "
        "weights take",
    ),
    (
        SCALED | {"replicas": 5},
        "autoscaling.most: 4 is below replicas: 5; raise it",
    ),
    (
        SCALED | {"engine": "llamafactory"},
        "autoscaling: LLaMA-Factory has no metrics of its load; remove it, or set engine: vllm",
    ),
    (
        {"autoscaling": {"most": 4}},
        "autoscaling: nobody knows the load; set prometheus to its address under serving in "
        "argocd/registry/platform.yaml",
    ),
    (
        {"settings": {"VLLM_SERVER_DEV_MODE": "1"}},
        "settings.VLLM_SERVER_DEV_MODE would change how vLLM is confined; remove it",
    ),
    (
        {"arguments": ["--trust-remote-code"]},
        "arguments: --trust-remote-code is refused, since it runs code that comes with the "
        "weights; remove it",
    ),
    (
        {"arguments": ["--enable_log_outputs"], "allowed_arguments": ["enable-log-outputs"]},
        "arguments: --enable-log-outputs is refused, since answers would be in the pod's log; "
        "remove it",
    ),
    (
        {"arguments": ["--api-key=secret"]},
        "arguments: --api-key is refused, since keys are the gateway's, and this one would leave "
        "/tokenize, /metrics and /invocations open; remove it",
    ),
    (
        {"arguments": ["--max-model-len=8192"]},
        "arguments: --max-model-len is the chart's; set context_length instead",
    ),
    ({"arguments": ["--port=80"]}, "arguments: --port is the chart's; remove it"),
    (
        {"arguments": ["--trust-remote"]},
        "arguments: --trust-remote is not among those that a release may set "
        "(helm/vllm/arguments.yaml); remove it, or ask the platform team to add it to "
        "allowed_arguments",
    ),
    (
        {"arguments": ["-tp=2"]},
        "arguments: -tp=2 is not of the form --name=value; correct it",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSALS, ids=lambda each: str(each)[:40])
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    place = PLACE if values.get("release", "set") else "vllm acme/support: "
    assert refusal("vllm", SMALLEST | values) == [place + message]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"model": "Support"}, "at '/model'"),
        ({"version": 123456789012}, "at '/version': got number, want string"),
        ({"signing_keys": ["-----BEGIN PRIVATE KEY-----\n"]}, "at '/signing_keys/0'"),
    ],
)
def test_the_schema_refuses_what_is_no_value(values: dict[str, Any], message: str) -> None:
    assert message in "\n".join(refusal("vllm", SMALLEST | values))


def test_all_faults_are_named_at_once() -> None:
    values = {"base": "", "hardware": "l4", "arguments": ["--port=80", "--x=1"]}
    assert len(refusal("vllm", SMALLEST | values)) == 4


def test_the_platform_team_opens_further_arguments() -> None:
    values = {"arguments": ["--max-log-len=0"], "allowed_arguments": ["max-log-len"]}
    assert server(**values)["args"][-1] == "--max-log-len=0"


@pytest.mark.slow
def test_vllm_understands_the_arguments_of_every_example() -> None:
    lines = {name: arguments_of(name) for name in examples("vllm")}
    llamafactory = lines.pop("llamafactory-values.yaml")
    parsed = parse("serve", lines)
    for name, found in parsed["lines"].items():
        values = load(folder("vllm") / "values.yaml") | example("vllm", name.split("-")[0])
        assert found["max_model_len"] == values["context_length"]
        assert found["shutdown_timeout"] == values["drain"]["finish_seconds"]
        assert found["generation_config"] == "vllm"
        assert found["trust_remote_code"] is False
        assert bool(found["enable_lora"]) is (values["mode"] == "adapter")
        names = found["served_model_name"] + [each["name"] for each in found["lora_modules"]]
        assert {"acme/support", f"acme/support:{values['release']}"} <= set(names)
        assert found["enable_force_include_usage"] is True
    known = load(folder("vllm") / "arguments.yaml")
    llamas = {"model-name-or-path", "adapter-name-or-path", "infer-backend"}
    listed = {*known["owned"], *known["never"], *known["vllm"]} - llamas
    assert listed <= {option.removeprefix("--") for option in parsed["options"]}
    parsed = parse("train", {"llamafactory": llamafactory})
    assert parsed["lines"]["llamafactory"] == {
        "model_name_or_path": "/models/version",
        "infer_backend": "huggingface",
        "infer_dtype": "float32",
        "template": "smollm2",
        "max_new_tokens": 256,
        "trust_remote_code": False,
    }


def arguments_of(name: str) -> list[str]:
    objects = render("vllm", load(folder("vllm") / "ci" / name))
    (found,) = (each for key, each in objects.items() if key.startswith("Deployment/"))
    arguments: list[str] = found["spec"]["template"]["spec"]["containers"][0]["args"]
    return arguments


def parse(image: str, lines: dict[str, list[str]]) -> dict[str, Any]:
    """What the real server's own parser makes of command lines."""
    done = subprocess.run(
        [python_of(image), PARSER, image],
        input=json.dumps(lines),
        env=os.environ | variables_of(image) | {"VLLM_NO_USAGE_STATS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
