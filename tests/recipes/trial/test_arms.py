import pytest
import yaml
from own_project import ARMS, CONFIG

from groupcam_aug.recipes.trial.arms import AS_IT_IS, all_arms, is_kind, read_arms, where_things_are, with_arm

BASE = yaml.safe_load(CONFIG)
AUGMENTATION = "groupcam_aug.callbacks.GroupCAMAugmentation"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "arms.yaml"
    path.write_text(ARMS)
    return path


def kinds(tree):
    return [entry["class_path"].rpartition(".")[2] for entry in tree["trainer"]["callbacks"]]


def test_an_arm_takes_over_where_things_are_and_not_the_form(file):
    (arm,) = read_arms(["cheap"], file)
    tree = with_arm(BASE, arm)
    assert kinds(tree) == ["GroupCAMAugmentation"]  # no checkpoints, no early stopping
    given = tree["trainer"]["callbacks"][0]["init_args"]
    assert given == {"image_key": "image", "target_key": "label", "preset": "fast", "groups": 4, "source": "self"}
    assert BASE == yaml.safe_load(CONFIG)  # nothing was changed in place


def test_none_has_no_augmentation_and_config_has_its_own(file):
    none, own = read_arms(["none", AS_IT_IS], file)
    assert kinds(with_arm(BASE, none)) == []
    assert with_arm(BASE, own)["trainer"]["callbacks"] == [BASE["trainer"]["callbacks"][0]]


def test_other_callbacks_stay():
    tree = {**BASE, "trainer": {"callbacks": {"class_path": "pytorch_lightning.callbacks.StochasticWeightAveraging"}}}
    (none,) = read_arms(["none"])
    assert kinds(with_arm(tree, none)) == ["StochasticWeightAveraging"]


def test_our_classifier_needs_no_augmentation_in_its_config():
    tree = {"model": {"class_path": "groupcam_aug.recipes.classifier.Classifier"}, "trainer": {"callbacks": None}}
    (fast,) = read_arms(["fast"])
    assert with_arm(tree, fast)["trainer"]["callbacks"][0]["init_args"]["network"] == "network"
    assert where_things_are(tree, [fast]) == {"network": "network"}


def test_where_things_are_is_read_from_the_config_or_else_from_an_arm(file):
    assert where_things_are(BASE, []) == {"image_key": "image", "target_key": "label"}
    tree = {"model": {"class_path": "own_project.Mine"}, "trainer": {"callbacks": []}}
    file.write_text(f"mine: {{callbacks: [{{class_path: {AUGMENTATION}, init_args: {{network: net, preprocess: torch.neg}}}}]}}")
    said = where_things_are(tree, read_arms([], file))
    assert said["network"] == "net" and said["preprocess"].__name__ == "neg"


def test_names_of_the_file_stand_beside_the_shipped_ones(file):
    known = all_arms(file)
    assert {"none", "paper", "balanced", "fast", "fast-other", "fast-centre", "whole", "cheap", AS_IT_IS} <= set(known)
    assert [arm.name for arm in read_arms([], file)] == list(yaml.safe_load(ARMS))  # all of the file where none is named
    assert known["none"].about == "as it is"  # the file's


def test_shipped_arms_name_controls_that_there_are():
    known = all_arms()
    assert known["fast"].control == "fast-other"
    for arm in known.values():
        assert arm.control is None or arm.control in known, arm
        assert arm.about, arm


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- none", "expected arms by name"),
        ("a/b: {}", "letters, digits"),
        ("a: {callback: []}", "expected about, control, callbacks and set"),
        ("a: {callbacks: [fast]}", "class_path"),
        ("a: {set: [1]}", "set is a mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_is_no_arm_is_refused_with_its_file(text, message, tmp_path):
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        read_arms([], tmp_path / "arms.yaml")
    assert "arms.yaml" in str(refused.value)


def test_unknown_and_repeated_names():
    with pytest.raises(ValueError, match="did you mean 'fast'"):
        read_arms(["fst"])
    with pytest.raises(ValueError, match="each arm once"):
        read_arms(["fast", "fast"])


def test_subclasses_are_of_the_kind():
    assert is_kind({"class_path": "pytorch_lightning.callbacks.ModelCheckpoint"}, "Checkpoint")
    assert not is_kind({"class_path": AUGMENTATION}, "Checkpoint")
    assert not is_kind({"class_path": "nowhere.Checkpoint"}, "Checkpoint")
