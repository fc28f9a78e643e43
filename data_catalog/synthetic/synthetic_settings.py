"""Settings of the synthetic data set."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_catalog.formats import SPLITS, Split
from data_catalog.records import Record
from stmi.config import LARGEST_SEED

Kind = Literal["person", "vehicle"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
MasksFrom = Literal["grabcut", "exact", "eroded", "dilated", "shifted"]
Dead = Literal["none", "RGB", "NIR", "TIR"]

ADDED = ("masks", "dead")
"""Settings that older versions did not have."""
ARTIFACTS = ("masks", "readings_dropped", "readings_wrong")
"""Settings that decide no pixel of an image."""
MAX_IDENTITY = 999_999
"""Largest identity number: file names give it six digits."""


class SyntheticSettings(Record):
    """Everything that determines the pixels: the same settings give the same bytes.

    The defaults are a hard but learnable data set at 64 x 32 pixels: cluttered frames, bystanders,
    half of the cameras dark, look-alikes that differ only in near or thermal infrared.
    """

    kind: Kind = Field("person", description="What is rendered: people or vehicles.")
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Another seed gives other identities and other scenes."
    )
    height: int = Field(64, ge=16, le=1024, description="Height of an image, in pixels.")
    width: int = Field(32, ge=16, le=1024, description="Width of an image, in pixels.")
    train_identities: int = Field(60, ge=1, le=MAX_IDENTITY, description="Identities of the training split.")
    validation_identities: int = Field(
        16, ge=1, le=MAX_IDENTITY, description="Identities held out to choose settings on."
    )
    test_identities: int = Field(40, ge=1, le=MAX_IDENTITY, description="Identities of the test split.")
    cameras: int = Field(4, ge=1, le=9, description="Cameras that see every identity (one digit in a name).")
    shots: int = Field(3, ge=1, le=100, description="Samples of an identity by each camera.")

    clutter: float = Field(1.0, ge=0.0, le=2.0, description="Amount of objects in a scene.")
    scene: Share = Field(0.8, description="How much the colours of the cameras' scenes differ.")
    shift: Share = Field(0.2, description="Largest sideways shift of the target, as a share of the width.")
    bystander: Share = Field(0.6, description="Probability of bystanders in the frame.")
    bystander_in_front: Share = Field(0.1, description="Probability of a bystander in front of the target.")
    person_height: tuple[float, float] = Field(
        (0.70, 0.92),
        description="Smallest and largest share of the frame's height that a person fills; for a vehicle, "
        "of the frame's width.",
    )
    occlusion: Share = Field(0.25, description="Probability of a post, rail or bush in front of the target.")
    darkness: tuple[Share, ...] = Field(
        (0.0, 0.0, 0.5, 1.0),
        min_length=1,
        description="Darkness of visible light at each camera, cycled over the cameras: 0 day, 1 night.",
    )
    look_alikes: Share = Field(
        0.6, description="Share of identities that have a twin: the same in RGB, not in NIR or not in TIR."
    )
    dead: tuple[Dead, ...] = Field(
        ("none",),
        min_length=1,
        description="Image that is black at each camera: RGB, NIR, TIR or none; cycled over the cameras.",
    )
    masks: MasksFrom = Field(
        "grabcut",
        description="Masks of a run: made by GrabCut, or from the true ones, which are then written as mask "
        "files: exact, eroded, dilated (by 1/32 of the height) or shifted (sideways by 1/8 of the width).",
    )
    readings_dropped: Share = Field(
        0.4, description="Share of visible attributes that are predicted as unknown."
    )
    readings_wrong: Share = Field(0.15, description="Share of visible attributes that are predicted wrongly.")
    jpeg_quality: int = Field(92, ge=1, le=100, description="Quality of the JPEG files.")

    @model_validator(mode="after")
    def _check_across_fields(self) -> Self:
        low, high = self.person_height
        if not 0.2 <= low <= high <= 1.2:
            raise ValueError(
                f"person_height is {self.person_height}: expected (smallest, largest) "
                "with 0.2 <= smallest <= largest <= 1.2."
            )
        if self.readings_dropped + self.readings_wrong > 1.0:
            raise ValueError(
                f"readings_dropped + readings_wrong is {self.readings_dropped + self.readings_wrong:g}: "
                "they are shares of the same predictions, so lower one until the sum is at most 1."
            )
        last = self.identities("test")[-1]
        if last > MAX_IDENTITY:
            raise ValueError(
                f"the splits need identity numbers up to {last}, and a file name holds six digits: "
                "lower train_identities, validation_identities or test_identities."
            )
        return self

    def deciding(self) -> dict[str, Any]:
        """All settings, dumped; one that older versions did not have is left out at its default."""
        fields = type(self).model_fields
        same = {name for name in ADDED if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=same)

    def artifacts(self) -> dict[str, Any]:
        """What is not at its default of the settings that decide no pixel of an image."""
        return self.model_dump(mode="json", include=set(ARTIFACTS), exclude_defaults=True)

    def identities(self, split: Split) -> range:
        """The identity numbers of a split; no two splits share one.

        Every split starts at an odd number, so that two twins (an odd number and the next one)
        fall in the same split.
        """
        start = 1
        counts = (self.train_identities, self.validation_identities, self.test_identities)
        for name, count in zip(SPLITS, counts, strict=True):
            if name == split:
                return range(start, start + count)
            start += count + count % 2
        raise ValueError(f"split is {split!r}: expected one of {', '.join(SPLITS)}.")

    def darkness_at(self, camera: int) -> float:
        """Darkness of visible light at a camera (0-based): 0 at day, 1 at night."""
        return self.darkness[camera % len(self.darkness)]

    def dead_at(self, camera: int) -> Dead:
        """The image that is black at a camera (0-based)."""
        return self.dead[camera % len(self.dead)]
