"""Gradients against autograd, and the training steps against SGD."""

import pytest
import torch
import torch.nn.functional as F

import googlenet
from googlenet.explain.gradient_norms import measure_gradients, train_and_measure

pytestmark = pytest.mark.cpu


def build(aux: bool) -> googlenet.Network:
    return googlenet.create_model("googlenet", 4, 1, aux=aux, width_mult=0.25, pool_mode="same", dropout=0.0)


def random_batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 1, 28, 28, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(count)
    ]


def test_gradients_are_those_of_autograd() -> None:
    ((pixels, labels),) = random_batches(1)
    model = build(aux=False)
    result = measure_gradients(model, pixels, labels)
    loss = F.cross_entropy(model(pixels), labels)
    assert result.loss == pytest.approx(loss.item())
    weight = model.trunk.conv3.conv.weight
    (expected,) = torch.autograd.grad(loss, weight)
    index = result.layers.index("conv3")
    assert result.norms[index] == pytest.approx(expected.norm().item(), rel=1e-5)
    assert result.relative[index] == pytest.approx((expected.norm() / weight.norm()).item(), rel=1e-5)
    assert (result.layers[0], result.layers[-1], len(result.layers)) == ("conv1", "inception_5b", 12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_are_those_of_sgd_and_the_last_batch_is_only_measured() -> None:
    batches = random_batches(3)
    before, after = train_and_measure(lambda: build(aux=True), batches)
    assert (before.steps, after.steps) == (0, 2)
    model = build(aux=True).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    # Dropout of the heads uses the global random state in both.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert measure_gradients(model, *batches[-1]) == before
        for pixels, labels in batches[:2]:
            optimizer.zero_grad()
            main, aux = model.forward_aux(pixels)
            (F.cross_entropy(main, labels) + 0.3 * sum(F.cross_entropy(head, labels) for head in aux)).backward()
            optimizer.step()
        assert measure_gradients(model, *batches[-1], steps=2).relative == pytest.approx(after.relative, rel=1e-4)
    assert len(train_and_measure(lambda: build(aux=False), batches[:1])) == 1
