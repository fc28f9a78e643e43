"""A trained run, ready to embed images and to rank a gallery: `stmi.load`.

    import stmi

    run = stmi.load("runs/train/demo-seed0-1a2b3c4d")
    query = run.embed("rgb.jpg", "nir.jpg", "tir.jpg", mask="mask.png", caption="a man in a red jacket")
    gallery = run.embed(rgb_files, nir_files, tir_files)
    print(run.rank(query, gallery).order[0, :5])

The features are those of `experiments/evaluate.py` for the same images, masks and captions.
"""

import hashlib
import json
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stmi.clip.architecture import build_tokenizer, split_name
from stmi.clip.clip_files import clip_folder, find_clip
from stmi.clip.loading import LoadedClip, load_clip, untrained_clip
from stmi.clip.weights import load_strictly
from stmi.errors import ClipFileError, TrainedRunError
from stmi.modality import Modality
from stmi.model import STMI
from stmi.model_input import ModelInput, zeroed
from stmi.raw_samples import Cameras, Captions, Images, RawSamples
from stmi.retrieval.metrics import RerankVariant
from stmi.retrieval.ranking import Embeddings, Ranking, rank
from stmi.stored_run import EpochChoice, RunConfig, StoredRun
from stmi.training.augment import normalise, patch_foreground

UNKNOWN_CAMERA = -1


@dataclass(frozen=True)
class TrainedRun:
    """The model of a trained run, as `load` gives it.

    Attributes:
        name: The run's name.
        config: The settings that an embedding depends on.
        model: The network, in evaluation mode, on its device.
        epoch: The epoch of its weights, from 1.
        feature: The feature that the run reports, with which `rank` compares.
        clip: Folder or open_clip name of the CLIP that encodes captions.
        clip_digest: Digest of the CLIP that the run started from.
    """

    name: str
    config: RunConfig = field(repr=False)
    model: STMI = field(repr=False)
    epoch: int
    feature: str
    clip: str
    clip_digest: str | None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.image_tower.proj.device

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all that decides a feature: weights, model, precision, and the CLIP of captions."""
        settings = [self.config.model.model_dump(mode="json"), self.config.train.precision, self.clip_digest]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, values in self.model.state_dict().items():
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def embed(
        self,
        rgb: Images = None,
        nir: Images = None,
        tir: Images = None,
        *,
        mask: Images = None,
        caption: Captions = None,
        camera: Cameras = None,
    ) -> Embeddings:
        """Features of one sample, or of a batch: then every argument is a list with one entry a sample.

        An image is a path, a Pillow image, or a uint8 array `(height, width, 3)`, of any size; it is resized
        (bicubic) to the size that the model was trained with. A NIR or TIR image may be grey, mode L or an
        array `(height, width)`: its channel is repeated three times. Files are taken upright, as their
        orientation in EXIF says, and as in the catalog. A list of many samples needs little memory, since
        images are read when their turn comes.

        Args:
            rgb: Visible images; None, also in a list, where there is none. A missing image becomes zeros, as
                with `evaluate.py --missing`; each sample needs at least one image.
            nir: Near infrared images.
            tir: Thermal images.
            mask: Foreground masks of the size of one of the sample's images: grey files or Pillow images, or
                bool or integer arrays `(height, width)`, of 0 and 1, or 0 and 255. None makes all of the
                image foreground. A model without SFM reads no mask.
            caption: Texts, cut at 77 tokens. None makes the text feature T zero; a run that trained its text
                tower (`model.text.fine_tune`) needs a caption of each sample. A model without text reads
                none.
            camera: Numbers from 0, of the training data's cameras (`data.datasets`: of the first data set's,
                then of the next one's); None for another camera, which has the mean of the learned vectors.
                Read only by a model with `model.camera_embedding`.

        Returns:
            float32 `(samples, width)` by feature name, one row for one sample: U, G, T, RGB, NIR, TIR and
            GTTT (`stmi.model.FEATURES`), without T and GTTT where the model has no text.

        Raises:
            ValueError: An image, mask, caption or camera cannot be used, or the arguments do not fit
                together; names the argument and the number of the sample.
            TrainedRunError: The CLIP that encodes captions cannot be loaded.

        Warns:
            UserWarning: The model was trained with masks or captions, and no sample has one: its features
                are worse then.
        """
        images = {Modality.RGB: rgb, Modality.NIR: nir, Modality.TIR: tir}
        samples = RawSamples.gather(images, mask, caption, camera)
        self._check(samples)
        size = self.config.train.evaluation_batch
        parts = [
            self._embed(samples, range(start, min(start + size, len(samples))))
            for start in range(0, len(samples), size)
        ]
        return Embeddings.concatenate(parts)

    def rank(
        self,
        query: Embeddings,
        gallery: Embeddings,
        *,
        feature: str | None = None,
        rerank: bool = False,
        rerank_variant: RerankVariant = "field",
        gallery_row: npt.NDArray[np.integer] | None = None,
    ) -> Ranking:
        """Rank a gallery for every query.

        `evaluate.py` ranks in the same way, but its metrics leave out junk: gallery samples of the query's
        person under the query's camera. Here every gallery sample is ranked.

        Args:
            query: The samples to search for.
            gallery: The samples to search among.
            feature: The feature to compare; None for the one that the run reports.
            rerank: Use k-reciprocal re-ranking, in which the ranking of a query depends on the others.
            rerank_variant: As the field's code computes it, or "paper": `stmi.retrieval.reranking`.
            gallery_row: For the variant "paper", integers `(queries,)`: the row of the gallery that is the
                same sample as the query, -1 for none. None if no query is in the gallery.

        Returns:
            The order of the gallery and the distances, `(queries, gallery)`.

        Raises:
            stmi.retrieval.metrics.RetrievalError: There is no such feature or variant, or a feature is not
                finite.
        """
        name = feature or self.feature
        return rank(query[name], gallery[name], rerank, gallery_row, rerank_variant)

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token numbers of captions, cut at the context length, int64 `(captions, context)`."""
        return self._tokenizer(captions)

    @torch.no_grad()
    def _embed(self, samples: RawSamples, rows: range) -> Embeddings:
        autocast = self.config.train.precision == "bfloat16"
        inputs = self._input(samples, rows)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            features = self.model(inputs).retrieval()
        return Embeddings({name: values.cpu().numpy() for name, values in features.items()})

    def _input(self, samples: RawSamples, rows: range) -> ModelInput:
        config, device = self.config.model, self.device
        size = (config.image.height, config.image.width)
        columns = zip(*(samples.read(row, size) for row in rows), strict=True)
        pixels, mask, is_there = (torch.from_numpy(np.stack(column)).to(device) for column in columns)
        captions = [samples.caption[row] for row in rows]
        cameras = [samples.camera[row] for row in rows]
        numbers = [UNKNOWN_CAMERA if camera is None else int(camera) for camera in cameras]
        return ModelInput(
            images=zeroed(normalise(pixels, config.pixels), ~is_there),
            foreground=patch_foreground(mask, self.model.patch_size),
            text=self._encode(captions),
            camera_id=torch.tensor(numbers, device=device),
            caption=self.tokenize([c or "" for c in captions]).to(device) if config.text.fine_tune else None,
        )

    def _encode(self, captions: list[str | None]) -> Tensor:
        """T of the captions from the frozen text tower, zeros without a caption, `(captions, width)`."""
        text = torch.zeros(len(captions), self.model.image_tower.proj.shape[1])
        if self.config.model.text.enabled and not self.config.model.text.fine_tune:
            given = [row for row, caption in enumerate(captions) if caption is not None]
            if given:
                tokens = self._clip.tokenize([captions[row] or "" for row in given])
                text[given] = self._clip.encode_text(tokens)
        return text.to(self.device)

    @cached_property
    def _tokenizer(self) -> Any:
        return build_tokenizer(self.clip)

    @cached_property
    def _clip(self) -> LoadedClip:
        """The run's CLIP, whose text tower encodes captions; on the CPU, where the catalog's is."""
        try:
            clip = load_clip(self.clip)
        except (ClipFileError, OSError) as error:
            raise TrainedRunError(
                f"run {self.name} needs the CLIP that it started from to encode captions: {error}; name its "
                "folder with stmi.load(..., clip=folder)"
            ) from None
        # The same weights have one digest by name and another from a folder.
        is_comparable = _is_name(self.clip) == _is_name(self.config.model.clip.source)
        if is_comparable and self.clip_digest not in (None, clip.digest):
            raise TrainedRunError(
                f"CLIP {self.clip} is not the one that run {self.name} started from (digest "
                f"{clip.digest[:16]}, expected {str(self.clip_digest)[:16]}); name that one with "
                "stmi.load(..., clip=folder)"
            )
        return clip

    def _check(self, samples: RawSamples) -> None:
        config = self.config.model
        embedding = self.model.image_tower.camera_embedding
        for row, camera in enumerate(samples.camera if embedding is not None else ()):
            assert embedding is not None
            if camera is not None and not 0 <= camera < len(embedding):
                raise ValueError(
                    f"camera[{row}] is {camera}, expected 0 to {len(embedding) - 1}, or None for another one"
                )
        if config.text.fine_tune and None in samples.caption:
            raise ValueError(
                f"caption[{samples.caption.index(None)}] is missing: run {self.name} trained its text tower "
                "(model.text.fine_tune), which needs a caption of each sample"
            )
        if config.sfm.enabled and all(mask is None for mask in samples.mask):
            warnings.warn(
                f"no sample has a mask, but run {self.name} was trained with masks: all of each image counts "
                "as foreground, and the features are worse",
                stacklevel=3,
            )
        if config.text.enabled and all(caption is None for caption in samples.caption):
            warnings.warn(
                f"no sample has a caption, but run {self.name} was trained with captions: the text feature T "
                "is zero, and the others are worse",
                stacklevel=3,
            )


def load(
    location: str | Path,
    *,
    epoch: EpochChoice = "reported",
    device: str | torch.device | None = None,
    clip: str | Path | None = None,
) -> TrainedRun:
    """Load a finished run, with the weights of the epoch that it reports, or of its last one.

    Needs the run's folder (`config.json`, `result.json`, the checkpoint), and the description of its CLIP
    (`open_clip_config.json`, or the name in open_clip); CLIP's weights only once a caption is embedded.
    Nothing in these files is executed.

    Args:
        location: Folder of the run, or its URI on any PyArrow filesystem: `s3://bucket/runs/train/...`.
        epoch: Whose weights are loaded.
        device: Where the model computes, such as `cpu` or `cuda:1`; None for a GPU where there is one.
        clip: Folder or open_clip name of the CLIP that the run started from; None for the one that its
            settings name (`model.clip.source`), relative to the current folder or to the project.

    Raises:
        TrainedRunError: There is no run, it is not finished, its weights were not kept, or its CLIP is not
            there; says what to do.
        stmi.clip.weights.ClipFileError: The weights are damaged, or are not those of this model.
        ValueError: The device is unknown, or this machine does not have it.
    """
    target = _usable_device(device)
    stored = StoredRun(location)
    config, number = stored.config, stored.epoch(epoch)
    source, weights = find_clip(str(clip or config.model.clip.source)), stored.weights(epoch)
    try:
        # On the meta device nothing is initialised, since every weight comes from the run; but the text tower
        # has a mask that is none of the weights.
        with nullcontext() if config.model.text.fine_tune else torch.device("meta"):
            towers = untrained_clip(source)
            model = STMI(config.model, towers, *_training_counts(weights), config.seed)
    except ClipFileError as error:
        raise TrainedRunError(
            f"run {stored.name} started from a CLIP that cannot be read: {error}; name its folder with "
            "stmi.load(..., clip=folder)"
        ) from None
    load_strictly(model, weights, f"run {stored.name}", assign=True)
    return TrainedRun(
        stored.name, config, model.to(target).eval(), number, stored.feature, source, stored.clip_digest
    )


def _usable_device(given: str | torch.device | None) -> torch.device:
    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(given)!r}: expected cpu, or cuda where there is a GPU ({reason})"
        ) from None


def _is_name(source: str) -> bool:
    """Whether a CLIP is named as in open_clip, and not by its folder."""
    try:
        return clip_folder(source) is None and bool(split_name(source))
    except ClipFileError:
        return False


def _training_counts(weights: dict[str, Tensor]) -> tuple[int, int]:
    """Numbers of identities and cameras that a model was trained with."""
    [identities, *_] = (len(value) for name, value in weights.items() if name.endswith("classifier.weight"))
    cameras = weights.get("image_tower.camera_embedding", ())
    return identities, len(cameras)
