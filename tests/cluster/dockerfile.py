"""A Dockerfile without its engine: its instructions, and their execution in a root folder of Debian."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

PIP_SETTINGS = ("cert", "extra-index-url", "find-links", "index-url", "proxy", "timeout")
"""Settings of pip on this machine that say where packages come from."""
CERTIFICATES = "/etc/certificates-of-this-machine.pem"
"""Where the file that pip's setting `cert` names is in the image: the image has its own at the usual path."""


@dataclass(frozen=True)
class Instruction:
    """A keyword of a Dockerfile, and all that follows it."""

    keyword: str
    text: str


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a Dockerfile, with their lines joined and without comments."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "\\\0").split("\n")
    found = [line.replace("\\\0", "\\\n").partition(" ") for line in joined if line.strip()]
    return [Instruction(keyword, text.strip()) for keyword, _, text in found]


def missing_requirement() -> str | None:
    """Why nothing can be executed here; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    return None if shutil.which("debootstrap") else "debootstrap is not installed"


@dataclass
class Build:
    """An image in the making.

    Args:
        root: Folder of its files.
        context: Folder that COPY reads.
        arguments: Values of `--build-arg`.
    """

    root: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    command: str | None = None

    def execute(self, instruction: Instruction) -> None:
        """Execute an instruction as an engine does."""
        getattr(self, f"_{instruction.keyword.lower()}")(instruction.text)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the image, as its user and with its environment."""
        given = {"HOME": "/root" if self.user == "root" else f"/home/{self.user}", **_pip_environment()}
        if "PIP_CERT" in given:
            given["PIP_CERT"] = CERTIFICATES
        variables = [f"{name}={value}" for name, value in (given | self.variables | self.environment).items()]
        user = ["--userspec", self.user] if self.user != "root" else []
        inside = f"cd {shlex.quote(self.folder)} && {command}"
        with ExitStack() as mounted:
            for path in ("/proc", *_package_folders()):
                self._mount(path, mounted)
            return subprocess.run(
                ["chroot", *user, self.root, "/usr/bin/env", "-i", *variables, "/bin/sh", "-c", inside],
                check=False,
                capture_output=True,
                text=True,
                timeout=1800,
            )

    def _mount(self, path: str, mounted: ExitStack) -> None:
        inside = self.root / path.removeprefix("/")
        inside.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", path, inside], check=True)
        mounted.callback(subprocess.run, ["umount", "--lazy", inside], check=True)

    def _from(self, text: str) -> None:
        image, _, tag = text.partition(":")
        assert image == "debian"
        release = tag.removesuffix("-slim")
        command = ["debootstrap", "--variant=minbase", release, str(self.root)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:]
        # Other users than root may enter the image.
        self.root.chmod(0o755)
        # As the network of this machine asks for.
        shutil.copy("/etc/resolv.conf", self.root / "etc")
        if "PIP_CERT" in _pip_environment():
            shutil.copy(_pip_environment()["PIP_CERT"], self.root / CERTIFICATES.removeprefix("/"))

    def _arg(self, text: str) -> None:
        name, _, default = text.partition("=")
        self.variables[name] = self.arguments.get(name, default.strip('"'))

    def _env(self, text: str) -> None:
        for word in shlex.split(text):
            name, _, value = word.partition("=")
            self.environment[name] = value.replace("$PATH", self.environment["PATH"])

    def _workdir(self, text: str) -> None:
        self.folder = text
        (self.root / text.removeprefix("/")).mkdir(parents=True, exist_ok=True)

    def _copy(self, text: str) -> None:
        *sources, target = text.split()
        base = self.root / self.folder.removeprefix("/")
        for source in sources:
            path, goal = self.context / source, base / target
            if path.is_dir():
                shutil.copytree(path, goal, dirs_exist_ok=True)
            else:
                goal = goal / path.name if target.endswith("/") else goal
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, goal)

    def _run(self, text: str) -> None:
        done = self.run(text)
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    def _user(self, text: str) -> None:
        self.user = text

    def _cmd(self, text: str) -> None:
        self.command = text


def _pip_environment() -> dict[str, str]:
    command = [sys.executable, "-m", "pip", "config", "list"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^[\w:]+\.\.?([\w-]+)='(.*)'$", printed, flags=re.MULTILINE)
    return {f"PIP_{name.replace('-', '_').upper()}": value for name, value in found if name in PIP_SETTINGS}


def _package_folders() -> list[str]:
    """Folders of this machine from which pip takes packages."""
    words = " ".join(_pip_environment().values()).replace("file://", "").split()
    # Two levels: an index names its files relative to it, and `/opt` has folders of the image, too.
    return sorted({str(Path(*Path(word).parts[:3])) for word in words if Path(word).is_dir()})
