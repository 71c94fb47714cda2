"""Small networks of tokens: patches between other tokens or in another order, latents, an image beside texts."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a residual; only the first token of the last block is read where there is one that is no patch."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.attend, self.mlp = (
            nn.LayerNorm(width),
            nn.MultiheadAttention(width, 2, batch_first=True),
            nn.Linear(width, width),
        )

    def forward(self, x, view=None):
        y = self.norm(x)
        if view is not None:
            y = view(y)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return x + F.gelu(self.mlp(x))


class TokenNet(nn.Module):
    """Patches of 16 pixels with `prefix` tokens in front and `suffix` behind; the class is read off the first or last of these.

    `view` sees what `blocks.1.norm` returns, its patches as (N, K, h, w); `grid` is (h, w), after a pass.
    """

    def __init__(self, prefix=0, suffix=0, order="rows", pad=True, width=16, classes=5):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 16, stride=16)
        self.front, self.behind = (nn.Parameter(torch.randn(1, n, width)) for n in (prefix, suffix))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.view, self.fc = nn.LayerNorm(width), nn.Identity(), nn.Linear(width, classes)
        self.order, self.pad, self.grid = order, pad, None
        nn.init.normal_(self.fc.weight)

    def forward(self, x):
        if self.pad:
            x = F.pad(x, (0, -x.shape[-1] % 16, 0, -x.shape[-2] % 16))
        x = self.embed(x)
        self.grid, count = x.shape[2:], x.shape[2] * x.shape[3]
        x = (x.transpose(2, 3) if self.order == "columns" else x).flatten(2).transpose(1, 2)
        if self.order == "shuffled":
            x = x[:, torch.randperm(count, generator=torch.Generator().manual_seed(1))]
        first, last = self.front.shape[1], self.behind.shape[1]
        x = torch.cat([self.front.expand(len(x), -1, -1), x, self.behind.expand(len(x), -1, -1)], dim=1)

        def view(tokens):
            patches = self.view(tokens[:, first : first + count].transpose(1, 2).unflatten(2, self.grid))
            return torch.cat([tokens[:, :first], patches.flatten(2).transpose(1, 2), tokens[:, first + count :]], dim=1)

        x = self.blocks[1](self.blocks[0](x), view)
        x = self.norm(x)
        return self.fc(x[:, 0] if first else x[:, -1] if last else x.mean(dim=1))


class Perceiver(nn.Module):
    """Latents that attend to the patches of an image."""

    def __init__(self, latents, width=16, classes=5):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 16, stride=16)
        self.latents = nn.Parameter(torch.randn(1, latents, width))
        self.cross = nn.MultiheadAttention(width, 2, batch_first=True)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        latents = self.latents.expand(len(x), -1, -1)
        return self.fc(self.blocks(latents + self.cross(latents, x, x, need_weights=False)[0]).mean(dim=1))


class ZeroShot(nn.Module):
    """Images against the texts of the classes, whose tower runs last."""

    def __init__(self, classes, width=16):
        super().__init__()
        self.image = TokenNet(prefix=1, width=width, classes=width)
        self.words = nn.Parameter(torch.randn(classes, 16, width))
        self.text = nn.Sequential(Block(width), Block(width))

    def forward(self, x):
        return self.image(x) @ self.text(self.words).mean(dim=1).T


class WithWeights(nn.Module):
    """Attention whose weights (N, heads, T, T) are what a module returns, as in networks written by hand."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm, self.qkv = heads, nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.scores, self.attend, self.out = nn.Identity(), nn.Softmax(dim=-1), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=2))
        weights = self.attend(self.scores(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5))
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class PlainViT(nn.Module):
    """Patches of 16 pixels, a class token where asked for; the last thing to finish with four dimensions are attention weights."""

    def __init__(self, class_token=True, width=32, heads=4, classes=5, side=8):
        super().__init__()
        self.embed, self.front = nn.Conv2d(3, width, 16, stride=16), nn.Parameter(torch.randn(1, int(class_token), width))
        self.place = nn.Parameter(torch.randn(1, side * side + class_token, width))
        self.blocks = nn.ModuleList(WithWeights(width, heads) for _ in range(2))
        self.fc, self.class_token = nn.Linear(width, classes), class_token

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.front.expand(len(x), -1, -1), x], dim=1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.fc(x[:, 0] if self.class_token else x.mean(dim=1))
