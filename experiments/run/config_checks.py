"""Whether a config fits its CLIP and its tables."""

import logging

import numpy as np
import torch

from data_catalog.checks.findings import Finding
from data_catalog.ray_session import ray_address
from data_catalog.views.training_view import ViewSettings
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.run_tables import RunTables, training_views
from stmi.clip.loading import LoadedClip
from stmi.feature_modulation import perturbation_probability
from stmi.kernels.capabilities import cpu_multiplies_bfloat16
from stmi.model import token_grid
from stmi.training import batch_plan
from stmi.training.batch_plan import BatchPlanError

logger = logging.getLogger(__name__)

LEAST_SEEN = 0.5
"""Share of the training rows that a run should see; below it, it is trained on another data set."""


def check_settings(config: ExperimentConfig, clip: LoadedClip) -> None:
    """Refuse a config that its CLIP cannot serve, before anything starts; warn of one that is very slow here.

    Raises:
        ConfigError: Names the setting, its value and what would fit.
    """
    try:
        token_grid(config.model, clip.model.visual.conv1.kernel_size[0])
        perturbation_probability(config.model.sfm, len(clip.model.visual.transformer.resblocks))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    attends = config.model.str.enabled or (
        config.model.chi.enabled and config.model.chi.mixer == "self_attention"
    )
    if attends and clip.embed_dim % config.model.str.heads:
        raise ConfigError(
            f"model.str.heads={config.model.str.heads} does not divide the token width {clip.embed_dim} "
            f"of model.clip.source={config.model.clip.source}; set a divisor of {clip.embed_dim}"
        )
    # Nothing is known here of the machines of a cluster.
    on_cpus = not torch.cuda.is_available() and ray_address() == "local"
    if config.train.precision == "bfloat16" and on_cpus and not cpu_multiplies_bfloat16():
        logger.warning(
            "train.precision=bfloat16: this CPU has no instructions for it and is some hundred times slower "
            "than in float32; set train.precision=float32"
        )
    if config.data.synthetic is not None:
        try:
            identities = np.arange(config.data.synthetic.train_identities)
            labels = dict.fromkeys(config.data.names, identities)
            batch_plan.plan_together(labels, config.data.shares, config.batch, config.seed, 0)
        except BatchPlanError as error:
            raise ConfigError(str(error)) from None


def check_tables(config: ExperimentConfig, clip: LoadedClip, tables: RunTables) -> None:
    """Refuse a config that its tables cannot serve, before any training starts.

    Raises:
        ConfigError: Names the setting, its value and what would fit.
    """
    size = (config.model.image.height, config.model.image.width)
    for table in tables.views.values():
        view = ViewSettings.model_validate(table.manifest.settings)
        is_other_text = config.model.text.enabled and view.text_dim != clip.embed_dim
        if (view.height, view.width) != size or is_other_text:
            raise ConfigError(
                f"view {table.path} holds images of {(view.height, view.width)} and text features of width "
                f"{view.text_dim}; the config asks for model.image={size}, and "
                f"model.clip.source={config.model.clip.source} has width {clip.embed_dim}; make such a view "
                f"(`python -m data_catalog text-features`, then `view --size {size[0]}x{size[1]}`), or "
                "change these settings"
            )
        if config.model.sfm.enabled and "masks" not in table.manifest.inputs:
            raise ConfigError(
                f"model.sfm is on, but view {table.path} was made without masks; make it with masks, or set "
                "model.sfm=off"
            )
    try:
        for finding in check_batches(config, tables):
            logger.warning("%s", finding.message)
    except BatchPlanError as error:
        raise ConfigError(f"data.placement={config.data.placement}: {error}") from None


def check_batches(config: ExperimentConfig, tables: RunTables) -> tuple[Finding, ...]:
    """What is to be borne in mind of the batches of a run.

    Raises:
        stmi.training.batch_plan.BatchPlanError: There are too few identities for a batch.
    """
    train = training_views(tables.views, config.data.names)
    share = BatchSchedule(train, config).seen_share(enough=LEAST_SEEN)
    if share >= LEAST_SEEN:
        return ()
    message = (
        f"the batches of all {config.train.epochs} epochs hold {share:.1%} of the {sum(map(len, train))} "
        "training rows: an epoch ends when fewer identities have rows left than a batch needs, and a few "
        "identities have most of the rows; lower batch.size, raise batch.samples_per_identity, or train more "
        "epochs"
    )
    return (Finding(check="rows_never_seen", message=message),)
