"""Between protobuf and plain values: nothing is lost, and what can't be carried is said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from livetune import messages as m
from livetune import wire
from livetune.errors import WireError
from livetune.specs import TriggerSpec, VariableSpec
from livetune.v1 import job_pb2, types_pb2


@pytest.mark.parametrize("value", [0.1, -0.0, 1, -(2**63), 2**63 - 1, True, False, "", "grün"])
def test_values_return_with_their_type(value: Any) -> None:
    found = wire.value_from_proto(wire.value_to_proto(value))
    assert (type(value), repr(value)) == (type(found), repr(found))


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**63, None, b"x"])
def test_values_that_cannot_be_carried(value: Any) -> None:
    with pytest.raises(WireError):
        wire.value_to_proto(value)


def test_a_value_without_a_kind() -> None:
    assert wire.value_from_proto(types_pb2.Value()) is None


def test_resource_names() -> None:
    assert "jobs/vgg" == wire.job_name("vgg")


def test_a_declaration_carries_everything() -> None:
    lr = VariableSpec.declare("lr", 0.1, minimum=0.01, maximum=1.0, scale="log", unit="1/step", doc="Rate.")
    mode = VariableSpec.declare("mode", "a", choices=["a", "b"])
    message = m.Declare(((lr, 0.5), (mode, "b")), (TriggerSpec("save", "Saves."),))
    declare = wire.request_from_message(message, job="vgg", instance_id="i", rank=0, token="t").declare
    first, second = declare.variables
    assert ("lr", types_pb2.VARIABLE_TYPE_FLOAT, 0.1, 0.01, 1.0, types_pb2.SCALE_LOG, "1/step", "Rate.", 0.5) == (
        first.spec.variable_id, first.spec.type, first.spec.initial.float_value, first.spec.minimum.float_value,
        first.spec.maximum.float_value, first.spec.scale, first.spec.unit, first.spec.doc, first.current.float_value,
    )  # fmt: skip
    assert (["a", "b"], False, "b") == (
        list(second.spec.choices), second.spec.HasField("minimum"), second.current.string_value
    )  # fmt: skip
    assert ("save", "Saves.") == (declare.triggers[0].trigger_id, declare.triggers[0].doc)


def test_the_opening_says_who_speaks() -> None:
    opening = wire.request_from_message(m.Open(7), job="vgg", instance_id="i", rank=2, token="t").open
    assert ("jobs/vgg", "i", 2, 7) == (opening.job, opening.instance_id, opening.rank, opening.after_revision)


def test_reports_of_assignments_and_of_firings() -> None:
    report = m.Report(7, 42, (m.Outcome("lr", m.Status.REFUSED, 0.1, "why"),))
    outcome = wire.request_from_message(report, job="vgg", instance_id="i", rank=0, token="t").apply.outcomes[0]
    assert ("lr", types_pb2.APPLY_STATUS_REFUSED, 0.1, "why") == (
        outcome.variable_id, outcome.status, outcome.effective.float_value, outcome.reason
    )  # fmt: skip
    firing = m.Report(7, 42, (m.Outcome("save", m.Status.APPLIED),), "save")
    outcome = wire.request_from_message(firing, job="vgg", instance_id="i", rank=0, token="t").apply.outcomes[0]
    assert ("save", False) == (outcome.trigger_id, outcome.HasField("effective"))


def test_a_change_with_a_value_of_no_known_kind_is_handed_on_without_it() -> None:
    change = types_pb2.Change(revision=7, assignments=[types_pb2.Assignment(variable_id="lr")])
    assert m.ChangeReceived(7, (("lr", None),)) == wire.event_from_response(job_pb2.SessionResponse(change=change))


def test_a_refused_declaration_always_says_something() -> None:
    states = [job_pb2.VariableState(variable_id=name) for name in ("a", "b")]
    states[0].error.reason = "LIMIT"
    states[1].error.SetInParent()
    declared = wire.event_from_response(job_pb2.SessionResponse(declared=job_pb2.DeclareResult(variables=states)))
    assert isinstance(declared, m.Declared)
    assert ["LIMIT", "refused without a reason"] == [answer.error for answer in declared.variables]


def test_a_message_of_a_later_version_is_passed_over() -> None:
    assert wire.event_from_response(job_pb2.SessionResponse()) is None
