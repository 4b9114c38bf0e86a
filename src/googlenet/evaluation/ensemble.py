"""Several networks that answer as one."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..models.network import Network
from .protocol import combine


class Ensemble(nn.Module):
    """The mean of its members' probabilities, as logarithms: softmax gives the mean back.

    It takes the place of a single network where one is asked for classes: any size that all its members take.
    """

    def __init__(self, members: Sequence[Network]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes = members[0].num_classes
        self.in_channels = members[0].in_channels
        self.min_size = max(member.min_size for member in members)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> logarithms of probabilities (batch, classes)."""
        return combine([member(x) for member in self.members]).to(x.dtype)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The members' maps, their names behind the member's number."""
        return {
            f"{number}.{name}": found
            for number, member in enumerate(self.members)
            for name, found in cast(Network, member).features(x).items()
        }


def same_kind(members: Sequence[Network]) -> None:
    """ValueError unless the networks can answer as one: the same classes and channels."""
    kinds = {(member.num_classes, member.in_channels) for member in members}
    if len(kinds) > 1:
        raise ValueError(f"networks of different classes or channels cannot answer as one: {sorted(kinds)}")


def members_of(model: nn.Module) -> list[nn.Module]:
    """The networks of an ensemble, or the one network."""
    return list(model.members) if isinstance(model, Ensemble) else [model]
