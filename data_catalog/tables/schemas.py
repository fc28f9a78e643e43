"""The tables of a data set and their columns."""

from enum import StrEnum

import pyarrow as pa


class TableKind(StrEnum):
    """The tables of a data set, in the order in which they are made."""

    SAMPLES = "samples"
    MASKS = "masks"
    CAPTIONS = "captions"
    TEXT_FEATURES = "text_features"
    VIEW = "view"
    IMAGE_HASHES = "image_hashes"

    @property
    def schema_version(self) -> int:
        """Increased whenever the columns of this kind, or their meaning, change."""
        return _SCHEMA_VERSIONS.get(self, 1)

    @property
    def suffix(self) -> str:
        """File ending of a shard: views are Arrow files, which can be memory-mapped, the rest Parquet."""
        return ".arrow" if self is TableKind.VIEW else ".parquet"


_SCHEMA_VERSIONS = {TableKind.SAMPLES: 2, TableKind.VIEW: 2, TableKind.IMAGE_HASHES: 2}


def _columns(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in types.items()]


def _vector(width: int) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float32(), nullable=False), width)


_SAMPLE = _columns(sample_index=pa.int64(), sample_id=pa.string())
_LABELS = _columns(
    identity=pa.int64(),
    camera_id=pa.int32(),
    scene_id=pa.int32(),
    is_query=pa.bool_(),
    is_gallery=pa.bool_(),
)

SAMPLES_SCHEMA = pa.schema(
    [
        *_SAMPLE,
        *_columns(split=pa.string()),
        *_LABELS,
        *(pa.field(name, pa.binary()) for name in ("rgb", "nir", "tir", "side_by_side")),
        *_columns(height=pa.int32(), width=pa.int32(), digest=pa.string()),
    ]
)
"""One image triplet per row. `identity` is the raw one, `camera_id` counts from 0 and is -1 if the data set
has no cameras, as is `scene_id` if it has no scenes. The original JPEG bytes are in `rgb`, `nir` and `tir`,
of images of other types a PNG of 8 bits; if one file holds the three images side by side, in `side_by_side`:
cutting a JPEG would cost quality or space, so it is cut after decoding (`images.decode_triplets`). The unused
columns are null, as is that of an image that a sample lacks. `height` and `width` are those of one image;
`digest` is a SHA-256 over the files."""

MASKS_SCHEMA = pa.schema(
    [
        *_SAMPLE,
        *_columns(mask=pa.binary(), foreground_fraction=pa.float32(), score=pa.float32(), source=pa.string()),
    ]
)
"""`mask` is a 1-bit PNG of the sample's own size, white on the person or vehicle; `score` is the
segmenter's confidence, 0 to 1; `source` is the modality that the mask was found in."""

CAPTIONS_SCHEMA = pa.schema(
    [
        *_SAMPLE,
        *_columns(
            caption=pa.string(),
            attributes=pa.list_(
                pa.field(
                    "element",
                    pa.struct(
                        _columns(
                            name=pa.string(), value=pa.string(), confidence=pa.float32(), source=pa.string()
                        )
                    ),
                    nullable=False,
                )
            ),
        ),
    ]
)
"""`attributes` holds the known attributes after filling; `caption` is "" if there are none."""

IMAGE_HASHES_SCHEMA = pa.schema(
    [*_SAMPLE, *_columns(digests=pa.binary(3 * 32), hashes=pa.binary(3 * 32), details=_vector(3))]
)
"""For each of the three images: in `digests` the SHA-256 of its pixels, in `hashes` its perceptual hash (256
bits, nearly equal for similar images), in `details` the standard deviation of its grey values."""


def text_features_schema(text_dim: int) -> pa.Schema:
    """Schema of text features `(samples, text_dim)`, as the text tower gives them (not normalised)."""
    return pa.schema([*_SAMPLE, *_columns(text_feature=_vector(text_dim))])


def view_schema(height: int, width: int, text_dim: int, has_missing: bool = False) -> pa.Schema:
    """Schema of a training view, sorted by identity, then `sample_index`; a shard holds whole identities.

    `pixels` is uint8 `(modality, channel, height, width)`; `mask` is uint8 `(height, width)`, the share of
    the pixel that is foreground times 255. If the data set has samples that lack images, `missing` is 1 for
    each modality that a sample lacks, 0 for the others, `(modality,)`.
    """
    pixels = _columns(
        pixels=pa.binary(3 * 3 * height * width),
        mask=pa.binary(height * width),
        text_feature=_vector(text_dim),
    )
    return pa.schema([*_SAMPLE, *_LABELS, *pixels, *(_columns(missing=pa.binary(3)) if has_missing else [])])
