"""Print the class of an image and its probability, by onnxruntime: `python classify_onnx.py student.onnx image.png`."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, file = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["gapssg"])
if not about["normalization_folded"]:
    sys.exit("export the model with --fold-normalization")
channels, height, width = about["input_shape"]
resize, interpolation = about["resize"], Image.Resampling[about["interpolation"].upper()]

image = Image.open(file).convert("L" if channels == 1 else "RGB")
if resize == "crop":
    image = ImageOps.fit(image, (width, height), interpolation)
elif resize == "stretch":
    image = image.resize((width, height), interpolation)
else:  # so many pixels of the shorter side, then a crop of the centre
    image = image.resize([int(resize * side / min(image.size)) for side in image.size], interpolation)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
pixels = np.asarray(image, np.float32).reshape(1, height, width, channels).transpose(0, 3, 1, 2) / 255
(logits,) = session.run(["logits"], {"images": np.ascontiguousarray(pixels)})
odds = np.exp(logits[0] - logits[0].max())
probabilities = odds / odds.sum()
best = probabilities.argmax()
print(f"{about['class_names'][best]} {probabilities[best]:.4f}")
