"""The space of a sweep: which settings are searched and between which ends."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import yaml

from experiments.experiment_config import UNDECIDING, ConfigError, ExperimentConfig, full_name
from experiments.recipes import ValueLoader, resolve, section_of
from stmi.config import ModelConfig, Switch

Kind = Literal["float", "log", "zero-or-log", "int", "choice"]

DEFAULT_SPACE = (
    "model.sfm.perturbation=zero-or-log:0.001:0.1",
    "model.str.tokens=int:1:16",
    "model.sfm.sharing=choice:all_layers,early_half,late_half,per_head,per_layer",
)
"""Of the SFM sweep; the paper varies the first two in figure 5 and the third in Table 5."""

FIXED = ("recipe", "seed", "data", "report", "train.workers", "model.image", "model.clip")
"""Settings that decide which tables a trial reads or how it is measured, or that are mere chance."""
BETWEEN = 0.618
"""Where a range is probed between its ends: numbers there are no whole ones where the ends are."""

PROBED = 64
"""An integer range of at most this many values is checked value by value."""


class Sampler(Protocol):
    """Samples values: an Optuna trial, or a stored one that reads back what was sampled."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between the ends."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """An integer between the ends."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...


@dataclass(frozen=True)
class Dimension:
    """A setting that is searched.

    Attributes:
        name: Full dotted name.
        kind: How it is sampled; `zero-or-log` is exactly 0 or, on a log scale, between the ends.
        low: Least value, where it is a number.
        high: Largest value.
        step: Between the values of an `int`.
        choices: Choices of a `choice`.
    """

    name: str
    kind: Kind
    low: float = 0
    high: float = 0
    step: int = 1
    choices: tuple[Any, ...] = ()

    def sample(self, sampler: Sampler) -> Any:
        """A value."""
        if self.kind == "choice":
            return sampler.suggest_categorical(self.stored_name, self.choices)
        if self.kind == "int":
            return sampler.suggest_int(self.stored_name, int(self.low), int(self.high), step=self.step)
        if self.kind == "zero-or-log" and sampler.suggest_categorical(self._is_zero, (True, False)):
            return 0.0
        return sampler.suggest_float(self.stored_name, self.low, self.high, log=self.kind != "float")

    def parameters(self, value: Any) -> dict[str, Any] | None:
        """The sampler's parameters that give this value; None where none do."""
        if self.kind == "choice":
            return {self.stored_name: value} if value in self.choices else None
        if self.kind == "zero-or-log" and value == 0:
            return {self._is_zero: True}
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.kind == "int" and (value - self.low) % self.step:
            return None
        return ({self._is_zero: False} if self.kind == "zero-or-log" else {}) | {self.stored_name: value}

    @property
    def probes(self) -> list[Any]:
        """Values that must be possible before a sweep starts: every choice, and the ends of a range."""
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            values = range(int(self.low), int(self.high) + 1, self.step)
            return list(values) if len(values) <= PROBED else [values[0], values[-1]]
        between = self.low + BETWEEN * (self.high - self.low)
        return [*([0.0] if self.kind == "zero-or-log" else []), self.low, between, self.high]

    @property
    def stored_name(self) -> str:
        """The name without `model.`: sweeps are found by such names, and continue with them."""
        return self.name.removeprefix("model.")

    @property
    def stored_text(self) -> str:
        """The text with the stored name."""
        return self.text.removeprefix("model.")

    @property
    def _is_zero(self) -> str:
        """The sampler's parameter that says whether a `zero-or-log` is 0."""
        return f"{self.stored_name} = 0"

    @property
    def text(self) -> str:
        """As `parse_dimension` reads it."""
        if self.kind == "choice":
            return f"{self.name}=choice:{','.join(map(json.dumps, self.choices))}"
        ends = f"{self.low!r}:{self.high!r}" + (f":{self.step}" if self.step > 1 else "")
        return f"{self.name}={self.kind}:{ends}"


@dataclass(frozen=True)
class Space:
    """The settings that a sweep searches."""

    dimensions: tuple[Dimension, ...]

    def sample(self, sampler: Sampler) -> dict[str, Any]:
        """A value for each setting, by its full name."""
        return {dimension.name: dimension.sample(sampler) for dimension in self.dimensions}

    def outside(self, values: Mapping[str, Any]) -> list[str]:
        """What of some values is not in the space: `model.str.tokens=20 is not in int:1:16`."""
        return [
            f"{dimension.name}={values[dimension.name]} is not in {dimension.text.partition('=')[2]}"
            for dimension in self.dimensions
            if dimension.parameters(values[dimension.name]) is None
        ]

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The sampler's parameters that give these values; None where none do."""
        parts = [dimension.parameters(values[dimension.name]) for dimension in self.dimensions]
        if any(part is None for part in parts):
            return None
        return {name: value for part in parts if part is not None for name, value in part.items()}


def make_space(searches: Iterable[str], defaults: Iterable[str] = DEFAULT_SPACE) -> Space:
    """The default space with some of its settings replaced, added, or taken out.

    Args:
        searches: As in `parse_dimension`, or `name=off`.
        defaults: The default space.

    Raises:
        ConfigError: A search cannot be read, or nothing is left to search.
    """
    found: dict[str, Dimension] = {}
    for text in (*defaults, *searches):
        name, _, rest = text.partition("=")
        setting = setting_name(name)
        if rest.strip() in ("off", "false"):
            found.pop(setting, None)
        else:
            found[setting] = parse_dimension(text)
    if not found:
        raise ConfigError("--search: nothing is left to search; name a setting, or leave one of the defaults")
    return Space(tuple(found.values()))


def parse_dimension(text: str) -> Dimension:
    """A setting to search, from `name=kind:low:high`.

    Kinds are `float:0:1`, `log:1e-6:1e-4`, `zero-or-log:0.001:0.1`, `int:1:16` or `int:8:64:8` (with a
    step), and `choice:a,b,c`.

    Raises:
        ConfigError: The text cannot be read.
    """
    name, equals, rest = text.partition("=")
    setting = setting_name(name)
    kind, colon, ends = rest.strip().partition(":")
    if not equals or not colon or kind not in get_args(Kind):
        raise ConfigError(
            f"--search {text!r} is not NAME=KIND:LOW:HIGH with a kind of {', '.join(get_args(Kind))}; for "
            "example optim.learning_rate=log:1e-6:1e-4"
        )
    if any(setting == fixed or setting.startswith(f"{fixed}.") for fixed in FIXED):
        raise ConfigError(
            f"--search {text!r}: {setting} cannot be searched, for all trials read the same tables, are "
            "measured alike and use the same seed; change it for all of them with --set"
        )
    if setting.removeprefix("train.") in UNDECIDING:
        raise ConfigError(
            f"--search {text!r}: {setting} does not change the result, so all trials would be the same run; "
            "set it with --set"
        )
    if kind == "choice":
        choices = tuple(_plain(text, choice) for choice in ends.split(","))
        if not 2 <= len(set(choices)) == len(choices):
            raise ConfigError(f"--search {text!r}: give two or more different values, as in choice:a,b")
        return Dimension(setting, "choice", choices=choices)
    return _parse_range(text, setting, kind, ends)


def _plain(text: str, choice: str) -> str | int | float | bool:
    """A choice as a number, on or off, or a word."""
    try:
        value = yaml.load(choice, ValueLoader)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, str | int | float | bool):
        raise ConfigError(
            f"--search {text!r}: {choice!r} is no number, no word and not on or off, as in choice:a,b"
        )
    try:
        # YAML reads 1e-3 as a word.
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _parse_range(text: str, name: str, kind: Any, ends: str) -> Dimension:
    convert: Callable[[str], float] = int if kind == "int" else float
    try:
        low, high, *more = (convert(end) for end in ends.split(":"))
        (step,) = more or [1]
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError
    except (ValueError, OverflowError):
        expected = "integers LOW:HIGH or LOW:HIGH:STEP" if kind == "int" else "numbers LOW:HIGH"
        raise ConfigError(f"--search {text!r}: {ends!r} is not {expected}") from None
    if not low < high or step < 1 or (more and kind != "int"):
        raise ConfigError(f"--search {text!r}: LOW must be under HIGH, and only an int range has a STEP")
    if low <= 0 and "log" in kind:
        raise ConfigError(
            f"--search {text!r}: a log scale begins above 0; zero-or-log:LOW:HIGH adds exactly 0 to it"
        )
    # Optuna would move the end to the last value that a step reaches.
    top = high - (high - low) % step if kind == "int" else high
    return Dimension(name, kind, low, top, int(step))


def setting_name(name: str) -> str:
    """The full name of a setting; a module that can be switched on and off is its `enabled`."""
    full = full_name(name.strip())
    field = full.removeprefix("model.")
    group = section_of(ModelConfig, field) if field in ModelConfig.model_fields else None
    return f"{full}.enabled" if group is not None and issubclass(group, Switch) else full


def config_with(recipe: str, settings: Sequence[str], values: Mapping[str, Any]) -> ExperimentConfig:
    """A recipe with its changes and a trial's values.

    Raises:
        ConfigError: A name is unknown, or a value impossible.
    """
    return resolve(recipe, trial_settings(recipe, settings, values))


def trial_settings(recipe: str, settings: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """What makes a recipe a trial's, as `--set` takes it.

    Where the sampled learning rate is below the recipe's final one, it is also the final one: a schedule only
    decays.

    Raises:
        ConfigError: A name of the settings is unknown, or a value impossible.
    """
    sampled = dict(values)
    rate, final = "optim.learning_rate", "optim.final_learning_rate"
    if (
        rate in sampled
        and final not in sampled
        and sampled[rate] < resolve(recipe, list(settings)).flat()[final]
    ):
        sampled[final] = sampled[rate]
    written = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sampled.items())
    return [*settings, *written]


def check_switches(space: Space, recipe: str, settings: Sequence[str]) -> None:
    """Refuse to search settings of a module that is off in every trial: all would train the same network.

    Raises:
        ConfigError: Names the setting and the module.
    """
    base = resolve(recipe, list(settings)).flat()
    searched = {dimension.name for dimension in space.dimensions}
    for name in sorted(searched):
        switch = f"{name.rpartition('.')[0]}.enabled"
        if base.get(switch) is False and switch not in searched:
            raise ConfigError(
                f"--search {name}: {switch} is False, so all trials would be alike; add --search {name}=off"
            )


def check_space(
    space: Space, recipe: str, settings: Sequence[str], check: Callable[[ExperimentConfig], None]
) -> None:
    """Refuse a space with values that no run can have, before anything starts.

    Args:
        space: To be searched.
        recipe: Name.
        settings: Changes of every trial.
        check: Refuses a config that its CLIP or tables cannot serve.

    Raises:
        ConfigError: Names the search and what is wrong with a value.
    """
    for dimension in space.dimensions:
        for value in dimension.probes:
            try:
                check(config_with(recipe, settings, {dimension.name: value}))
            except ConfigError as error:
                raise ConfigError(
                    f"--search {dimension.text} would sample {value!r}: {error}; narrow the search, or "
                    "change what it does not fit with --set"
                ) from None
