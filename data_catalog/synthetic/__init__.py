"""The synthetic data set: people and vehicles rendered in RGB, near infrared and thermal infrared.

It needs no download, comes with true masks and attributes, and is written in the RGBNT201 layout, so it goes
through the same steps as real data. `render_sample` renders one sample in memory; `synthesize` writes a whole
data set.
"""

from data_catalog.synthetic.attributes import attribute_values
from data_catalog.synthetic.identities import find_twin
from data_catalog.synthetic.rendering import RenderedSample, render_sample, true_attributes
from data_catalog.synthetic.simulated_predictions import SOURCES, SimulatedPrediction, predict_attributes
from data_catalog.synthetic.synthetic_settings import SPLITS, Kind, Split, SyntheticSettings
from data_catalog.synthetic.writing import SynthesisConflictError, SynthesisReport, synthesize

__all__ = [
    "SOURCES",
    "SPLITS",
    "Kind",
    "RenderedSample",
    "SimulatedPrediction",
    "Split",
    "SynthesisConflictError",
    "SynthesisReport",
    "SyntheticSettings",
    "attribute_values",
    "find_twin",
    "predict_attributes",
    "render_sample",
    "synthesize",
    "true_attributes",
]
