"""Metrics of small examples, and against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.evaluation.metrics import (
    Predictions,
    classification_metrics,
    confusion_matrix,
    mean_loss,
    run_inference,
    top_k_accuracy,
)

EXAMPLE = Predictions(torch.tensor([[2.0, 1, 0], [0, 2, 1], [0, 1, 2], [2, 0, 1]]), torch.tensor([0, 2, 2, 1]))


def test_example() -> None:
    assert top_k_accuracy(EXAMPLE, 1) == 0.5
    assert top_k_accuracy(EXAMPLE, 2) == 0.75
    assert top_k_accuracy(EXAMPLE, 5) == 1.0
    assert confusion_matrix(EXAMPLE).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_against_loops(count: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predictions = Predictions(torch.randn(count, classes, generator=generator), torch.randint(classes, (count,)))
    rows = list(zip(predictions.logits.tolist(), predictions.labels.tolist(), strict=True))
    for k in (1, 5):
        num_correct = sum(sum(v > row[label] for v in row) < k for row, label in rows)
        assert top_k_accuracy(predictions, k) == pytest.approx(num_correct / count)
    loss = sum(torch.tensor(row).logsumexp(0).item() - row[label] for row, label in rows) / count
    assert mean_loss(predictions) == pytest.approx(loss, rel=1e-4, abs=1e-5)
    matrix = confusion_matrix(predictions)
    assert matrix.sum() == count
    assert matrix.diagonal().sum().item() / count == pytest.approx(classification_metrics(predictions)["top1"])


def test_run_inference_restores_the_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).train()
    batches = [(torch.ones(2, 3, 1, 1), torch.tensor([0, 1]))] * 2
    predictions = run_inference(model, batches, torch.device("cpu"))
    assert model.training
    assert torch.equal(predictions.logits, torch.ones(4, 3)), "dropout was off"
