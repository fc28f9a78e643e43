"""The procedural benchmark: people and vehicles drawn in RGB, near infrared and thermal infrared.

It needs no download, knows the truth (masks, attributes) and writes the RGBNT201 format, so it takes
the same road through the project as real data. `draw_sample` gives one sample in memory;
`synthesize` writes a whole data set.
"""

from data_catalog.synthetic.attribute_predictions import SOURCES, Reading, read_attributes
from data_catalog.synthetic.attributes import attributes_of, person_attributes, vehicle_attributes
from data_catalog.synthetic.identities import twin_of
from data_catalog.synthetic.rendering import RenderedSample, draw_sample, true_attributes
from data_catalog.synthetic.settings import SPLITS, Kind, Split, SyntheticSettings
from data_catalog.synthetic.writing import SynthesisConflictError, SynthesisReport, synthesize

__all__ = [
    "SOURCES",
    "SPLITS",
    "Kind",
    "Reading",
    "RenderedSample",
    "Split",
    "SynthesisConflictError",
    "SynthesisReport",
    "SyntheticSettings",
    "attributes_of",
    "draw_sample",
    "person_attributes",
    "read_attributes",
    "synthesize",
    "true_attributes",
    "twin_of",
    "vehicle_attributes",
]
