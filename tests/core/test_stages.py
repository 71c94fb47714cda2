"""The place of masks inside the last stage, where modules do not fire in the order in which they are written down."""

import pytest
import torch
from torch import nn

from groupcam_aug import GroupCAM
from groupcam_aug.stages import find_stage


def test_find_stage_needs_something_in_front():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    with pytest.raises(ValueError, match="no block in front.*mask_at='target' or 'input'"):
        find_stage(net, "1", net, torch.randn(1, 3, 8, 8))


class Walked(nn.Module):
    """Blocks in a ModuleList, which never fires; their last may return a tuple, with the sum made in front of it."""

    def __init__(self, pairs):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.ModuleList(Block(pairs) for _ in range(3))
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.fc(self.norm(x).mean(dim=(2, 3)))


class Block(nn.Module):
    def __init__(self, pairs):
        super().__init__()
        self.conv, self.output, self.pairs = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), pairs

    def forward(self, x):
        y = self.output(self.conv(x) + x)
        return (y, None) if self.pairs else y


@pytest.mark.parametrize("pairs, stage", [(False, "blocks.1"), (True, "blocks.1.output")])
def test_the_stage_is_a_module_that_fires_and_returns_one_grid(pairs, stage):
    torch.manual_seed(0)
    net, images = Walked(pairs).double().eval(), torch.randn(2, 3, 17, 17, dtype=torch.float64)
    cam = GroupCAM.for_training(net, groups=4, mask_at="stage")
    maps = cam(images, 1)
    assert (cam.layer, cam.place) == ("norm", stage)
    torch.testing.assert_close(maps, GroupCAM.for_training(net, "norm", groups=4, mask_at=stage)(images, 1))


@pytest.mark.parametrize("pairs, stage", [(False, "blocks.2"), (True, "blocks.2.output")])
def test_a_list_in_front_of_the_last_block_is_no_stage_but_its_last_member_is(pairs, stage):
    torch.manual_seed(0)
    net = Walked(pairs)
    net.norm = nn.Conv2d(8, 8, 3)
    cam = GroupCAM.for_training(net.eval(), groups=4, mask_at="stage")
    cam(torch.randn(2, 3, 17, 17), 1)
    assert (cam.layer, cam.place) == ("norm", stage)


# Layers for mask_at="stage" where modules by the order in which they are written down never fire or return tuples.
STAGES = {
    "fastvit_t8": "stages.3",
    "hrnet_w18_small": "incre_modules.3",
    "xcit_nano_12_p16_224": "blocks.11",
    "twins_pcpvt_small": "blocks.3.1",
    "twins_svt_small": "blocks.3.2",
    "mvitv2_tiny": "stages.2.blocks.4.drop_path2",
    "crossvit_tiny_240": "blocks.2.blocks.1.2",
    "volo_d1_224": "post_network.0",
    "tnt_s_patch16_224": "blocks.11.norm1_proj",
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", STAGES)
@pytest.mark.filterwarnings("ignore")
def test_stage_matrix(arch):
    import timm

    torch.manual_seed(0)
    net = timm.create_model(arch, num_classes=5).eval()
    side = net.pretrained_cfg["input_size"][-1]
    cam = GroupCAM.for_training(net, groups=4, mask_at="stage")
    assert cam(torch.randn(2, 3, side, side), 1).isfinite().all()
    assert cam.place == STAGES[arch]
