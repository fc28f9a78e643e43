"""The one Ray session of a process: a cluster that is joined, or a Ray of its own."""

import logging
import os
import socket

from data_catalog.errors import CatalogError


def ensure_ray(include_dashboard: bool = False) -> None:
    """Join the Ray session of this process, or start one.

    A process can hold one session only, so a caller who wants other settings starts Ray before. With
    `RAY_ADDRESS` set that cluster is joined, otherwise Ray runs on this machine for as long as this process.
    Workers import from where `PYTHONPATH` says here.

    Args:
        include_dashboard: Start its dashboard (on loopback) too, where Ray is started.

    Raises:
        CatalogError: If no cluster answers at `RAY_ADDRESS`.
    """
    import ray  # noqa: PLC0415 - starting Ray's imports takes seconds that `show` and `--help` need not pay

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # From 2.59 on Ray asks for a token wherever a token file happens to lie in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        port = None
        if include_dashboard:
            port = _free_port()
            # Ray's own processes inherit this. They would look for a dashboard on all of the machine, and
            # give up where a second Ray runs there.
            os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        ray.init(
            address=address,
            include_dashboard=include_dashboard,
            dashboard_port=port,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        return
    # The cluster was started without it. A submitted job brings its tree and what workers need to find it.
    path = None if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else os.environ.get("PYTHONPATH")
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError) as error:
        raise CatalogError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start one, or unset RAY_ADDRESS "
            "to run on this machine"
        ) from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
