"""Print the class of an image and its probability, by PyTorch: `python classify_pytorch.py student.pt2 image.png`.

Loading a `.pt2` file can run code: load only files that you trust.
"""

import json
import sys

import numpy as np
import torch
from PIL import Image, ImageOps

path, file = sys.argv[1:]
extra = {"gapssg": ""}
model = torch.export.load(path, extra_files=extra).module()
about = json.loads(extra["gapssg"])
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
pixels = torch.from_numpy(np.array(image, np.float32)).reshape(1, height, width, channels).permute(0, 3, 1, 2) / 255
with torch.inference_mode():
    probabilities = model(pixels.contiguous())[0].softmax(0)
best = probabilities.argmax()
print(f"{about['class_names'][best]} {probabilities[best]:.4f}")
