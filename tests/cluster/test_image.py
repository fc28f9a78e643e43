"""The image of pods and containers: what its Dockerfile says, and its steps in a fresh Debian."""

import json
import re
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster.dockerfile import Build, missing_requirement, read_instructions
from tests.pinned_versions import PINNED, PYPROJECT

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
INSTRUCTIONS = read_instructions(DOCKERFILE)
COMPILERS = ("gcc", "g++", "cc", "clang", "nvcc")


def texts(keyword):
    return [instruction.text for instruction in INSTRUCTIONS if instruction.keyword == keyword]


def test_the_tags_in_its_header_are_those_of_the_manifests_and_of_this_version():
    named = re.findall(r"--tag (\S+)", DOCKERFILE.read_text(encoding="utf-8"))
    version = PYPROJECT["project"]["version"]
    assert named == [f"registry.example/stmi:{version}-{kind}" for kind in ("cuda", "cpu")]
    used = set()
    for name in ("cpu-test", "gpu", "spot"):
        for kind in ("overlays", "jobs"):
            path = ROOT / "cluster" / "kuberay" / kind / name / "kustomization.yaml"
            images = yaml.safe_load(path.read_text(encoding="utf-8")).get("images", [])
            used |= {f"{image['name']}:{image['newTag']}" for image in images}
    assert used == set(named)


def test_its_user_is_that_of_the_pods_and_no_root():
    cluster = (ROOT / "cluster" / "kuberay" / "base" / "raycluster.yaml").read_text(encoding="utf-8")
    (number,) = set(re.findall(r"runAsUser: (\d+)", cluster))
    assert f"--uid {number} " in texts("RUN")[0]
    assert texts("USER") == ["stmi"]


def test_every_package_is_held_to_the_tested_version():
    """Apart from the project itself, which is the one that is copied."""
    installs = [part for text in texts("RUN") for part in text.split("pip install")[1:]]
    *others, project = installs
    assert len(others) == 3
    assert all("--constraint cluster/constraints.txt" in part for part in others)
    assert "--no-deps" in project


def test_what_it_copies_is_the_whole_product():
    copied = {source for text in texts("COPY") for source in text.split()[:-1]}
    product = set(PYPROJECT["tool"]["mypy"]["files"])
    assert copied == product | {"cluster/constraints.txt", "pyproject.toml", "README.md", "LICENSE"}


@pytest.fixture(scope="module")
def image():
    if reason := missing_requirement():
        pytest.skip(f"no fresh Debian: {reason}")
    # Not below a folder of other tests: it has some gigabytes.
    with tempfile.TemporaryDirectory(prefix="stmi-image-", dir="/var/tmp") as folder:
        build = Build(Path(folder), ROOT)
        for instruction in INSTRUCTIONS:
            build.execute(instruction)
        yield build


def test_its_steps_work_in_a_fresh_debian_and_its_command_too(image):
    """Of the variant for CPUs all but the index of torch, which one names when it is built."""
    done = image.run(" ".join(json.loads(image.command)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "--workspace" in done.stdout


def test_its_versions_are_the_tested_ones(image):
    listed = json.loads(image.run("pip list --format json").stdout)
    versions = {package["name"].lower().replace("_", "-"): package["version"] for package in listed}
    assert {"torch", "ray", "sam2", "mlflow", "psycopg", "boto3"} <= versions.keys()
    different = {
        name: (version, PINNED[name])
        for name, version in versions.items()
        if name in PINNED and version.split("+")[0] != PINNED[name]
    }
    assert different == {}
    assert versions.keys() - PINNED.keys() <= {"pip", "setuptools", "wheel", "stmi"}


def test_its_user_owns_nothing_of_the_project_and_there_is_no_compiler(image):
    done = image.run(f"id -u; touch stmi/model.py; command -v {' '.join(COMPILERS)}")
    assert done.stdout.split() == ["1000"]
    assert "Permission denied" in done.stderr


def test_segmenter_method_and_platform_are_importable_in_it(image):
    done = image.run("python -c 'import sam2.build_sam, stmi, ray.train, mlflow, experiments.train, cv2'")
    assert done.returncode == 0, done.stderr
