"""A tiny CLIP in the format in which OpenAI publishes: TorchScript, half precision, some extra tensors."""

import hashlib
import warnings
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

EXTRA = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}


class Node(nn.Module):
    """An empty module, to which attributes are attached."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def tiny_clip(seed: int = 0) -> open_clip.CLIP:
    """Random weights that half precision holds exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            embed_dim=32,
            vision_cfg={"image_size": 32, "layers": 2, "width": 128, "head_width": 64, "patch_size": 16},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
            quick_gelu=True,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter + 0.02 * torch.randn_like(parameter)).half())
    return model.eval()


def write(path: Path, weights: dict[str, Tensor]) -> str:
    """Save weights by dotted name as TorchScript; gives the file's SHA-256."""
    root = Node()
    for name, value in weights.items():
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, Node())
            node = node.get_submodule(parent)
        if value.is_floating_point():
            node.register_parameter(last, nn.Parameter(value))
        else:
            node.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; the archives are not
        torch.jit.save(torch.jit.script(root), str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def archive(path: Path, model: open_clip.CLIP, **changes: Tensor | None) -> str:
    """Save a CLIP as OpenAI does; a change of None leaves a weight out."""
    weights = {name: value.half() for name, value in model.state_dict().items()} | EXTRA
    weights |= {"transformer.attn_mask": torch.zeros(77, 77)}
    return write(path, {name: v for name, v in (weights | changes).items() if v is not None})
