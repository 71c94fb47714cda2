import pytest

from groupcam_aug.recipes.trial.metrics import ACCURACIES, better, check_measured


def test_which_way_is_better_by_name():
    for name in (*ACCURACIES, "test/acc", "test_acc_top5", "TestAccuracy"):
        assert better(name) == "max", name
    for name in ("test_loss", "test/loss", "Error", "nll", "rmse", "brier_score", "perplexity"):
        assert better(name) == "min", name
    for name in ("test_right", "f1", "vaccine", "accuracy_loss", ""):
        assert better(name) is None, name


def test_a_metric_that_no_test_measures_is_told_with_the_nearest_and_the_reason():
    check_measured("accuracy", ["accuracy", "test_loss"], ["why ever"])
    with pytest.raises(ValueError, match=r"--metric acuracy: no test measures it.*'accuracy'.*measured: accuracy, test_loss$"):
        check_measured("acuracy", ["accuracy", "test_loss"])
    with pytest.raises(ValueError, match=r"--metric accuracy: no test measures it \(no keys\); measured: test_loss$"):
        check_measured("accuracy", ["test_loss"], ["no keys", "no keys"])
    with pytest.raises(ValueError, match="measured: nothing"):
        check_measured("accuracy", [])
