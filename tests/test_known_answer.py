"""Whether maps and their measures find what is known to be there (E7, E8): maps are for the network's own choice on fresh images.

On textures in noise, two cheap convolutional networks: trained with the labels and with shuffled ones; and one for which a tag in
the corner gives the class away. On the drawn objects with their exact masks, three small ResNets: trained where backgrounds say
nothing about the class, the same with shuffled labels, and trained where the background always gives the class away.
"""

import pytest
import torch
from monitoring import Deep, textures
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.metrics import energy_pointing_game, map_noise, pointing_game
from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.shapes import Shapes

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
TAG = 6  # pixels a side, in the corner


def train(network, images, labels, epochs, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = len(images) // 32
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * batches)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator)[: batches * 32].split(32):
            loss = F.cross_entropy(network(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def chosen_maps(network, images, method):
    """Maps for the network's choice, and those of the mirrored images, mirrored back."""
    with torch.no_grad():
        chosen = network(images).argmax(dim=1)
    cam = method(network)
    return cam(images, chosen), cam(images.flip(-1), chosen).flip(-1)


def mean_of(found):
    """Over the images with a map."""
    return float(found.value[found.counted & ~found.undefined].mean())


def noise_of(found):
    return float(found.noise[found.counted].mean())


def accuracy(network, images, labels):
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).float().mean())


def with_tag(images, labels):
    """A square of one of four greys in the corner."""
    images = images.clone()
    images[:, :, -TAG:, -TAG:] = torch.tensor([-2.0, -0.7, 0.7, 2.0])[labels][:, None, None, None]
    return images


def on_textures(seed, *, shuffled=False, tag=False):
    torch.manual_seed(seed)
    images, labels = textures(384, seed=10 + seed, shuffled=shuffled)
    return train(Deep(), with_tag(images, labels) if tag else images, labels, 16, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_textures_are_found_by_a_trained_network_alone(seed):
    images, labels, masks = textures(200, seed=seed, masks=True)
    clean, twin = on_textures(seed), on_textures(seed, shuffled=True)
    assert accuracy(clean, images, labels) >= 0.95 and accuracy(twin, images, labels) < 0.35
    for method in (GradCAM, GroupCAM):
        found = []
        for network in (clean, twin):
            maps, mirrored = chosen_maps(network, images, method)
            hit, flip, truth = pointing_game(maps, masks), map_noise(maps, mirrored), map_noise(maps, masks=masks)
            found.append((mean_of(hit), noise_of(flip), noise_of(truth)))
        (hit, flip, truth), (missed, much, most) = found
        print(seed, method.__name__, found)
        assert hit >= 0.9 and flip < 0.2 and truth <= 0.85
        assert missed <= 0.5 and much > 0.3 and most >= 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tag_in_the_corner_is_shown(seed):
    """Labels are shuffled, so that only the tag tells the class."""
    images, labels = textures(200, seed=seed, shuffled=True)
    corner = torch.zeros(200, 32, 32, dtype=torch.bool)
    corner[:, -TAG:, -TAG:] = True
    network, images = on_textures(seed, shuffled=True, tag=True), with_tag(images, labels)
    assert accuracy(network, images, labels) > 0.9
    for method in (GradCAM, GroupCAM):
        times = mean_of(energy_pointing_game(chosen_maps(network, images, method)[0], corner)) / (TAG**2 / 32**2)
        print(seed, method.__name__, times)
        assert times > 3, "times chance"


def drawn(split, count, **options):
    images, labels, masks = Shapes(split, count, **options).tensors()
    return (images - 0.5) / 0.25, labels, masks


def on_shapes(seed, *, rho=1 / 6, shuffled=False):
    images, labels, _ = drawn("train", 1500, rho=rho, seed=seed)
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    torch.manual_seed(seed)
    return train(CIFARResNet(8, 6, 8).to(memory_format=torch.channels_last), images, labels, 14, seed)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_objects_are_found_and_a_shortcut_is_shown(seed):
    images, labels, masks = drawn("kept", 300, seed=seed)
    swapped, _, _ = drawn("swapped", 300, seed=seed)
    found = {}
    for name, how in (("clean", {}), ("shuffled", {"shuffled": True}), ("spurious", {"rho": 1.0})):
        network = on_shapes(seed, **how)
        found[name, "kept"], found[name, "swapped"] = accuracy(network, images, labels), accuracy(network, swapped, labels)
        for method in (GradCAM, GroupCAM):
            maps, mirrored = chosen_maps(network, images, method)
            energy = mean_of(energy_pointing_game(maps, masks, above_chance=True))
            found[name, method] = energy, noise_of(map_noise(maps, mirrored))
    print(seed, found)
    assert found["clean", "kept"] > 0.7 and found["shuffled", "kept"] < 0.25
    assert abs(found["clean", "kept"] - found["clean", "swapped"]) < 0.15
    assert found["spurious", "kept"] - found["spurious", "swapped"] > 0.2
    for method in (GradCAM, GroupCAM):
        energy, noise = found["clean", method]
        assert energy > 0.12 and found["shuffled", method][0] < 0.6 * energy  # above chance
        assert found["shuffled", method][1] - noise > 0.05
        assert found["spurious", method][0] < energy - 0.02, "maps of a shortcut leave the object"
