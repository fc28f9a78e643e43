import pytest
import torch
from torch.nn import functional

from stmi.config import ChiConfig, FusionConfig
from stmi.hypergraph import (
    ClassTokenFusion,
    HypergraphInteraction,
    ReleasedHypergraphInteraction,
    build_interaction,
    hyperedge_means,
)
from stmi.incidence import cosine_incidence, euclidean_incidence
from tests.stmi import golden
from tests.stmi.gradients import gradients_agree
from tests.tolerances import EXACT_FLOAT64, GOLDEN_VALUE


def convolution(threshold: float, nodes: int = 5, width: int = 4) -> HypergraphInteraction:
    torch.manual_seed(0)
    module = HypergraphInteraction(nodes, width, ChiConfig(similarity_threshold=threshold)).double()
    torch.nn.init.normal_(module.hyperedge_weight)
    torch.nn.init.normal_(module.node_bias)
    return module


def test_convolution_equals_equations_15_and_16_written_as_loops():
    module = convolution(threshold=0.2)
    nodes = torch.randn(2, 5, 4, dtype=torch.float64)
    result = module(nodes)
    for b in range(2):
        h = nodes[b]
        mapped = h @ module.linear.weight.T
        members = [
            [j for j in range(5) if functional.cosine_similarity(h[e], h[j], dim=0) >= 0.2] for e in range(5)
        ]
        edges = [torch.stack([mapped[j] for j in nodes_in_edge]).mean(0) for nodes_in_edge in members]
        for i in range(5):
            total = sum(module.hyperedge_weight[e] * edges[e] for e in range(5) if i in members[e])
            expected = functional.gelu(total + module.node_bias[i]) + h[i]
            assert torch.allclose(result[b, i], expected, atol=1e-6)


def test_one_hyperedge_over_all_nodes_is_their_mean():
    nodes = torch.randn(2, 5, 4)
    everything = torch.ones(2, 5, 5, dtype=torch.bool)
    means = hyperedge_means(nodes, everything)
    assert torch.allclose(means, nodes.mean(1, keepdim=True).expand(-1, 5, -1), atol=1e-6)


@pytest.mark.parametrize("kind", ["paper", "released"])
def test_convolution_gradients_agree_with_finite_differences(kind):
    torch.manual_seed(0)
    module = build_interaction(5, 4, 2, ChiConfig(convolution=kind, similarity_threshold=0.2)).double()
    nodes = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert 0 < cosine_incidence(nodes, 0.2).float().mean() < 1
    assert gradients_agree(module, nodes)


def test_fusion_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    fusion = ClassTokenFusion(4, FusionConfig(dropout=0.3)).double()
    class_tokens, nodes = (torch.randn(1, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    uniforms = torch.rand(1, 3, 9)
    assert gradients_agree(fusion, class_tokens, nodes, uniforms)


def test_one_hyperedge_over_all_nodes_gives_each_node_the_same_mean():
    module = convolution(threshold=-1.0)
    torch.nn.init.constant_(module.hyperedge_weight, 0.2)
    torch.nn.init.zeros_(module.node_bias)
    nodes = torch.randn(2, 5, 4, dtype=torch.float64)
    mean = module.linear(nodes.mean(dim=1, keepdim=True))
    assert torch.allclose(module(nodes) - nodes, functional.gelu(mean), atol=EXACT_FLOAT64)


def test_fusion_equals_torch_attention_plus_class_tokens():
    torch.manual_seed(0)
    fusion = ClassTokenFusion(8, FusionConfig()).double()
    class_tokens = torch.randn(2, 3, 8, dtype=torch.float64)
    nodes = torch.randn(2, 6, 8, dtype=torch.float64)
    attended = functional.scaled_dot_product_attention(
        fusion.query(class_tokens), fusion.key(nodes), fusion.value(nodes)
    )
    expected = fusion.out(attended) + class_tokens
    assert torch.allclose(fusion(class_tokens, nodes), expected, atol=EXACT_FLOAT64)


def test_fusion_drops_everything_where_all_uniforms_are_low():
    fusion = ClassTokenFusion(8, FusionConfig(dropout=0.5))
    class_tokens, nodes = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    dropped = fusion(class_tokens, nodes, torch.zeros(2, 3, 14))
    assert torch.allclose(dropped, class_tokens)


def test_released_convolution_equals_the_released_module():
    arrays = golden.load("chi_module")
    threshold = float(arrays["threshold"])
    assert torch.equal(euclidean_incidence(arrays["nodes"], threshold), arrays["incidence"].bool())
    config = ChiConfig(incidence="euclidean", distance_threshold=threshold, activation="silu")
    module = ReleasedHypergraphInteraction(32, config)
    names = {"hgconv.fc": "linear", "norm": "norm"}
    weights = golden.weights(arrays)
    module.load_state_dict(
        {
            f"{ours}.{kind}": weights[f"{theirs}.{kind}"]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
    )
    assert torch.allclose(module(arrays["nodes"]), arrays["y"], atol=GOLDEN_VALUE)


@pytest.mark.parametrize("mixer", ["mlp", "self_attention", "hypergraph"])
def test_alternatives_of_table_4_keep_shapes_and_have_right_gradients(mixer):
    torch.manual_seed(0)
    module = build_interaction(5, 4, 2, ChiConfig(mixer=mixer)).double()
    nodes = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert module(nodes).shape == nodes.shape
    assert gradients_agree(module, nodes)


def test_only_attention_and_hypergraph_mix_tokens():
    torch.manual_seed(0)
    nodes = torch.randn(1, 5, 4)
    other = nodes.clone()
    other[0, 4] += 0.1
    for mixer, sees in (("mlp", False), ("self_attention", True), ("hypergraph", True)):
        module = build_interaction(5, 4, 2, ChiConfig(mixer=mixer, similarity_threshold=-1.0))
        assert torch.equal(module(nodes)[:, :4], module(other)[:, :4]) is not sees


def test_no_module_is_built_where_chi_is_off():
    assert build_interaction(5, 4, 2, ChiConfig(enabled=False)) is None
