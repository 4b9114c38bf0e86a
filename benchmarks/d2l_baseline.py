"""The network and training loop of the book chapter in plain PyTorch: the baseline of the training benchmarks.

Eager PyTorch without optimizations: "Dive into Deep Learning", GoogLeNet, on Fashion-MNIST with torchvision's data set,
transforms and data loader.
"""

import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Inception(nn.Module):
    """An Inception block; `c1` to `c4` are the output channels of the four branches."""

    def __init__(self, in_channels, c1, c2, c3, c4):
        super().__init__()
        self.b1_1 = nn.Conv2d(in_channels, c1, kernel_size=1)
        self.b2_1 = nn.Conv2d(in_channels, c2[0], kernel_size=1)
        self.b2_2 = nn.Conv2d(c2[0], c2[1], kernel_size=3, padding=1)
        self.b3_1 = nn.Conv2d(in_channels, c3[0], kernel_size=1)
        self.b3_2 = nn.Conv2d(c3[0], c3[1], kernel_size=5, padding=2)
        self.b4_1 = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.b4_2 = nn.Conv2d(in_channels, c4, kernel_size=1)

    def forward(self, x):
        """Return the concatenated outputs of the four branches."""
        b1 = F.relu(self.b1_1(x))
        b2 = F.relu(self.b2_2(F.relu(self.b2_1(x))))
        b3 = F.relu(self.b3_2(F.relu(self.b3_1(x))))
        b4 = F.relu(self.b4_2(self.b4_1(x)))
        return torch.cat((b1, b2, b3, b4), dim=1)


def build_network() -> nn.Sequential:
    """Build the chapter's GoogLeNet for 10 classes of gray images, with Xavier initialization."""
    pool = lambda: nn.MaxPool2d(kernel_size=3, stride=2, padding=1)  # noqa: E731
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3), nn.ReLU(), pool()),
        nn.Sequential(
            nn.Conv2d(64, 64, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(64, 192, kernel_size=3, padding=1),
            nn.ReLU(),
            pool(),
        ),
        nn.Sequential(
            Inception(192, 64, (96, 128), (16, 32), 32), Inception(256, 128, (128, 192), (32, 96), 64), pool()
        ),
        nn.Sequential(
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            Inception(528, 256, (160, 320), (32, 128), 128),
            pool(),
        ),
        nn.Sequential(
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
        ),
        nn.Linear(1024, 10),
    )

    def init_weights(module):
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)

    net.apply(init_weights)
    return net


def step_seconds(
    root: Path, size: int, steps: int, batch_size: int = 128, device: str = "cpu", workers: int = 0,
    channels_last: bool = False, bfloat16: bool = False,
) -> list[float]:  # fmt: skip
    """Return the seconds of each of `steps` training steps, data loader included, after two warm-up steps.

    `root` is a folder in torchvision's layout (with ``FashionMNIST/raw``). Each step ends by reading its loss, as in
    the chapter, so that the work of a GPU is included. `channels_last` and `bfloat16` (autocast) are the settings that
    PyTorch's performance guide recommends; the chapter has neither.
    """
    transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
    data = datasets.FashionMNIST(str(root), train=True, transform=transform)
    net, loss_function = build_network().to(device), nn.CrossEntropyLoss()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    seconds, last = [], time.perf_counter()
    for pixels, labels in DataLoader(data, batch_size, shuffle=True, num_workers=workers):
        optimizer.zero_grad()
        pixels = pixels.to(device, memory_format=memory_format)
        with torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext():
            loss = loss_function(net(pixels), labels.to(device))
        loss.backward()
        optimizer.step()
        loss.item()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if len(seconds) == steps + 2:
            break
    return seconds[2:]
