import subprocess
import sys
from pathlib import Path

import pytest

from gapssg.errors import InputError
from gapssg.models import MODELS, check_model_name, create_model, model_names

ROOT = Path(__file__).parents[2]


def test_names_include_those_of_the_published_table_and_two_smaller_students():
    assert set(model_names()) >= {
        "wrn10_half",
        "wrn16_half",
        "wrn16_1",
        "wrn16_2",
        "wrn40_1",
        "wrn40_2",
        "resnet18",
        "resnet34",
        "vgg11",
        "mobilenetv2",
    }


def test_known_names_pass_the_check_unchanged():
    assert [check_model_name(name) for name in model_names()] == list(model_names())


@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS.keys())
def test_every_model_has_a_one_line_description_and_a_builder_that_loads(entry):
    assert entry.description
    assert "\n" not in entry.description
    assert callable(entry.load_builder())


def test_importing_the_names_does_not_import_torch():
    program = (
        "import sys, gapssg.models as models; models.check_model_name('vgg11'); models.model_names(); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("written", "meant"),
    [("wrn16-1", "wrn16_1"), ("WRN-16-1", "wrn16_1"), ("wrn_16_1", "wrn16_1"), ("WRN-16-half", "wrn16_half")],
)
def test_a_name_with_other_punctuation_gives_the_one_name_that_was_meant(written, meant):
    with pytest.raises(InputError) as raised:
        check_model_name(written)
    assert str(raised.value).startswith(f"unknown model '{written}' (did you mean {meant}?); `gapssg models` lists")


def test_an_unknown_name_gives_the_nearest_names():
    with pytest.raises(InputError, match=r"did you mean resnet(18|34) or resnet(18|34)\?"):
        check_model_name("resnet50")


def test_a_name_similar_to_none_gives_no_suggestion_but_the_forms_of_names():
    with pytest.raises(InputError) as raised:
        check_model_name("transformer")
    assert str(raised.value) == (
        "unknown model 'transformer'; `gapssg models` lists the built-in ones, others are torchvision:NAME, timm:NAME "
        "or package.module:factory"
    )


def test_create_model_refuses_an_unknown_name():
    with pytest.raises(InputError, match="did you mean vgg11"):
        create_model("vgg-11", num_classes=10, input_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("num_classes", "input_shape", "sentence"),
    [
        (1, (3, 32, 32), "at least 2 classes and at most 100,000, not 1"),
        (10, (0, 32, 32), "at least 1 channel and at most 64, not 0"),
        (10, (3, 7, 32), "images of 7x32 pixels do not fit.*from 8 to 1,024 pixels"),
        (10, (3, 32, 1025), "images of 32x1025 pixels do not fit.*from 8 to 1,024 pixels"),
    ],
)
def test_create_model_refuses_classes_and_images_out_of_bounds(num_classes, input_shape, sentence):
    with pytest.raises(InputError, match=sentence):
        create_model("wrn16_1", num_classes=num_classes, input_shape=input_shape)
