"""Help and refused arguments of every command do without what takes seconds to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_catalog.commands import COMMANDS
from experiments import benchmark
from experiments.benchmarks import startup_benchmark
from experiments.benchmarks.startup_benchmark import CATALOG, REFUSED

ROOT = Path(__file__).parents[1]
SLOW = [
    "cv2",
    "matplotlib",
    "mlflow",
    "open_clip",
    "optuna",
    "pandas",
    "ray",
    "scipy",
    "torch",
    "torchvision",
]
MISSING = ("--catalog", "/nosuch/catalog")
CATALOG_REFUSED = {
    "synthesize": ("--out", "/nosuch", "--set", "nosuch=1"),
    "template": ("--out", "/nosuch"),
    "ingest": ("--source", "/nosuch", *MISSING),
    "masks": MISSING,
    "captions": MISSING,
    "text-features": MISSING,
    "view": ("--size", "64x32", *MISSING),
    "sheet": ("nosuch", "--out", "sheet.png", *MISSING),
    "show": ("nosuch", *MISSING),
    "checks": ("nosuch", *MISSING),
    "verify": ("nosuch", *MISSING),
}
# In one process, since a module that one command imports is there for all later ones: the first is to blame.
PROGRAM = """
import contextlib, importlib, io, json, sys
slow, commands = json.loads(sys.argv[1])
for module, arguments in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = importlib.import_module(module).main(arguments)
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([[module, *arguments], status, [name for name in slow if name in sys.modules]]))
"""


def imported_by(commands: list) -> list:
    """Each command, its exit status and which slow modules were imported by then."""
    given = json.dumps([SLOW, commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def module_of(script: str) -> str:
    return "data_catalog.__main__" if script == CATALOG else script.removesuffix(".py").replace("/", ".")


def test_help_and_refusals_do_not_import_what_takes_seconds():
    commands = []
    for script, refused in REFUSED.items():
        commands += [(module_of(script), ["--help"], 0), (module_of(script), refused, 2)]
    for command in COMMANDS:
        module = module_of(CATALOG)
        commands += [(module, [command.name, "--help"], 0)]
        commands += [(module, [command.name, *CATALOG_REFUSED[command.name]], 2)]
    found = imported_by([(module, arguments) for module, arguments, _ in commands])
    assert found == [[[module, *arguments], status, []] for module, arguments, status in commands]


def test_a_slow_import_would_be_found():
    ((_, status, slow),) = imported_by([("experiments.train", ["--json-schema"])])
    assert status == 0
    assert {"open_clip", "torch"} <= set(slow)


def test_every_script_is_measured():
    scripts = {
        str(path.relative_to(ROOT))
        for folder in ("experiments", "cluster")
        for path in (ROOT / folder).glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert scripts == REFUSED.keys() - {CATALOG}


def test_startup_is_measured_beside_the_import_of_torch(capsys, monkeypatch):
    monkeypatch.setattr(startup_benchmark, "REFUSED", {"cluster/local.py": ("check-upload", "/nosuch")})
    assert benchmark.main(["startup", "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (script,) = report["scripts"]
    assert script["script"] == "cluster/local.py"
    for name in ("help", "refusal"):
        ratio = script[f"{name}_seconds"] / report["import_torch_seconds"]
        assert script[f"{name}_ratio"] == pytest.approx(ratio)


def test_a_script_that_fails_is_not_measured(monkeypatch):
    monkeypatch.setattr(startup_benchmark, "REFUSED", {"cluster/local.py": ("--help",)})
    with pytest.raises(RuntimeError, match=r"cluster/local.py --help ended with 0"):
        startup_benchmark.startup(1)
