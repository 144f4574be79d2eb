import logging
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from livetune.integrations.layercollapse import LiveLayerCollapse
from livetune.layercollapse import PrepareError


@dataclass
class Value:
    value: float


@dataclass
class FakeJob:
    values: dict[str, Value] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)

    def variable(self, name, default, /, **_):
        return self.values.setdefault(name, Value(default))

    def trigger(self, name, /, **_):
        self.fired[name] = 0

        def ask():
            firing = self.fired[name] > 0
            self.fired[name] -= firing
            return firing

        return ask


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(**options):
    job = FakeJob()
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    live = LiveLayerCollapse(job, model, optimizer, example_inputs=torch.randn(8, 6), slope_lr=0.1, **options)
    return job, model, optimizer, live


def train(model, optimizer, live, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(8, 6)).square().mean() + live.penalty()).backward()
        optimizer.step()
        live.poll()


def test_declares_what_can_be_steered():
    job, _, _, live = build(strength=0.2, fraction=0.5, threshold=0.1)
    assert {"lc.strength": 0.2, "lc.fraction": 0.5, "lc.threshold": 0.1} == {n: v.value for n, v in job.values.items()}
    assert ["collapse"] == list(job.fired)
    assert set(job.values) == set(live.variables)


def test_slopes_are_a_group_without_weight_decay():
    _, _, optimizer, live = build()
    group = optimizer.param_groups[1]
    assert [id(p) for p in live.prepared.parameters()] == [id(p) for p in group["params"]]
    assert (0.1, 0.0) == (group["lr"], group["weight_decay"])


def test_at_strength_zero_the_network_trains_as_if_not_prepared():
    _, model, optimizer, live = build()
    torch.manual_seed(1)
    train(model, optimizer, live, 5)
    assert [0.0, 0.0] == list(live.prepared.slopes().values())
    assert 0.0 == live.penalty().item()

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    twin = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
    torch.manual_seed(1)
    for _ in range(5):
        twin.zero_grad()
        plain(torch.randn(8, 6)).square().mean().backward()
        twin.step()
    x = torch.randn(4, 6)
    assert torch.allclose(plain(x), model(x), atol=1e-6)


def test_a_raised_strength_pulls_and_a_lowered_one_lets_rest():
    job, model, optimizer, live = build()
    job.values["lc.strength"].value = 2.0
    live.poll()
    assert 4.0 == live.penalty().item()
    train(model, optimizer, live, 5)
    pulled = live.prepared.slopes()
    assert all(slope > 0.2 for slope in pulled.values())
    job.values["lc.strength"].value = 0.0
    live.poll()
    train(model, optimizer, live, 3)
    assert pulled == live.prepared.slopes()


def test_only_the_fraction_is_pulled():
    _, model, optimizer, live = build(strength=2.0, fraction=0.5)
    train(model, optimizer, live, 5)
    first, last = live.prepared.slopes().values()
    assert 0.0 == first
    assert last > 0.2


def test_a_firing_collapses_what_is_near_enough_and_training_goes_on():
    job, model, optimizer, live = build(strength=5.0, fraction=0.5)
    train(model, optimizer, live, 40)
    assert live.poll() is None
    job.fired["collapse"] = 1
    report = live.poll()
    assert ["2+4"] == [pair.name for pair in report.collapsed]
    assert ["slope is 1.000 from 1, not below the threshold 0.05"] == [pair.reason for pair in report.kept]
    assert live.poll() is None
    job.values["lc.fraction"].value = 1.0
    live.poll()
    train(model, optimizer, live, 40)
    job.fired["collapse"] = 1
    assert ["0+2"] == [pair.name for pair in live.poll().collapsed]
    assert ["0.weight", "0.bias"] == list(model.state_dict())
    train(model, optimizer, live, 3)


def test_the_live_threshold_counts():
    job, _, _, live = build()
    job.values["lc.threshold"].value = 0.0
    job.fired["collapse"] = 1
    assert 2 == len(live.poll().kept)


def test_a_refused_collapse_is_logged_and_training_goes_on(caplog):
    job, model, _, live = build()
    with torch.no_grad():
        model[0].bias.fill_(float("nan"))
    job.fired["collapse"] = 1
    with caplog.at_level(logging.WARNING):
        assert live.poll() is None
    assert "must be finite" in str(live.refusal)
    assert "collapse refused" in caplog.text


def test_a_model_without_pairs_is_refused_and_unchanged():
    model = nn.Sequential(nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PrepareError, match="no pair to prepare"):
        LiveLayerCollapse(FakeJob(), model, optimizer, example_inputs=torch.randn(2, 6))
    assert 1 == len(optimizer.param_groups)
