"""The programs in `examples/`, which run where their tools are installed."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop

from gapssg import PredictSettings, load_model, predict
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from tests.browser import needs_browser, open_browser
from tests.conftest import make_card
from tests.program import gapssg

EXAMPLES = Path(__file__).parents[2] / "examples"
WEB_RUNTIME = EXAMPLES / "node_modules" / "onnxruntime-web"
# The programs print four decimals, and float32 rounding is far below them. Swapped colours change the probability by
# 2e-3, a mirrored image by more.
TOLERANCE = 1e-4
REFUSAL = "xport the model with --fold-normalization"

pytestmark = pytest.mark.slow


class Exported(NamedTuple):
    """A folder with a model as the examples take it, an image, and what gapssg says to the image."""

    folder: Path
    image: Path
    class_name: str
    class_index: int
    probability: float

    @property
    def unfolded(self) -> Path:
        """The ONNX file, but its metadata say that it takes normalised images."""
        content = (self.folder / "student.onnx").read_bytes()
        path = self.folder / "unfolded.onnx"
        path.write_bytes(content.replace(b'"normalization_folded":true', b'"normalization_folded":null'))
        return path

    def check(self, printed: str, class_name: str | None = None) -> None:
        name, probability = printed.rsplit(maxsplit=1)
        assert name == (class_name or self.class_name)
        assert float(probability) == pytest.approx(self.probability, abs=TOLERANCE)


# The shorter side of the colour image is as long as its model wants it: no interpolation, which browsers do their own
# way, changes it before its centre is cropped.
GREY: dict[str, Any] = {"input_shape": (1, 16, 16)}
COLOUR: dict[str, Any] = {"input_shape": (3, 16, 24), "resize": 26, "interpolation": "bicubic"}


@pytest.fixture(scope="module", params=[GREY, COLOUR], ids=["grey", "colour"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("the extra export is not installed")
    shape = request.param["input_shape"]
    folder = tmp_path_factory.mktemp("exported")
    names = tuple(f"class {letter}" for letter in "abcdefghij")
    card = make_card(**request.param, mean=(0.3,) * shape[0], deviation=(0.4,) * shape[0], class_names=names)
    module = create_model(card.architecture, num_classes=10, input_shape=shape, seed=1)
    save_model(folder / "model.safetensors", module, card)
    export = ("export", folder / "model.safetensors", "--fold-normalization", "--json")
    described = gapssg(*export, "--to", "onnx", "--output", folder / "student.onnx").stdout
    (folder / "student.json").write_text(described)
    gapssg(*export, "--to", "torch-export", "--output", folder / "student.pt2")
    whole = (3, 26, 40) if shape[0] == 3 else shape
    pixels = torch.randint(256, whole, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_image(folder / "image.png", pixels)
    pixels = center_crop(pixels, shape[1:])
    write_image(folder / "cropped.ppm", pixels)
    with torch.no_grad():
        logits = load_model(folder / "model.safetensors").module((pixels[None] / 255 - 0.3) / 0.4)
    probabilities = logits[0].double().softmax(0)
    best = int(probabilities.argmax())
    return Exported(folder, folder / "image.png", names[best], best, float(probabilities[best]))


def write_image(path: Path, pixels: Tensor) -> None:
    """Write an image (C, H, W) uint8 in the format of the suffix."""
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(path)


def test_every_example_is_described():
    described = (EXAMPLES / "README.md").read_text()
    programs = [path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".cpp", ".html"}]
    assert sorted(programs) == ["classify.cpp", "classify.html", "classify_onnx.py", "classify_pytorch.py"]
    for name in programs:
        assert f"[{name}]({name})" in described


@pytest.mark.parametrize(
    ("program", "file"), [("classify_onnx.py", "student.onnx"), ("classify_pytorch.py", "student.pt2")]
)
def test_the_python_programs_print_the_class_and_its_probability(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, file: str
):
    monkeypatch.setattr(sys, "argv", [program, str(exported.folder / file), str(exported.image)])
    runpy.run_path(str(EXAMPLES / program))
    exported.check(capsys.readouterr().out)


@pytest.mark.parametrize("resize", ["crop", "stretch", 30])
def test_the_python_programs_resize_as_predict_does(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], resize: Any
):
    changes = {"resize": resize, "interpolation": "lanczos"}
    loaded = load_model(exported.folder / "model.safetensors")
    save_model(tmp_path / "model.safetensors", loaded.module, loaded.card.model_copy(update=changes))
    image = tmp_path / "image.png"
    write_image(image, (torch.arange(3 * 31 * 43) * 3 % 256).byte().view(3, 31, 43))
    given = {"model": tmp_path / "model.safetensors", "images": [image], "runtime": {"precision": "fp32"}}
    (predicted,) = predict(PredictSettings.model_validate(given)).images
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported.folder / "student.onnx")
    (entry,) = model.metadata_props
    entry.value = json.dumps({**json.loads(entry.value), **changes})
    onnx.save(model, tmp_path / "student.onnx")
    monkeypatch.setattr(sys, "argv", ["classify_onnx.py", str(tmp_path / "student.onnx"), str(image)])
    runpy.run_path(str(EXAMPLES / "classify_onnx.py"))
    name, probability = capsys.readouterr().out.rsplit(maxsplit=1)
    assert name == predicted.classes[0].name
    assert float(probability) == pytest.approx(predicted.classes[0].probability, abs=TOLERANCE)
    sources = ((EXAMPLES / f"classify_{name}.py").read_text() for name in ("onnx", "pytorch"))
    ours, theirs = (source[source.index("channels, height") : source.index("pixels = ")] for source in sources)
    assert ours == theirs


def test_the_python_program_refuses_a_model_of_normalised_images(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["classify_onnx.py", str(exported.unfolded), str(exported.image)])
    with pytest.raises(SystemExit, match=REFUSAL):
        runpy.run_path(str(EXAMPLES / "classify_onnx.py"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ program, with the library of onnxruntime's Python package and the headers of the system."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    # Debian's package libonnxruntime-dev has them in a folder of their own; g++ also looks in $CPLUS_INCLUDE_PATH.
    compiler = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I/usr/include/onnxruntime"]
    header = [*compiler, "-E", "-include", "onnxruntime_cxx_api.h", "-x", "c++", "/dev/null"]
    if subprocess.run(header, capture_output=True).returncode != 0:
        pytest.skip("the C++ headers of onnxruntime are neither in /usr/include/onnxruntime nor in CPLUS_INCLUDE_PATH")
    runtime = importlib.util.find_spec("onnxruntime")
    assert runtime and runtime.origin
    (library,) = (Path(runtime.origin).parent / "capi").glob("libonnxruntime.so.*")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    source = [str(EXAMPLES / "classify.cpp"), str(library), f"-Wl,-rpath,{folder}"]
    subprocess.run([*compiler, *source, "-o", str(folder / "classify")], check=True)
    return folder / "classify"


def test_the_cpp_program_prints_the_class_and_its_probability_or_refuses_the_model(exported: Exported, compiled: Path):
    image = exported.folder / "cropped.ppm"
    run = [str(compiled), str(exported.folder / "student.onnx"), str(image)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    first, metadata = done.stdout.splitlines()
    exported.check(first, str(exported.class_index))
    assert exported.class_name in metadata
    assert ("this program does not resize" in done.stderr) == ('"resize":26' in metadata)
    refused = subprocess.run([str(compiled), str(exported.unfolded), str(image)], capture_output=True, text=True)
    assert refused.returncode == 1 and REFUSAL in refused.stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not WEB_RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not installed (npm install --no-save --prefix examples onnxruntime-web)")
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def address(exported: Exported) -> Iterator[str]:
    """The address of a server of the folder with the model and the page."""
    shutil.copy(EXAMPLES / "classify.html", exported.folder)
    modules = exported.folder / "node_modules"
    modules.unlink(missing_ok=True)
    modules.symlink_to(WEB_RUNTIME.parent)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(exported.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def shown_for(browser: Any, exported: Exported, address: str) -> str:
    """Open the page, choose the image, and return what the page then shows."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(f"{address}/classify.html")
    browser.find_element("id", "file").send_keys(str(exported.image))
    return str(WebDriverWait(browser, 30).until(lambda _: browser.find_element("id", "class").text))


@needs_browser
def test_the_page_shows_the_class_and_its_probability(browser: Any, exported: Exported, address: str):
    exported.check(shown_for(browser, exported, address))


@needs_browser
def test_the_page_refuses_a_model_of_normalised_images(browser: Any, exported: Exported, address: str):
    described = exported.folder / "student.json"
    text = described.read_text()
    described.write_text(text.replace('"normalization_folded": true', '"normalization_folded": false'))
    assert REFUSAL in shown_for(browser, exported, address)
    described.write_text(text)
