"""Declarations: what can be kept, and the constraint that every value must keep."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.names import check_identifier, check_job_name, nearest, parse_job_resource
from livetuned.domain.specs import Scale, VariableSpec
from livetuned.domain.values import Value, ValueType
from support.domain import spec


@pytest.mark.parametrize("name", ["a", "vgg16-bn", "0", "x" * 63])
def test_good_job_names(name: str) -> None:
    assert name == check_job_name(name)
    assert name == parse_job_resource(f"jobs/{name}")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a/b", "x" * 64, "x" * 300, "a\n", "ä"])
def test_bad_job_names(name: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_job_name(name)
    assert Reason.INVALID_NAME is caught.value.reason
    assert "63" in caught.value.message


@pytest.mark.parametrize("name", ["lr", "lc.strength", "_x9", "x" * limits.NAME_BYTES])
def test_good_identifiers(name: str) -> None:
    assert name == check_identifier("variable", name)


@pytest.mark.parametrize("name", ["", "a b", ".a", "a.", "a..b", "9a", "a-b", "x" * 201, "x" * 300, "lr\n", "é"])
def test_bad_identifiers(name: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_identifier("trigger", name)
    assert Reason.INVALID_NAME is caught.value.reason
    assert "trigger" in caught.value.metadata


def test_the_nearest_name() -> None:
    assert "learning_rate" == nearest("lerning_rate", ["momentum", "learning_rate"])
    assert "" == nearest("zzz", ["momentum"])


LR = VariableSpec("lr", ValueType.FLOAT, 0.1, 1e-6, 1.0, scale=Scale.LOG).checked()


@pytest.mark.parametrize(
    ("value", "reason", "rule"),
    [
        (math.nan, Reason.NOT_FINITE, "finite"),
        (math.inf, Reason.NOT_FINITE, "finite"),
        (-math.inf, Reason.NOT_FINITE, "finite"),
        (0.0, Reason.BELOW_MINIMUM, ">= 1e-06"),
        (1.5, Reason.ABOVE_MAXIMUM, "<= 1.0"),
        ("x", Reason.WRONG_TYPE, "type float"),
        (True, Reason.WRONG_TYPE, "type float"),
    ],
)
def test_a_value_that_breaks_the_constraint(value: Value, reason: Reason, rule: str) -> None:
    with pytest.raises(DomainError) as caught:
        LR.check(value)
    assert (reason, rule, "lr") == (
        caught.value.reason,
        caught.value.metadata["rule"],
        caught.value.metadata["variable"],
    )


def test_bounds_are_inclusive_and_integers_are_widened() -> None:
    assert [1e-6, 1.0, 1.0] == [LR.check(1e-6), LR.check(1.0), LR.check(1)]


def test_a_choice_that_does_not_exist_names_the_nearest() -> None:
    mode = VariableSpec("mode", ValueType.STRING, "train", choices=("train", "evaluate")).checked()
    with pytest.raises(DomainError) as caught:
        mode.check("evaluat")
    assert Reason.NOT_A_CHOICE is caught.value.reason
    assert "evaluate" == caught.value.metadata["nearest"]


@pytest.mark.parametrize(
    "bad",
    [
        spec("lr", 0.5, 1.0, 0.0),
        spec("lr", 0.5, math.nan),
        spec("flag", True, 0, 1),
        replace(spec("flag", True), scale=Scale.LINEAR),
        replace(spec("n", 1), choices=("a",)),
        replace(spec("lr", 0.5, 0.0), scale=Scale.LOG),
        replace(spec("lr", -0.5), scale=Scale.LOG),
    ],
)
def test_declarations_that_contradict_themselves(bad: VariableSpec) -> None:
    with pytest.raises(DomainError) as caught:
        bad.checked()
    assert Reason.INVALID_REQUEST is caught.value.reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (spec("lr", math.nan), Reason.NOT_FINITE),
        (spec("lr", 5.0, maximum=1.0), Reason.ABOVE_MAXIMUM),
        (spec("a b", 5.0), Reason.INVALID_NAME),
        (replace(spec("lr", 1.0), doc="x" * 5_000), Reason.LIMIT_EXCEEDED),
        (replace(spec("m", "a"), choices=("b",)), Reason.NOT_A_CHOICE),
        (replace(spec("m", "0"), choices=tuple(map(str, range(1_001)))), Reason.LIMIT_EXCEEDED),
    ],
)
def test_declarations_that_break_a_rule(bad: VariableSpec, reason: Reason) -> None:
    with pytest.raises(DomainError) as caught:
        bad.checked()
    assert reason is caught.value.reason


def test_a_reworded_doc_is_no_contradiction_but_a_moved_limit_is() -> None:
    assert () == LR.differences(replace(LR, doc="other", unit="x"))
    assert ("minimum", "maximum") == LR.differences(replace(LR, minimum=0.0, maximum=2.0))
