"""Who may see what was selected: an operator's token opens it, and no other does, be it a trainer's own."""

import grpc
import numpy as np
import pytest
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc
from selector_proto.v1 import selector_pb2_grpc
from support.processes import eventually
from support.secured import ADMIN_TOKEN, DATA_TOKEN
from support.wire import some_losses

SECRET = b"a tag that is a secret"
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["InspectionService"].methods]


def bearer(token):
    return [("authorization", f"Bearer {token}")] if token else []


def answer(channel, method: str, token: str) -> bytes | str:
    """All bytes of a reply, or the name of the code of an error; a message of content in an error would be found."""
    request = getattr(pb, f"{method}Request")(**({"id": "1"} if method == "GetSample" else {}))
    call = getattr(rpc.InspectionServiceStub(channel), method)
    try:
        reply = call(request, timeout=10, metadata=bearer(token))
        parts = list(reply) if method == "DownloadSuperBatches" else [reply]
    except grpc.RpcError as error:
        assert SECRET.decode() not in error.details()
        return error.code().name
    return b"".join(part.SerializeToString() for part in parts)


@pytest.fixture(scope="module")
def guarded(start_sidecars, tmp_path_factory):
    """A sidecar with tokens of both kinds that keeps content, and that has seen some; and its folder."""
    folder = tmp_path_factory.mktemp("guarded")
    for name, token in (("data", DATA_TOKEN), ("admin", ADMIN_TOKEN)):
        (folder / name).write_text(token)
        (folder / name).chmod(0o600)
    flags = {"token_file": folder / "data", "admin_token_file": folder / "admin", "inspect": "true"}
    with start_sidecars() as start:
        server = start(flags | {"inspect_content": "true"})
        request = some_losses(20)
        request.selection.tag_strings.CopyFrom(request.pack([SECRET] * 20))
        stub = selector_pb2_grpc.SelectorServiceStub(server.channel)
        stub.Select(iter(request.messages()), metadata=bearer(DATA_TOKEN))
        eventually(lambda: SECRET in answer(server.channel, "ListSlices", ADMIN_TOKEN))
        yield server, folder


def test_there_are_calls():
    assert len(METHODS) == 6


@pytest.mark.parametrize("method", METHODS)
def test_no_byte_without_an_operators_token(guarded, method):
    server, _ = guarded
    assert answer(server.channel, method, "") == "UNAUTHENTICATED"
    assert answer(server.channel, method, "x" * 40) == "UNAUTHENTICATED"
    assert answer(server.channel, method, DATA_TOKEN) == "PERMISSION_DENIED"
    assert isinstance(answer(server.channel, method, ADMIN_TOKEN), bytes)


def test_a_token_that_was_taken_away_opens_nothing(guarded):
    server, folder = guarded

    def put(token):
        (folder / "new").write_text(token)
        (folder / "new").chmod(0o600)
        (folder / "new").rename(folder / "admin")

    put("n" * 40)
    try:
        eventually(lambda: answer(server.channel, "GetOverview", ADMIN_TOKEN) == "UNAUTHENTICATED")
        assert all(answer(server.channel, method, ADMIN_TOKEN) == "UNAUTHENTICATED" for method in METHODS)
        assert SECRET in answer(server.channel, "ListPictures", "n" * 40)
    finally:
        put(ADMIN_TOKEN)
        eventually(lambda: isinstance(answer(server.channel, "GetOverview", ADMIN_TOKEN), bytes))


def test_a_trainers_token_opens_nothing_where_there_is_no_other(sidecar, tmp_path):
    """Without content too: other admin calls take it then."""
    (tmp_path / "data").write_text(DATA_TOKEN)
    (tmp_path / "data").chmod(0o600)
    server = sidecar({"token_file": tmp_path / "data", "inspect": "true"})
    assert {answer(server.channel, method, DATA_TOKEN) for method in METHODS} == {"PERMISSION_DENIED"}


def test_no_log_line_holds_content(guarded):
    server, _ = guarded
    assert SECRET.decode() not in server.text
    assert "could not be" not in server.text


def test_calls_are_counted_as_others_are(guarded):
    server, _ = guarded
    answer(server.channel, "DownloadSuperBatches", ADMIN_TOKEN)
    answer(server.channel, "DownloadSuperBatches", "")
    metrics = server.metrics()
    assert metrics("selector_requests_total", method="DownloadSuperBatches", code="OK") >= 1
    assert metrics("selector_requests_total", method="DownloadSuperBatches", code="UNAUTHENTICATED") >= 1
    assert np.isfinite(metrics("selector_request_duration_seconds_count", method="GetOverview"))
