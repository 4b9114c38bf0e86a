"""Probes against scikit-learn, and auxiliary heads against the network's outputs."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

import googlenet
from googlenet.evaluation.linear_probes import (
    PENALTIES,
    PIXELS,
    PooledFeatures,
    fit_probes,
    fit_ridge,
    leave_one_out_top1,
    pooled_features,
)
from googlenet.explain.linear_probes import evaluate_heads

pytestmark = pytest.mark.cpu


def clusters(count: int, features: int, seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, features, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(count) % classes
    return centers[labels] * 2 + torch.randn(count, features, generator=generator).double(), labels


@pytest.mark.parametrize("features", [4, 60])
def test_ridge_is_that_of_scikit_learn(features: int) -> None:
    x, labels = clusters(30, features, seed=1)
    fitted = fit_ridge(x, labels, 3, penalty=0.1)
    scaler = StandardScaler().fit(x.numpy())
    # Its targets are -1 and 1, ours 0 and 1.
    expected = RidgeClassifier(alpha=3.0).fit(scaler.transform(x.numpy()), labels.numpy())
    np.testing.assert_allclose(fitted.weight.numpy().T * 2, expected.coef_, atol=1e-8)
    np.testing.assert_allclose(fitted.bias.numpy() * 2 - 1, expected.intercept_, atol=1e-8)


def test_probes_are_accurate_on_informative_features_only() -> None:
    (x, labels), (other, truth) = clusters(90, 6, seed=1), clusters(90, 6, seed=2)
    noise = torch.randn(90, 5, generator=torch.Generator().manual_seed(3)).double()
    train, test = PooledFeatures({"a": x, "b": noise}, labels), PooledFeatures({"a": other, "b": noise}, truth)
    informative, uninformative = fit_probes(train, test, 3)
    assert (informative.layer, informative.features) == ("a", 6)
    assert informative.top1 > 0.9
    assert uninformative.top1 < 0.6
    constant = PooledFeatures({"c": torch.ones(90, 2).double()}, labels)
    assert fit_probes(constant, constant, 3)[0].top1 == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least 10 training images"):
        fit_probes(PooledFeatures({"a": x[:9]}, labels[:9]), PooledFeatures({"a": other}, truth), 3)


def test_features_are_those_of_every_layer_and_the_pixels() -> None:
    model = googlenet.create_model("googlenet_bn", 4, 3, width_mult=0.25, pool_mode="same").eval()
    pixels, labels = torch.randn(6, 3, 28, 28), torch.arange(6) % 4
    found = pooled_features(model, [(pixels[:4], labels[:4]), (pixels[4:], labels[4:])])
    assert list(found.layers) == [PIXELS, *(name for name, _ in model.trunk.named_children())]
    torch.testing.assert_close(found.layers[PIXELS], pixels.double().mean((2, 3)), rtol=1e-5, atol=1e-6)
    last = model.forward_head(model.forward_features(pixels), pre_logits=True).detach()
    torch.testing.assert_close(found.layers["inception_5b"], last.double(), rtol=1e-4, atol=1e-5)


def test_accuracy_of_the_heads() -> None:
    model = googlenet.create_model("googlenet_bn", 4, 1, aux=True, width_mult=0.25, pool_mode="same").eval()
    pixels, labels = torch.randn(10, 1, 28, 28), torch.arange(10) % 4
    accuracies = evaluate_heads(model, [(pixels[:7], labels[:7]), (pixels[7:], labels[7:])])
    assert list(accuracies) == ["inception_4a", "inception_4d", "classifier"]
    with torch.no_grad():
        main, aux = model.forward_aux(pixels)
    expected = [(logits.argmax(1) == labels).double().mean().item() for logits in (*aux, main)]
    assert list(accuracies.values()) == pytest.approx(expected)


@pytest.mark.parametrize("features", [4, 60])
def test_leave_one_out_is_that_of_scikit_learn(features: int) -> None:
    """Refitting without each image, for every penalty, on features with the mean and scale of all images."""
    x, labels = clusters(36, features, seed=3)
    x = x + 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    scaled, targets = StandardScaler().fit_transform(x.numpy()), torch.nn.functional.one_hot(labels, 3).numpy()
    expected = []
    for penalty in PENALTIES:
        ridge = Ridge(alpha=penalty * len(x))
        # Centering without the left-out image differs from the hat matrix of the full fit by rounding only.
        predicted = cross_val_predict(ridge, scaled, targets.astype(float), cv=LeaveOneOut())
        expected.append((predicted.argmax(1) == labels.numpy()).mean())
    assert leave_one_out_top1(x, labels, 3) == pytest.approx(max(expected), abs=1e-12)
    assert max(expected) < 1
