from __future__ import annotations

from gapssg.evaluation.judgement import judge_on_synthetic_images
from gapssg.evaluation.metrics import ClassCounts
from gapssg.runs.results.distillation import AfterTraining

NAMES = ("cat", "dog")


def test_a_student_that_gives_the_teachers_answers_on_all_classes_is_sound():
    judged = judge_on_synthetic_images([600, 680], ClassCounts([560, 600], [600, 680]), NAMES)
    assert judged.failures == []
    assert judged.missing_classes == []
    assert judged.comparison == AfterTraining(
        images=1280,
        agreement=1160 / 1280,
        agreement_baseline=680 / 1280,
        lowest_agreement=600 / 680,
        lowest_class="dog",
    )


def test_perfect_agreement_on_one_class_is_a_failure():
    judged = judge_on_synthetic_images([640, 0], ClassCounts([640, 0], [640, 0]), NAMES)
    assert judged.failures[0] == "the teacher predicts class 'cat' for all 640 synthetic images"
    assert judged.missing_classes == ["dog"]


def test_a_class_that_only_the_newest_images_lack_is_a_failure():
    judged = judge_on_synthetic_images([6400, 6400], ClassCounts([990, 1], [999, 1]), NAMES)
    assert judged.failures[0] == "the teacher predicts class 'dog' for only 1 of 1,000 newest synthetic images"
    assert judged.missing_classes == ["dog"]


def test_an_agreement_no_better_than_the_commonest_answer_is_a_failure():
    judged = judge_on_synthetic_images([940, 60], ClassCounts([925, 20], [940, 60]), NAMES)
    assert judged.failures == [
        "the student agrees with the teacher on 94.5 % of 1,000 synthetic images after training, "
        "no better than always giving the commonest answer (94.0 %)"
    ]
    assert judge_on_synthetic_images([940, 60], ClassCounts([930, 50], [940, 60]), NAMES).failures == []


def test_a_class_that_the_student_has_not_learned_is_a_failure():
    counts = [450, 450, 100]
    judged = judge_on_synthetic_images(counts, ClassCounts([440, 440, 9], counts), ("cat", "dog", "cow"))
    assert judged.failures == [
        "the student agrees with the teacher on only 9.0 % of the 100 synthetic images "
        "that the teacher assigns to class 'cow'"
    ]
    assert judge_on_synthetic_images(counts, ClassCounts([440, 440, 10], counts), ("a", "b", "c")).failures == []


def test_a_class_with_few_images_is_not_judged_by_them():
    counts = [50, 40, 9]
    judged = judge_on_synthetic_images(counts, ClassCounts([50, 40, 0], counts), ("cat", "dog", "cow"))
    assert judged.failures == []
    assert judged.comparison.lowest_class == "cat"
