"""The files for `ray up`, as Ray itself reads them.

On AWS up to machines that moto makes, on Google up to the requests for machines.
"""

import itertools
import json
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import httplib2
import pytest
import ray.autoscaler
import yaml
from googleapiclient.discovery_cache import get_static_doc
from moto import mock_aws
from packaging.requirements import Requirement
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.pinned_versions import PINNED, PYPROJECT

ROOT = Path(__file__).parents[2]
CLOUDS = ["aws", "gcp"]
ACCOUNTS = itertools.count(100_000_000_001)
SECRET = re.compile(r"(?i)(access_key|password|secret|private_key)\w*['\"]?\s*[:=]")


def written(cloud):
    """What the file says."""
    return yaml.safe_load((ROOT / "cluster" / f"{cloud}.yaml").read_text(encoding="utf-8"))


def prepared(cloud):
    """The same with Ray's defaults."""
    return prepare_config(written(cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_file_has_only_fields_of_rays_schema(cloud):
    validate_config(prepared(cloud))
    # Ray's schema takes any other field of the provider too.
    schema = json.loads(
        (Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8")
    )
    assert written(cloud)["provider"].keys() <= schema["properties"]["provider"]["properties"].keys()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_idle_machines_end_and_as_many_stay_as_runs_ask_for(cloud):
    config = written(cloud)
    assert config["idle_timeout_minutes"] <= 10
    assert not config["provider"].get("cache_stopped_nodes", cloud == "aws"), "a stopped machine has a disk"
    worker = config["available_node_types"]["worker"]
    assert 0 < worker["min_workers"] < worker["max_workers"] <= config["max_workers"]
    shown = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8").partition("ray up cluster")[2]
    asked = re.search(r"--workers (\d+)", shown)[1]
    assert int(asked) <= worker["min_workers"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_asks_for_a_token_and_shows_its_pages_on_loopback_only(cloud):
    config = written(cloud)
    environment, *_ = config["setup_commands"]
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in environment
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    for name in ("STMI_WORKSPACE", "MLFLOW_TRACKING_URI"):
        assert f"export {name}=" in environment
    assert not SECRET.search((ROOT / "cluster" / f"{cloud}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_machines_get_the_projects_packages_in_its_versions(cloud):
    config = written(cloud)
    mounts = config["file_mounts"]
    _, uv, environment, torch, packages = map(shlex.split, config["setup_commands"])
    assert uv[-1] == f"uv=={PINNED['uv']}"
    assert environment[environment.index("--python") + 1] == PYPROJECT["tool"]["mypy"]["python_version"]
    for command in (torch, packages):
        constraints = command[command.index("--constraint") + 1]
        assert ROOT / mounts[constraints] == ROOT / "cluster" / "constraints.txt"
    assert ROOT / mounts[packages[packages.index("--requirements") + 1]] == ROOT / "pyproject.toml"
    extras = [value for option, value in itertools.pairwise(packages) if option == "--extra"]
    assert extras == [cloud, "postgresql"]
    for requirement in (*torch[torch.index("setuptools") :], *required(*extras)):
        assert Requirement(requirement).name.lower().replace("_", "-") in PINNED


def required(*extras):
    """What the project asks for with some extras."""
    project = PYPROJECT["project"]
    return project["dependencies"] + [
        one for name in extras for one in project["optional-dependencies"][name]
    ]


def test_the_two_clouds_differ_only_in_what_is_theirs():
    aws, gcp = written("aws"), written("gcp")
    for field in ("max_workers", "idle_timeout_minutes", "file_mounts", "head_start_ray_commands"):
        assert aws[field] == gcp[field]
    assert aws["worker_start_ray_commands"] == gcp["worker_start_ray_commands"]
    assert aws["setup_commands"][1:-1] == gcp["setup_commands"][1:-1]


@pytest.fixture
def aws_account(monkeypatch, tmp_path):
    """An account of moto's AWS: gives the file, with the network of the account, and a client."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray makes a key for SSH there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    # The state of moto is that of the whole process, and the S3 server of other tests is a part of it.
    monkeypatch.setenv("MOTO_ACCOUNT_ID", str(next(ACCOUNTS)))
    config, mock = prepared("aws"), mock_aws()
    mock.start(reset=False)
    try:
        ec2 = boto3.client("ec2", config["provider"]["region"])
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=network, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        # Machines in it would get public addresses if the file did not refuse them.
        ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        group = ec2.create_security_group(GroupName="stmi", Description="stmi", VpcId=network)["GroupId"]
        for kind in config["available_node_types"].values():
            (interface,) = kind["node_config"]["NetworkInterfaces"]
            interface |= {"SubnetId": subnet, "Groups": [group]}
            profile = kind["node_config"]["IamInstanceProfile"]["Name"]
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        yield config, ec2
    finally:
        mock.stop(remove_data=False)


def test_machines_of_aws_are_private_have_a_role_and_workers_are_spot(aws_account):
    config, ec2 = aws_account
    groups = ec2.describe_security_groups()["SecurityGroups"]
    config = AWSNodeProvider.bootstrap_config(config)
    assert ec2.describe_security_groups()["SecurityGroups"] == groups, (
        "Ray's own group lets SSH in from anywhere"
    )
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        made = provider.create_node(kind["node_config"], {"ray-node-type": name, "ray-launch-config": "0"}, 1)
        (machine,) = ec2.describe_instances(InstanceIds=list(made))["Reservations"][0]["Instances"]
        assert "PublicIpAddress" not in machine
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/stmi-{name}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine.get("InstanceLifecycle") == ("spot" if name == "worker" else None)
        (interface,) = machine["NetworkInterfaces"]
        assert [group["GroupName"] for group in interface["Groups"]] == ["stmi"]


def test_a_worker_of_aws_has_one_gpu(aws_account):
    config, ec2 = aws_account
    kind = config["available_node_types"]["worker"]["node_config"]["InstanceType"]
    (known,) = ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    assert sum(gpu["Count"] for gpu in known["GpuInfo"]["Gpus"]) == 1


class Google:
    """Answers requests as Google's services do, and keeps those that ask for a machine."""

    def __init__(self):
        self.machines = []
        self.roles = []

    def answer(self, method, path, body):
        done = {"name": "operation", "status": "DONE"}
        if method == "POST" and path.endswith("/instances"):
            self.machines.append(body)
            return done
        if path.endswith(":setIamPolicy"):
            self.roles += [one["role"] for one in body["policy"]["bindings"]]
        answers = {
            ":getIamPolicy": {"bindings": []},
            ":setIamPolicy": {},
            "/setCommonInstanceMetadata": done,
            "/operations/operation": done,
            "/compute/v1/projects/my-project": {"name": "my-project", "commonInstanceMetadata": {}},
            "/v1/projects/my-project": {"projectId": "my-project", "lifecycleState": "ACTIVE"},
        }
        if "/serviceAccounts/" in path:
            return {"projectId": "my-project", "email": path.rpartition("/")[2]}
        return next(answer for end, answer in answers.items() if path.endswith(end))


@pytest.fixture
def google(monkeypatch, tmp_path):
    """Google's services, answered here."""
    google = Google()

    def request(self, uri, method="GET", body=None, **_):
        answer = google.answer(method, urlsplit(uri).path, json.loads(body) if body else None)
        return httplib2.Response({"status": "200"}), json.dumps(answer).encode()

    monkeypatch.setattr(httplib2.Http, "request", request)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray makes a key for SSH there
    return google


def check_fields(value, name, schemas):
    """Refuse fields that a message of Google's API does not have, and values outside its enumerations."""
    for field, part in value.items():
        known = schemas[name]["properties"].get(field)
        assert known is not None, f"{name} has no field {field}"
        known = known.get("items", known) if isinstance(part, list) else known
        for one in part if isinstance(part, list) else [part]:
            assert "enum" not in known or one in known["enum"], f"{name}.{field}: {one}"
            if "$ref" in known:
                check_fields(one, known["$ref"], schemas)


def test_machines_of_google_are_private_have_an_account_and_workers_are_spot(google):
    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]
    config = prepared("gcp")
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "made-up"}
    config = GCPNodeProvider.bootstrap_config(config)
    provider = GCPNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        # As `ray up` makes the head: with the account that Ray has made for it.
        node_config = (config["head_node"] if name == "head" else {}) | kind["node_config"]
        provider.create_node(node_config, {"ray-node-type": name, "ray-node-name": name}, 1)
    head, worker = google.machines
    for machine in (head, worker):
        check_fields(machine, "Instance", schemas)
        (interface,) = machine["networkInterfaces"]
        assert interface.keys() == {"subnetwork"}, "accessConfigs is a public address"
    assert (
        worker["scheduling"] | {"provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE"}
        == worker["scheduling"]
    )
    assert "scheduling" not in head
    accounts = [machine["serviceAccounts"][0]["email"].partition("@")[0] for machine in (head, worker)]
    assert accounts == ["ray-autoscaler-sa-v1", "stmi-worker"]
    assert "roles/compute.admin" in google.roles


def test_an_unknown_field_of_a_machine_of_google_is_found():
    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]
    for field, value in (("preemptable", True), ("provisioningModel", "CHEAP")):
        with pytest.raises(AssertionError, match=field):
            check_fields({"scheduling": {field: value}}, "Instance", schemas)
