from __future__ import annotations

from gapssg.evaluation.judgement import failures_on_real_images, judge_on_synthetic_images, passes_on_real_images
from gapssg.evaluation.metrics import ClassCounts
from gapssg.runs.results.distillation import AfterTraining
from tests.results import make_scores

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


def test_real_images_that_speak_for_a_student_are_no_failure():
    assert failures_on_real_images(make_scores(), make_scores()) == []
    assert failures_on_real_images(make_scores(lowest_recall=None, lowest_class=None), None) == []


def test_a_balanced_accuracy_at_chance_is_a_failure():
    at_chance = make_scores(balanced_accuracy=0.51, better_than_chance=False)
    assert failures_on_real_images(at_chance, None) == [
        "the balanced accuracy on real images is 51.0 %, no better than always answering with one class"
    ]


def test_a_lost_class_is_a_failure_unless_the_teacher_does_not_know_it_either():
    lost = make_scores(lowest_recall=0.05)
    assert failures_on_real_images(lost, make_scores()) == [
        "the student is right on only 5.0 % of the real images of class 'dog', "
        "its teacher on at least 80.0 % of every class"
    ]
    assert failures_on_real_images(lost, make_scores(lowest_recall=0.02)) == []
    assert failures_on_real_images(lost, None) == []


def test_real_images_speak_for_a_student_only_if_they_cover_every_class_and_none_is_lost():
    assert passes_on_real_images(make_scores(fewest_images=10))
    assert not passes_on_real_images(make_scores(fewest_images=9))
    assert not passes_on_real_images(make_scores(fewest_images=0, lowest_recall=None))
    assert not passes_on_real_images(make_scores(fewest_images=10, lowest_recall=0.09))
    assert not passes_on_real_images(make_scores(fewest_images=10, better_than_chance=False))
