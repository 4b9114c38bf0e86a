"""Pictures on canvases: against PyTorch's own resizing, and at the edges."""

import pytest
import torch
import torch.nn.functional as F

from googlenet.data.loader import fixed_turn
from googlenet.data.preprocess import Preprocess
from googlenet.data.rows import Rows, whole
from googlenet.detection.batch import training_pictures
from googlenet.detection.dataset import Picture
from googlenet.detection.placing import canvas_side, fitted, on_canvas

pytestmark = pytest.mark.cpu

PLAIN = Preprocess(160, 1, (0.0,), (1.0,))


@pytest.mark.parametrize("size", [(160, 160), (40, 400), (161, 97), (64, 50), (1, 1), (300, 20), (131, 190)])
@pytest.mark.parametrize("longer", [160, 75])
def test_resizing_is_pytorchs(size: tuple[int, int], longer: int) -> None:
    pixels = torch.randint(256, (1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    canvas, here = on_canvas(pixels, PLAIN, longer, least=1)
    assert here == fitted(*size, longer)
    theirs = F.interpolate(pixels[None].float(), here, mode="bilinear", antialias=True)[0] / 255
    torch.testing.assert_close(canvas[:, : here[0], : here[1]], theirs, atol=2e-5, rtol=0)
    assert canvas.shape[1:] == (canvas_side(longer, 1),) * 2
    assert canvas[:, here[0] :].abs().max() == 0 if here[0] < canvas.shape[1] else True
    assert canvas[:, :, here[1] :].abs().max() == 0 if here[1] < canvas.shape[2] else True


def test_the_rest_of_a_canvas_is_the_mean_pixel() -> None:
    grey = Preprocess(64, 1, (0.4,), (0.2,))
    canvas, here = on_canvas(torch.zeros(1, 32, 64, dtype=torch.uint8), grey, 64, least=75)
    assert canvas.shape == (1, 96, 96) and here == (32, 64)
    torch.testing.assert_close(canvas[:, :32, :64], torch.full((1, 32, 64), -2.0))
    assert (canvas[:, 32:] == 0).all() and (canvas[:, :, 64:] == 0).all()


def test_sizes_by_hand() -> None:
    assert fitted(40, 4000, 160) == (2, 160)
    assert fitted(4000, 1, 100) == (100, 1)
    assert (canvas_side(160, 1), canvas_side(161, 1), canvas_side(64, 75)) == (160, 192, 96)


def pictures(count: int) -> list[Picture]:
    found = []
    for number in range(count):
        pixels = torch.full((1, 40, 60 + number), number, dtype=torch.uint8)
        boxes = torch.tensor([[10.0, 5, 30 + number, 25]])
        found.append(
            Picture(str(number), number, pixels, 40, 60 + number, boxes, torch.tensor([number % 3]),
                    torch.tensor([False]), torch.tensor([400.0]))
        )  # fmt: skip
    return found


def test_batches_are_functions_of_seed_and_step() -> None:
    options = {"flip": True, "size": 96, "seed": 3, "least": 1}
    turn = fixed_turn(20, 8, 1)

    def made(rows: Rows, step: int = 1):  # type: ignore[no-untyped-def]
        return training_pictures(pictures(20), PLAIN, step=step, turn=turn, rows=rows, **options)

    everything, again = made(whole(8)), made(whole(8))
    assert torch.equal(everything.images, again.images)
    part = made(Rows(3, 6, 8))
    assert torch.equal(part.images, everything.images[3:6]), "whoever makes them"
    assert (part.sizes, part.pictures) == (everything.sizes[3:6], 3)
    assert made(Rows(8, 8, 8)).pictures == 0
    mirrored = [t.boxes[0, 0].item() for t in everything.targets]
    assert len({round(left) for left in mirrored}) > 1, "some are mirrored, some not"
    for (height, width), one in zip(everything.sizes, everything.targets, strict=True):
        assert width == 96 and (one.boxes[:, 2] <= width).all() and (one.boxes[:, 3] <= height).all()
