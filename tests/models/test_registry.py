"""The registry: its numbers, its errors, and its imports."""

import subprocess
import sys

import pytest
import torch

import googlenet
from googlenet.models.registry import MODELS


@pytest.mark.slow
@pytest.mark.parametrize("name", googlenet.list_models())
def test_numbers_are_correct(name: str) -> None:
    from googlenet.models.summary import summary

    entry = MODELS[name]
    model = googlenet.create(name)
    result = summary(model, entry.input_size)
    assert result.parameters == entry.parameters == sum(p.numel() for p in model.parameters())
    assert result.macs == entry.macs
    assert model.min_size == entry.min_size


def test_parameters_of_googlenet() -> None:
    count = {aux: sum(p.numel() for p in googlenet.create("googlenet", aux=aux).parameters()) for aux in (False, True)}
    assert count == {False: 6_998_552, True: 13_378_280}


def test_importing_the_registry_imports_neither_torch_nor_timm() -> None:
    code = "import sys, googlenet; googlenet.list_models(); print({'torch', 'timm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("googlnet",), "did you mean googlenet"),
        (("googlenet", 0), "num_classes"),
        (("googlenet", 10, 0), "in_channels"),
    ],
)
def test_invalid_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        googlenet.create(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "normal"}, "not 'normal'"),
        ({"pool_mode": "valid"}, "ceil, same, not 'valid'"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        googlenet.create("googlenet", **options)
    with pytest.raises(TypeError, match="widht"):
        googlenet.create("googlenet", widht=2)


def test_public_names() -> None:
    for name in googlenet.__all__:
        assert getattr(googlenet, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = googlenet.nothing
    assert torch.is_tensor(googlenet.create("googlenet_d2l", 10, 1)(torch.zeros(1, 1, 28, 28)))
