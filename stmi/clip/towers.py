"""CLIP's two towers as STMI uses them.

The text tower is open_clip's, frozen unless the config trains it. The image tower is rebuilt here with the
same parameters, because its attention takes a mask, and because STMI uses every token after the projection,
not only the class token. Without a mask its output equals that of open_clip's tower.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stmi.clip.loading import LoadedClip
from stmi.clip.weights import load_strictly
from stmi.config import ClipConfig, SfmConfig
from stmi.feature_modulation import ModulationStrength
from stmi.kernels.quick_gelu import QuickGELU
from stmi.transformer_block import TransformerBlock


class ImageTower(nn.Module):
    """CLIP's vision transformer, shared by the three modalities: the tokens F of equation 1, projected.

    Args:
        clip: The pretrained CLIP whose weights it starts from.
        config: How to resize the position embedding.
        grid: Rows and columns of patch tokens of the images.
        sfm: The modulation; if it is switched off, attention is plain.
        cameras: Number of cameras that have a learnable vector, added to the class token; 0 for none.

    Attributes:
        checkpoints_activations: Whether only the tokens between layers are kept for the backward pass.
    """

    def __init__(
        self, clip: LoadedClip, config: ClipConfig, grid: tuple[int, int], sfm: SfmConfig, cameras: int = 0
    ) -> None:
        super().__init__()
        visual = clip.model.visual
        width = visual.conv1.out_channels
        blocks = visual.transformer.resblocks
        heads = blocks[0].attn.num_heads
        quick = type(blocks[0].mlp.gelu).__name__ == "QuickGELU"
        self.grid = grid
        self.patch_size = visual.conv1.kernel_size[0]
        self.conv1 = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                heads,
                block.mlp.c_fc.out_features,
                QuickGELU() if quick else nn.GELU(),
                sfm.logit_scale if sfm.enabled else "head_width",
            )
            for block in blocks
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, clip.embed_dim))
        weights = {
            name.replace("transformer.resblocks.", "blocks."): value.detach().clone()
            for name, value in visual.state_dict().items()
        }
        weights["positional_embedding"] = resize_position_embedding(
            weights["positional_embedding"], visual.grid_size, grid, config.position_interpolation
        )
        load_strictly(self, weights, clip.name)
        # These parameters are not CLIP's, so they are added after its weights are loaded.
        self.modulation = ModulationStrength(sfm, len(blocks), heads) if sfm.enabled else None
        self.camera_embedding = nn.Parameter(torch.empty(cameras, width)) if cameras else None
        self.checkpoints_activations = False
        if self.camera_embedding is not None:
            # The released code truncates the normal at 2, which is a hundred standard deviations.
            nn.init.normal_(self.camera_embedding, std=0.02)

    def forward(
        self, images: Tensor, foreground: Tensor | None = None, camera_id: Tensor | None = None
    ) -> Tensor:
        """Compute all tokens of a batch of images.

        Args:
            images: Normalised pixels, `(batch, 3, height, width)`.
            foreground: Boolean patches, `(layers or 1, batch, patches)`, or None for plain attention.
            camera_id: `(batch,)`, needed if the tower has a camera embedding; -1 for an unknown camera, which
                has the mean of the learned vectors.

        Returns:
            Projected tokens, the class token first, `(batch, 1 + patches, embed_dim)`.
        """
        patches = self._embed_patches(images)
        # Not `len`, here and below the tower: an export would take it for a constant.
        class_token = self.class_embedding.expand(images.shape[0], 1, -1)
        if self.camera_embedding is not None and camera_id is not None:
            # The last row, which -1 names, is the mean.
            cameras = torch.cat([self.camera_embedding, self.camera_embedding.mean(dim=0, keepdim=True)])
            class_token = class_token + cameras[camera_id][:, None]
        tokens = torch.cat([class_token.to(patches.dtype), patches], dim=1)
        tokens = self.ln_pre(tokens + self.positional_embedding.to(tokens.dtype))
        if foreground is not None:
            foreground = functional.pad(foreground, (1, 0), value=True).expand(len(self.blocks), -1, -1)
        for layer, block in enumerate(self.blocks):
            strength = None if self.modulation is None else self.modulation.for_layer(layer)
            mask = None if foreground is None else foreground[layer]
            if self.checkpoints_activations and torch.is_grad_enabled():
                # There is no generator state to restore.
                tokens = checkpoint(
                    block, tokens, mask, strength, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens = block(tokens, mask, strength)
        return self.ln_post(tokens) @ self.proj

    def _embed_patches(self, images: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(images.device.type):
            return self.conv1(images).flatten(2).transpose(1, 2)
        # As one product: in bfloat16 the backward pass of a convolution is four times slower.
        size, (rows, columns) = self.patch_size, self.grid
        patches = images.unflatten(3, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 1, 3, 5)
        return functional.linear(
            patches.reshape(images.shape[0], rows * columns, -1), self.conv1.weight.flatten(1)
        )


def resize_position_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], interpolation: str
) -> Tensor:
    """Resize a position embedding to another token grid; the row of the class token stays.

    Args:
        embedding: `(1 + rows * columns, width)` of the old grid.
        old_grid: Rows and columns that it was learned for.
        new_grid: Rows and columns of the result.
        interpolation: "bilinear" or "bicubic", without aligned corners or antialiasing.
    """
    if tuple(old_grid) == tuple(new_grid):
        return embedding
    class_row, patches = embedding[:1], embedding[1:]
    image = patches.T.reshape(1, -1, *old_grid)
    resized = functional.interpolate(image, size=new_grid, mode=interpolation, align_corners=False)
    return torch.cat([class_row, resized.flatten(2)[0].T])


class TextTower(nn.Module):
    """CLIP's text tower with its own copy of the weights, to be trained.

    Args:
        clip: The pretrained CLIP whose weights it starts from.
    """

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__()
        # Tensors without content (`FakeTensorMode`) can be cloned, but `deepcopy` of them corrupts memory.
        copies: dict[int, Any] = {id(x): nn.Parameter(x.detach().clone()) for x in clip.model.parameters()}
        copies |= {id(x): x.clone() for x in clip.model.buffers()}
        self.clip = copy.deepcopy(clip.model, copies)
        # Keep only the parts of CLIP that encode text.
        del self.clip.visual, self.clip.logit_scale
        self.clip.requires_grad_(True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers `(batch, context)` to T before normalisation, `(batch, embed_dim)`."""
        return self.clip.encode_text(tokens)
