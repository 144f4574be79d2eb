import pytest
import torch
import torchvision
from torch import nn

from livetune.layercollapse import FINDERS, Chain, find_pairs, prepare_


def reasons(model: nn.Module) -> list[str]:
    return [pair.reason or "" for pair in find_pairs(model)]


def test_the_published_arithmetic_of_vgg11_bn():
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn()
    pairs = find_pairs(model)
    assert ["classifier.0+classifier.3", "classifier.3+classifier.6"] == [pair.name for pair in pairs]
    assert 132_868_840 == pairs.model_parameters
    assert 34_314_984 == pairs.parameters_after
    assert "132,868,840 -> 34,314,984 parameters (-74.17 %)" in str(pairs)
    assert [16_781_312, 16_781_312] == [pair.saving for pair in pairs]


def test_describes_a_vgg_head():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 4))
    (pair,) = find_pairs(model)
    assert (pair.first, pair.activation, pair.second, pair.between) == ("0", "1", "3", ("1", "2"))
    assert "linear-ReLU-dropout-linear" == pair.kind
    assert (pair.inputs, pair.hidden, pair.outputs, pair.biases) == (8, 32, 4, (True, True))
    assert (pair.parameters_before, pair.parameters_after) == (8 * 32 + 32 + 32 * 4 + 4, 8 * 4 + 4)
    assert pair.collapsible


def test_finds_the_mlps_of_a_vision_transformer():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    pairs = find_pairs(model)
    assert 12 == len(pairs.collapsible)
    assert {"linear-GELU-dropout-linear"} == {pair.kind for pair in pairs}
    assert "encoder.layers.encoder_layer_0.mlp.0" == pairs[0].first


def test_nested_sequentials_are_one_chain():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 16), nn.ReLU()), nn.Identity(), nn.Sequential(nn.Linear(16, 4)))
    (pair,) = find_pairs(model)
    assert (pair.first, pair.activation, pair.second) == ("0.0", "0.1", "2.0")
    assert "linear-ReLU-linear" == pair.kind
    assert pair.collapsible


class Doubling(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_sequential_with_its_own_forward_is_refused():
    model = nn.Sequential(Doubling(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)))
    assert ["Doubling '0' has a forward of its own"] == reasons(model)


def test_a_plain_sequential_inside_one_with_its_own_forward_is_found():
    model = Doubling(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)))
    assert [""] == reasons(model)


def test_a_forward_put_on_the_instance_is_refused():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    model.forward = lambda x: x
    (reason,) = reasons(model)
    assert "has a forward of its own" in reason


def test_a_product_that_would_grow_is_refused():
    model = nn.Sequential(nn.Linear(768, 64, bias=False), nn.ReLU(), nn.Linear(64, 768, bias=False))
    assert ["the product 768-768 would grow from 98,304 to 589,824 parameters"] == reasons(model)
    assert 98_304 == find_pairs(model).parameters_after


def test_a_chain_whose_whole_product_would_grow_counts_only_what_is_collapsed():
    model = nn.Sequential(
        nn.Linear(100, 45, bias=False), nn.ReLU(), nn.Linear(45, 45, bias=False), nn.ReLU(),
        nn.Linear(45, 100, bias=False),
    )  # fmt: skip
    pairs = find_pairs(model)
    assert 2 == len(pairs.collapsible)
    assert 100 * 45 + 45 * 100 == pairs.parameters_after


@pytest.mark.parametrize(
    ("between", "part"),
    [
        ([nn.BatchNorm1d(16), nn.ReLU()], "BatchNorm1d '1' stands between, and folding it is not supported"),
        ([nn.LayerNorm(16), nn.ReLU()], "LayerNorm '1' stands between and is not linear"),
        ([nn.ReLU(), nn.Softmax(-1)], "Softmax '2' stands between and is not known to act on every unit by itself"),
        ([nn.ReLU(), nn.Tanh()], "2 activations stand between"),
        ([nn.Dropout()], "no activation stands between"),
    ],
)
def test_what_may_not_stand_between(between, part):
    (reason,) = reasons(nn.Sequential(nn.Linear(4, 16), *between, nn.Linear(16, 4)))
    assert part in reason


def test_a_layer_used_twice_is_refused():
    layer = nn.Linear(8, 8)
    found = reasons(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 2)))
    assert 2 == len(found)
    assert all("is shared with another module" in reason for reason in found)


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert ["'0.weight' is shared with another module"] == reasons(model)


def test_one_relu_in_two_slots_is_fine():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 16), relu, nn.Linear(16, 8), relu, nn.Linear(8, 2))
    assert ["", ""] == reasons(model)


def test_one_hooked_relu_in_two_slots_is_refused():
    relu = nn.ReLU()
    relu.register_forward_hook(lambda *_: None)
    model = nn.Sequential(nn.Linear(4, 16), relu, nn.Linear(16, 8), relu, nn.Linear(8, 2))
    assert ["'1' is used in more than one place", "'3' is used in more than one place"] == reasons(model)


def test_reparametrized_and_lazy_layers_are_refused():
    pruned = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 4)))
    lazy = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4))
    assert "ParametrizedLinear" in reasons(pruned)[0]
    assert "LazyLinear" in reasons(lazy)[0]


def test_layers_of_different_types_are_refused():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4, dtype=torch.float64))
    assert ["the layers differ: torch.float32 on cpu, torch.float64 on cpu"] == reasons(model)


def test_a_prepared_pair_is_named_as_such():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    prepare_(model, find_pairs(model))
    assert ["'1' is already prepared"] == reasons(model)


def test_a_model_without_pairs_says_so():
    pairs = find_pairs(nn.Conv2d(1, 1, 3))
    assert 0 == len(pairs)
    assert "no pairs of linear layers found" == str(pairs)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def test_another_finder_can_be_put_beside_the_first():
    def blocks(model):
        for path, module in model.named_modules():
            yield from (
                Chain(((f"{path}.fc1", b.fc1), (f"{path}.act", b.act), (f"{path}.fc2", b.fc2)))
                for b in [module]
                if isinstance(b, Block)
            )

    model = nn.Sequential(Block())
    assert 0 == len(find_pairs(model))
    pairs = find_pairs(model, finders=(*FINDERS, blocks))
    assert ["0.fc1+0.fc2"] == [pair.name for pair in pairs.collapsible]
    x = torch.randn(3, 4)
    expected = model(x)
    prepare_(model, pairs)
    assert torch.equal(expected, model(x))


def test_slices_are_pairs_too():
    with torch.device("meta"):
        pairs = find_pairs(torchvision.models.vgg11_bn())
    assert 132_868_840 - 16_781_312 == pairs[1:].parameters_after
    assert 0 == len(pairs.refused)
