"""What a run needs beside the nodes: MLflow, and the tables of the catalog."""

import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from data_catalog.checks.findings import Findings
from data_catalog.errors import CatalogError, name_first
from data_catalog.inspect.verification import verify
from data_catalog.storage.folders import Folder
from data_catalog.storage.node_probe import NeededFolder, reach
from experiments.experiment_config import ExperimentConfig
from experiments.planning.run_checks import check_run
from experiments.run.run_options import RunOptions
from stmi.uris import presentable_uri

_SECONDS = 10


def check_mlflow(
    uri: str | None, asks: Mapping[str, Callable[[str], str | None]], findings: Findings
) -> None:
    """Find out whether MLflow's server answers, from all nodes, and whether its artifacts can be reached.

    Args:
        uri: The server; a database, which the driver alone opens, is not asked.
        asks: Node to a function that says why a URL cannot be reached from there, None where it can.
        findings: Gets what is wrong.
    """
    if uri is None or not uri.startswith(("http://", "https://")):
        return
    shown = presentable_uri(uri)
    reasons = {node: reason for node, ask in asks.items() if (reason := ask(uri))}
    if reasons:
        reason = next(iter(reasons.values()))
        findings.error(
            "mlflow",
            f"{shown} cannot be reached from {name_first(list(reasons))} ({reason}); start the server where "
            "all nodes reach it, or name another with --tracking-uri",
        )
        return
    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get",
            params={"experiment_id": "0"},
            timeout=_SECONDS,
            **_authorization(),
        )
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            findings.error(
                "mlflow",
                f"{shown} lets nobody in without a right name and password ({answer.status_code}); set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            )
            return
        answer.raise_for_status()
        location = answer.json()["experiment"]["artifact_location"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        # The errors of `requests` name the address, with a password where it has one.
        reason = str(error).replace(uri.rstrip("/"), shown)
        findings.error(
            "mlflow", f"{shown} does not answer as MLflow does ({reason}); see the log of the server"
        )
        return
    _check_artifacts(shown, location, findings)


def _authorization() -> dict[str, Any]:
    """How MLflow's client says who asks, for `requests`, which itself takes what an address has of it."""
    user, password, token = (
        os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN")
    )
    if user and password:
        return {"auth": (user, password)}
    return {"headers": {"Authorization": f"Bearer {token}"}} if token else {}


def _check_artifacts(server: str, location: str, findings: Findings) -> None:
    """Find out whether a client, which writes artifacts itself unless the server does, can write there."""
    parts = urlsplit(location)
    if parts.scheme in ("mlflow-artifacts", "http", "https"):
        return
    if parts.scheme in ("", "file"):
        folder = Path(unquote(parts.path))
        # MLflow makes it when the first artifact is written.
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if existing in (Path("/"), Path()):
            findings.error(
                "mlflow_artifacts",
                f"{server} has its artifacts in {folder}, which this machine does not have; start the server "
                "with --artifacts-destination, so that it writes them itself",
            )
        return
    try:
        reach([NeededFolder("artifacts", location)])
    except CatalogError as error:
        findings.error(
            "mlflow_artifacts", f"{server} has its artifacts at {presentable_uri(location)}: {error}"
        )


def check_catalog(config: ExperimentConfig | None, options: RunOptions, findings: Findings) -> None:
    """Find out whether the tables of a run are there, and all bytes of the catalog as they were written.

    Args:
        config: The run; None to verify every data set of the catalog.
        options: Where catalog and workspace are.
        findings: Gets what is wrong.
    """
    try:
        if config is None:
            data_sets = Folder(options.catalog).list_folders()
        else:
            report = check_run(config, options.catalog, with_images=False)
            findings.errors += report.errors
            findings.warnings += report.warnings
            data_sets = [config.data.dataset]
        for name in data_sets:
            for fault in verify(options.catalog, name).errors:
                findings.error(
                    "catalog", f"{name}/{fault.table} {fault.shard or 'manifest.json'}: {fault.message}"
                )
    except CatalogError as error:
        findings.error("catalog", str(error))
