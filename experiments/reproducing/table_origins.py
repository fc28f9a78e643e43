"""Where images, masks and captions come from, as `reproduce.py` is told, and checks before any work."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from data_catalog.captions.caption_files import Choice
from data_catalog.captions.llm.llm_settings import ClientSettings, LlmCaptionSettings, Prices, check_endpoint
from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS, Listing
from data_catalog.masks.mask_table import SegmenterSettings, make_masks
from data_catalog.masks.segmenters.sam2_checkpoint import SAM2_MODELS
from data_catalog.progress import Progress, progress_bar
from data_catalog.tables.table import Table, TableKind, list_tables
from stmi.clip.clip_files import clip_folder
from stmi.network import why_unreachable

MASKS = "grabcut|sam2:CHECKPOINT[,MODEL]|files:DIR"
CAPTIONS = "none|llm:URL,MODEL|files:DIR[,CHOICE]"
CHOICES: dict[str, Choice] = {choice: choice for choice in get_args(Choice)}
_SAM2 = "sam2.1_hiera_l"


@dataclass(frozen=True)
class MaskOrigin:
    """Where masks come from.

    Attributes:
        kind: `grabcut`, `sam2` or `files`.
        path: Checkpoint or folder.
        model: Model of SAM2.
    """

    kind: str
    path: Path = Path()
    model: str = _SAM2

    def check(self) -> None:
        """Make sure that what they are made with is there.

        Raises:
            CatalogError: It is not, or is no checkpoint of the model.
        """
        if self.kind == "files":
            _check_folder("--masks", self.path)
        elif self.kind == "sam2":
            self.segmenter()

    def segmenter(self) -> SegmenterSettings:
        """The segmenter; masks in files have none."""
        # OpenCV and torch take long to import, which help and refusals need not pay.
        if self.kind == "sam2":
            from data_catalog.masks.segmenters.sam2 import sam2_settings  # noqa: PLC0415

            return sam2_settings(self.path, model=self.model)
        from data_catalog.masks.segmenters.grabcut import GrabCutSettings  # noqa: PLC0415

        return GrabCutSettings()

    def make(self, samples: Table, progress: Progress) -> Table:
        """The masks of samples."""
        if self.kind != "files":
            return make_masks(samples, self.segmenter(), progress=progress)
        from data_catalog.masks.segmenters.mask_files import import_masks  # noqa: PLC0415

        return import_masks(samples, self.path, progress=progress)


@dataclass(frozen=True)
class CaptionOrigin:
    """Where captions come from.

    Attributes:
        kind: `none`, `llm` or `files`.
        location: Folder of the files, or URL of the endpoint.
        model: Its name at the endpoint.
        choice: Which files, where each modality has its own.
        prices: Prices of the endpoint.
        budget_usd: What all answers may cost.
    """

    kind: str
    location: str = ""
    model: str = ""
    choice: Choice | None = None
    prices: Prices | None = None
    budget_usd: float | None = None

    def settings(self, dataset: str) -> LlmCaptionSettings:
        """What the language model is asked; a published data set has a card of its name."""
        return LlmCaptionSettings(model=self.model, card=dataset)

    def check(self, catalog: str, dataset: str) -> None:
        """Make sure that what they are made with is there; of an endpoint, unless its captions are there.

        Raises:
            CatalogError: It is not.
        """
        if self.kind == "files":
            _check_folder("--captions", Path(self.location))
        if self.kind != "llm":
            return
        check_endpoint(self._client())
        is_made = any(
            table.kind is TableKind.CAPTIONS and table.manifest.settings.get("model") == self.model
            for table in list_tables(catalog, dataset)
        )
        if not is_made and (why := why_unreachable(self.location)):
            raise CatalogError(
                f"--captions llm:{self.location}: the endpoint does not answer ({why}); start it"
            )

    def make(self, samples: Table, progress: Progress) -> Table:
        """The captions of samples."""
        if self.kind == "files":
            from data_catalog.captions.imported_captions import (  # noqa: PLC0415
                CaptionFileSettings,
                import_captions,
            )

            return import_captions(samples, self.location, CaptionFileSettings(choose=self.choice), progress)
        # Its client library takes a second to import.
        from data_catalog.captions.llm.captioner import make_llm_captions  # noqa: PLC0415

        settings = self.settings(samples.manifest.dataset)
        with progress_bar(f"asking {self.model}", "sample") as asking:
            return make_llm_captions(samples, settings, self._client(), progress, asking)

    def _client(self) -> ClientSettings:
        return ClientSettings(endpoint=self.location, prices=self.prices, budget_usd=self.budget_usd)


def parse_masks(text: str) -> MaskOrigin:
    """What `--masks` says.

    Raises:
        argparse.ArgumentTypeError: It is none of `MASKS`.
    """
    kind, _, location = text.partition(":")
    if text == "grabcut":
        return MaskOrigin(kind)
    if kind == "sam2" and location:
        checkpoint, comma, model = location.rpartition(",")
        known = (checkpoint, model) if comma and model in SAM2_MODELS else (location, _SAM2)
        return MaskOrigin(kind, Path(known[0]), known[1])
    if kind == "files" and location:
        return MaskOrigin(kind, Path(location))
    raise argparse.ArgumentTypeError(f"{text!r} does not say where masks come from; expected {MASKS}")


def parse_captions(text: str) -> CaptionOrigin:
    """What `--captions` says.

    Raises:
        argparse.ArgumentTypeError: It is none of `CAPTIONS`.
    """
    kind, _, location = text.partition(":")
    first, comma, last = location.rpartition(",")
    if text == "none":
        return CaptionOrigin(kind)
    if kind == "llm" and first and last:
        return CaptionOrigin(kind, first, last)
    if kind == "files" and location:
        if comma and last in CHOICES:
            return CaptionOrigin(kind, first, choice=CHOICES[last])
        return CaptionOrigin(kind, location)
    raise argparse.ArgumentTypeError(f"{text!r} does not say where captions come from; expected {CAPTIONS}")


def read_source(dataset: str, folder: Path) -> Listing:
    """What is in the source folder of a published data set.

    Raises:
        CatalogError: It is not there, or has another layout; in one line.
    """
    try:
        return FORMATS[dataset].read(folder)
    except CatalogError as error:
        what = str(error).partition("\n")[0]
        raise CatalogError(
            f"--source {folder}: {what}; `python -m data_catalog ingest --help` shows the folders that it has"
        ) from None


def find_faults(
    dataset: str, folder: Path, clip: str, masks: MaskOrigin, captions: CaptionOrigin, catalog: str
) -> list[str]:
    """What is missing of what the command line names, a line each."""
    faults = []
    for check in (
        lambda: read_source(dataset, folder),
        lambda: _check_clip(clip),
        masks.check,
        lambda: captions.check(catalog, dataset),
    ):
        try:
            check()
        except CatalogError as error:
            faults.append(str(error))
    return faults


def _check_clip(clip: str) -> None:
    if clip_folder(clip) is None:
        raise CatalogError(
            f"--clip {clip}: there is no such folder; make it of OpenAI's archive with `python "
            f"experiments/convert_clip.py --archive ViT-B-16.pt --out {clip}`"
        )


def _check_folder(option: str, folder: Path) -> None:
    if not folder.is_dir():
        raise CatalogError(f"{option} files:{folder}: there is no such folder; correct the path")
