"""The released code's forward pass from its description, in plain loops over samples, heads and nodes.

It works on a checkpoint's own names and knows nothing of `stmi`.
"""

import ast
import math
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden"
KEYS = {
    "one head on G": GOLDEN / "released_checkpoint_keys.txt",
    "a head for each modality": GOLDEN / "released_checkpoint_keys_rgbnt100.txt",
}
IMAGE_SIZE = (64, 32)
PATCH, HEADS, STR_HEADS, DISTANCE = 16, 2, 8, 5.0
SMALLER = {768: 128, 2304: 384, 3072: 512, 512: 32, 1024: 64, 2048: 128, 1536: 96}
"""Small sizes instead of the published ones; heads stay 64 wide."""
TEXT_SMALLER = {512: 64, 1536: 192, 2048: 256, 49408: 60}
NAMES = ("rgb", "nir", "tir")


def published_shapes(kind: str = "one head on G") -> dict[str, tuple[int, ...]]:
    lines = [line.split("\t") for line in KEYS[kind].read_text().splitlines()]
    return {name: ast.literal_eval(shape) for name, shape in lines}


def small_checkpoint(seed: int = 0, kind: str = "one head on G") -> dict[str, Tensor]:
    """Random weights by the published names: two layers, width 128, embedding 32, K = 4, 5 identities."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, published in published_shapes(kind).items():
        if any(f"resblocks.{layer}." in name for layer in range(2, 12)):
            continue
        is_text = name.startswith("BACKBONE.base.") and ".visual." not in name
        sizes = (TEXT_SMALLER if is_text else SMALLER) | {129: 9, 171: 5, 50: 5}
        shape = tuple(sizes.get(size, size) for size in published)
        if name == "BACKBONE.base.text_projection":
            shape = (64, 32)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            weights[name] = torch.rand(shape, generator=random) + 0.5
        elif name.endswith("weight") and len(shape) == 1:
            weights[name] = 1 + 0.2 * torch.randn(shape, generator=random)
        else:
            # Linear maps that keep the scale; class tokens and queries near enough to share hyperedges.
            scale = (math.prod(shape[1:])) ** -0.5 if len(shape) in (2, 4) else 0.3
            weights[name] = scale * torch.randn(shape, generator=random)
    return weights


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    spread = (centred**2).mean(dim=-1, keepdim=True)
    return centred / (spread + eps) ** 0.5 * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def modulated_layer(x: Tensor, foreground: list[bool], w: dict[str, Tensor], name: str) -> Tensor:
    """One layer of the image tower, `(tokens, width)`."""
    normed = layer_norm(x, w, f"{name}.ln_1")
    query, key, value = (normed @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).chunk(
        3, dim=-1
    )
    alpha, beta = w[f"{name}.adapter_alpha"], w[f"{name}.adapter_beta"]
    size = x.shape[1] // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        logits = query[:, part] @ key[:, part].T
        rows = []
        for i, row in enumerate(logits):
            shift = [
                alpha * (row.max() - row[j])
                if foreground[i] and foreground[j]
                else -beta * (row[j] - row.min())
                for j in range(len(row))
            ]
            rows.append(((row + torch.cat(shift)) / size**0.5).softmax(dim=0))
        heads.append(torch.stack(rows) @ value[:, part])
    x = x + linear(torch.cat(heads, dim=-1), w, f"{name}.attn.out_proj")
    hidden = linear(layer_norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc")
    return x + linear(hidden * torch.sigmoid(1.702 * hidden), w, f"{name}.mlp.c_proj")


def image_tower(image: Tensor, foreground: Tensor, camera: int, w: dict[str, Tensor]) -> Tensor:
    """All projected tokens of one image, `(1 + patches, embedding)`."""
    base = "BACKBONE.base.visual"
    tokens = [w[f"{base}.class_embedding"] + w["BACKBONE.cv_embed"][camera, 0]]
    for top in range(0, IMAGE_SIZE[0], PATCH):
        for left in range(0, IMAGE_SIZE[1], PATCH):
            patch = image[:, top : top + PATCH, left : left + PATCH]
            tokens.append((w[f"{base}.conv1.weight"] * patch).sum(dim=(1, 2, 3)))
    x = layer_norm(torch.stack(tokens) + w[f"{base}.positional_embedding"], w, f"{base}.ln_pre")
    mask = [True, *(foreground >= 0.5).tolist()]
    for layer in range(2):
        x = modulated_layer(x, mask, w, f"{base}.transformer.resblocks.{layer}")
    return layer_norm(x, w, f"{base}.ln_post") @ w[f"{base}.proj"]


def reallocate(patches: Tensor, text: Tensor, queries: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """STR of one modality, `(K + 1, embedding)`."""
    x = torch.cat([queries, text[None]])
    query = linear(layer_norm(x, w, f"{name}.norm1", 1e-6), w, f"{name}.attn.q")
    key, value = linear(layer_norm(patches, w, f"{name}.norm1", 1e-6), w, f"{name}.attn.kv").chunk(2, dim=-1)
    size = x.shape[1] // STR_HEADS
    heads = []
    for head in range(STR_HEADS):
        part = slice(head * size, (head + 1) * size)
        attention = (query[:, part] @ key[:, part].T / size**0.5).softmax(dim=-1)
        heads.append(attention @ value[:, part])
    x = x + linear(torch.cat(heads, dim=-1), w, f"{name}.attn.proj")
    hidden = gelu(linear(layer_norm(x, w, f"{name}.norm2", 1e-6), w, f"{name}.mlp.fc1"))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def incidence(nodes: Tensor) -> list[list[bool]]:
    return [[bool(((a - b) ** 2).sum().sqrt() < DISTANCE) for b in nodes] for a in nodes]


def hypergraph(nodes: Tensor, w: dict[str, Tensor]) -> Tensor:
    name = "STR_CHI.hyper_module"
    together = incidence(nodes)
    mapped = linear(nodes, w, f"{name}.hgconv.fc")
    edges = [torch.stack([mapped[i] for i in range(len(nodes)) if row[i]]).mean(dim=0) for row in together]
    gathered = torch.stack(
        [torch.stack([edges[e] for e in range(len(nodes)) if row[e]]).mean(dim=0) for row in together]
    )
    x = gathered + nodes
    x = (x - x.mean()) / (x.var(correction=0) + 1e-5) ** 0.5
    x = x * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]
    return x * torch.sigmoid(x)


def features(
    images: Tensor, foreground: Tensor, text: Tensor, camera_id: Tensor, w: dict[str, Tensor]
) -> dict[str, Tensor]:
    """U in the released order, G, its modalities, T, and the share of true incidences, of a batch.

    Args are those of `stmi.model_input.ModelInput`, but the foreground has its own row for every sample.
    """
    rows: dict[str, list[Tensor]] = {"U": [], "G": [], "RGB": [], "NIR": [], "TIR": [], "density": []}
    rows["T"] = list(text)
    for sample, camera, t, mask in zip(images, camera_id.tolist(), text, foreground, strict=True):
        tokens = [image_tower(image, mask, camera, w) for image in sample]
        semantic = [
            reallocate(x[1:], t, w[f"STR_CHI.inp_tokens_{name}"][0], w, f"STR_CHI.inp_block{i}")
            for i, (x, name) in enumerate(zip(tokens, NAMES, strict=True), start=1)
        ]
        rows["density"].append(torch.tensor(incidence(torch.cat(semantic))).double().mean())
        nodes = hypergraph(torch.cat(semantic), w)
        class_tokens = torch.stack([x[0] for x in tokens])
        query, key, value = (
            linear(x, w, f"STR_CHI.proj_{part}_cross")
            for x, part in ((class_tokens, "q"), (nodes, "k"), (nodes, "v"))
        )
        attention = (query @ key.T / query.shape[1] ** 0.5).softmax(dim=-1)
        fused = class_tokens + linear(attention @ value, w, "STR_CHI.cross_proj_out")
        rows["U"].append(torch.stack([fused[m, c] for c in range(fused.shape[1]) for m in range(3)]))
        rows["G"].append(torch.cat([x[0] for x in tokens]))
        for name, x in zip(("RGB", "NIR", "TIR"), tokens, strict=True):
            rows[name].append(x[0])
    return {name: torch.stack(values) for name, values in rows.items()}


def logits(feature: Tensor, w: dict[str, Tensor], norm: str, classifier: str) -> Tensor:
    """The released BNNeck and classifier in evaluation mode."""
    centred = (feature - w[f"{norm}.running_mean"]) / (w[f"{norm}.running_var"] + 1e-5) ** 0.5
    return (centred * w[f"{norm}.weight"] + w[f"{norm}.bias"]) @ w[f"{classifier}.weight"].T
