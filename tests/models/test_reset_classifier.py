"""New classifiers, the device of a new network, and what the Hugging Face Hub's mixin passes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import googlenet
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.models.network import Network
from googlenet.training.finetune import init_from_checkpoint

OPTIONS: dict[str, Any] = {"width_mult": 0.25}


@pytest.mark.parametrize("name", ["googlenet", "googlenet_torchvision", "googlenet_bn"])
def test_new_heads_differ(name: str) -> None:
    """The last layers of both auxiliary heads have the same shape, and other weights."""
    model = googlenet.create(name, 5, aux=True, **OPTIONS)
    for seed in (0, 7):
        model.reset_classifier(3, seed=seed)
        first, second = (head.fc2.weight for head in model.aux_heads.values())
        assert first.shape == second.shape
        assert not torch.equal(first, second)
        again = googlenet.create(name, 5, aux=True, **OPTIONS)
        again.reset_classifier(3, seed=seed)
        assert torch.equal(again.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("seeds", [(0, 1), (4, 9)])
def test_members_start_with_the_same_head(seeds: tuple[int, int]) -> None:
    """model.seed, which the members of an ensemble share, determines the new classifier; else the recipe's seed."""
    model = googlenet.create("googlenet_d2l", 4, 1, **OPTIONS)
    config = ModelConfig(name="googlenet_d2l", seed=3, **OPTIONS)
    preprocess = googlenet.Preprocess(32, 1, (0.5,), (0.5,))
    init = googlenet.Checkpoint(model, preprocess, tuple("abcd"), Recipe(model=config), {})
    heads = {
        (model_seed, seed): init_from_checkpoint(
            Recipe(model=ModelConfig(name="googlenet_d2l", seed=model_seed, **OPTIONS), seed=seed), init, ("x", "y"), 1
        ).classifier.weight
        for seed in seeds
        for model_seed in (None, 3)
    }
    first, second = seeds
    assert torch.equal(heads[3, first], heads[3, second])
    assert not torch.equal(heads[None, first], heads[None, second])


def test_the_default_device_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a seed are drawn on the CPU and then moved; new classifiers follow the network."""
    expected = googlenet.create("googlenet_d2l", 3, 1, **OPTIONS)
    moved: list[torch.device] = []
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_default_device", lambda: torch.device("cuda", 0))
        patch.setattr(Network, "to", lambda self, device: moved.append(device))
        model = googlenet.create("googlenet_d2l", 3, 1, **OPTIONS)
    assert moved == [torch.device("cuda", 0)]
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    with torch.device("meta"):
        model.reset_classifier(5)
        empty = googlenet.create("googlenet_d2l", 3, 1, **OPTIONS)
    assert model.classifier.weight.device.type == "cpu"
    expected.reset_classifier(5)
    assert torch.equal(model.classifier.weight, expected.classifier.weight)
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    empty.reset_classifier(5)
    assert empty.classifier.weight.is_meta


def test_classifier_after_the_last_map(tmp_path: Path) -> None:
    """A network without pooling gets it back with a classifier; a pruned one cannot be saved, and says so."""
    for name, channels in (("googlenet_d2l", 1), ("bn_inception", 3)):
        model = googlenet.create(name, 3, channels).eval()
        model.reset_classifier(0, "")
        with pytest.raises(ValueError, match="cannot be saved: call reset_classifier first"):
            model.save_pretrained(tmp_path / "no")
        model.reset_classifier(10)
        assert model(torch.zeros(1, channels, 33, 33)).shape == (1, 10)
        model.save_pretrained(tmp_path / name)
        assert googlenet.Network.from_pretrained(tmp_path / name).num_classes == 10
        model.prune_intermediate_layers(2)
        model.reset_classifier(10)
        with pytest.raises(ValueError, match="cannot be saved: save the complete one"):
            model.save_pretrained(tmp_path / "no")


@pytest.mark.parametrize("extra", [{}, {"proxies": None, "resume_download": None}, {"proxies": {"https": "x"}}])
def test_options_of_older_hub_versions(extra: dict[str, Any], tmp_path: Path) -> None:
    """huggingface-hub before 1.0 passes proxies and resume_download to every call."""
    model = googlenet.create("googlenet_d2l", 3, 1, **OPTIONS)
    model.save_pretrained(tmp_path / "saved")
    common = {"revision": None, "cache_dir": None, "force_download": False, "local_files_only": False, "token": None}
    loaded = googlenet.Network._from_pretrained(
        model_id=str(tmp_path / "saved"), config=copy.deepcopy(model.config), **common, **extra
    )
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    model.classifier.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match="1 of 768 values of classifier.weight are not finite"):
        googlenet.Network._from_pretrained(model_id=str(tmp_path / "nan"), config=model.config, **common, **extra)
