"""The settings of a run of a row and a method."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gapssg.errors import InputError
from gapssg.models.model_file import architecture_of
from gapssg.settings.load import published_rows, recipe_text
from gapssg.settings.parts import OptimizerSettings
from gapssg.synthesis import method_classes
from gapssg.synthesis.base import RunSize
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings
from gapssg.table.plan import Task, plan_tasks
from gapssg.table.rows import make_rows, published_figures_of
from gapssg.table.settings import TableSettings, method_names, parse_variant, row_names
from gapssg.training.settings import DistillSettings
from tests.program import gapssg, refusal

PUBLISHED = list(published_rows().values())
RUNS = {"gapssg": (200, 128, 0.2), "fast": (220, 256, 0.2), "mad": (200, 128, 0.2), "noise": (200, 128, 0.2)}
RUNS |= {"gapssg-fast": (32, 128, 0.1), "nayer": (400, 512, 0.2)}
ROW = "cifar10-wrn40_2-wrn16_1"


def plan(root: Path = Path("table"), **changes: Any) -> list[Task]:
    settings = {"rows": [ROW], "methods": ["gapssg"], "seeds": 1, **changes}
    return plan_tasks(TableSettings.model_validate(settings), root)


def cell(**changes: Any) -> Task:
    return plan(**changes)[-1]


def distilled(**changes: Any) -> DistillSettings:
    settings = cell(**changes).settings
    assert isinstance(settings, DistillSettings)
    return settings


def test_there_is_a_recipe_for_every_published_row():
    names = {f"{line['dataset']}-{line['teacher']}-{line['student']}" for line in PUBLISHED}
    assert len(names) == 14
    assert names | {"digits"} == set(row_names())
    for line in PUBLISHED:
        (row,) = make_rows(TableSettings(rows=(f"{line['dataset']}-{line['teacher']}-{line['student']}",)))
        assert (row.data.name, row.teacher, row.student) == (line["dataset"], line["teacher"], line["student"])


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        *((name, "full") for name in row_names()),
        ("digits", "short"),
        (ROW, "short"),
        ("digits", "smoke"),
        (ROW, "smoke"),
    ],
)
def test_every_row_composes_with_every_method(name, budget):
    tasks = plan(rows=[name], methods=method_names(), budget=budget)
    cells = [task for task in tasks if task.plan is not None]
    assert [task.plan.column for task in cells if task.plan] == list(method_names())
    for task in cells:
        settings, method = task.settings, task.plan.method if task.plan else ""
        assert isinstance(settings, DistillSettings)
        assert settings.method.name == method
        assert settings.eval_data is not None
        if budget == "full":
            expected = RUNS.get(method, (200, 256, 0.05 if method == "dfq" and "-resnet34-" in name else 0.1))
            assert (settings.epochs, settings.batch_size, settings.optimizer.learning_rate) == expected
            defaults = next(each for each in method_classes() if each.model_fields["name"].default == method)()
            if method != "fast":
                assert settings.method == defaults
        if budget == "smoke":
            assert (settings.epochs, settings.batch_size, settings.eval_data.images) == (2, 16, 32)
            # A few passes of 16 images for every method.
            assert settings.method.work(RunSize(2, 16)).synthesis <= 2 * 2 * 16
            assert settings.method.work(RunSize(2, 16)).distillation <= 2 * 4 * 16


def test_teachers_are_trained_as_published():
    teacher = plan()[0].settings
    assert teacher.epochs == 200
    assert teacher.batch_size == 256
    assert teacher.optimizer.model_dump(include={"learning_rate", "momentum", "weight_decay", "schedule", "decay"}) == {
        **{"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "step", "decay": 0.1}
    }
    # Epochs 120, 150 and 180.
    assert [200 * share for share in teacher.optimizer.milestones] == pytest.approx([120, 150, 180])


@pytest.mark.parametrize(
    ("row", "weights"),
    [
        ("cifar10-wrn40_2-wrn16_1", (1.1, 0.4)),
        ("cifar10-resnet34-wrn16_1", (1.33, 0.5)),
        ("cifar100-vgg11-resnet18", (1.0, 0.5)),
    ],
)
def test_the_loss_weights_of_fast_depend_on_the_teacher(row, weights):
    method = distilled(rows=[row], methods=["fast"]).method
    assert (method.adversarial_weight, method.target_weight) == weights


def test_the_recipe_published_is_that_of_the_gapssg_paper():
    printed = gapssg("distill", "--recipe", "published", "--teacher", "t", "--dry-run").stdout
    settings = DistillSettings.model_validate(tomllib.loads(printed))
    assert settings.student.name == "mobilenetv2"
    assert_as_published(settings)
    values: dict[str, float] = {"temperature": 20, "synthesis_batch_size": 256, "passes": 2, "generator_steps": 200}
    values |= {"generator_learning_rate": 2e-3, "generator_width": 64, "latent_size": 256}
    assert settings.method.model_dump(include=set(values)) == values


def assert_as_published(settings: DistillSettings) -> None:
    """Compare the student's training with that of GapSSG's paper."""
    assert (settings.epochs, settings.batch_size, settings.method) == (200, 128, GapSSGSettings())
    assert settings.method.mixup == 0
    # The whole, so that the default of a new field cannot change it.
    expected = OptimizerSettings(algorithm="sgd", learning_rate=0.2, momentum=0.9, nesterov=False, weight_decay=1e-4)
    assert settings.optimizer == expected.model_copy(update={"warm_up": settings.optimizer.warm_up})
    assert settings.optimizer.schedule == "cosine"


@pytest.mark.parametrize("name", [name for name in row_names() if name.startswith("cifar")])
def test_every_published_row_is_gapssg_as_published(name):
    assert_as_published(distilled(rows=[name]))
    printed = gapssg("distill", "--recipe", name, "--teacher", "t", "--dry-run").stdout
    assert_as_published(DistillSettings.model_validate(tomllib.loads(printed)))


@pytest.mark.parametrize("method", [name for name in method_names() if name not in ("gapssg", "gapssg-fast")])
def test_other_methods_train_the_student_with_a_cosine_as_published(method):
    printed = gapssg("distill", "--teacher", "t", "--student", "wrn16_1", "--method", method, "--dry-run").stdout
    settings = DistillSettings.model_validate(tomllib.loads(printed))
    assert (settings.epochs, settings.batch_size, settings.optimizer.learning_rate) == RUNS.get(method, (200, 256, 0.1))
    optimizer = settings.optimizer
    assert (optimizer.algorithm, optimizer.schedule) == ("sgd", "cosine")
    assert (optimizer.nesterov, optimizer.weight_decay) == (False, 1e-4)


def test_the_default_method_is_gapssg_fast_with_its_own_settings():
    printed = gapssg("distill", "--teacher", "t", "--student", "wrn16_1", "--dry-run").stdout
    settings = DistillSettings.model_validate(tomllib.loads(printed))
    assert settings.method == GapSSGFastSettings()
    assert (settings.epochs, settings.batch_size) == (32, 128)
    expected = {"learning_rate": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "one-cycle", "warm_up": 0.1}
    assert settings.optimizer.model_dump(include=set(expected)) == expected
    named = gapssg("distill", "--teacher", "t", "--student", "wrn16_1", "--method", "gapssg-fast", "--dry-run").stdout
    assert named == printed


def test_the_short_digits_recipe_has_a_budget_for_each_method():
    tables = tomllib.loads(recipe_text("digits-short"))["distill"]
    gapssg = distilled(rows=["digits"], budget="short")
    assert (gapssg.epochs, gapssg.batch_size) == (tables["epochs"], tables["batch_size"])
    assert gapssg.method.passes == tables["method"]["passes"]
    assert tables["methods"].keys() | {"gapssg"} == set(method_names())
    fast = distilled(rows=["digits"], methods=["fast"], budget="short")
    assert (fast.epochs, fast.method.distillation_steps) == (
        tables["methods"]["fast"]["epochs"],
        tables["methods"]["fast"]["method"]["distillation_steps"],
    )
    assert fast.optimizer.learning_rate == tables["optimizer"]["learning_rate"]


def test_changes_override_the_budget_and_those_of_a_variant_override_both():
    variant = parse_variant("slow:method.passes=7,epochs=3").to_dict()
    changed = distilled(changes=["epochs=5", "batch_size=8"], variants=[variant], methods=[], budget="short")
    assert (changed.epochs, changed.method.passes, changed.batch_size) == (3, 7, 8)
    other = parse_variant("quick:method.name='fast',method.generator_steps=2").to_dict()
    settings = distilled(variants=[other], methods=[])
    assert (settings.method.name, settings.method.generator_steps, settings.epochs) == ("fast", 2, 220)


def test_a_setting_of_another_method_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        plan(tmp_path / "table", methods=["gapssg", "dafl"], changes=["method.passes=3"])
    assert str(caught.value).startswith(
        f"{ROW}, dafl: method.passes (from --set) is not a setting of dafl, but of gapssg"
    )
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("change", "instead"),
    [
        ("student.name=vgg11", "the row sets it"),
        ("teacher=/tmp/teacher.safetensors", "the row sets it"),
        ("eval_data.name=digits", "use --data"),
        ("eval_data.image_size=16", "use --image-size"),
        ("runtime.compile=true", "use --device, --precision, --compile or --deterministic"),
        ("runtime={compile=true}", "use --device, --precision, --compile or --deterministic"),
        ("seed=8", "use --seeds"),
    ],
)
def test_a_change_of_what_the_table_sets_is_refused(tmp_path: Path, change, instead):
    sentence = f"cannot be changed here: {instead}"
    rows = ["table", tmp_path / "table", "--rows", "digits"]
    assert refusal(*rows, "--set", change).endswith(sentence)
    assert refusal(*rows, "--variant", f"v:method.passes=3,{change}").endswith(sentence)
    pretrain = change.replace("eval_data", "data").replace("student", "model")
    assert refusal(*rows, "--set-pretrain", pretrain).endswith(sentence)
    assert not (tmp_path / "table").exists()


def test_a_change_of_the_method_of_all_columns_is_refused(tmp_path: Path):
    sentence = refusal("table", tmp_path / "table", "--rows", "digits", "--set", "method.name=fast")
    assert sentence.endswith("method.name cannot be changed here: use --methods, or --variant")


def test_a_recipe_sets_compilation_unless_the_command_line_does():
    assert tomllib.loads(recipe_text("cifar-reduced"))["distill"]["runtime"] == {"compile": True}
    for given, expected in (({}, True), ({"device": "cpu"}, True), ({"compile": False}, False)):
        assert distilled(budget="short", runtime=given).runtime.compile is expected
    assert distilled(budget="short", runtime={"device": "cpu"}).runtime.device == "cpu"
    assert distilled(budget="full").runtime.compile == "auto"


def test_the_hash_depends_only_on_what_affects_the_result():
    def hash_of(**changes: Any) -> str:
        found = cell(**changes).plan
        assert found is not None
        return found.settings

    same = hash_of()
    assert hash_of(root=Path("elsewhere"), data_root=Path("/data"), runtime={"device": "cpu"}) == same
    assert cell().run.name == f"seed-0-{same}"
    for changes in ({"changes": ["epochs=5"]}, {"budget": "smoke"}, {"pretrain_changes": ["epochs=5"]}):
        assert hash_of(**changes) != same
    moved = [hash_of(data=f"folder:{place}/jpeg") for place in ("/a", "/b")]
    assert moved[0] == moved[1] != same


def test_rows_with_the_same_teacher_share_it_and_the_scratch_student():
    tasks = plan(rows=[ROW, "cifar10-wrn40_2-wrn16_2", "cifar10-resnet34-wrn16_1"], seeds=2)
    names = [task.run.parent.name for task in tasks if task.teacher is None]
    assert names.count("cifar10-wrn40_2") == 1
    assert names.count("cifar10-wrn16_1") == 2  # seeds
    assert len({task.run for task in tasks}) == len(tasks)
    for index, task in enumerate(tasks):
        if task.teacher is not None:
            assert task.teacher in {earlier.run for earlier in tasks[:index]}


def test_other_images_change_the_name_of_the_row():
    (row,) = make_rows(TableSettings(rows=(ROW,), data="folder:data/cifar10-jpeg"))
    assert (row.name, row.data.name) == ("cifar10-jpeg-wrn40_2-wrn16_1", "folder:data/cifar10-jpeg")
    (row,) = make_rows(TableSettings(rows=(ROW,), data="folder:/", data_name="mine"))
    assert row.name == "mine-wrn40_2-wrn16_1"
    for changes, message in (
        ({"data": "folder:/"}, "add --data-name"),
        ({"data_name": "mine"}, "add --data"),
        ({"data": "folder:a", "rows": [ROW, "digits"]}, "the rows are of cifar10 and digits"),
    ):
        with pytest.raises(InputError, match=message):
            make_rows(TableSettings.model_validate({"rows": [ROW], **changes}))


def test_departures_from_the_published_are_named():
    known = "cifar100-resnet34-mobilenetv2"

    def said(**changes: Any) -> tuple[str, ...]:
        found = cell(**{"rows": [known], **changes}).plan
        assert found is not None
        return found.departures

    assert said() == said(methods=["deepinversion"]) == said(rows=[ROW], methods=["deepinversion"]) == ()
    unknown = "published epochs, batch size and learning rate of gapssg not known for this pair: those of"
    assert said(rows=[ROW]) == (f"{unknown} {known}",)
    assert said(rows=[ROW], budget="short") == ("budget short, which is not the published one",)
    assert said(methods=["gapssg-fast"]) == ("this project's own method, not published",)
    assert said(methods=["noise"])[-1].endswith("of noise not known: those of gapssg")
    assert said(methods=["fast"]) == ("the learning rate ends at 0, not at 2e-4",)
    assert said(image_size=16) == ("the images are scaled to 16x16 pixels",)
    assert cell(rows=[known], image_size=16).plan.pretrain_departures == said(image_size=16)
    assert said(budget="short") == ("budget short, which is not the published one",)
    assert said(data="folder:cifar10-jpeg") == ("the images are cifar10-jpeg, not cifar100",)
    assert said(changes=["epochs=5"]) == ("with epochs=5",)
    assert said(pretrain_changes=["epochs=5"]) == ("teacher and scratch student trained with epochs=5",)
    assert said(methods=["mad"])[-1].startswith("published epochs, batch size and learning rate of mad not known")
    variant = parse_variant("plain:method.regulatory_factor=false").to_dict()
    assert said(variants=[variant]) == ("plain is with method.regulatory_factor=false",)
    variant = parse_variant("other:method.name=fast,method.warm_up=0").to_dict()
    assert said(variants=[variant])[:1] == ("the learning rate ends at 0, not at 2e-4",)


def test_a_method_that_departs_from_the_published_is_marked_in_every_row():
    departing = {"gapssg-fast", "dafl", "zskt", "dfad", "dfq", "cmi", "fast", "mad", "nayer"}
    for row, more in ((ROW, []), ("cifar10-resnet34-wrn16_1", ["cmi"])):
        marked = {}
        for task in plan(rows=[row], methods=method_names()):
            if task.plan is not None:
                marked[task.plan.method] = [each for each in task.plan.departures if "not known" not in each]
        assert {method for method, phrases in marked.items() if phrases} == departing
        assert [method for method, phrases in marked.items() if any("four stages" in each for each in phrases)] == more


def test_published_figures_are_fractions_by_column():
    figures = published_figures_of(ROW)
    assert figures.top1["teacher"] == pytest.approx(0.9487)
    assert figures.top1["scratch"] == pytest.approx(0.9112)
    assert figures.top1["deepinversion"] == pytest.approx(0.8304)
    assert figures.top1["gapssg"] == pytest.approx(0.9045)
    assert figures.deviation == {"gapssg": pytest.approx(0.002)}
    assert "mad" not in figures.top1
    assert published_figures_of("cifar100-resnet34-resnet18").top1["fast"] == pytest.approx(0.7434)
    assert published_figures_of("cifar100-resnet34-resnet18").deviation == {}
    assert published_figures_of("digits") == ({}, {})


@pytest.mark.parametrize("text", ["name", "name:", "name:epochs", "gapssg:epochs=3", "a/b:epochs=3"])
def test_malformed_variants_are_refused(text):
    with pytest.raises(InputError):
        parse_variant(text)


def test_a_variant_takes_lists():
    assert parse_variant("v:optimizer.milestones=[0.5,0.7],epochs=3").changes == (
        "optimizer.milestones=[0.5,0.7]",
        "epochs=3",
    )


def test_distill_uses_the_published_settings_of_the_method_for_its_teacher(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["distill", "--method", "fast", "--student", "wrn16_1", "--dry-run", "--teacher"]
    plain = tomllib.loads(gapssg(*arguments, "/absent").stdout)
    assert (plain["epochs"], plain["batch_size"], plain["optimizer"]["learning_rate"]) == (220, 256, 0.2)
    assert plain["method"]["adversarial_weight"] == 1.1
    assert architecture_of(teacher_file) == "wrn10_half"
    monkeypatch.setattr("gapssg.models.model_file.architecture_of", lambda _: "resnet34")
    settings = tomllib.loads(gapssg(*arguments, teacher_file, "--epochs", 7).stdout)
    assert (settings["epochs"], settings["batch_size"], settings["method"]["adversarial_weight"]) == (7, 256, 1.33)
