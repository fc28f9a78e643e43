"""U, G and T of a sample: python embed_with_onnx.py demo.onnx rgb.jpg nir.jpg tir.jpg [features.npz]"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(model.get_modelmeta().custom_metadata_map["stmi"])
height, width = about["image_height"], about["image_width"]


def pixels(file: str) -> np.ndarray:
    image = Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


inputs = {
    "images": np.stack([pixels(file) for file in sys.argv[2:5]])[None],  # one sample: RGB, NIR, TIR
    "present": np.ones((1, 3), dtype=bool),
    "mask": np.full((1, height, width), 255, dtype=np.uint8),  # no mask: all foreground
    "text": np.zeros((1, *about["inputs"].get("text", {"shape": [0]})["shape"]), dtype=np.float32),
    "camera": np.array([-1]),  # none that the model was trained with
}
outputs = model.run(None, {name: inputs[name] for name in about["inputs"]})
features = dict(zip(about["outputs"], outputs, strict=True))
for name, values in features.items():
    print(name, values.shape, values[0, :4])
np.savez(sys.argv[5] if len(sys.argv) > 5 else "features.npz", **features)
