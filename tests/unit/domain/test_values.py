"""Reading values from text and bringing them to a variable's type."""

from __future__ import annotations

import math

import pytest

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.values import Value, ValueType, coerce, parse_text, shown


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        (ValueType.FLOAT, "0.01", 0.01),
        (ValueType.FLOAT, " 1e-3 ", 1e-3),
        (ValueType.FLOAT, "-.5", -0.5),
        (ValueType.FLOAT, "3", 3.0),
        (ValueType.FLOAT, "inf", math.inf),
        (ValueType.INT, "-7", -7),
        (ValueType.INT, "9223372036854775807", 2**63 - 1),
        (ValueType.BOOL, "True", True),
        (ValueType.BOOL, "off", False),
        (ValueType.BOOL, "0", False),
        (ValueType.STRING, " as it is ", " as it is "),
        (ValueType.STRING, "", ""),
    ],
)
def test_text_is_read_by_the_declared_type(declared: ValueType, text: str, value: Value) -> None:
    read = parse_text("v", declared, text)
    assert (type(value), value) == (type(read), read)


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (ValueType.FLOAT, "abc"),
        (ValueType.FLOAT, ""),
        (ValueType.FLOAT, "1_000.0"),
        (ValueType.FLOAT, "0x10"),
        (ValueType.FLOAT, "1,5"),
        (ValueType.INT, "2.0"),
        (ValueType.INT, "9223372036854775808"),
        (ValueType.INT, "1" * 5_000),
        (ValueType.INT, "٣"),
        (ValueType.BOOL, "2"),
        (ValueType.BOOL, ""),
    ],
)
def test_text_of_another_type_is_refused_with_its_name_rule_and_value(declared: ValueType, text: str) -> None:
    with pytest.raises(DomainError) as caught:
        parse_text("v", declared, text)
    assert Reason.WRONG_TYPE is caught.value.reason
    assert "'v'" in caught.value.message
    assert f"type {declared.value}" == caught.value.metadata["rule"]
    assert shown(text) == caught.value.metadata["value"]


def test_only_an_int_that_a_float_holds_exactly_is_widened() -> None:
    widened = coerce("v", ValueType.FLOAT, 3)
    assert (float, 3.0) == (type(widened), widened)
    for declared, value in [
        (ValueType.FLOAT, 2**53 + 1),
        (ValueType.FLOAT, True),
        (ValueType.INT, 1.0),
        (ValueType.INT, True),
        (ValueType.INT, 2**63),
        (ValueType.BOOL, 1),
        (ValueType.STRING, 1),
    ]:
        with pytest.raises(DomainError) as caught:
            coerce("v", declared, value)
        assert Reason.WRONG_TYPE is caught.value.reason


def test_a_string_may_be_as_long_as_the_limit_and_no_longer() -> None:
    longest = "x" * limits.STRING_VALUE_BYTES
    assert longest == coerce("v", ValueType.STRING, longest) == parse_text("v", ValueType.STRING, longest)
    for refuse in (coerce, parse_text):
        with pytest.raises(DomainError) as caught:
            refuse("v", ValueType.STRING, longest + "x")
        assert Reason.LIMIT_EXCEEDED is caught.value.reason
        assert "string_value_bytes" == caught.value.metadata["limit"]
