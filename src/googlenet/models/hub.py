"""The Hugging Face hub's way of saving and loading, for every network of the family."""

import json
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..files import write_atomically
from .catalogue import create
from .weights import raise_unless_fits, shapes_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HubModel(
    ModelHubMixin,
    library_name="googlenet",
    tags=["image-classification", "inception"],
    pipeline_tag="image-classification",
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub`: a folder with the weights and what `create` was told.

    Preprocessing and classes are not a network's but a checkpoint's: see `googlenet.load`.
    """

    arguments: dict[str, Any]

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        if self.arguments.get("num_classes") != self.num_classes:
            raise ValueError("a network without its classifier, or pruned, cannot be built again: reset_head first")
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_atomically(save_directory / WEIGHTS, save(tensors, {"format": "pt"}))
        write_atomically(save_directory / CONFIG, json.dumps(self.arguments, indent=2) + "\n")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **where: Any) -> Self:
        """The network of a local folder, or of the hub. ValueError unless it is one of ours and every tensor fits."""
        kept = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        if unknown := where.keys() - {*kept, *(config or {})}:
            raise ValueError(f"from_pretrained takes no {', '.join(sorted(unknown))}: {model_id} says what it is")
        if config is None or "name" not in config:
            raise ValueError(f"{model_id}: its {CONFIG} does not name a network of this family")
        folder = Path(model_id)
        if folder.is_dir():
            file = folder / WEIGHTS
        else:
            file = Path(hf_hub_download(model_id, WEIGHTS, **{key: where[key] for key in kept if key in where}))
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
        model: Any = create(**config)
        tensors: dict[str, Tensor] = load_file(file)
        raise_unless_fits(shapes_of(model), tensors, str(file))
        model.load_state_dict(tensors)
        found: Self = model.eval()
        return found
