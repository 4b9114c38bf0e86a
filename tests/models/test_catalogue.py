"""The catalogue's literal figures, counted again; its errors; and that it stays light."""

import subprocess
import sys

import pytest
import torch

import googlenet
from googlenet.models.catalogue import MODELS


@pytest.mark.parametrize("name", googlenet.list_models())
def test_literal_figures_are_counted_again(name: str) -> None:
    from googlenet.models.summary import summarise

    entry = MODELS[name]
    model = googlenet.create(name)
    counted = summarise(model, entry.input_size)
    assert counted.parameters == entry.parameters == sum(p.numel() for p in model.parameters())
    assert counted.macs == entry.macs
    assert model.min_size == entry.min_size


def test_published_counts() -> None:
    count = {
        aux: sum(p.numel() for p in googlenet.create("googlenet", aux=aux).parameters()) for aux in (False, True)
    }
    assert count == {False: 6_998_552, True: 13_378_280}


def test_importing_the_package_and_the_catalogue_does_not_import_torch() -> None:
    code = "import sys, googlenet; googlenet.list_models(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("googlnet",), "did you mean googlenet"),
        (("googlenet", 0), "num_classes"),
        (("googlenet", 10, 0), "in_channels"),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        googlenet.create(*arguments)


@pytest.mark.parametrize(
    ("variant", "said"),
    [({"init": "lucky"}, "lucky"), ({"pools": "square"}, "square"), ({"dropout": 1.0}, "dropout")],
)
def test_wrong_variants(variant: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        googlenet.create("googlenet", **variant)
    with pytest.raises(TypeError, match="widht"):
        googlenet.create("googlenet", widht=2)


def test_every_public_name_is_there() -> None:
    for name in googlenet.__all__:
        assert getattr(googlenet, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = googlenet.nothing
    assert torch.is_tensor(googlenet.create("googlenet_d2l", 10, 1)(torch.zeros(1, 1, 28, 28)))
