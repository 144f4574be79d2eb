import json

import pytest
import torch
import torchvision
from torch import nn

from livetune.layercollapse import (
    ArgumentError,
    CollapseError,
    LayerCollapseError,
    LinearizedActivation,
    Prepared,
    collapse_,
    find_pairs,
    prepare_,
)
from livetune.layercollapse.merge import product


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def head(**options) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 32, **options), nn.ReLU(True), nn.Dropout(),
        nn.Linear(32, 32, **options), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 5, **options),
    )  # fmt: skip


def prepared_head(*slopes: float, **options) -> tuple[nn.Sequential, Prepared, torch.Tensor]:
    model = head(**options)
    prepared = prepare_(model, find_pairs(model))
    set_slopes(prepared, *slopes)
    return model, prepared, torch.randn(9, 12, dtype=options.get("dtype"))


def set_slopes(prepared: Prepared, *slopes: float) -> None:
    with torch.no_grad():
        for parameter, slope in zip(prepared.parameters(), slopes, strict=True):
            parameter.fill_(slope)


def snapshot(model: nn.Module) -> tuple[object, ...]:
    return (
        [(path, module, module.training) for path, module in model.named_modules()],
        [(name, id(p), p._version, p.requires_grad) for name, p in model.named_parameters()],
        str(model),
    )


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        y = model(x)
    for module, training in modes:
        module.training = training
    return y


def test_the_product_is_that_of_the_formula():
    first, second = nn.Linear(4, 6), nn.Linear(6, 3)
    layer = LinearizedActivation(nn.GELU(), slope=1.0, gain=torch.randn(6), offset=torch.randn(6))
    weight, bias = product(first, layer, second)
    x = torch.randn(8, 4)
    assert torch.allclose(second(layer(first(x))), nn.functional.linear(x, weight, bias), atol=1e-6)


def test_a_whole_chain_becomes_one_layer_and_the_paths_stay():
    model, prepared, x = prepared_head(1.0, 1.0)
    expected = outputs(model, x)
    report = collapse_(model, prepared, example_inputs=x)
    assert torch.allclose(expected, outputs(model, x), rtol=1e-4, atol=1e-6)
    assert {"0.weight": (5, 12), "0.bias": (5,)} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert [nn.Linear] + [nn.Identity] * 6 == [type(module) for module in model]
    assert "Linear(in_features=12, out_features=5, bias=True)" == str(model[0])
    assert (report.parameters_before, report.parameters_after) == (12 * 32 + 32 + 32 * 32 + 32 + 32 * 5 + 5, 65)
    assert 2 == len(report.collapsed)
    assert report.parity_error < 1e-5
    assert () == prepared.pairs


def test_the_collapsed_state_dict_loads_into_a_model_collapsed_alike():
    # Published: the collapsed state_dict does not load into a fresh model.
    model, prepared, x = prepared_head(1.0, 1.0)
    collapse_(model, prepared, example_inputs=x)
    fresh, fresh_prepared, _ = prepared_head(0.0, 0.0)
    collapse_(fresh, fresh_prepared, example_inputs=x, force=True)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(outputs(model, x), outputs(fresh, x))


@pytest.mark.parametrize("order", [["0+3", "3+6"], ["3+6", "0+3"]])
def test_the_pairs_of_a_chain_collapse_one_by_one_in_either_order(order):
    model, prepared, x = prepared_head(1.0, 1.0)
    expected = outputs(model, x)
    first = collapse_(model, prepared, example_inputs=x, only=order[:1])
    assert order[:1] == [pair.name for pair in first.collapsed]
    assert torch.allclose(expected, outputs(model, x), rtol=1e-4, atol=1e-6)
    second = collapse_(model, prepared, example_inputs=x)
    assert torch.allclose(expected, outputs(model, x), rtol=1e-4, atol=1e-6)
    assert first.parameters_after == second.parameters_before
    assert ["0.weight", "0.bias"] == list(model.state_dict())


def test_a_partly_collapsed_chain_is_found_again():
    model, prepared, x = prepared_head(1.0, 0.0)
    collapse_(model, prepared, example_inputs=x)
    (pair,) = find_pairs(model)
    assert (pair.first, pair.activation, pair.second, pair.reason) == ("0", "4", "6", "'4' is already prepared")


def test_three_pairs_collapse_from_the_middle():
    model = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 8))
    prepared = prepare_(model, find_pairs(model))
    x = torch.randn(5, 8)
    for name in ("2+4", "4+6", "0+2"):
        collapse_(model, prepared, example_inputs=x, only=[name], force=True)
    assert ["0.weight", "0.bias"] == list(model.state_dict())


def test_only_slopes_within_the_threshold_collapse():
    model, prepared, x = prepared_head(0.96, 0.95)
    report = collapse_(model, prepared, example_inputs=x, threshold=0.045)
    assert ["0+3"] == [pair.name for pair in report.collapsed]
    assert ["slope is 0.050 from 1, not below the threshold 0.045"] == [pair.reason for pair in report.kept]
    assert {"3+6": pytest.approx(0.95)} == prepared.slopes()


def test_nothing_within_the_threshold_is_a_report_and_no_error():
    model, prepared, x = prepared_head(0.0, 0.0)
    before = snapshot(model)
    report = collapse_(model, prepared, example_inputs=x)
    assert (0, 2) == (len(report.collapsed), len(report.kept))
    assert before == snapshot(model)
    assert report.parameters_before == report.parameters_after


def test_the_error_of_the_residual_slope_is_measured():
    # Published: never reported; about 0.72 (1 - a) of the pair's output.
    model, prepared, x = prepared_head(1.0, 0.9)
    before = outputs(model, x)
    report = collapse_(model, prepared, example_inputs=x, threshold=0.2)
    change = (torch.linalg.vector_norm(outputs(model, x) - before) / torch.linalg.vector_norm(before)).item()
    exact, residual = report.pairs
    assert 0.0 == exact.pair_error == exact.output_error
    assert pytest.approx(change, rel=1e-3) == residual.output_error == pytest.approx(residual.pair_error, rel=1e-3)
    assert pytest.approx(change, rel=1e-3) == report.output_error
    assert 0.01 < residual.pair_error < 0.1


def test_a_gelu_block_of_a_vision_transformer_collapses():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=5)
    nn.init.normal_(model.heads[0].weight)
    prepared = prepare_(model, find_pairs(model))
    report = collapse_(model, prepared, example_inputs=torch.randn(2, 3, 32, 32), force=True)
    assert 2 == len(report.collapsed)
    assert 0.0 < report.parity_error < 1e-4
    assert (16, 16) == model.get_parameter("encoder.layers.encoder_layer_0.mlp.0.weight").shape


def test_works_without_biases():
    # Published: crashes.
    model, prepared, x = prepared_head(1.0, 1.0, bias=False)
    collapse_(model, prepared, example_inputs=x)
    assert ["0.weight"] == list(model.state_dict())
    assert model[0].bias is None


def test_zero_biases_stay_biases():
    # Published: a bias whose value is zero drops the layer's bias.
    model, prepared, x = prepared_head(1.0, 1.0)
    for slot in (0, 3, 6):
        nn.init.zeros_(model[slot].bias)
    collapse_(model, prepared, example_inputs=x)
    assert torch.equal(torch.zeros(5), model[0].bias)


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
def test_one_bias_of_two_is_enough(first, second):
    model = nn.Sequential(nn.Linear(4, 16, bias=first), nn.ReLU(), nn.Linear(16, 4, bias=second))
    prepared = prepare_(model, find_pairs(model))
    x = torch.randn(5, 4)
    report = collapse_(model, prepared, example_inputs=x, force=True)
    assert (4,) == model[0].bias.shape
    assert 20 == report.parameters_after


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_the_type_is_kept(dtype, tolerance):
    model, prepared, x = prepared_head(1.0, 1.0, dtype=dtype)
    collapse_(model, prepared, example_inputs=x, tolerance=tolerance)
    assert {dtype} == {p.dtype for p in model.parameters()}


def test_hooks_and_modes_are_kept():
    # Published: hooks, requires_grad and training are lost.
    model, prepared, x = prepared_head(1.0, 1.0)
    calls = []
    model[0].register_forward_pre_hook(lambda *_: calls.append("first, before"))
    model[6].register_forward_hook(lambda *_: calls.append("last, after"))
    model[1].register_forward_hook(lambda *_: calls.append("hidden"))
    handle = model[0].register_forward_hook(lambda *_: calls.append("first, after"))
    model[0].eval()
    layer = model[0]
    report = collapse_(model, prepared, example_inputs=x)
    assert layer is model[0]
    assert [model[0].training, model[3].training, model.training] == [False, True, True]
    calls.clear()
    model(x)
    assert ["first, before", "first, after", "last, after"] == calls
    handle.remove()
    assert ["1 hook(s) on the hidden value dropped", ""] == [pair.reason for pair in report.pairs]


@pytest.mark.parametrize(("frozen", "expected"), [((0, 3, 6), False), ((0, 3), True), ((), True)])
def test_frozen_layers_stay_frozen(frozen, expected):
    model, prepared, x = prepared_head(1.0, 1.0)
    for slot in frozen:
        model[slot].requires_grad_(False)
    collapse_(model, prepared, example_inputs=x)
    assert [expected, expected] == [p.requires_grad for p in model.parameters()]


def test_prelu_parameters_go_with_the_pair():
    model = nn.Sequential(nn.Linear(4, 16), nn.PReLU(16), nn.Linear(16, 4))
    pairs = find_pairs(model)
    report = collapse_(model, prepare_(model, pairs), example_inputs=torch.randn(5, 4), force=True)
    assert pairs[0].saving == report.pairs[0].parameters_removed
    assert (pairs.model_parameters, 20) == (report.parameters_before, report.parameters_after)


def test_gradients_flow_through_the_collapsed_model():
    model, prepared, x = prepared_head(1.0, 1.0)
    x.requires_grad_(True)
    collapse_(model, prepared, example_inputs=x)
    model(x).sum().backward()
    assert x.grad is not None


def test_a_graph_that_is_alive_outlives_the_collapse():
    model, prepared, x = prepared_head(1.0, 0.5)
    loss = model(x).sum()
    collapse_(model, prepared, example_inputs=x)
    loss.backward()
    assert prepared.layer(prepared.pairs[0]).slope.grad is not None


class Peeking(nn.Module):
    """Reads the hidden value behind the Sequential's back."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.body(x) + self.body[1](self.body[0](x)).mean()


def test_a_hidden_value_with_another_reader_is_refused_and_everything_is_as_before():
    model = Peeking()
    prepared = prepare_(model, find_pairs(model))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    before, state = snapshot(model), repr(optimizer.state_dict())
    with pytest.raises(CollapseError, match="must equal the linearised one"):
        collapse_(model, prepared, example_inputs=torch.randn(3, 4), force=True, optimizer=optimizer)
    assert before == snapshot(model)
    assert state == repr(optimizer.state_dict())
    assert 1 == len(prepared.pairs)
    assert 16 == model.body[0].out_features


def test_a_parity_error_names_the_tolerance():
    model, prepared, x = prepared_head(1.0, 1.0, dtype=torch.bfloat16)
    before = snapshot(model)
    with pytest.raises(CollapseError, match=r"within 1\.0e-06 \(relative\), got \d"):
        collapse_(model, prepared, example_inputs=x, tolerance=1e-6)
    assert before == snapshot(model)


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.aux = (nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(2))

    def forward(self, x):
        return {"main": self.main(x), "label": x.argmax(), "all": [self.main(x)]}


def test_a_pair_that_did_not_run_is_kept():
    model = Auxiliary()
    report = collapse_(model, prepare_(model, find_pairs(model)), example_inputs={"x": torch.randn(3, 4)}, force=True)
    assert ["", "did not run on example_inputs, so nothing could be proven"] == [pair.reason for pair in report.pairs]


def test_a_chain_is_not_multiplied_out_beyond_what_pays():
    model = nn.Sequential(nn.Linear(100, 45), nn.ReLU(), nn.Linear(45, 45), nn.ReLU(), nn.Linear(45, 100))
    pairs = find_pairs(model)
    report = collapse_(model, prepare_(model, pairs), example_inputs=torch.randn(3, 100), force=True)
    assert ["0+2"] == [pair.name for pair in report.kept]
    assert "would grow" in report.kept[0].reason
    assert pairs.parameters_after == report.parameters_after


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 1.5}, ArgumentError, r"threshold must be in 0\.\.1, got 1\.5"),
        ({"threshold": float("nan")}, ArgumentError, r"threshold must be in 0\.\.1, got nan"),
        ({"tolerance": -1.0}, ArgumentError, "tolerance must be finite and at least 0, got"),
        ({"only": ["0+9"]}, ArgumentError, r"only must name remaining pairs \(0\+3, 3\+6\), got 0\+9"),
        ({"example_inputs": torch.full((2, 12), float("nan"))}, CollapseError, "example_inputs must be finite"),
        ({"example_inputs": torch.ones(2, 7)}, CollapseError, "cannot run on example_inputs: RuntimeError"),
        ({"example_inputs": {"y": torch.ones(2, 12)}}, CollapseError, "cannot run on example_inputs: TypeError"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(arguments, error, message):
    model, prepared, x = prepared_head(1.0, 1.0)
    before = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        collapse_(model, prepared, **{"example_inputs": x, **arguments})
    assert isinstance(caught.value, LayerCollapseError)
    assert before == snapshot(model)


def test_weights_that_are_not_finite_are_refused():
    model, prepared, x = prepared_head(1.0, 1.0)
    nn.init.constant_(model[3].bias, float("nan"))
    with pytest.raises(CollapseError, match="the model's output on example_inputs must be finite"):
        collapse_(model, prepared, example_inputs=x)


def test_another_model_and_an_altered_one_are_refused():
    model, prepared, x = prepared_head(1.0, 1.0)
    with pytest.raises(CollapseError, match="must be the one that was prepared, got another Sequential"):
        collapse_(head(), prepared, example_inputs=x)
    model[1] = nn.ReLU()
    with pytest.raises(CollapseError, match="'1' has been replaced"):
        collapse_(model, prepared, example_inputs=x)
    model[3] = nn.Identity()
    with pytest.raises(CollapseError, match=r"must lie between nn\.Linear layers"):
        collapse_(model, prepared, example_inputs=x)


def test_collapsing_what_is_collapsed_is_refused():
    model, prepared, x = prepared_head(1.0, 1.0)
    collapse_(model, prepared, example_inputs=x)
    with pytest.raises(CollapseError, match="no pair is left"):
        collapse_(model, prepared, example_inputs=x)


def test_a_model_without_a_floating_point_output_is_refused():
    class Label(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = head()

        def forward(self, x):
            return self.body(x).argmax(-1)

    model = Label()
    prepared = prepare_(model, find_pairs(model))
    with pytest.raises(CollapseError, match="must hold a floating point tensor, got Tensor"):
        collapse_(model, prepared, example_inputs=torch.randn(2, 12))


def test_the_report_prints_and_becomes_json():
    model, prepared, x = prepared_head(1.0, 0.5)
    report = collapse_(model, prepared, example_inputs=x)
    text = str(report)
    assert "0+3" in text
    assert "kept" in text
    assert "parameters 1,637 -> 581 (-64.51 %)" in text
    record = json.loads(json.dumps(report.to_dict()))
    assert [True, False] == [pair["collapsed"] for pair in record["pairs"]]
    assert 581 == record["parameters_after"]
