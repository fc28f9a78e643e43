"""The manifests for KubeRay, as `kubectl kustomize` renders them.

What they say of Kubernetes and KubeRay is held against both schemas, what they run against the scripts.
"""

import functools
import gzip
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header

from tests.pinned_versions import PINNED, PYPROJECT
from tests.test_help_texts import MAINS
from tests.test_readmes import ParsedError, stop_after_parsing

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "kuberay"
RENDERED = [f"{folder}/{name}" for folder in ("overlays", "jobs") for name in ("cpu-test", "gpu", "spot")]
KUBERNETES = "1.33"

pytestmark = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="the manifests are rendered by kubectl, which is not installed"
)


@functools.cache
def render(name):
    """The documents of an overlay or a job."""
    command = ["kubectl", "kustomize", str(KUBERAY / name)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(name, kind):
    return [document for document in render(name) if document["kind"] == kind]


def pods(value, path=""):
    """Every pod that a document asks for, with where it stands."""
    if isinstance(value, dict):
        if "containers" in value:
            yield path, value
        for key, part in value.items():
            yield from pods(part, f"{path}.{key}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from pods(part, f"{path}[{number}]")


def all_pods(name):
    return [(document["kind"] + path, pod) for document in render(name) for path, pod in pods(document)]


def refuse_unknown_fields(schema):
    """A schema that takes no other fields than it names; Kubernetes would drop them without a word."""
    if isinstance(schema, dict):
        schema = {key: refuse_unknown_fields(part) for key, part in schema.items()}
        if "properties" in schema and schema.get("type", "object") == "object":
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [refuse_unknown_fields(part) for part in schema]
    return schema


def ray_schema(kind):
    file = SCHEMAS / f"{kind.lower()}s.v1.schema.json.gz"
    if not file.exists():
        pytest.skip(f"the schema of {kind} is not at hand")
    schema = refuse_unknown_fields(json.loads(gzip.decompress(file.read_bytes())))
    # The schema leaves these to Kubernetes itself.
    schema["properties"]["metadata"]["additionalProperties"] = True
    return schema


@pytest.mark.parametrize("name", RENDERED)
def test_documents_of_kubernetes_have_only_fields_that_it_knows(name):
    validate = pytest.importorskip("kubernetes_validate").validate
    plain = [document for document in render(name) if document["apiVersion"] != "ray.io/v1"]
    assert len(plain) >= 10
    for document in plain:
        validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RENDERED)
def test_documents_of_kuberay_have_only_fields_that_it_knows(name):
    kind = "RayCluster" if name.startswith("overlays") else "RayJob"
    (document,) = of_kind(name, kind)
    jsonschema.validate(document, ray_schema(kind))


def test_an_unknown_field_of_a_pod_is_found():
    (document,) = of_kind("overlays/gpu", "RayCluster")
    broken = json.loads(json.dumps(document))
    broken["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resource"):
        jsonschema.validate(broken, ray_schema("RayCluster"))


@pytest.mark.parametrize("name", RENDERED)
def test_pods_have_no_root_no_privilege_and_a_root_folder_that_is_read_only(name):
    found = all_pods(name)
    assert len(found) >= 4
    for path, pod in found:
        assert pod["securityContext"]["runAsNonRoot"], path
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), path
        assert not any("hostPath" in volume for volume in pod.get("volumes", ())), path
        for container in pod["containers"]:
            security = container["securityContext"]
            assert not security["allowPrivilegeEscalation"], path
            assert security["readOnlyRootFilesystem"], path
            assert security["capabilities"] == {"drop": ["ALL"]}, path
            assert "privileged" not in security, path


@pytest.mark.parametrize("name", RENDERED)
def test_containers_have_requests_limits_and_probes(name):
    for path, pod in all_pods(name):
        for container in pod["containers"]:
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][bound].keys(), path
            if pod.get("restartPolicy") != "Never":
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), path


@pytest.mark.parametrize("name", RENDERED)
def test_folders_that_are_written_are_volumes(name):
    for path, pod in all_pods(name):
        for container in pod["containers"]:
            places = {mount["mountPath"] for mount in container["volumeMounts"]}
            home = [one["value"] for one in container.get("env", ()) if one["name"] == "HOME"]
            assert {"/tmp", *home} <= places, path


@pytest.mark.parametrize("name", RENDERED)
def test_shared_memory_is_a_part_of_the_pods_memory(name):
    """What lies in /dev/shm counts as the pod's memory; Ray takes 30 % of it for the object store at most."""
    found = 0
    for path, pod in all_pods(name):
        for volume in pod.get("volumes", ()):
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                found += 1
                (container,) = pod["containers"]
                memory = container["resources"]["limits"]["memory"]
                shared = volume["emptyDir"]["sizeLimit"]
                assert 0.15 <= gibibytes(shared) / gibibytes(memory) <= 0.5, path
                assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"], path
    assert found


def gibibytes(size):
    return float(re.fullmatch(r"(\d+)Gi", size)[1])


@pytest.mark.parametrize("name", RENDERED)
def test_ray_asks_for_a_token(name):
    (document,) = of_kind(name, "RayCluster") or of_kind(name, "RayJob")
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", RENDERED)
def test_secrets_are_named_and_not_written(name):
    assert not of_kind(name, "Secret")
    for document in render(name):
        for match in re.finditer(
            r'"name": "(\w*(?:PASSWORD|TOKEN|SECRET|KEY)\w*)", "value"', json.dumps(document)
        ):
            pytest.fail(f"{document['kind']} has the value of {match[1]}")


@pytest.mark.parametrize("name", RENDERED)
def test_only_the_namespace_the_operator_and_a_labelled_ingress_may_connect(name):
    policies = {document["metadata"]["name"]: document["spec"] for document in of_kind(name, "NetworkPolicy")}
    assert policies["own-namespace-only"]["podSelector"] == {}, "all pods are isolated"
    senders = [
        sender for spec in policies.values() for rule in spec["ingress"] for sender in rule.get("from", [{}])
    ]
    assert sorted(map(str, senders)) == [
        "{'namespaceSelector': {'matchLabels': {'kubernetes.io/metadata.name': 'kuberay-operator'}}}",
        "{'namespaceSelector': {'matchLabels': {'stmi/ingress': 'true'}}}",
        "{'podSelector': {}}",
    ]
    for spec in policies.values():
        assert spec["policyTypes"] == ["Ingress"]


def test_mlflow_answers_to_the_name_that_runs_call_and_through_a_tunnel():
    """By MLflow's own rule."""
    (server,) = (
        pod["containers"][0] for where, pod in all_pods("overlays/cpu-test") if "Deployment" in where
    )
    (hosts,) = (word.split("=")[1].split(",") for word in server["args"] if "--allowed-hosts" in word)
    called = {
        urlsplit(variable["value"]).netloc
        for _, pod in all_pods("overlays/cpu-test")
        for container in pod["containers"]
        for variable in container.get("env", [])
        if variable["name"] == "MLFLOW_TRACKING_URI"
    }
    assert called
    for host in [*called, "localhost:8080", "127.0.0.1:5000"]:
        assert is_allowed_host_header(hosts, host), host
    assert not is_allowed_host_header(hosts, "rebound.example:5000")


def test_a_job_has_the_cluster_of_its_overlay_and_ends_it():
    for name in ("cpu-test", "gpu", "spot"):
        (cluster,), (job,) = of_kind(f"overlays/{name}", "RayCluster"), of_kind(f"jobs/{name}", "RayJob")
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]
        assert not of_kind(f"jobs/{name}", "RayCluster")
        assert job["spec"]["shutdownAfterJobFinishes"]
        assert job["spec"]["backoffLimit"] > 0


@pytest.mark.parametrize("name", [name for name in RENDERED if name.startswith("jobs")])
def test_command_of_a_job_is_accepted_by_its_script(name, monkeypatch):
    stop_after_parsing(monkeypatch)
    (job,) = of_kind(name, "RayJob")
    program, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "python"
    assert (ROOT / script).is_file()
    with pytest.raises(ParsedError):
        MAINS[Path(script).stem](arguments)
    # A run takes its workers from the nodes that are there when it begins.
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert int(arguments[arguments.index("--workers") + 1]) <= group["minReplicas"] == group["replicas"]


def test_versions_agree_with_those_of_the_project():
    version = PYPROJECT["project"]["version"]
    for name in RENDERED:
        (document,) = of_kind(name, "RayCluster") or of_kind(name, "RayJob")
        assert document["spec"].get("rayClusterSpec", document["spec"])["rayVersion"] == PINNED["ray"]
        images = {container["image"] for _, pod in all_pods(name) for container in pod["containers"]}
        kind = "cpu" if name.endswith("cpu-test") else "cuda"
        assert images == {"postgres:17", f"registry.example/stmi:{version}-{kind}"}


def test_gpu_workers_have_a_gpu_each_and_spot_workers_a_spot_node():
    for name in ("gpu", "spot"):
        (cluster,) = of_kind(f"overlays/{name}", "RayCluster")
        (group,) = cluster["spec"]["workerGroupSpecs"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert ("nodeSelector" in group["template"]["spec"]) == (name == "spot")
