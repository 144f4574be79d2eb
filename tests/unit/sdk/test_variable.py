"""A variable stands for its value wherever a number or text is expected, and is changed at the safe point only."""

from __future__ import annotations

import copy
import math
import operator
import pickle

import numpy as np
import pytest

import livetune
from livetune.specs import VariableSpec
from livetune.variable import Variable


def variable(initial: float | bool | str) -> Variable[object]:
    return Variable(VariableSpec.declare("x", initial), initial)


def test_reading() -> None:
    x = variable(0.25)
    assert [0.25, 0.25, 0.25] == [x.value, x(), float(x)]
    assert (3, "3", 3) == (int(variable(3)), str(variable(3)), operator.index(variable(3)))
    assert "eval" == str(variable("eval"))


def test_truth_is_the_values_truth() -> None:
    assert [False, True, False, True, False] == [bool(variable(v)) for v in (False, True, 0.0, 0.1, "")]


def test_only_an_int_is_an_index() -> None:
    with pytest.raises(TypeError):
        operator.index(variable(3.0))


@pytest.mark.parametrize(
    "operation",
    [
        operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow, divmod,
        operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
    ],
)  # fmt: skip
def test_operators_on_either_side(operation) -> None:  # type: ignore[no-untyped-def]
    x = variable(7.5)
    assert operation(7.5, 2) == operation(x, 2)
    assert operation(2, 7.5) == operation(2, x)
    assert operation(7.5, 7.5) == operation(x, variable(7.5))


def test_unary_operators_and_rounding() -> None:
    x = variable(-2.5)
    assert [2.5, -2.5, 2.5, -2, -3, -2, -2] == [
        -x, +x, abs(x), round(x), math.floor(x), math.ceil(x), math.trunc(x),
    ]  # fmt: skip
    assert -2.5 == round(x, 1)


def test_formatting() -> None:
    assert "1.00e-02 0.01 lr=0.01" == f"{variable(0.01):.2e} {variable(0.01)} lr={variable(0.01)}"


def test_results_are_plain_values() -> None:
    assert float is type(variable(1.0) * 2)


def test_numpy_on_either_side_gives_numpy() -> None:
    x, array = variable(2.0), np.array([1.0, 2.0])
    assert [2.0, 4.0] == (array * x).tolist() == (x * array).tolist()
    assert 6.0 == np.float64(3.0) * x == x * np.float64(3.0)
    assert np.float64 is type(np.float64(3.0) * x)


def test_torch_on_either_side_gives_tensors() -> None:
    torch = pytest.importorskip("torch")
    x, tensor = variable(2.0), torch.tensor([1.0, 2.0])
    assert [2.0, 4.0] == (tensor * x).tolist() == (x * tensor).tolist()
    assert [3.0, 4.0] == (tensor + x).tolist()
    assert [0.5, 1.0] == (tensor / x).tolist()


def test_the_hash_is_stable_while_the_value_changes() -> None:
    x = variable(1.0)
    keys = {x: "here"}
    x._put(2.0, 5, 9, changed=True)
    assert "here" == keys[x]
    assert x == 2.0


def test_assigning_is_refused_with_the_way_to_do_it() -> None:
    x = variable(1.0)
    with pytest.raises(AttributeError, match="ltctl set JOB x=2"):
        x.value = 2.0
    with pytest.raises(AttributeError, match="'other' cannot be set"):
        x.other = 1  # type: ignore[attr-defined]
    assert 1.0 == x.value


def test_changed_is_told_once() -> None:
    x = variable(1.0)
    assert not x.changed()
    x._put(2.0, 5, 9, changed=True)
    assert [True, False] == [x.changed(), x.changed()]
    assert (5, 9) == (x.revision, x.applied_step)


def test_a_pickle_is_an_inert_copy_and_a_copy_is_itself() -> None:
    x = variable(1.0)
    x._put(2.0, 5, 9, changed=True)
    y = pickle.loads(pickle.dumps(x))
    assert (2.0, 5, 9, "x") == (y.value, y.revision, y.applied_step, y.name)
    x._put(3.0, 6, 10, changed=True)
    assert 2.0 == y.value
    assert copy.copy(x) is x
    assert copy.deepcopy({"x": x})["x"] is x


def test_the_repr_says_all_that_matters() -> None:
    spec = VariableSpec.declare("lr", 0.1, minimum=0.0, maximum=1.0, unit="1/step")
    x = Variable(spec, 0.1)
    assert "<Variable lr=0.1 1/step, min=0.0, max=1.0>" == repr(x)
    x._put(0.2, 7, 42, changed=True)
    assert repr(x).endswith("revision 7 since step 42>")
    assert isinstance(x, livetune.Variable)
