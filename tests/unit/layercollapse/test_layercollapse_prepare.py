import copy

import pytest
import torch
import torchvision
from torch import nn

from livetune.layercollapse import (
    ArgumentError,
    LinearizedActivation,
    PrepareConfig,
    PrepareError,
    find_pairs,
    prepare_,
)

ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True), nn.Tanh(),
    nn.Sigmoid(), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.PReLU(), nn.PReLU(16), nn.Hardswish(inplace=True),
    nn.Softplus(), nn.Mish(),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def head(**options) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 16, **options), nn.ReLU(True), nn.Dropout(),
        nn.Linear(16, 16, **options), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5, **options),
    )  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_a_prepared_activation_starts_bit_for_bit_as_the_original(activation):
    model = nn.Sequential(nn.Linear(12, 16), copy.deepcopy(activation), nn.Linear(16, 5))
    x = torch.randn(7, 12) * 4
    expected = model(x)
    prepare_(model, find_pairs(model))
    assert torch.equal(expected, model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_start_is_exact_in_every_type(dtype):
    model = head(dtype=dtype).eval()
    x = torch.randn(7, 12, dtype=dtype)
    expected = model(x)
    prepared = prepare_(model, find_pairs(model))
    assert torch.equal(expected, model(x))
    assert {dtype} == {slope.dtype for slope in prepared.parameters()}


def test_a_relu_becomes_prelu():
    z = torch.randn(50)
    layer = LinearizedActivation(nn.ReLU(), slope=0.3)
    assert torch.allclose(nn.functional.prelu(z, torch.tensor([0.3])), layer(z), atol=1e-7)


def test_at_slope_one_it_is_the_line_with_gain_and_offset():
    z, gain, offset = torch.randn(50, 3), torch.randn(3), torch.randn(3)
    layer = LinearizedActivation(nn.GELU(), slope=1.0, gain=gain, offset=offset)
    assert torch.equal(z * gain + offset, layer(z))
    assert {"slope", "gain", "offset"} == set(layer.state_dict())


def test_the_slope_gets_the_gradient_of_prelu():
    z = torch.tensor([-2.0, 3.0])
    layer = LinearizedActivation(nn.ReLU(inplace=True))
    layer(z.clone()).sum().backward()
    assert -2.0 == layer.slope.grad.item()


def test_autocast_runs_forward_and_backward():
    model = head()
    prepare_(model, find_pairs(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(4, 12)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_vision_transformer_starts_exactly():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.heads[0].weight)
    expected = model(x)
    assert 2 == len(prepare_(model, find_pairs(model)).pairs)
    assert torch.equal(expected, model(x))


def test_slopes_are_found_by_structure_and_not_by_name():
    # Published: slopes are found by "act" in a name, which drags compactor.weight along.
    model = nn.ModuleDict({"compactor": nn.Linear(4, 4), "activity": head()})
    prepared = prepare_(model, find_pairs(model))
    assert {"activity.0+activity.3", "activity.3+activity.6"} == set(prepared.slopes())
    assert 2 == len(list(prepared.parameters()))


def test_hooks_and_modes_of_the_activation_are_kept():
    model, calls = head(), []
    model[1].eval()
    handle = model[1].register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    prepare_(model, find_pairs(model))
    assert [model[1].training, model[4].training] == [False, True]
    model(torch.randn(2, 12))
    assert ["LinearizedActivation"] == calls
    handle.remove()
    model(torch.randn(2, 12))
    assert 1 == len(calls)


def test_one_relu_in_two_slots_gets_two_slopes():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 16), relu, nn.Linear(16, 8), relu, nn.Linear(8, 2))
    prepared = prepare_(model, find_pairs(model))
    assert 2 == len({id(slope) for slope in prepared.parameters()})


def test_chosen_pairs_only():
    model = head()
    prepared = prepare_(model, [find_pairs(model)[1]])
    assert ["3+6"] == [pair.name for pair in prepared.pairs]
    assert isinstance(model[1], nn.ReLU)


def test_pairs_are_kept_in_the_order_of_the_model():
    model = head()
    assert ["0+3", "3+6"] == [pair.name for pair in prepare_(model, list(find_pairs(model))[::-1]).pairs]


def test_preparing_twice_is_refused():
    model = head()
    pairs = find_pairs(model)
    prepare_(model, pairs[:1])
    before = list(model.state_dict())
    with pytest.raises(PrepareError, match="already prepared: '1'"):
        prepare_(model, pairs[1:])
    assert before == list(model.state_dict())


def test_bad_choices_are_refused_and_change_nothing():
    model, other = head(), nn.Sequential(nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 768))
    pairs = find_pairs(model)
    wider = find_pairs(nn.Sequential(*[nn.Linear(12, 17), nn.ReLU(), nn.Dropout(), nn.Linear(17, 16)]))
    for chosen, message in [
        ([], "no pair to prepare"),
        (find_pairs(other), "no pair to prepare"),
        (list(find_pairs(other)), "would grow"),
        ([pairs[0], pairs[0]], "named twice"),
        (wider, "expected sizes"),
        ([pairs[0], find_pairs(nn.ModuleDict({"x": head()}))[0]], "not one of this model"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare_(model, chosen)
        assert ["ReLU", "ReLU"] == [type(model[slot]).__name__ for slot in (1, 4)]


def test_the_config_goes_through_json():
    config = PrepareConfig()
    assert '{"mode": "paper", "version": 1}' == config.to_json()
    assert config == PrepareConfig.from_json(config.to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"mode": "exact", "version": 1}', "mode must be one of paper, got 'exact'"),
        ('{"mode": "paper", "version": 2}', "version must be 1, got 2"),
        ('{"mode": "paper"}', "must be a JSON object with"),
        ('{"mode": "paper", "version": 1, "lc": 3}', "must be a JSON object with"),
        ("[]", "must be a JSON object"),
        ("{", "must be a JSON object"),
    ],
)
def test_an_unknown_config_is_refused(text, message):
    with pytest.raises(ArgumentError, match=message):
        PrepareConfig.from_json(text)


def test_a_prepared_model_prints_its_slopes_on_meta_too():
    with torch.device("meta"):
        model = head()
    prepare_(model, find_pairs(model))
    assert "slope=?" in str(model)
    assert "slope=0.5" in str(LinearizedActivation(nn.ReLU(), slope=0.5))
