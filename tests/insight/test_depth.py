"""Probes against scikit-learn, heads against the network's own answers, gradients against autograd by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

import googlenet
from googlenet.insight import gradients
from googlenet.insight.depth import PIXELS, Features, heads_top1, pooled_features, probes, ridge

pytestmark = pytest.mark.cpu


def clouds(count: int, features: int, seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(count) % classes
    return centres[labels] * 2 + torch.randn(count, features, generator=generator).double(), labels


@pytest.mark.parametrize("features", [4, 60])
def test_ridge_is_scikit_learns(features: int) -> None:
    x, labels = clouds(30, features, seed=1)
    fitted = ridge(x, labels, 3, penalty=0.1)
    scaler = StandardScaler().fit(x.numpy())
    # Its targets are -1 and 1, twice ours.
    theirs = RidgeClassifier(alpha=3.0).fit(scaler.transform(x.numpy()), labels.numpy())
    np.testing.assert_allclose(fitted.weight.numpy().T * 2, theirs.coef_, atol=1e-8)
    np.testing.assert_allclose(fitted.bias.numpy() * 2 - 1, theirs.intercept_, atol=1e-8)


def test_probes_know_what_can_be_known() -> None:
    (x, labels), (other, truth) = clouds(90, 6, seed=1), clouds(90, 6, seed=2)
    noise = torch.randn(90, 5, generator=torch.Generator().manual_seed(3)).double()
    told, blind = probes(Features({"a": x, "b": noise}, labels), Features({"a": other, "b": noise}, truth), 3)
    assert (told.layer, told.features) == ("a", 6)
    assert told.top1 > 0.9
    assert blind.top1 < 0.6
    constant = Features({"c": torch.ones(90, 2).double()}, labels)
    assert probes(constant, constant, 3)[0].top1 == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="ten pictures"):
        probes(Features({"a": x[:9]}, labels[:9]), Features({"a": other}, truth), 3)


def test_features_are_every_layers_and_the_pixels() -> None:
    model = googlenet.create("googlenet_bn", 4, 3, width=0.25, pools="padded").eval()
    pixels, labels = torch.randn(6, 3, 28, 28), torch.arange(6) % 4
    found = pooled_features(model, [(pixels[:4], labels[:4]), (pixels[4:], labels[4:])])
    assert list(found.layers) == [PIXELS, *(name for name, _ in model.trunk.named_children())]
    torch.testing.assert_close(found.layers[PIXELS], pixels.double().mean((2, 3)), rtol=1e-5, atol=1e-6)
    last = model.forward_head(model.forward_features(pixels), pre_logits=True).detach()
    torch.testing.assert_close(found.layers["inception_5b"], last.double(), rtol=1e-4, atol=1e-5)


def test_heads_answer_for_themselves() -> None:
    model = googlenet.create("googlenet_bn", 4, 1, aux=True, width=0.25, pools="padded").eval()
    pixels, labels = torch.randn(10, 1, 28, 28), torch.arange(10) % 4
    rows = heads_top1(model, [(pixels[:7], labels[:7]), (pixels[7:], labels[7:])])
    assert [row.head for row in rows] == ["inception_4a", "inception_4d", "classifier"]
    with torch.no_grad():
        main, aux = model.forward_aux(pixels)
    expected = [(logits.argmax(1) == labels).double().mean().item() for logits in (*aux, main)]
    assert [row.top1 for row in rows] == pytest.approx(expected)


def plain(aux: bool) -> googlenet.Network:
    return googlenet.create("googlenet", 4, 1, aux=aux, width=0.25, pools="padded", dropout=0.0)


def some(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 1, 28, 28, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(count)
    ]


def test_gradients_by_hand() -> None:
    ((pixels, labels),) = some(1)
    model = plain(aux=False)
    found = gradients.measure(model, pixels, labels)
    loss = F.cross_entropy(model(pixels), labels)
    assert found.loss == pytest.approx(loss.item())
    weight = model.trunk.conv3.conv.weight
    (expected,) = torch.autograd.grad(loss, weight)
    at = found.layers.index("conv3")
    assert found.norms[at] == pytest.approx(expected.norm().item(), rel=1e-5)
    assert found.relative[at] == pytest.approx((expected.norm() / weight.norm()).item(), rel=1e-5)
    assert (found.layers[0], found.layers[-1], len(found.layers)) == ("conv1", "inception_5b", 12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_are_sgds_and_the_last_batch_is_only_measured() -> None:
    batches = some(3)
    before, after = gradients.train_and_measure(lambda: plain(aux=True), batches)
    assert (before.steps, after.steps) == (0, 2)
    model = plain(aux=True).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    # The heads' dropout is drawn from the global state, as there.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert gradients.measure(model, *batches[-1]) == before
        for pixels, labels in batches[:2]:
            optimiser.zero_grad()
            main, aux = model.forward_aux(pixels)
            (F.cross_entropy(main, labels) + 0.3 * sum(F.cross_entropy(side, labels) for side in aux)).backward()
            optimiser.step()
        assert gradients.measure(model, *batches[-1], steps=2).relative == pytest.approx(after.relative, rel=1e-4)
    assert len(gradients.train_and_measure(lambda: plain(aux=False), batches[:1])) == 1
