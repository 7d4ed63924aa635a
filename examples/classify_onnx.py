"""Print the class of an image and its probability, by onnxruntime: `python classify_onnx.py student.onnx image.png`."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, file = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["gapssg"])
if not about["normalization_folded"]:
    sys.exit("export the model with --fold-normalization")
channels, height, width = about["input_shape"]

image = Image.open(file).convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape(1, height, width, channels).transpose(0, 3, 1, 2) / 255
(logits,) = session.run(["logits"], {"images": np.ascontiguousarray(pixels)})
odds = np.exp(logits[0] - logits[0].max())
probabilities = odds / odds.sum()
best = probabilities.argmax()
print(f"{about['class_names'][best]} {probabilities[best]:.4f}")
