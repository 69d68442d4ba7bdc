"""Tokens: which calls each opens, how they are rotated, and that nobody is told them."""

import os

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from selector_client import Denied, Selector
from selector_proto.v1 import admin_pb2, admin_pb2_grpc
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from selector_tools.cli import main
from support.processes import eventually
from support.secured import ADMIN_TOKEN, DATA_TOKEN, channel_credentials
from support.wire import error_info, some_losses

from selector_server.config import load
from selector_server.errors import SetupError
from selector_server.rpc.security.reloaded_files import ReloadedFiles
from selector_server.rpc.security.tokens import Tokens


@pytest.fixture
def channel(secured):
    with grpc.secure_channel(secured.server.address, channel_credentials(secured.files)) as channel:
        yield channel


@pytest.fixture
def admin(secured):
    with grpc.secure_channel(secured.admin_address, channel_credentials(secured.files)) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        yield lambda token: code_of(lambda **how: stub.UnpinWeights(admin_pb2.UnpinWeightsRequest(), **how), token)


def code_of(call, *tokens, scheme="Bearer") -> str:
    """Status of a call with these tokens; of one that came through, what the service said of it."""
    try:
        call(metadata=[("authorization", f"{scheme} {token}") for token in tokens if token], timeout=10)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def data_calls(channel):
    stub = rpc.SelectorServiceStub(channel)
    return [
        lambda **how: stub.GetServerInfo(pb.GetServerInfoRequest(), **how),
        lambda **how: stub.GetWeightsStatus(pb.GetWeightsStatusRequest(), **how),
        lambda **how: stub.Select(iter(some_losses().messages()), **how),
    ]


def test_which_token_opens_which_calls(channel, admin):
    for call in data_calls(channel):
        assert code_of(call) == "UNAUTHENTICATED"
        assert code_of(call, "x" * 40) == "UNAUTHENTICATED"
        assert code_of(call, DATA_TOKEN + "x") == "UNAUTHENTICATED"
        assert code_of(call, DATA_TOKEN[:-1]) == "UNAUTHENTICATED"
        assert code_of(call, DATA_TOKEN, scheme="Basic") == "UNAUTHENTICATED"
        assert code_of(call, DATA_TOKEN, DATA_TOKEN) == "UNAUTHENTICATED"
        assert code_of(call, DATA_TOKEN, scheme="bearer") == "OK"
        assert code_of(call, ADMIN_TOKEN) == "OK"

    def shortlist(**how):
        return rpc.SelectorServiceStub(channel).Shortlist(iter([pb.SelectRequest(selection=pb.Selection())]), **how)

    assert code_of(shortlist) == "UNAUTHENTICATED"
    assert code_of(shortlist, DATA_TOKEN) == "INVALID_ARGUMENT"  # let in: it names no candidates
    assert admin("") == "UNAUTHENTICATED"
    assert admin("x" * 40) == "UNAUTHENTICATED"
    assert admin(DATA_TOKEN) == "PERMISSION_DENIED"
    assert admin(ADMIN_TOKEN) == "FAILED_PRECONDITION"  # let in: this sidecar has no learner


def test_what_a_refusal_says(channel):
    with pytest.raises(grpc.RpcError) as caught:
        data_calls(channel)[0](metadata=[("authorization", f"Bearer {'x' * 40}")])
    info = error_info(caught.value)
    assert (info["reason"], info["field"]) == ("UNAUTHENTICATED", "authorization")
    assert "x" * 8 not in str(caught.value)


def test_a_large_request_without_token_ends_soon(channel):
    request = some_losses(200_000)
    with pytest.raises(grpc.RpcError) as caught:
        rpc.SelectorServiceStub(channel).Select(iter(request.messages()), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_client_names_the_cause_and_the_trainer_goes_on(secured, losses, tmp_path):
    (wrong := tmp_path / "wrong").write_text("w" * 40)
    for changes, text in (({"token_file": None}, "token_file is not set"), ({"token_file": wrong}, str(wrong))):
        given = secured.given | changes | {"policy": "independent"}
        with Selector(secured.server.address, on_error="raise", **given) as chosen:
            with pytest.raises(Denied, match=text) as caught:
                chosen.select_losses(*losses)
            assert caught.value.reason == "unauthenticated"
            with pytest.raises(Denied, match="UNAUTHENTICATED"):
                chosen.connect(30)
        with Selector(secured.server.address, **given) as chosen:
            assert chosen.select_losses(*losses).fallback == "unauthenticated"


def test_tokens_rotate_without_a_restart(secured, losses):
    """New and old one beside each other, then the new one alone; a trainer that reads the same file goes on."""
    new = "n" * 40
    old = secured.folder / "old"
    old.write_text(DATA_TOKEN)
    given = secured.given | {"policy": "independent", "on_error": "raise"}
    with (
        Selector(secured.server.address, **given) as chosen,
        Selector(secured.server.address, **given | {"token_file": old}) as late,
    ):
        chosen.select_losses(*losses)
        taken, refused = secured.reloads("token_file", "taken"), secured.reloads("token_file", "refused")
        secured.put("tokens", f"{DATA_TOKEN}\n{new}\n".encode())
        eventually(lambda: secured.reloads("token_file", "taken") == taken + 1)
        for one in (chosen, late):
            one.select_losses(*losses)
        secured.put("tokens", f"{new}\n".encode())
        eventually(lambda: secured.reloads("token_file", "taken") == taken + 2)
        chosen.select_losses(*losses)
        with pytest.raises(Denied):
            late.select_losses(*losses)
        secured.put("tokens", b"short\n")
        eventually(lambda: secured.reloads("token_file", "refused") == refused + 1)
        with Selector(secured.server.address, **given | {"token_file": old}) as still, pytest.raises(Denied):
            still.select_losses(*losses)
        secured.put("tokens", f"{DATA_TOKEN}\n".encode())
        eventually(lambda: secured.reloads("token_file", "taken") == taken + 3)
        late.select_losses(*losses)


def check(channel, name=""):
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def test_health_needs_no_token_and_has_a_listener_of_its_own(secured, channel):
    with grpc.insecure_channel(secured.health_address) as plain:
        for one in (channel, plain):
            assert check(one) == check(one, "selector.v1.SelectorService") == "SERVING"
        stub = rpc.SelectorServiceStub(plain)
        assert code_of(lambda **how: stub.GetServerInfo(pb.GetServerInfoRequest(), **how)) == "UNIMPLEMENTED"
        admin = admin_pb2_grpc.AdminServiceStub(plain)
        assert code_of(lambda **how: admin.UnpinWeights(admin_pb2.UnpinWeightsRequest(), **how)) == "UNIMPLEMENTED"
        assert services(plain) == "UNIMPLEMENTED"
    assert "selector.v1.SelectorService" in services(channel)


def services(channel):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        [reply] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=5)
    except grpc.RpcError as error:
        return error.code().name
    return [one.name for one in reply.list_services_response.service]


def test_admin_calls_on_the_shared_address_need_their_token_and_reflection_can_be_off(loopback):
    stub = admin_pb2_grpc.AdminServiceStub(loopback.channel)

    def unpin(**how):
        return stub.UnpinWeights(admin_pb2.UnpinWeightsRequest(), **how)

    codes = [code_of(unpin, token) for token in ("", DATA_TOKEN, ADMIN_TOKEN)]
    assert codes == ["UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION"]
    assert services(loopback.channel) == "UNIMPLEMENTED"
    assert "admin holds a secret and may be read by everybody, mode 0644" in loopback.text


def test_the_commands_take_the_same_flags(secured, capsys, tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in secured.given.items()]
    assert main(["info", secured.server.address, *flags]) == 0
    assert main(["weights", "status", secured.server.address, *flags]) == 0
    assert "serving" in capsys.readouterr().out
    assert main(["weights", "unpin", secured.admin_address, *flags]) == 1
    assert "PERMISSION_DENIED" in capsys.readouterr().err
    assert main(["weights", "unpin", secured.admin_address, *flags, f"--token-file={secured.folder}/admin-tokens"]) == 1
    assert "FAILED_PRECONDITION" in capsys.readouterr().err  # let in: no learner
    assert main(["info", "selector.example:1", "--token-file", str(secured.folder / "tokens")]) == 1
    assert "others can read it on the way to selector.example:1" in capsys.readouterr().err


def test_nobody_is_told_a_secret(secured, channel):
    info = rpc.SelectorServiceStub(channel).GetServerInfo(
        pb.GetServerInfoRequest(), metadata=[("authorization", f"Bearer {DATA_TOKEN}")]
    )
    key = secured.files["server.key"].read_text().splitlines()[1]
    assert info.config["token_file"] == str(secured.folder / "tokens")
    for where in (str(info), secured.server.text):
        assert not any(secret in where for secret in (DATA_TOKEN, ADMIN_TOKEN, key))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", "has 0 tokens; must have 1 to 16"),
        ("# nothing\n\n", "has 0 tokens"),
        ("\n".join(f"{i:040}" for i in range(17)), "has 17 tokens"),
        (f"{DATA_TOKEN}\nhunter2", r"line 2 has 7 characters; must have 32 to 4096 characters"),
        ("x" * 4097, "line 1 has 4097 characters"),
        ("x" * 70_000, "cannot be read: must have at most"),
        ("hunter2 " * 6, "line 1 must be letters, digits"),
        ("ü" * 40, "line 1 must be letters, digits"),
    ],
    ids=["empty", "comments", "many", "short", "long", "huge", "spaces", "foreign"],
)
def test_token_files_that_cannot_be(tmp_path, text, limit):
    (file := tmp_path / "tokens").write_text(text)
    with pytest.raises(SetupError, match=limit) as caught:
        Tokens.read("token_file", file)
    assert "hunter2" not in str(caught.value)


def test_odd_files(tmp_path):
    with pytest.raises(SetupError, match="token_file is /nowhere; cannot be read: No such file"):
        Tokens.read("token_file", "/nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SetupError, match="must be a regular file"):
        Tokens.read("token_file", tmp_path / "pipe")
    (file := tmp_path / "tokens").write_text(DATA_TOKEN)
    file.chmod(0o602)
    with pytest.raises(SetupError, match="may be written by everybody, mode 0602; chmod o-w"):
        ReloadedFiles([file], [file], lambda: Tokens.read("token_file", file), print)


def test_what_was_taken_stays_when_a_file_goes(tmp_path):
    (file := tmp_path / "tokens").write_text(DATA_TOKEN)
    results = []
    one = ReloadedFiles([file], [file], lambda: Tokens.read("token_file", file), results.append)
    first = one.value
    one.refresh()
    assert results == []
    file.unlink()
    for _ in range(2):
        one.refresh()
    assert (one.value, results) == (first, ["refused"])  # told once
    file.write_text(ADMIN_TOKEN)
    one.refresh()
    assert one.value is not first
    assert results == ["refused", "taken"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"token_file": "f", "listen": "0.0.0.0:1"}, "token_file is f; listen is 0.0.0.0:1, where others can read"),
        (
            {"admin_token_file": "f", "admin_listen": "10.0.0.1:1"},
            "admin_token_file is f; admin_listen is 10.0.0.1:1, where others can read tokens: needs tls",
        ),
        ({"tls_key_file": "k"}, "tls_key_file is k; needs tls_certificate_file too"),
        ({"tls_client_ca_file": "k"}, "tls_client_ca_file is k; needs tls_certificate_file too"),
        ({"socket_mode": "666x"}, "socket_mode is '666x'"),
        ({"max_connections": "0"}, "max_connections is '0'"),
    ],
)
def test_settings_that_cannot_be(flags, message):
    with pytest.raises(SetupError) as caught:
        load(flags, {}, None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"listen": "127.0.0.1:1"},
        {"listen": "unix:/run/s.sock", "admin_listen": "localhost:2"},
        {"listen": "[::1]:1"},
        {"listen": "0.0.0.0:1", "plaintext_tokens": "true"},
        {"listen": "0.0.0.0:1", "tls_certificate_file": "c"},
    ],
)
def test_settings_that_can_be(flags):
    assert load({"token_file": "f", "admin_token_file": "g"} | flags, {}, None)
