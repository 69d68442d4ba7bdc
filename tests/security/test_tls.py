"""TLS between trainer and sidecar: who is let in, what the others are told, and certificates that are rotated."""

import asyncio
import pickle
import shutil
import socket
import ssl
import threading
import time
from urllib.request import urlopen

import pytest
from selector_client import AsyncSelector, Selector, Untrusted
from selector_client.errors import SelectorClientError, Unreachable
from support.certificates import authority, sign
from support.processes import eventually

SETTINGS = {"policy": "independent", "timeout": 5.0}


def selector(secured, **changes):
    address = changes.pop("address", secured.server.address)
    return Selector(address, **(SETTINGS | {"on_error": "raise"} | secured.given | changes))


def served_name(secured, address="") -> bytes:
    """The certificate that a new connection is shown, as DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(secured.files["client.pem"], secured.files["client.key"])
    context.set_alpn_protocols(["http/1.1" if address else "h2"])
    host, _, port = (address or secured.server.address).rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain:
        with context.wrap_socket(plain) as stream:
            return stream.getpeercert(binary_form=True)


def der(path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_who_has_both_selects(secured, losses):
    with pickle.loads(pickle.dumps(selector(secured))) as chosen:  # as a spawned worker gets it
        assert chosen.connect(10).policies
        assert len(chosen.select_losses(*losses).indices) == 8
        assert chosen.weights_status().state


def test_the_asyncio_twin(secured, losses):
    async def run():
        async with AsyncSelector(secured.server.address, **SETTINGS, on_error="raise", **secured.given) as chosen:
            await chosen.connect(10)
            return await chosen.select_losses(*losses)

    assert len(asyncio.run(run()).indices) == 8


def test_settings_from_the_environment(secured, losses, monkeypatch):
    for name, value in secured.given.items():
        monkeypatch.setenv(f"SELECTOR_{name.upper()}", str(value))
    with Selector(secured.server.address, **SETTINGS, on_error="raise") as chosen:
        assert len(chosen.select_losses(*losses).indices) == 8


# Settings of the client, what it raises, and what that says.
WRONG = {
    "without TLS": (
        {"ca_file": None, "certificate_file": None, "key_file": None},
        Unreachable,
        r"it may want TLS \(ca_file\)",
    ),
    "of another authority": ({"ca_file": "other.pem"}, Untrusted, "not trusted: unable to get local issuer"),
    "without a certificate": (
        {"certificate_file": None, "key_file": None},
        Unreachable,
        r"it may want a certificate of ours",
    ),
    "a stranger's certificate": (
        {"certificate_file": "other.pem", "key_file": "other.key"},
        Unreachable,
        r"it may want a certificate of ours",
    ),
    "another name": ({"server_name": "selector.example"}, Untrusted, "for another name than this address"),
}


@pytest.mark.parametrize(("changes", "error", "text"), WRONG.values(), ids=WRONG)
def test_others_are_told_why_and_the_trainer_goes_on(secured, losses, changes, error, text):
    changes = {k: secured.files.get(v, v) for k, v in changes.items()}
    began, changes = time.monotonic(), changes | {"timeout": 60}
    with selector(secured, **changes) as chosen, pytest.raises(error, match=text):
        chosen.select_losses(*losses)
    with selector(secured, on_error="fallback", **changes) as chosen:
        selection = chosen.select_losses(*losses)
        assert selection.fallback == ("untrusted" if error is Untrusted else "unavailable")
        assert len(selection.indices) == 8
        for _ in range(3):  # the breaker opens
            chosen.select_losses(*losses)
        assert chosen.breaker.open
    assert time.monotonic() - began < 40, "not even one timeout"


def test_connect_tells_at_once_and_asyncio_too(secured):
    wrong = secured.given | {"ca_file": secured.files["other.pem"]}
    with selector(secured, **wrong) as chosen, pytest.raises(Untrusted, match="not trusted"):
        chosen.connect(60)

    async def run():
        async with AsyncSelector(secured.server.address, **wrong) as chosen:
            await chosen.connect(60)

    with pytest.raises(Untrusted, match="not trusted"):
        asyncio.run(run())


def test_tls_to_a_sidecar_without(plain_server, secured, losses):
    with selector(secured, address=plain_server.address) as chosen, pytest.raises(Untrusted, match="speak TLS"):
        chosen.select_losses(*losses)


def test_certificates_rotate_under_load(secured, losses):
    """To an expired one, a broken one, and a good one of a new authority; requests go on as long as one is good."""
    home = secured.files["ca.pem"].parent
    sign(home, "expired", "IP:127.0.0.1", days=-1)
    authority(home, "next")
    sign(home, "renewed", "IP:127.0.0.1", by="next")
    both = secured.folder / "both.pem"
    both.write_bytes(secured.files["ca.pem"].read_bytes() + (home / "next.pem").read_bytes())
    errors, count, over = [], [0], threading.Event()

    def load():
        while not over.is_set():
            try:
                with selector(secured, ca_file=both) as chosen:
                    for _ in range(3):
                        chosen.select_losses(*losses)
                        count[0] += 1
            except SelectorClientError as error:
                errors.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        eventually(lambda: count[0] > 10)
        # Half a pair: the certificate does not fit the key.
        taken, refused = secured.reloads("tls", "taken"), secured.reloads("tls", "refused")
        secured.put("served.pem", (home / "renewed.pem").read_bytes())
        eventually(lambda: secured.reloads("tls", "refused") == refused + 1)
        assert served_name(secured) == der(secured.files["server.pem"])
        assert (
            "a changed file is not taken, the former one stays in use: tls_certificate_file is" in secured.server.text
        )
        secured.put("served.pem", b"-----BEGIN CERTIFICATE-----\nnonsense\n")
        eventually(lambda: secured.reloads("tls", "refused") == refused + 2)
        assert served_name(secured) == der(secured.files["server.pem"])
        # The whole pair.
        secured.serve_certificate("renewed")
        eventually(lambda: secured.reloads("tls", "taken") > taken)
        eventually(lambda: served_name(secured) == der(home / "renewed.pem"))
        now = count[0]
        eventually(lambda: count[0] > now + 10)
        assert errors == []
    finally:
        over.set()
        thread.join(20)
        # An expired one is served as it is, and clients say what is wrong.
        secured.serve_certificate("expired")
        eventually(lambda: served_name(secured) == der(home / "expired.pem"))
        with selector(secured) as chosen, pytest.raises(Untrusted, match="certificate has expired"):
            chosen.select_losses(*losses)
        secured.serve_certificate("server")
        eventually(lambda: served_name(secured) == der(secured.files["server.pem"]))
    with selector(secured) as chosen:
        chosen.select_losses(*losses)


def test_the_page_shows_the_same_certificate_and_lets_nobody_in_without_one(secured):
    page, home = secured.page_address, secured.files["ca.pem"].parent
    sign(home, "of-the-page", "IP:127.0.0.1")
    assert served_name(secured, page) == der(secured.files["server.pem"])
    try:
        secured.serve_certificate("of-the-page")
        eventually(lambda: served_name(secured, page) == der(home / "of-the-page.pem"))
    finally:
        secured.serve_certificate("server")
        eventually(lambda: served_name(secured, page) == served_name(secured) == der(secured.files["server.pem"]))
    trusting = ssl.create_default_context(cafile=secured.files["ca.pem"])
    with pytest.raises(OSError, match=r"certificate required|reset|EOF|closed connection"):
        urlopen(f"https://{page}/", timeout=5, context=trusting).read()
    trusting.load_cert_chain(secured.files["client.pem"], secured.files["client.key"])
    assert b"<title>" in urlopen(f"https://{page}/", timeout=5, context=trusting).read()


def test_a_new_authority_for_clients_is_taken(secured, losses):
    """Who was let in is not any more: on new connections."""
    with selector(secured) as chosen:
        chosen.select_losses(*losses)
        taken = secured.reloads("tls", "taken")
        secured.put("clients.pem", secured.files["other.pem"].read_bytes())
        try:
            eventually(lambda: secured.reloads("tls", "taken") > taken)
            with selector(secured) as late, pytest.raises(Unreachable, match="a certificate of ours, which it trusts"):
                late.select_losses(*losses)
        finally:
            taken = secured.reloads("tls", "taken")
            secured.put("clients.pem", secured.files["ca.pem"].read_bytes())
            eventually(lambda: secured.reloads("tls", "taken") > taken)
    with selector(secured) as chosen:
        chosen.select_losses(*losses)


def test_a_trainer_takes_rotated_files_when_it_connects_anew(secured, losses, tmp_path):
    mine = {name: tmp_path / name for name in ("certificate_file", "key_file")}
    for name, file in zip(mine.values(), ("client.pem", "client.key"), strict=True):
        shutil.copy(secured.files[file], name)
    with selector(secured, **mine) as chosen:
        chosen.select_losses(*losses)
        mine["certificate_file"].write_text("nonsense")
        chosen.select_losses(*losses)  # the connection stands
        chosen._link._left()  # as after any UNAVAILABLE
        with pytest.raises(Untrusted, match=r"certificate_file is .* must be a certificate with its key"):
            chosen.select_losses(*losses)
        shutil.copy(secured.files["client.pem"], mine["certificate_file"])
        chosen.select_losses(*losses)


def test_mistakes_are_told_at_once(secured, tmp_path):
    with pytest.raises(ValueError, match="ca_file is /nowhere; cannot be read"):
        Selector("127.0.0.1:1", ca_file="/nowhere")
    with pytest.raises(ValueError, match="needs TLS, and tls is False"):
        Selector("127.0.0.1:1", ca_file=secured.files["ca.pem"], tls=False)
    with pytest.raises(ValueError, match="needs a certificate file too"):
        Selector("127.0.0.1:1", key_file=secured.files["client.key"])
    with pytest.raises(ValueError, match="SELECTOR_TLS is 'yes'; must be 1 or 0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SELECTOR_TLS", "yes")
            Selector("127.0.0.1:1")
