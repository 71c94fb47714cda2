"""What evaluation.json says of a method and its controls: that they are judged on the same images."""

import pytest
import torch
from models import PooledNet

from groupcam_aug import GroupCAM
from groupcam_aug.baselines import centred_blob, random_cells
from groupcam_aug.callbacks.monitoring.final_evaluation import STEPS, assess
from groupcam_aug.metrics import insertion_deletion
from groupcam_aug.metrics.intervals import student_interval


@pytest.fixture
def cam():
    torch.manual_seed(1)
    return GroupCAM.for_training(PooledNet(channels=16).eval(), groups=4)


@pytest.fixture
def pictures():
    return torch.randn(12, 3, 24, 20, generator=torch.Generator().manual_seed(3))


def test_controls_are_judged_on_the_images_that_the_method_maps(cam, pictures):
    labels = torch.arange(12) % 5
    maps = cam(pictures, labels)
    mapped = maps.amax(dim=(1, 2)) > 0
    assert 2 <= mapped.sum() < 12, "some without a map"
    found = assess(cam, pictures, labels, "Group-CAM")
    assert f"{12 - int(mapped.sum())} of them have no map and count in no row" in found["told"]
    for name, each in (("Group-CAM", maps), ("centred blob", centred_blob(maps)), ("random cells", random_cells(maps))):
        seen = insertion_deletion(cam.network, pictures, each, labels, steps=STEPS)
        row = found["methods"][name]
        assert row["insertion"]["auc"] == pytest.approx(float(seen.insertion_auc[mapped].mean()))
        assert row["deletion"]["mean"] == pytest.approx(seen.deletion[mapped].mean(dim=0).tolist())
        assert row["deletion"]["interval"] == [*student_interval(seen.deletion_auc[mapped].numpy())]
    everywhere = insertion_deletion(cam.network, pictures, centred_blob(maps), labels, steps=STEPS).insertion_auc
    assert float(everywhere.mean()) != pytest.approx(float(everywhere[mapped].mean()), rel=1e-3), "or nothing is shown"


def test_a_method_without_any_map_leaves_the_controls(cam, pictures):
    labels = torch.arange(12) % 5
    dead = cam(pictures, labels).amax(dim=(1, 2)) == 0
    found = assess(cam, pictures[dead], labels[dead], "Group-CAM")
    assert list(found["methods"]) == ["centred blob", "random cells"] and found["told"].endswith(
        f"{int(dead.sum())} of them have no map"
    )


def test_outputs_that_are_no_numbers_give_no_row(cam, pictures):
    with torch.no_grad():
        for parameter in cam.network.parameters():
            parameter.fill_(float("nan"))
    with pytest.warns(UserWarning, match="holds NaN or infinity.*the network, not the images"):
        assert assess(cam, pictures, torch.arange(12) % 5, "Group-CAM")["methods"] == {}


def test_one_image_has_no_interval(cam, pictures):
    assert assess(cam, pictures[:1], torch.tensor([1]), "Group-CAM")["methods"]["centred blob"]["insertion"]["interval"] is None
