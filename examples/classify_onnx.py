"""Print the class of an image and its probability, by onnxruntime: `python classify_onnx.py student.onnx image.png`."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, file = sys.argv[1:]
try:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["gapssg"])
except Exception as error:  # of another kind for each damage
    sys.exit(f"{model} is not a file of `gapssg export --to onnx` ({type(error).__name__})")
if not about["normalization_folded"]:
    sys.exit("export the model with --fold-normalization")
channels, height, width = about["input_shape"]
resize, interpolation = about["resize"], Image.Resampling[about["interpolation"].upper()]

try:
    image = ImageOps.exif_transpose(Image.open(file))
except OSError as error:
    sys.exit(f"{file} is not a readable image: {error}")
brightest = {"I": 65535, "F": 1}.get(image.mode[0])  # of 16 bits, and of floating-point numbers
if brightest is not None:  # which convert would cut off at 255
    grey = np.asarray(image, np.float64) * (255 / brightest)
    if grey.min() < 0 or grey.max() > 255:
        sys.exit(f"{file} has grey values outside [0, {brightest}]")
    image = Image.fromarray(grey.round().astype(np.uint8))
image = image.convert("L" if channels == 1 else "RGB")
if resize == "crop":
    image = ImageOps.fit(image, (width, height), interpolation)
elif resize == "stretch":
    image = image.resize((width, height), interpolation)
else:  # so many pixels of the shorter side, then a crop of the centre, with zeros where the image is smaller
    image = image.resize([int(resize * side / min(image.size)) for side in image.size], interpolation)
    spare = image.width - width, image.height - height
    left, top = (round(side / 2) if side >= 0 else -(-side // 2) for side in spare)
    image = image.crop((left, top, left + width, top + height))
pixels = np.asarray(image, np.float32).reshape(1, height, width, channels).transpose(0, 3, 1, 2) / 255
(logits,) = session.run(["logits"], {"images": np.ascontiguousarray(pixels)})
odds = np.exp(logits[0] - logits[0].max())
probabilities = odds / odds.sum()
best = probabilities.argmax()
print(f"{about['class_names'][best]} {probabilities[best]:.4f}")
