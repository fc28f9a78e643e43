"""The trials of a sweep as an Optuna study: what was sampled, what was measured, what is sampled next.

The study in its storage is the sweep's only state, and a killed sweep continues from it. The storage does
not hold the sampler's state, so each trial is sampled as a function of the seed, the trial's number and the
trials before it. Only this file imports optuna.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Dialect, Engine, event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from data_catalog.errors import describe_cause
from data_catalog.storage.patience import Patience
from experiments.experiment_config import ConfigError, full_name
from experiments.studies.sweep.search_space import Space
from experiments.studies.sweep.stored_trials import StoredTrial, StoredTrials
from experiments.studies.sweep.sweep_result import State, SweepTrial
from stmi import keyed_random
from stmi.uris import without_credentials

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""Raised where the storage does not answer."""
FINGERPRINT = "stmi.sweep"
"""Attribute of the study with the sweep's fingerprint."""
OWNER = "stmi.folder"
"""Attribute of the study with the folder that it is run from."""
ATTEMPTS = 100
"""Samples in a row that may be impossible settings."""
_SQLITE = "sqlite"
METRIC_NAMES = ("validation mAP", "cost")


@dataclass(frozen=True)
class TrialFacts:
    """What is known of a trial before it runs.

    Attributes:
        run: Name of its run's folder.
        cost: Cost of training, in TFLOP.
    """

    run: str
    cost: float


class OptunaStudy:
    """The study, made where it is new.

    Args:
        url: URL of the storage, as SQLAlchemy takes it.
        name: Name of the study.
        fingerprint: Identifies the sweep; a study with another fingerprint is refused.
        space: What is searched.
        seed: Seed of the sampler.
        two_objectives: Search for a low cost as well as for a high mAP.
        owner: `id` and `path` of the folder whose claim keeps a second process away from the study. Another
            folder, in a workspace that shares the storage, is refused.
        stored: Where each trial is stored besides, and read from where the storage lacks it; or None.

    Raises:
        ConfigError: The storage cannot be opened, or holds another study of this name.
    """

    def __init__(
        self,
        url: str,
        name: str,
        fingerprint: str,
        space: Space,
        seed: int,
        two_objectives: bool = False,
        owner: Mapping[str, str] | None = None,
        stored: StoredTrials | None = None,
    ) -> None:
        self.stored = stored
        self.url = without_credentials(url)
        self.name = name
        self.space = space
        self.seed = seed
        up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        self.directions = [up, down] if two_objectives else [up]
        optuna.logging.set_verbosity(logging.WARNING)
        try:
            self._storage = optuna.storages.RDBStorage(url, engine_kwargs=_engine_options(url))
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, directions=self.directions, load_if_exists=True
            )
            if not url.startswith(_SQLITE):
                _wait_for_server(self._storage.engine, f"--study-storage {self.url}")
        except ImportError:
            raise ConfigError(
                f"--study-storage {self.url} needs the driver of its database, for example `pip install "
                "'psycopg[binary]'` for postgresql"
            ) from None
        except (*STORAGE_ERRORS, ValueError) as error:
            reason = describe_cause(error).replace(url, self.url)
            # A library may quote a URL that it cannot read, with a password in it.
            detail = (
                f": {reason}" if self.url == url or not isinstance(error, ArgumentError | ValueError) else ""
            )
            raise ConfigError(
                f"--study-storage {self.url} cannot be opened{detail}; expected a database's URL such as "
                "postgresql://user:password@host:5432/optuna"
            ) from None
        if owner is not None:
            self._belong_to(owner)
        # A study without trials was just made, here or by the same sweep before.
        is_other = self._study.user_attrs.get(FINGERPRINT, fingerprint) != fingerprint
        if (is_other and self._study.get_trials(deepcopy=False)) or self._study.directions != self.directions:
            raise ConfigError(
                f"study {name!r} in {self.url} is another sweep (recipe, settings, data, space, seed or "
                "objectives differ); give this one another --name"
            )
        self._study.set_user_attr(FINGERPRINT, fingerprint)
        with _without_experimental_warnings():
            self._study.set_metric_names(list(METRIC_NAMES[: len(self.directions)]))
        if stored is not None:
            self._exchange(stored)

    def __getstate__(self) -> dict[str, Any]:
        # Tune stores all that it is given on the disk, where no password of the storage may lie.
        return {"url": self.url, "name": self.name}

    def trials(self) -> list[SweepTrial]:
        """All trials, by number."""
        return [self._trial(stored) for stored in self._study.get_trials(deepcopy=False)]

    def ask(
        self, describe: Callable[[Mapping[str, Any]], TrialFacts], first: Mapping[str, Any] | None = None
    ) -> SweepTrial:
        """Sample a trial and store it as running.

        Args:
            describe: What is known of a trial with these values; raises ConfigError where they are
                impossible together, and others are sampled.
            first: Values of the first trial, where the space has them.

        Raises:
            ConfigError: `ATTEMPTS` samples in a row were impossible.
        """
        trials = self._study.get_trials(deepcopy=False)
        wrong: ConfigError | None = None
        for attempt in range(ATTEMPTS):
            sampled = self._sample(trials, attempt, first)
            try:
                known = describe(self.space.sample(sampled))
            except ConfigError as error:
                wrong = error
                continue
            # Sampled from a copy and stored in one call: a sweep that is killed here leaves a whole trial, or
            # none.
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=sampled.params,
                    distributions=sampled.distributions,
                    user_attrs={"run": known.run, "cost": known.cost},
                )
            )
            self._store(len(trials))
            return self.trials()[-1]
        raise ConfigError(
            f"{ATTEMPTS} samples in a row from the space were impossible settings: {wrong}; narrow the space "
            "with --search"
        )

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store a trial's validation mAP after an epoch; what is stored already is stored again."""
        self._storage.set_trial_intermediate_value(self._id(number), epoch, value)
        self._store(number)

    def finish(self, number: int, value: float) -> None:
        """Note a trial that was trained to its end."""
        cost = self._study.get_trials(deepcopy=False)[number].user_attrs["cost"]
        self._study.tell(number, [value, cost][: len(self.directions)])
        self._store(number)

    def prune(self, number: int) -> None:
        """Note a trial that was stopped early."""
        self._study.tell(number, state=TrialState.PRUNED)
        self._store(number)

    def fail(self, number: int, reason: str) -> None:
        """Note a trial that stopped itself.

        Its settings caused that, so others should be sampled. Optuna learns nothing from a failed trial, but
        ranks a pruned one below all finished ones; with two objectives it has no such order.
        """
        self._storage.set_trial_user_attr(self._id(number), "reason", reason)
        self._study.tell(number, state=TrialState.PRUNED if len(self.directions) == 1 else TrialState.FAIL)
        self._store(number)

    def crash(self, number: int, reason: str) -> None:
        """Note a trial whose process ended too often, which says nothing about its settings."""
        self._storage.set_trial_user_attr(self._id(number), "reason", reason)
        self._storage.set_trial_user_attr(self._id(number), "crashed", True)
        self._study.tell(number, state=TrialState.FAIL)
        self._store(number)

    def importance(self) -> dict[str, float]:
        """Share of each setting in what sets the best finished trials apart (PED-ANOVA), largest first.

        Empty where fewer than two trials are finished, or all have the same value.
        """
        values = {trial.value for trial in self.trials() if trial.value is not None}
        if len(values) < 2:
            return {}
        with warnings.catch_warnings():
            # It warns that low targets are best, and of settings that few trials have.
            warnings.simplefilter("ignore", UserWarning)
            shares = optuna.importance.get_param_importances(self._study, target=lambda t: -t.values[0])
        return {full_name(parameter): share for parameter, share in shares.items()}

    def _exchange(self, stored: StoredTrials) -> None:
        """Read the trials that the storage lacks, and store those that an older version did not."""
        known = self._study.get_trials(deepcopy=False)
        self._study.add_trials([_as_optuna(trial) for trial in stored.read(len(known))])
        for trial in known:
            # A kill may have come between the two, or the file was damaged.
            if not stored.has(as_stored := _as_stored(trial)):
                stored.write(as_stored)

    def _store(self, number: int) -> None:
        if self.stored is not None:
            self.stored.write(_as_stored(self._study.get_trials(deepcopy=False)[number]))

    def _belong_to(self, owner: Mapping[str, str]) -> None:
        known = self._study.user_attrs.get(OWNER, owner)
        if known["id"] != owner["id"]:
            raise ConfigError(
                f"study {self.name!r} in {self.url} is run from {known['path']}; from {owner['path']} too, "
                "each would run the other's trials: go on with the --workspace of the first, or give this "
                "one another --name"
            )
        # The folder may have been moved.
        self._study.set_user_attr(OWNER, dict(owner))

    def _sample(
        self, trials: Sequence[FrozenTrial], attempt: int, first: Mapping[str, Any] | None
    ) -> optuna.Trial:
        number = len(trials)
        seed = int(keyed_random.generator(self.seed, "sweep", number, attempt).integers(2**32))
        with _without_experimental_warnings():
            # Trials that run side by side must not all be sampled at the same point: the liar counts
            # those that still run as bad ones.
            sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
            copy = optuna.create_study(directions=self.directions, sampler=sampler)
        copy.add_trials(trials)
        if number == attempt == 0 and first is not None:
            enqueued = self.space.parameters(first)
            if enqueued is not None:
                copy.enqueue_trial(enqueued)
        sampled = copy.ask()
        self.space.sample(sampled)
        return sampled

    def _trial(self, stored: FrozenTrial) -> SweepTrial:
        state: State = _STATES[stored.state]
        # The reason is stored before the state: a trial that was killed in between has one, and goes on.
        is_ended = stored.state in (TrialState.FAIL, TrialState.PRUNED)
        reason = stored.user_attrs.get("reason") if is_ended else None
        if reason is not None:
            state = "crashed" if "crashed" in stored.user_attrs else "failed"
        return SweepTrial(
            number=stored.number,
            state=state,
            values=self.space.sample(stored),
            run=stored.user_attrs["run"],
            cost=stored.user_attrs["cost"],
            epochs=max(stored.intermediate_values, default=0),
            curve=dict(sorted(stored.intermediate_values.items())),
            value=stored.values[0] if stored.state == TrialState.COMPLETE else None,
            reason=reason,
        )

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)


_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def _as_stored(trial: FrozenTrial) -> StoredTrial:
    distributions = optuna.distributions.distribution_to_json
    return StoredTrial(
        number=trial.number,
        state=trial.state.name,
        values=trial.values,
        params=trial.params,
        distributions={name: distributions(one) for name, one in trial.distributions.items()},
        user_attrs=trial.user_attrs,
        intermediate_values={str(epoch): value for epoch, value in trial.intermediate_values.items()},
    )


def _as_optuna(stored: StoredTrial) -> FrozenTrial:
    distributions = optuna.distributions.json_to_distribution
    return create_trial(
        state=TrialState[stored.state],
        values=stored.values,
        params=stored.params,
        distributions={name: distributions(one) for name, one in stored.distributions.items()},
        user_attrs=stored.user_attrs,
        intermediate_values={int(epoch): value for epoch, value in stored.intermediate_values.items()},
    )


def _engine_options(url: str) -> dict[str, Any]:
    """Wait for a SQLite file that another process writes; test connections to a server, which may be dead."""
    return {"connect_args": {"timeout": 60}} if url.startswith(_SQLITE) else {"pool_pre_ping": True}


def _wait_for_server(engine: Engine, name: str) -> None:
    """Let an engine whose server has answered wait for it, where it is started anew.

    A connection that is dead is replaced by a new one, which is what waits.
    """
    patience = Patience(name)
    patience.ask(lambda: None)

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Dialect, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        def ask() -> Any:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                raise ConnectionError(describe_cause(error)) from error

        return patience.ask(ask)


@contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    """Silence the warning that an option of Optuna may change: versions are pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
