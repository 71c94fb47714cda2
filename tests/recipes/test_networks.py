import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from groupcam_aug.recipes.networks import (
    CIFARResNet,
    build_network,
    check_size,
    head_name,
    load_checkpoint,
    pretrained_network,
)

DATA = os.environ.get("GROUPCAM_DATA")


@pytest.mark.parametrize(("depth", "blocks"), [(8, 1), (20, 3), (56, 9)])
def test_depth_counts_weighted_layers(depth, blocks):
    network = CIFARResNet(depth)
    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth
    assert [len(stage) for stage in (network.layer1, network.layer2, network.layer3)] == [blocks] * 3


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 47)])
def test_any_image_size_gives_logits(size):
    assert CIFARResNet(8, num_classes=5, width=4)(torch.rand(2, 3, *size)).shape == (2, 5)


def test_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = CIFARResNet(8, width=4).layer2[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)  # leaves the shortcut alone
    x = torch.rand(1, 4, 6, 6)
    out = block.eval()(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 6:].abs().sum() == 0


@pytest.mark.parametrize(
    ("arguments", "told"), [({"depth": 18}, "nearest possible is 20"), ({"num_classes": 0}, "num_classes=0")]
)
def test_impossible_numbers_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        CIFARResNet(**arguments)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_starts_the_network(tmp_path, suffix):
    source, path = CIFARResNet(8, width=4), tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, path)
    else:
        save_file(source.state_dict(), path)
    copy = CIFARResNet(8, width=4, checkpoint=str(path))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), copy.parameters(), strict=True))


def test_a_head_of_another_size_stays_fresh_and_this_is_said(tmp_path, capsys):
    source = CIFARResNet(8, num_classes=10, width=4)
    network = CIFARResNet(8, num_classes=3, width=4)
    head = network.linear.weight.clone()
    assert load_checkpoint(network, source.state_dict()) == ["linear.weight", "linear.bias"]
    assert torch.equal(network.linear.weight, head) and torch.equal(network.conv1.weight, source.conv1.weight)
    assert "10 classes there, 3 here" in capsys.readouterr().out


def test_a_state_dict_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only the last layer"):
        load_checkpoint(CIFARResNet(8, width=4), CIFARResNet(8, width=8).state_dict())
    with pytest.raises(ValueError, match="the state dict does not fit CIFARResNet: 0 names missing .* unexpected"):
        load_checkpoint(CIFARResNet(20, width=4), CIFARResNet(56, width=4).state_dict())
    torch.save(CIFARResNet(20, width=4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="checkpoint '.*other.pt' does not fit .* choose the network"):
        CIFARResNet(8, width=4, checkpoint=str(tmp_path / "other.pt"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CIFARResNet(8, width=4, checkpoint=str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18", "resnet18", "torchvision/squeezenet1_1"])
def test_libraries_by_name(name):
    network = build_network(name, 7)
    last = network.get_submodule(head_name(network))
    assert last.weight.shape[0] == 7


def test_class_path_is_given_the_number_of_classes():
    spec = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8}}
    assert build_network(spec, 4).linear.out_features == 4
    spec["init_args"]["num_classes"] = 9
    assert build_network(spec, 4).linear.out_features == 9


@pytest.mark.parametrize(
    ("spec", "pretrained", "error", "told"),
    [
        ("timm/resnet5O", False, ValueError, "resnet50"),
        ("keras/resnet50", False, ValueError, "timm or torchvision"),
        ("torchvision/resnet18", "IMAGENET_V7", ValueError, "IMAGENET1K_V1"),
        ("timm/resnet18", "IMAGENET1K_V1", ValueError, "torchvision/resnet18"),
        ({"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"dept": 8}}, False, ValueError, "'depth'"),
        ({"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "args": {}}, False, ValueError, "init_args"),
        (
            {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"weights": "w.pt"}},
            False,
            ValueError,
            "takes no 'weights'; it is called 'checkpoint' now",
        ),
        ({"class_path": "groupcam_aug.recipes.nowhere.Net"}, False, ValueError, "cannot be imported"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": "true"}}, False, TypeError, "not a torch.nn.Module"),
        ({"class_path": "groupcam_aug.recipes.networks.CIFARResNet"}, True, ValueError, "use checkpoint="),
    ],
)
def test_wrong_descriptions_name_the_way_out(spec, pretrained, error, told):
    with pytest.raises(error, match=told):
        build_network(spec, 4, pretrained)


@pytest.mark.skipif(not DATA, reason="GROUPCAM_DATA is not set: the published CIFAR-10 weights are not here")
@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_load_and_know_their_classes(depth):
    network = CIFARResNet(depth, checkpoint=str(Path(DATA) / "weights" / f"resnet{depth}_cifar10.safetensors")).eval()
    import io
    import zipfile

    from PIL import Image
    from torchvision.transforms.v2 import functional as F

    right, n = 0, 0
    with zipfile.ZipFile(Path(DATA) / "cifar10.zip") as archive:
        names = sorted(name for name in archive.namelist() if "/test/" in name and name.endswith(".jpg"))[::25]
        classes = sorted({name.split("/")[-2] for name in names})
        images = torch.stack(
            [F.to_dtype(F.pil_to_tensor(Image.open(io.BytesIO(archive.read(name)))), scale=True) for name in names]
        )
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        predicted = network((images - mean[:, None, None]) / std[:, None, None]).argmax(1)
    right, n = int((predicted == labels).sum()), len(labels)
    assert right / n > 0.72, f"{right} of {n}"


def test_pretrained_network_keeps_its_head(tmp_path):
    there = models.squeezenet1_1()
    save_file(there.state_dict(), tmp_path / "imagenet.safetensors")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network = pretrained_network("torchvision/squeezenet1_1", str(tmp_path / "imagenet.safetensors"))
    assert torch.equal(torch.get_rng_state(), before), "arms with it start from the weights of arms without"
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(network.eval()(images), there.eval()(images))
    with pytest.raises(ValueError, match="head of another size than num_classes=10"):
        pretrained_network("torchvision/squeezenet1_1", str(tmp_path / "imagenet.safetensors"), num_classes=10)


def test_a_size_is_tried_and_nothing_stays_changed():
    network = build_network("timm/vit_tiny_patch16_224", 2)
    small = build_network("torchvision/alexnet", 2)
    network.blocks[0].eval()
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    check_size(network, 224, "it")
    with pytest.raises(ValueError, match=r"it cannot take images of 64 x 64 px .*64.*: give another size .it was made for 224."):
        check_size(network, 64, "it")
    with pytest.raises(ValueError, match="cannot take images of 16 x 16 px"):
        check_size(small, 16, "alexnet")
    assert modes == [module.training for module in network.modules()] and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spec", ["timm/resnet18", "torchvision/resnet18"])
def test_without_a_network_the_way_to_local_weights_is_named(spec, monkeypatch):
    def fails(*_, **__):
        raise URLError("no route\nto host")

    monkeypatch.setattr("timm.create_model", fails)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fails)
    with pytest.raises(OSError, match=r"weights of \S+resnet18 could not be fetched .*no route to host.*--model.checkpoint FILE"):
        build_network(spec, 3, pretrained=True)
    if spec.startswith("timm"):
        with pytest.raises(URLError):  # not a matter of weights
            build_network(spec, 3)
