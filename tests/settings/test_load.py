from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gapssg.errors import InputError
from gapssg.settings.load import load_settings, recipe_names
from gapssg.training.settings import DistillCommandSettings, DistillSettings, PretrainSettings

GIVEN = {"teacher": ("--teacher", "t.safetensors"), "student.name": ("--student", "wrn16_1")}


def load(**arguments):
    options = {**GIVEN, **arguments.pop("options", {})}
    return load_settings(DistillSettings, section="distill", options=options, **arguments)


def message(**arguments) -> str:
    with pytest.raises(InputError) as caught:
        load(**arguments)
    return str(caught.value)


def test_each_layer_overrides_the_one_before(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text('epochs = 7\nbatch_size = 32\nseed = 3\n[method]\nname = "gapssg"\npasses = 5\n')
    recipe = load(recipe="digits")
    assert load().epochs == 32
    assert recipe.epochs != 200
    from_config = load(recipe="digits", config=config)
    assert (from_config.epochs, from_config.method.passes) == (7, 5)
    assert from_config.method.generator_steps == recipe.method.generator_steps
    assert load(recipe="digits", config=config, overrides=["epochs=8"]).epochs == 8
    top = load(recipe="digits", config=config, overrides=["epochs=8"], options={"epochs": ("--epochs", 9)})
    assert (top.epochs, top.batch_size, top.seed) == (9, 32, 3)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path):
    (tmp_path / "config.toml").write_text("epochs = 7\n", encoding="utf-8-sig")
    assert load(config=tmp_path / "config.toml").epochs == 7


def test_options_that_are_not_given_override_nothing():
    assert load(overrides=["epochs=8"], options={"epochs": ("--epochs", None)}).epochs == 8


def test_choosing_another_method_drops_the_settings_of_the_first():
    settings = load(recipe="digits", options={"method.name": ("--method", "noise")})
    assert settings.method.name == "noise"


def test_a_part_given_in_part_keeps_the_rest_of_the_commands_default():
    options = {"data.name": ("--data", "digits"), "model.name": ("--model", "wrn16_1")}
    settings = load_settings(
        PretrainSettings, section="-", options={**options, "optimizer.learning_rate": ("--learning-rate", 0.05)}
    )
    default = load_settings(PretrainSettings, section="-", options=options).optimizer
    assert default.nesterov
    assert settings.optimizer == default.model_copy(update={"learning_rate": 0.05})


def test_options_and_overrides_of_one_command_line_mean_the_same_method():
    settings = load(recipe="digits", overrides=["method.passes=9"], options={"method.name": ("--method", "noise")})
    assert (settings.method.name, settings.method.passes) == ("noise", 9)
    text = message(overrides=["method.generator_steps=9"], options={"method.name": ("--method", "noise")})
    assert text.startswith(
        "method.generator_steps (from --set) is not a setting of noise, but of gapssg-fast, gapssg, "
    )


def test_published_settings_are_overridden_by_the_recipe_and_fit_the_chosen_method():
    def beneath(values: Mapping[str, Any]) -> Mapping[str, Any]:
        seen.append(values)
        own: dict[str, dict[str, Any]] = {"noise": {"method.passes": 7}, "fast": {"method.adversarial_weight": 1.33}}
        return {"epochs": 50, "seed": 5, **own.get(values["method.name"], {})}

    seen: list[Mapping[str, Any]] = []
    settings = load(recipe="digits", beneath=beneath, options={"method.name": ("--method", "noise")})
    assert (settings.epochs, settings.seed, settings.method.passes) == (10, 5, 7)  # the recipe says 10
    assert seen[0]["method.name"] == "noise"
    assert seen[0]["teacher"] == "t.safetensors"
    assert load(beneath=beneath).method == load().method  # gapssg-fast, by default
    assert load(beneath=beneath, overrides=["method.name=fast"]).method.adversarial_weight == 1.33
    assert (
        load(beneath=beneath, overrides=["method.name=fast", "method.adversarial_weight=2"]).method.adversarial_weight
        == 2
    )


def test_a_recipe_can_override_settings_for_one_method(monkeypatch: pytest.MonkeyPatch):
    text = """
        [distill]
        epochs = 10
        method = { name = "gapssg", passes = 9 }
        [distill.methods.fast]
        epochs = 20
        method = { generator_steps = 3 }
        [distill.methods.gapssg]
        batch_size = 48
    """
    monkeypatch.setattr("gapssg.settings.load.recipe_text", lambda _: text)
    ours = load(recipe="any")
    assert (ours.epochs, ours.batch_size, ours.method.passes) == (10, 48, 9)
    fast = load(recipe="any", options={"method.name": ("--method", "fast")})
    assert (fast.epochs, fast.batch_size, fast.method.generator_steps, fast.method.passes) == (20, 128, 3, 2)
    assert load(recipe="any", overrides=["method.name=fast", "epochs=5"]).epochs == 5
    assert load(recipe="any", overrides=["method.name=noise"]).epochs == 10


def test_another_name_of_data_or_model_drops_nothing_else(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text('student = { name = "wrn16_1", weights = "w.safetensors" }\n')
    settings = load(
        config=config,
        overrides=["eval_data.image_size=48", 'eval_data.name="digits"'],
        options={"eval_data.name": ("--eval-data", "folder:b"), "student.name": ("--student", "wrn16_2")},
    )
    assert settings.student.weights == Path("w.safetensors")
    assert settings.eval_data is not None
    assert (settings.eval_data.name, settings.eval_data.image_size) == ("folder:b", 48)


def test_method_settings_without_a_name_are_of_the_default_method():
    settings = load(overrides=["method.generator_steps=5"])
    assert (settings.method.name, settings.method.generator_steps) == ("gapssg-fast", 5)


@pytest.mark.parametrize("arguments", [{}, {"recipe": "digits"}, {"options": {"method.name": ("-", "noise")}}])
def test_toml_reads_back_to_the_same_settings(arguments, tmp_path: Path):
    settings = load(**arguments)
    config = tmp_path / "settings.toml"
    config.write_text(settings.to_toml())
    assert load_settings(DistillSettings, section="distill", config=config) == settings


def test_a_number_out_of_bounds_names_field_value_bound_and_source():
    text = message(overrides=["method.generator_steps=0"])
    assert text == "method.generator_steps = 0 (from --set): must be greater than or equal to 1"
    assert message(options={"epochs": ("--epochs", -1)}).startswith("epochs = -1 (from --epochs)")


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("method.mixup", "98.3", "must be less than or equal to 1; 98.3 % is 0.983"),
        ("method.mixup", "100", "must be less than or equal to 1; 100 % is 1"),
        ("method.mixup", "100.1", "must be less than or equal to 1"),
        ("method.mixup", "-5", "must be greater than or equal to 0"),
        ("method.procedural_share", "33", "must be less than or equal to 0.9; 33 % is 0.33"),
        ("optimizer.momentum", "90", "must be less than 1; 90 % is 0.9"),
        ("optimizer.momentum", "1", "must be less than 1"),
        ("optimizer.milestones", "[0.5, 75]", "must be less than 1; 75 % is 0.75"),
        ("optimizer.milestones", "['75']", "must be less than 1"),
        ("optimizer.learning_rate", "101", "must be less than or equal to 100"),
    ],
)
def test_a_percentage_for_a_fraction_is_converted_in_the_message(key: str, value: str, hint: str):
    assert message(overrides=[f"{key}={value}"]).endswith(f"(from --set): {hint}")


def test_an_unknown_key_names_the_nearest():
    assert "did you mean method.generator_steps?" in message(overrides=["method.generator_step=3"])
    assert "did you mean method.generator_steps?" in message(overrides=["generator_steps=3"])
    assert "did you mean optimizer.learning_rate?" in message(overrides=["optimizer.lerning_rate=3"])


def test_an_unknown_choice_names_what_is_allowed_and_the_nearest():
    text = message(options={"method.name": ("--method", "gapsgg")})
    assert "gapssg" in text
    assert "noise" in text
    assert "did you mean gapssg or gapssg-fast?" in text
    assert "did you mean wrn16_2?" in message(options={"student.name": ("--student", "wrn16-2")})
    assert "did you mean fp32?" in message(options={"runtime.precision": ("--precision", "fp23")})
    assert "did you mean digits" in message(recipe="digit")


def test_every_wrong_field_has_its_own_line():
    lines = message(overrides=["epochs=0", "batch_size=0", "colour=1"]).splitlines()
    assert len(lines) == 3


def test_a_missing_field_is_named():
    options = {"teacher": ("--teacher", None), "student.name": ("--student", None)}
    with pytest.raises(InputError, match=r"teacher is missing: add --teacher.*\nstudent.name is missing: add"):
        load_settings(DistillCommandSettings, section="distill", options=options)


def test_values_of_another_type_are_refused_not_coerced_to_something_else():
    assert "epochs = 'many'" in message(overrides=["epochs=many"])
    assert "epochs = 2.5" in message(overrides=["epochs=2.5"])
    assert "epochs = True (from --set): must be a number" in message(overrides=["epochs=true"])
    assert "batch_size = '12' (from --set): must be a number" in message(overrides=["batch_size='12'"])
    assert "samples = 1 (from --set): must be true or false" in message(overrides=["samples=1"])


def test_an_optional_boolean_can_be_none_in_python():
    values = {"data": {"name": "digits"}, "model": {"name": "wrn16_1"}}
    assert PretrainSettings.model_validate({**values, "flip": None}).flip is None
    with pytest.raises(ValidationError, match="must be true or false"):
        PretrainSettings.model_validate({**values, "optimizer": {"nesterov": None}})
    assert "optimizer.learning_rate" in message(overrides=["optimizer.learning_rate=nan"])


@pytest.mark.parametrize("text", ["epochs", "=3", "method..passes=3"])
def test_an_override_that_is_not_an_assignment_is_refused(text):
    assert "key.path=value" in message(overrides=[text])


def test_a_table_cannot_be_set_to_a_value():
    assert "method" in message(overrides=["method=3"])
    assert "epochs is a value" in message(overrides=["epochs=3", "epochs.more=4"])


def test_a_config_file_that_is_missing_or_broken_is_named(tmp_path: Path):
    assert "does not exist" in message(config=tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = ")
    assert "is not valid TOML" in message(config=broken)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name):
    from gapssg.settings.load import recipe_text

    tables = tomllib.loads(recipe_text(name))
    assert tables.pop("summary")
    assert tables.keys() <= {"table", "pretrain-teacher", "distill"}
    if "distill" in tables:
        load_settings(DistillSettings, section="distill", recipe=name, options={"teacher": GIVEN["teacher"]})
    if "pretrain-teacher" in tables:
        options = {"data.name": ("--data", "digits")}
        load_settings(PretrainSettings, section="pretrain-teacher", recipe=name, options=options)


def test_bytes_that_are_not_utf_8_are_refused_with_their_source():
    with pytest.raises(InputError, match=r"epochs \(from --set\) is not in UTF-8"):
        load(overrides=["epochs=\udcff"])


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load().epochs = 3


def test_equal_settings_have_equal_hashes():
    assert load().sha256() == load().sha256()
    assert load().sha256() != load(overrides=["epochs=3"]).sha256()


def test_settings_import_no_torch():
    code = "import sys, gapssg.training.settings, gapssg.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_copies_are_validated_as_new_settings_are():
    settings = DistillSettings(epochs=3)
    changed = settings.model_copy(update={"epochs": 4, "student": {"name": "wrn16_2"}})
    assert (changed.epochs, changed.student.name) == (4, "wrn16_2")
    assert changed.model_fields_set == {"epochs", "student"}
    for wrong in ({"epochs": "many"}, {"epochs": -20}, {"epoch": 20}, {"student": "wrn16_2"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings.model_copy(update=wrong)
