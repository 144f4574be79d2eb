from dataclasses import dataclass

import pytest
import torch

import livetune.torch
from livetune.errors import LiveTuneError
from livetune.torch import BindError, bind


@dataclass
class Live:
    value: float


def test_the_exports_are_these():
    expected = ["BindError", "Binding", "HasValue", "Mode", "Ranks", "RanksError", "Settable", "bind", "tensor"]
    assert expected == livetune.torch.__all__
    assert all(hasattr(livetune.torch, name) for name in expected)


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones(1)
    optimizer.step()


def rates(optimizer: torch.optim.Optimizer, key: str = "lr") -> list[float]:
    return [float(group[key]) for group in optimizer.param_groups]


def test_the_step_that_follows_a_change_uses_it():
    (weight, *_), lr = weights(), Live(0.1)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    bind(optimizer, lr=lr)
    step(optimizer)
    assert pytest.approx(0.9) == weight.item()
    lr.value = 0.2
    step(optimizer)
    assert pytest.approx(0.7) == weight.item()


def test_ratios_between_groups_are_kept():
    lr, decay = Live(1.0), Live(0.5)
    groups = [
        {"params": [w], "lr": rate, "weight_decay": wd}
        for w, rate, wd in zip(weights(), (0.1, 0.01, 0.0), (0.0, 0.2, 0.4), strict=True)
    ]
    optimizer = torch.optim.SGD(groups)
    bind(optimizer, lr=lr, weight_decay=decay)
    step(optimizer)
    assert pytest.approx([1.0, 0.1, 0.0]) == rates(optimizer)
    assert pytest.approx([0.0, 0.5, 1.0]) == rates(optimizer, "weight_decay")


def test_where_all_are_zero_all_get_the_value():
    decay = Live(0.3)
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights()], lr=0.1)
    bind(optimizer, weight_decay=decay)
    step(optimizer)
    assert [0.3, 0.3, 0.3] == rates(optimizer, "weight_decay")


def test_chosen_groups_only():
    lr = Live(0.7)
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights()], lr=0.1)
    bind(optimizer, lr=lr, groups=[1])
    step(optimizer)
    assert [0.1, 0.7, 0.1] == rates(optimizer)


def test_groups_added_later_are_left_alone():
    lr, (first, second, _) = Live(0.7), weights()
    optimizer = torch.optim.SGD([first], lr=0.1)
    bind(optimizer, lr=lr)
    optimizer.add_param_group({"params": [second], "lr": 0.3})
    step(optimizer)
    assert [0.7, 0.3] == rates(optimizer)


def test_a_tensor_is_filled_in_place():
    tensor, lr = torch.tensor(0.1), Live(0.2)
    optimizer = torch.optim.Adam(weights()[:1], lr=tensor, capturable=False, foreach=False)
    bind(optimizer, lr=lr)
    step(optimizer)
    assert tensor is optimizer.param_groups[0]["lr"]
    assert pytest.approx(0.2) == tensor.item()


def test_the_state_is_not_touched_by_a_change():
    (weight, *_), lr = weights(), Live(0.1)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    bind(optimizer, lr=lr)
    step(optimizer)
    state = optimizer.state[weight]
    lr.value = 0.2
    step(optimizer)
    assert state is optimizer.state[weight]
    assert 2.0 == state["step"].item()


def test_an_unchanged_variable_writes_nothing():
    lr = Live(0.1)
    optimizer = torch.optim.SGD(weights(), lr=0.1)
    bind(optimizer, lr=lr)
    step(optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    step(optimizer)
    assert [0.05] == rates(optimizer)
    lr.value = 0.2
    step(optimizer)
    assert [0.2] == rates(optimizer)


def test_a_loaded_checkpoint_does_not_bring_back_its_rate():
    lr = Live(0.1)
    optimizer = torch.optim.SGD(weights(), lr=0.1)
    bind(optimizer, lr=lr)
    old = optimizer.state_dict()
    lr.value = 0.2
    step(optimizer)
    optimizer.load_state_dict(old)
    step(optimizer)
    assert [0.2] == rates(optimizer)


def test_remove_unties_for_good():
    lr = Live(0.1)
    optimizer = torch.optim.SGD(weights(), lr=0.5)
    binding = bind(optimizer, lr=lr)
    binding.remove()
    binding.remove()
    step(optimizer)
    assert [0.5] == rates(optimizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs at least one variable, such as lr or weight_decay, got none"),
        ({"lr": Live(0.1), "groups": [1]}, r"groups must be indices of parameter groups, 0\.\.0, got \[1\]"),
        ({"lr": Live(0.1), "groups": []}, r"got \[\]"),
        ({"weight_decay": Live(0.1)}, "group 0 of Rprop has no weight_decay"),
    ],
)
def test_bad_bindings_are_refused(arguments, message):
    optimizer = torch.optim.Rprop(weights(), lr=0.1)
    with pytest.raises(BindError, match=message) as caught:
        bind(optimizer, **arguments)
    assert isinstance(caught.value, LiveTuneError)
