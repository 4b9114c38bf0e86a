"""Figures against hand-made cases and torch's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.evaluation.metrics import (
    Outputs,
    collect,
    confusion_matrix,
    mean_loss,
    per_class_accuracy,
    scores,
    top_k_accuracy,
)

THREE = Outputs(torch.tensor([[2.0, 1, 0], [0, 2, 1], [0, 1, 2], [2, 0, 1]]), torch.tensor([0, 2, 2, 1]))


def test_by_hand() -> None:
    assert top_k_accuracy(THREE, 1) == 0.5
    assert top_k_accuracy(THREE, 2) == 0.75
    assert top_k_accuracy(THREE, 5) == 1.0
    assert confusion_matrix(THREE).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert per_class_accuracy(THREE) == [1.0, 0.0, 0.5]
    empty = Outputs(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]))
    assert per_class_accuracy(empty) == [1.0, None, None]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_against_loops(count: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = Outputs(torch.randn(count, classes, generator=generator), torch.randint(classes, (count,)))
    rows = list(zip(outputs.logits.tolist(), outputs.labels.tolist(), strict=True))
    for k in (1, 5):
        right = sum(sum(v > row[label] for v in row) < k for row, label in rows)
        assert top_k_accuracy(outputs, k) == pytest.approx(right / count)
    loss = sum(torch.tensor(row).logsumexp(0).item() - row[label] for row, label in rows) / count
    assert mean_loss(outputs) == pytest.approx(loss, rel=1e-4, abs=1e-5)
    matrix = confusion_matrix(outputs)
    assert matrix.sum() == count
    assert matrix.diagonal().sum().item() / count == pytest.approx(scores(outputs)["top1"])


def test_collect_leaves_the_mode_as_it_was() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).train()
    batches = [(torch.ones(2, 3, 1, 1), torch.tensor([0, 1]))] * 2
    outputs = collect(model, batches, torch.device("cpu"))
    assert model.training
    assert torch.equal(outputs.logits, torch.ones(4, 3)), "dropout was off"
