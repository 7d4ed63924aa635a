from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gapssg import InputError, PretrainSettings, RunError, load_model, pretrain_teacher
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.training import AugmentationFacts, PretrainResult
from tests.interruptions import AskingDisplay
from tests.run_fixtures import events


def settings(folder: Path, **changes: Any) -> PretrainSettings:
    values = {
        "data": {"name": f"folder:{folder}"},
        "model": {"name": "wrn10_half"},
        "epochs": 3,
        "batch_size": 16,
        "runtime": {"device": "cpu", "precision": "fp32"},
    }
    return PretrainSettings.model_validate({**values, **changes})


def test_a_teacher_learns_to_tell_dark_from_bright(image_folder: Path, tmp_path: Path):
    result = pretrain_teacher(settings(image_folder, epochs=8), tmp_path / "run")
    assert result.model.top1 == 1.0
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert len(epochs) == 8
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2
    assert PretrainResult.load(tmp_path / "run") == result


def test_the_model_file_has_all_that_distillation_needs(image_folder: Path, tmp_path: Path):
    pretrain_teacher(settings(image_folder), tmp_path / "run")
    card = load_model(tmp_path / "run" / "model.safetensors").card
    assert card.class_names == ("bright", "dark")
    assert card.input_shape == (1, 16, 16)
    assert (card.crop_padding, card.crop_padding_mode) == (2, "zeros")
    assert card.flip is True
    # Half of the images are 60 and half are 190 of 255, with a deviation of 20.
    assert card.mean[0] == pytest.approx(125 / 255, abs=0.01)
    assert card.deviation[0] == pytest.approx((65**2 + 20**2) ** 0.5 / 255, abs=0.01)


def test_a_model_whose_parts_read_the_version_of_their_state_is_trained_and_resumed(image_folder: Path, tmp_path: Path):
    name = "tests.models.factories:versioned"
    given = settings(image_folder, model={"name": name}, epochs=2)
    requests = Requests()

    with pytest.raises(Stopped):
        pretrain_teacher(given, tmp_path / "run", requests=requests, display=AskingDisplay(4, requests, "stop"))
    result = pretrain_teacher(given, tmp_path / "run", resume=True)
    assert load_model(result.model.file, [name]).module[1].weight.shape == (2, 256)


def test_a_model_that_cannot_be_read_back_is_no_result(image_folder: Path, tmp_path: Path):
    model = {"name": "tests.models.factories:WithAnother", "arguments": {"kind": "hidden"}}
    with pytest.raises(RunError, match="WithAnother gives different logits after reloading; let its state dict"):
        pretrain_teacher(settings(image_folder, model=model, epochs=1), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_model_that_returns_probabilities_is_refused(image_folder: Path, tmp_path: Path):
    for while_training in (True, False):
        model = {"name": "tests.models.factories:Ending", "arguments": {"while_training": while_training}}
        with pytest.raises(InputError, match="returns probabilities; let it return the logits before its softmax"):
            pretrain_teacher(settings(image_folder, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_digits_are_not_flipped_by_default(tmp_path: Path):
    pretrain_teacher(settings(tmp_path, data={"name": "digits"}, epochs=1, batch_size=512), tmp_path / "run")
    card = load_model(tmp_path / "run" / "model.safetensors").card
    assert (card.flip, card.resize) == (False, "crop")


@pytest.mark.parametrize(("source", "resize"), [("digits", "stretch"), ("folder", "crop")])
def test_the_file_says_how_images_were_scaled_to_a_size_that_is_no_square(
    image_folder: Path, tmp_path: Path, source: str, resize: str
):
    name = source if source == "digits" else f"folder:{image_folder}"
    given = settings(image_folder, data={"name": name, "image_size": (8, 16)}, epochs=1, batch_size=512)
    pretrain_teacher(given, tmp_path / "run")
    card = load_model(tmp_path / "run" / "model.safetensors").card
    assert (card.resize, card.interpolation) == (resize, "bilinear")


def test_crop_and_flip_can_be_set(image_folder: Path, tmp_path: Path):
    result = pretrain_teacher(settings(image_folder, epochs=1, crop_padding=0, flip=False), tmp_path / "run")
    card = load_model(tmp_path / "run" / "model.safetensors").card
    assert (card.crop_padding, card.flip) == (0, False)
    assert result.augmentation == AugmentationFacts(crop_padding=0, flip=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "crops with 2 pixels of zero padding, random horizontal flips (the default for this data; --no-flip turns",
        ),
        ({"flip": True}, "crops with 2 pixels of zero padding, random horizontal flips, cpu"),
        ({"flip": False, "crop_padding": 0}, "no crops, no flips, cpu"),
        ({"data": {"name": "digits"}}, "crops with 2 pixels of zero padding, no flips, cpu"),
    ],
)
def test_the_first_line_says_how_images_are_cropped_and_flipped(image_folder: Path, tmp_path: Path, changes, words):
    given = settings(image_folder, model={"name": "wrn10_half"}, epochs=1, batch_size=512, **changes)
    pretrain_teacher(given, tmp_path / "run")
    assert words in events(tmp_path / "run")[0]["message"]


def test_crop_padding_as_large_as_the_images_is_refused_before_anything_is_written(image_folder: Path, tmp_path: Path):
    with pytest.raises(
        InputError, match="--crop-padding 16 is too large: a crop could miss all of an image of 16x16 pixels"
    ):
        pretrain_teacher(settings(image_folder, crop_padding=16), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "step", "constant"])
def test_every_schedule_trains_and_label_smoothing_raises_the_loss(image_folder: Path, tmp_path: Path, schedule):
    given = settings(image_folder, optimizer={"schedule": schedule, "nesterov": True}, label_smoothing=0.2, epochs=2)
    pretrain_teacher(given, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[2])
    # The entropy of the smoothed targets (0.9, 0.1), below which no loss can be.
    assert last["train_loss"] > 0.325


@pytest.mark.slow
def test_equal_seeds_give_equal_files_also_with_dropout(image_folder: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)
        given = settings(image_folder, model={"name": "tests.models.factories:small"}, epochs=1, seed=seed)
        pretrain_teacher(given, tmp_path / name)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_training_that_diverges_fails_with_one_sentence(image_folder: Path, tmp_path: Path):
    given = settings(image_folder, optimizer={"learning_rate": 100, "weight_decay": 0.9, "schedule": "constant"})
    with pytest.raises(RunError, match=r"not finite.* lower .*learning.rate"):
        pretrain_teacher(given.model_copy(update={"epochs": 20}), tmp_path / "run")


def test_images_of_different_sizes_ask_for_an_image_size(image_folder: Path, tmp_path: Path):
    from PIL import Image

    Image.new("L", (20, 16)).save(image_folder / "train" / "dark" / "wide.png")
    with pytest.raises(InputError, match="--image-size"):
        pretrain_teacher(settings(image_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    given = settings(image_folder, data={"name": f"folder:{image_folder}", "image_size": 24}, epochs=1)
    pretrain_teacher(given, tmp_path / "run")
    assert load_model(tmp_path / "run" / "model.safetensors").card.input_shape == (1, 24, 24)
