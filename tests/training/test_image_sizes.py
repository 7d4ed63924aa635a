"""Images of any size and number of channels: every method, and every command on what it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from gapssg import DistillSettings, distill
from gapssg.core.runtime import Runtime
from gapssg.models import MODELS, create_model, model_names
from gapssg.models.model_file import load_model, save_model
from gapssg.runs.pictures import read_picture, sample_grids
from gapssg.synthesis.generator_training import GeneratorTraining
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer
from gapssg.training.distillation import Distillation
from tests.conftest import make_card
from tests.methods import METHODS
from tests.program import gapssg, refusal
from tests.run_fixtures import run_epoch
from tests.tiny import tiny_model

RUNTIME = {"device": "cpu", "precision": "fp32", "compile": False}
DEVICE = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(autouse=True)
def tiny_networks() -> Iterator[None]:
    with tiny_model():
        yield


def write_teacher(path: Path, shape: tuple[int, int, int]) -> Path:
    channels = shape[0]
    card = make_card(
        architecture="tiny",
        num_classes=2,
        input_shape=shape,
        mean=(0.5,) * channels,
        deviation=(0.25,) * channels,
        crop_padding=1,
        flip=True,
        class_names=("cat", "dog"),
    )
    save_model(path, create_model("tiny", num_classes=2, input_shape=shape, seed=1), card)
    return path


def write_test_images(root: Path, shape: tuple[int, int, int]) -> Path:
    """Write a few arrays of another size."""
    channels, height, width = shape
    draw = numpy.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(2):
            array = draw.integers(0, 256, (height + 3, width + 2, channels), dtype=numpy.uint8)
            numpy.save(root / "test" / name / f"{number}.npy", array)
    return root


def make_settings(teacher: Path, name: str, **method: Any) -> DistillSettings:
    return DistillSettings.model_validate(
        {
            "teacher": teacher,
            "student": {"name": "tiny"},
            "epochs": 1,
            "batch_size": 2,
            "method": {"name": name, **METHODS[name], **method},
            "runtime": RUNTIME,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_images_of_any_size(tmp_path: Path, runtime: Runtime, name: str):
    shape = (2, 9, 13)
    teacher = load_model(write_teacher(tmp_path / "teacher.safetensors", shape))
    distillation = Distillation(make_settings(teacher.path, name), runtime, teacher)
    run_epoch(distillation, tmp_path / "run")
    assert distillation.synthesizer.fresh.shape[1:] == shape
    assert distillation.synthesizer.fresh.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 33, 65), (3, 320, 256)])
def test_every_command_works_on_a_run_with_images_of_any_size(tmp_path: Path, shape: tuple[int, int, int]):
    teacher = write_teacher(tmp_path / "teacher.safetensors", shape)
    run, photos = tmp_path / "run", write_test_images(tmp_path / "photos", shape)
    distill(make_settings(teacher, "gapssg-fast", synthesis_batch_size=2, distillation_steps=1), run)
    (grid,) = sample_grids(run).values()
    assert read_picture(grid).width > 92
    student = run / "student.safetensors"
    result = json.loads(gapssg("eval", student, "--data", f"folder:{photos}", "--json", *DEVICE).stdout)
    assert result["images"] == 4
    predicted = json.loads(gapssg("predict", student, photos, "--json", *DEVICE).stdout)
    assert len(predicted["images"]) == 4
    exported = gapssg("export", run, "--to", "torchscript", "--output", tmp_path / "student.pt", "--json").stdout
    assert json.loads(exported)["metadata"]["input_shape"] == list(shape)
    landscape = ("landscape", run, "--data", "pool", "--grid", 3, "--samples", 2, "--no-curvature", *DEVICE)
    gapssg(*landscape, "--output", tmp_path / "landscape", "--json")
    gapssg("report", run, "--output", tmp_path / "report.html")


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_built_in_model_takes_images_of_8_pixels_and_of_unequal_sides(name: str):
    for shape in ((1, 8, 8), (64, 9, 13), (3, 1024, 8)):
        with torch.device("meta"):
            model = MODELS[name].load_builder()(3, shape)
        assert model(torch.empty(2, *shape, device="meta")).shape == (2, 3)
    model = create_model(name, num_classes=3, input_shape=(2, 8, 8)).train()
    assert model(torch.rand(2, 2, 8, 8)).isfinite().all()


def test_a_model_of_a_library_that_cannot_take_8_pixels_says_so(tmp_path: Path):
    said = refusal("inspect", "torchvision:alexnet", "--input-shape", "3,8,8")
    assert said.startswith("torchvision:alexnet does not accept images of 3x8x8; ")


def test_a_folder_of_five_channels_and_unequal_sides_trains_and_evaluates_a_model(tmp_path: Path):
    photos, run = write_test_images(tmp_path / "photos", (5, 9, 13)), tmp_path / "run"
    (photos / "train").symlink_to(photos / "test")
    data = ("--data", f"folder:{photos}")
    train = ("pretrain-teacher", *data, "--image-size", "9,13", "--model", "tiny", "--epochs", 1, *DEVICE)
    gapssg(*train, "--batch-size", 2, "--output", run)
    model = run / "model.safetensors"
    assert load_model(model).card.input_shape == (5, 9, 13)
    result = json.loads(gapssg("eval", model, *data, "--json", *DEVICE).stdout)
    assert result["images"] == 4
    said = refusal("eval", model, *data, "--image-size", 9)
    assert said.endswith(f"has images of 5x9x9, but {model} takes 5x9x13; use --image-size 9,13")
    Image.new("RGB", (13, 9)).save(photos / "test" / "cat" / "z.png")
    assert "z.png has 3 channels instead of 5: use a TIFF" in refusal("eval", model, *data)


def test_the_side_of_a_square_and_both_sides_are_image_sizes():
    train = ("pretrain-teacher", "--data", "digits", "--model", "wrn10_half", "--dry-run", "--image-size")
    assert "\nimage_size = 32\n" in gapssg(*train, 32).stdout
    assert "\nimage_size = [\n    9,\n    13,\n]\n" in gapssg(*train, "9,13").stdout
    for given in ("7", "1025", "9,13,3", "9,7", "1e3", ""):
        said = refusal(*train, given)
        assert "image_size" in said or "--image-size" in said


def test_digits_are_read_with_unequal_sides(tmp_path: Path):
    train = ("pretrain-teacher", "--data", "digits", "--image-size", "12,20", "--model", "tiny", "--epochs", 1)
    gapssg(*train, *DEVICE, "--set", "data.images=32", "--output", tmp_path / "run")
    assert load_model(tmp_path / "run/model.safetensors").card.input_shape == (1, 12, 20)


@pytest.mark.parametrize("name", ["gapssg-fast", "fast", "nayer", "dafl"])
def test_a_scale_makes_the_generator_small_and_its_images_as_large_as_before(
    tmp_path: Path, runtime: Runtime, name: str
):
    shape = (2, 33, 65)
    teacher = load_model(write_teacher(tmp_path / "teacher.safetensors", shape))
    distillation = Distillation(make_settings(teacher.path, name, synthesis_scale=2), runtime, teacher)
    synthesizer = distillation.synthesizer
    source = synthesizer.synthesis if isinstance(synthesizer, PoolSynthesizer) else synthesizer
    assert isinstance(source, GeneratorInversion | GeneratorTraining)
    made = []
    source.generator.upsampling.register_forward_hook(lambda _, __, logits: made.append(logits.shape[1:]))
    next(synthesizer.synthesis_steps(distillation.student, 0, 0))
    assert set(made) == {(2, 20, 36)}  # 17x33, rounded up to a multiple of 4
    assert source.generator(torch.zeros(2, source.generator.latent_size)).shape[1:] == shape


def test_the_scale_is_an_option_of_methods_with_a_generator(tmp_path: Path):
    teacher = write_teacher(tmp_path / "teacher.safetensors", (1, 8, 8))
    run = ("distill", "--teacher", teacher, "--student", "tiny", "--synthesis-scale", 2, *DEVICE)
    assert "\nsynthesis_scale = 2\n" in gapssg(*run, "--dry-run").stdout
    for method in ("noise", "deepinversion"):
        said = refusal(*run, "--method", method, "--dry-run")
        assert said.startswith(f"method.synthesis_scale (from --synthesis-scale) is not a setting of {method}, but of")
    said = refusal(*run[:5], "--synthesis-scale", 4, *DEVICE, "--output", tmp_path / "run")
    assert said.startswith("the generator cannot make images of 2x2 pixels; at least 4x4 are needed, at 1/4")
    assert not (tmp_path / "run").exists()
