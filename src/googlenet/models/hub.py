"""Saving to, and loading from, folders and the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save
from torch import nn

from ..files import write_atomically
from .registry import resolve_config
from .state_dict import check_state_dict, shapes_of

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
DOWNLOAD_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")
# Passed by huggingface-hub before version 1.0, whatever the caller passes.
IGNORED_OPTIONS = ("proxies", "resume_download")


class HubMixin(
    ModelHubMixin,
    library_name="googlenet",
    tags=["image-classification", "inception"],
    pipeline_tag="image-classification",
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` with a folder of weights and configuration.

    Preprocessing and class names are part of a checkpoint, not of a network: see `googlenet.load`.
    """

    config: dict[str, Any]

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        if self.config.get("num_classes") != self.num_classes:
            advice = "call reset_classifier first" if self.config else "save the complete one"
            raise ValueError(f"a network without classifier or a pruned one cannot be saved: {advice}")
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_atomically(save_directory / WEIGHTS_FILE, save(tensors, {"format": "pt"}))
        write_atomically(save_directory / CONFIG_FILE, json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any) -> Self:
        """Load a network in evaluation mode; ValueError unless it is one of this family and every tensor fits."""
        if unknown := options.keys() - {*DOWNLOAD_OPTIONS, *IGNORED_OPTIONS}:
            raise ValueError(
                f"from_pretrained has no option {', '.join(sorted(unknown))}: the network is defined by the "
                f"{CONFIG_FILE} of {model_id}"
            )
        if config is None or "name" not in config:
            raise ValueError(f"{model_id}: its {CONFIG_FILE} does not name a network of this family")
        path = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            path = Path(hf_hub_download(model_id, WEIGHTS_FILE, **{k: options[k] for k in DOWNLOAD_OPTIONS}))
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        model: Any = cls(resolve_config(**config))
        tensors = load_file(path)
        check_state_dict(shapes_of(model), tensors, str(path))
        model.load_state_dict(tensors)
        result: Self = model.eval()
        return result
