"""Environment variables that change what libraries do: set where the project depends on them, or removed."""

import os

from stmi.network import spare_loopback

REQUIRED = {
    # The older trainer neither reports nor fails as `experiments.run.workers` expects.
    "RAY_TRAIN_V2_ENABLED": "1",
    # Under `uv run` Ray would make an environment of its own for each worker, without the project's packages.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # The default polls the workers every two seconds, and a short epoch would wait for that.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # How long workers wait for CPUs and GPUs that others hold; some times in a row.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "225",
    # What nobody waits for, such as Ray's own statistics, fails without a traceback.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Tune would answer Ctrl-C by returning as if all were well.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Reports that wait in a buffer come too late to stop a weak trial.
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    # Tune's newer output prints a table at every start, also where it is to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # What MLflow sends in the background would count as logged, whether it arrives or not.
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
"""Set in every process of the project, whatever its user has set."""

SHARING = {
    # Threads that wait for each other soon sleep: beside other busy processes, spinning takes the processors
    # from those that are waited for. On two cores that another program keeps busy, two threads take 2.2 to
    # 2.3 times as long as alone (on another processor 7000 took 2.4 to 2.6), by OpenMP's own way took 6.9
    # times; alone 1.05 to 1.06 times its time (5000: 1.06 to 1.08; 15000: 0.99, but 2.9 beside the program).
    # With PASSIVE, sleeping at once, it was 1.9, and alone 1.24 times.
    "GOMP_SPINCOUNT": "6000",
    # Ray would give its workers 15: what all other processes of the same session or container leave. Beside
    # two busy threads on two cores, a run of 35 s had not trained a step after 200 s; so it takes 56 s.
    "RAY_worker_niceness": "0",
}
"""How processors are shared with other programs. Set in every process of the project, but a variable that its
user has set; the first counts as set with any of `WAITING`."""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""How threads of OpenMP wait."""

REMOVED = (
    # Tune and Ray Train refuse to run with them.
    "TUNE_RESULT_DIR",
    "RAY_AIR_LOCAL_CACHE_DIR",
    # Of an enclosing torchrun, at whose store the workers of a run would wait for each other.
    "TORCHELASTIC_USE_AGENT_STORE",
    # They make the float32 products of GPUs less exact than the recipe says.
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "NVIDIA_TF32_OVERRIDE",
    # Beside TORCH_FORCE_WEIGHTS_ONLY_LOAD nothing could be loaded at all.
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)
"""Removed from the environment of every process of the project."""

_READ = (
    *("RAY_", "TUNE_", "MLFLOW_", "STMI_", "DATA_CATALOG_", "OPTUNA_", "OPENAI_", "AWS_"),
    *("OMP_", "GOMP_", "KMP_"),
)
_READ_IN_ANY_CASE = ("http_proxy", "https_proxy", "all_proxy", "tmpdir")
"""Variables, or how they begin, for which empty means unset; CUDA_VISIBLE_DEVICES is none of them."""


def prepare_environment() -> None:
    """Make the environment one that the project can run in; call it before libraries are imported."""
    for name in [name for name, value in os.environ.items() if not value.strip()]:
        if name.startswith(_READ) or name.lower() in _READ_IN_ANY_CASE:
            del os.environ[name]
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(REQUIRED)
    for name, value in SHARING.items():
        if not os.environ.keys() & set(WAITING if name in WAITING else [name]):
            os.environ[name] = value
    spare_loopback(os.environ)
