"""A plain training loop, as a user would type it: ImageFolder, 224 px, Adam, until the time is up.

Run by own_images.py: python plain_training.py MODEL DATA MINUTES SEED; prints one JSON document.
"""

import json
import sys
import time

import timm
import torch
import torchvision
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

STARTED = time.monotonic()
BATCH_SIZE = 32


def build(name: str, num_classes: int) -> torch.nn.Module:
    """Build torchvision's googlenet, or a model of timm, from scratch."""
    if name == "torchvision:googlenet":
        return torchvision.models.googlenet(weights=None, num_classes=num_classes, aux_logits=False, init_weights=True)
    model: torch.nn.Module = timm.create_model(name.removeprefix("timm:"), num_classes=num_classes)
    return model


def main() -> None:
    """Train for the given minutes from the start of the process, then classify the test images."""
    name, data, minutes, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    torch.manual_seed(seed)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    augment = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *to_tensor])
    center = v2.Compose([v2.Resize(224), v2.CenterCrop(224), *to_tensor])
    train = torchvision.datasets.ImageFolder(f"{data}/train", augment)
    test = torchvision.datasets.ImageFolder(f"{data}/test", center)
    # The loop of ten lines.
    model = build(name, len(train.classes))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    steps, stop = 0, STARTED + 60 * minutes
    while time.monotonic() < stop:
        for images, labels in torch.utils.data.DataLoader(train, BATCH_SIZE, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            steps += 1
            if time.monotonic() > stop:
                break
    seconds = time.monotonic() - STARTED
    model.eval()
    with torch.inference_mode():
        batches = torch.utils.data.DataLoader(test, BATCH_SIZE)
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    result = {"top1": correct / len(test), "seconds": seconds, "epochs": steps * BATCH_SIZE / len(train)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
