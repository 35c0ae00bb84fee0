"""api/errors.py: what a caller learns when a request fails."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given, strategies as st

from agentcgroup.daemon.api.errors import CODES, new_incident, status_of, status_of_bug
from agentcgroup.daemon.errors import Kind, RequestError


def unpacked(details: list[Any]) -> dict[str, object]:
    """The details by the short name of their type."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.LocalizedMessage)
    found = {}
    for detail in details:
        for kind in kinds:
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


def test_every_kind_has_a_code_and_none_makes_clients_repeat_by_themselves() -> None:
    assert set(CODES) == set(Kind)
    assert not {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN} & set(
        CODES.values()
    )


@pytest.mark.parametrize("kind", Kind)
def test_a_status_carries_kind_field_cause_and_next_step(kind: Kind) -> None:
    status = status_of(RequestError(kind, "cpu_milli is 3", "give it 10", "cpu_milli"))
    assert rpc_status.to_status(status).code is CODES[kind]
    assert status.message == "cpu_milli is 3. give it 10"
    details = unpacked(list(status.details))
    info, bad, words = details["ErrorInfo"], details["BadRequest"], details["LocalizedMessage"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (kind.name, "agentcgroup")
    assert dict(info.metadata) == {"field": "cpu_milli", "next_step": "give it 10"}
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(each.field, each.description) for each in bad.field_violations] == [
        ("cpu_milli", "cpu_milli is 3")
    ]
    assert isinstance(words, error_details_pb2.LocalizedMessage)
    assert words.message == "give it 10"


def test_an_error_without_field_and_next_step_has_no_empty_details() -> None:
    status = status_of(RequestError(Kind.HOST, "mkdir failed"))
    assert list(unpacked(list(status.details))) == ["ErrorInfo"]
    assert status.message == "mkdir failed"


@given(
    st.text(st.characters(exclude_categories=()), max_size=3000),
    st.sampled_from(["x", "é", "\U0001f600", "\ud800"]),
)
def test_a_status_always_fits_into_http2_trailers(text: str, filler: str) -> None:
    status = status_of(RequestError(Kind.INVALID, text + filler * 3000, text + filler * 3000, filler * 500))
    percent_encoded = 3 * len(status.message.encode())
    base64 = 4 * len(status.SerializeToString()) // 3
    assert percent_encoded + base64 < 8000
    assert "\n" not in status.message


def test_a_bug_shows_its_incident_and_nothing_else() -> None:
    incident = new_incident()
    status = status_of_bug(incident)
    assert rpc_status.to_status(status).code is grpc.StatusCode.INTERNAL
    assert incident in status.message
    info = unpacked(list(status.details))["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"incident": incident}
    assert new_incident() != incident
