import pytest
import torch
from torch import nn

from livetune.layercollapse import ArgumentError, attach_slopes_, collapse_, find_pairs, penalty, prepare_


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(),
        nn.Sequential(nn.Linear(10, 20, bias=bias), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)),
    )  # fmt: skip


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.01),
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    lambda p: torch.optim.Adagrad(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    lambda p: torch.optim.NAdam(p, lr=0.01),
    lambda p: torch.optim.Adafactor(p, lr=0.01),
]


def step(model, optimizer, prepared):
    optimizer.zero_grad()
    (model(torch.randn(8, 6)).square().mean() + penalty(prepared)).backward()
    optimizer.step()


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_training_goes_on_with_the_merged_parameters(build):
    # Published: the optimizer never sees the merged weight.
    model = network()
    # The tanh pair's first layer feeds a chain of three pairs; only the head is collapsed.
    prepared = prepare_(model, find_pairs(model)[1:])
    slopes = {id(slope) for slope in prepared.parameters()}
    optimizer = build([p for p in model.parameters() if id(p) not in slopes])
    attach_slopes_(optimizer, prepared, lr=0.1)
    for _ in range(3):
        step(model, optimizer, prepared)
    kept = {name: optimizer.state[p] for name, p in model[0].named_parameters()}
    before = {name: {k: torch.as_tensor(v).clone() for k, v in s.items() if v is not None} for name, s in kept.items()}
    collapse_(model, prepared, example_inputs=torch.randn(4, 6), force=True, optimizer=optimizer)

    shapes = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    assert [[(10, 6), (10,), (3, 10), (3,)], []] == shapes
    known = {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= known
    for name, parameter in model[0].named_parameters():
        assert optimizer.state[parameter] is kept[name]
        assert all(torch.equal(value, torch.as_tensor(kept[name][key])) for key, value in before[name].items())
    weight = model[2][0].weight.detach().clone()
    step(model, optimizer, prepared)
    assert not torch.equal(weight, model[2][0].weight)
    optimizer.load_state_dict(optimizer.state_dict())


def test_the_merged_parameters_take_the_place_in_the_group_of_the_first_layer():
    model = network()
    prepared = prepare_(model, find_pairs(model)[2:])
    head = model[2]
    optimizer = torch.optim.SGD(
        [
            {"params": [head[2].bias, head[2].weight, model[0].weight], "lr": 0.5},
            {"params": [head[4].weight, head[4].bias, head[0].weight], "lr": 0.1},
        ]
    )
    collapse_(model, prepared, example_inputs=torch.randn(4, 6), force=True, optimizer=optimizer)
    first, second = optimizer.param_groups
    assert [id(head[2].bias), id(head[2].weight), id(model[0].weight)] == [id(p) for p in first["params"]]
    assert [id(head[0].weight)] == [id(p) for p in second["params"]]
    assert 0.5 == first["lr"]


def test_where_the_first_layer_has_no_place_the_second_gives_its_own():
    model = network(bias=False)
    prepared = prepare_(model, find_pairs(model)[1:])
    head = model[2]
    optimizer = torch.optim.SGD([head[2].bias, head[4].weight], lr=0.1)
    collapse_(model, prepared, example_inputs=torch.randn(4, 6), force=True, optimizer=optimizer)
    assert [id(head[0].bias), id(head[0].weight)] == [id(p) for p in optimizer.param_groups[0]["params"]]


def test_named_parameters_stay_in_step():
    model = network()
    prepared = prepare_(model, find_pairs(model)[1:])
    optimizer = torch.optim.AdamW([(n, p) for n, p in model.named_parameters() if not n.endswith("slope")])
    attach_slopes_(optimizer, prepared)
    assert ["2.0+2.2.slope", "2.2+2.4.slope"] == optimizer.param_groups[1]["param_names"]
    collapse_(model, prepared, example_inputs=torch.randn(4, 6), force=True, optimizer=optimizer)
    assert ["0.weight", "0.bias", "2.0.weight", "2.0.bias"] == optimizer.param_groups[0]["param_names"]
    assert [] == optimizer.param_groups[1]["param_names"]


def test_slopes_have_no_weight_decay_and_are_clamped_after_each_step():
    model = network()
    prepared = prepare_(model, find_pairs(model))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, weight_decay=0.5)
    handle = attach_slopes_(optimizer, prepared, lr=100.0)
    assert (100.0, 0.0) == (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["weight_decay"])
    step(model, optimizer, prepared)
    assert [1.0, 1.0, 1.0] == list(prepared.slopes().values())
    handle.remove()
    for slope in prepared.parameters():
        slope.grad = torch.tensor(1.0)
    optimizer.step()
    assert [-99.0, -99.0, -99.0] == list(prepared.slopes().values())


def test_slopes_are_attached_once():
    model = network()
    prepared = prepare_(model, find_pairs(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"0\+2.0.slope is in the optimizer already"):
        attach_slopes_(optimizer, prepared)
    with pytest.raises(ArgumentError, match="lr must be finite and at least 0, got -1"):
        attach_slopes_(torch.optim.SGD(model[0].parameters(), lr=0.1), prepared, lr=-1.0)
    collapse_(model, prepared, example_inputs=torch.randn(4, 6), force=True)
    with pytest.raises(ArgumentError, match="every pair is collapsed"):
        attach_slopes_(optimizer, prepared)


def test_lbfgs_is_refused():
    model = network()
    prepared = prepare_(model, find_pairs(model))
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ArgumentError, match="LBFGS does not"):
        collapse_(model, prepared, example_inputs=torch.randn(4, 6), force=True, optimizer=optimizer)
    assert 3 == len(prepared.pairs)
