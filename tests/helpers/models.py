"""Tiny networks for tests, small enough to compute by hand."""

import torch
from torch import nn


class PooledNet(nn.Module):
    """conv - ReLU - conv - ReLU - global average pooling - linear: the shape of most classifiers."""

    def __init__(self, channels=8, classes=5, in_channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(channels, classes)
        nn.init.normal_(self.fc.weight)  # of a network that has opinions

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        return self.fc(self.drop(self.pool(x).flatten(1)))


class EchoNet(nn.Module):
    """Hand-computable: the feature maps are the image's own channels, class c sums channel c."""

    def __init__(self, channels=2):
        super().__init__()
        self.features = nn.Identity()
        self.body = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, channels, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(channels)[:, :, None, None])
            self.fc.weight.copy_(torch.eye(channels))

    def forward(self, x):
        return self.fc(self.pool(self.body(self.features(x))).flatten(1))


class Coloured(nn.Module):
    """By construction: unit 0 answers to green alone, unit 1 to red alone, unit 2 to nothing; two classes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[-1.0, 1, -1], [1, -1, -1], [0, 0, 0]])[..., None, None])
            self.body.bias.copy_(torch.tensor([-0.1, -0.1, 0]))
            self.fc.weight.copy_(torch.tensor([[1.0, -0.5, 0], [-1, 2, 0]]))

    def forward(self, x):
        return self.fc(self.relu(self.body(x)).mean(dim=(2, 3)))


class MeanNet(nn.Module):
    """p(class 1) = the mean of the image under a weighting of its pixels, in closed form: softmax(log(1 - m), log m) = (1 - m, m)."""

    def __init__(self, weights=None):
        super().__init__()
        self.weights = torch.ones(8, 8) if weights is None else weights

    def forward(self, x):
        m = (x[:, 0] * self.weights.to(x)).sum(dim=(1, 2)) / self.weights.sum().to(x)
        return torch.stack([(1 - m).clamp(min=1e-30).log(), m.clamp(min=1e-30).log()], dim=1)


def snapshot(model):
    """All that a borrowed network must have again afterwards, by identity where identity counts."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "tensors": {name: (id(tensor), tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()},
        "grads": {name: (id(p.grad), None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()},
        "hooks": {name: [len(getattr(module, kind)) for kind in _HOOKS] for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "rng": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        "inference": torch.is_inference_mode_enabled(),
    }


_HOOKS = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key == "rng":
            assert torch.equal(value, after[key])
        elif key in ("tensors", "grads"):
            assert value.keys() == after[key].keys()
            for name, entry in value.items():
                other = after[key][name]
                assert entry[0] == other[0], f"{name} is another tensor"
                assert (entry[1] is None) == (other[1] is None), name
                assert entry[1] is None or torch.equal(entry[1], other[1]), f"{name} changed"
                assert entry[2:] == other[2:], name
        else:
            assert value == after[key], key
