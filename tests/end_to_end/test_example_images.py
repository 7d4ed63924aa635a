"""The Python programs in `examples/` read an image as gapssg does, and refuse a wrong file in one sentence."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from gapssg.data.decode import decode_images
from gapssg.data.source import LoadOptions
from gapssg.settings.parts import Resize

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = ("classify_onnx.py", "classify_pytorch.py")


def draw(*shape: int) -> Any:
    return np.random.default_rng(0).random(shape)


def rotated_photo(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray((draw(40, 60, 3) * 255).astype(np.uint8)).save(path, exif=exif, quality=95)


def grey_of_16_bits(path: Path) -> None:
    Image.fromarray((draw(40, 60) * 65535).astype(np.uint16)).save(path)


def floating_grey(path: Path) -> None:
    Image.fromarray(draw(40, 60).astype(np.float32)).save(path)


def seen_by(program: str, file: Path, channels: int, resize: Resize) -> Any:
    """Run the part of a program that reads an image for a model of 20x24 pixels; return its pixels."""
    about = {"input_shape": [channels, 20, 24], "resize": resize, "interpolation": "bilinear"}
    modules = {"np": np, "sys": sys, "Image": Image, "ImageOps": ImageOps}
    names: dict[str, Any] = {"about": about, "file": str(file), **modules}
    source = (EXAMPLES / program).read_text()
    exec(source[source.index("channels, height") : source.index("pixels = ")], names)
    return np.asarray(names["image"])


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("name", "write"), [("a.jpg", rotated_photo), ("a.png", grey_of_16_bits), ("a.tiff", floating_grey)]
)
def test_the_python_programs_see_the_pixels_that_predict_sees(tmp_path: Path, program, name, write):
    write(tmp_path / name)
    for channels in (1, 3):
        for resize in ("crop", "stretch", 30, 21):  # 21 is below the width, and the rotated photo has to be padded
            options = LoadOptions(image_size=(20, 24), channels=channels, resize=resize)
            (expected,) = decode_images([tmp_path / name], options)
            found = seen_by(program, tmp_path / name, channels, resize)
            assert np.array_equal(found.reshape(20, 24, channels).transpose(2, 0, 1), expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_python_programs_refuse_an_image_that_predict_refuses(tmp_path: Path, program):
    Image.fromarray(np.full((40, 60), 2, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(SystemExit, match=r"a\.tiff has grey values outside \[0, 1\]"):
        seen_by(program, tmp_path / "a.tiff", 1, "crop")
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(SystemExit, match=r"a\.png is not a readable image"):
        seen_by(program, tmp_path / "a.png", 1, "crop")


@pytest.mark.parametrize(("program", "form"), [(PROGRAMS[0], "onnx"), (PROGRAMS[1], "torch-export")])
def test_the_python_programs_refuse_another_file_than_a_model(tmp_path: Path, monkeypatch, program, form):
    pytest.importorskip("onnxruntime")
    (tmp_path / "model").write_bytes(b"PK\x03\x04 no archive")
    for arguments in ([str(tmp_path / "model"), "a.png"], [str(tmp_path / "absent"), "a.png"]):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit, match=f"is not a file of `gapssg export --to {form}`"):
            runpy.run_path(str(EXAMPLES / program))
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit, match=f"python {program} student"):
        runpy.run_path(str(EXAMPLES / program))
