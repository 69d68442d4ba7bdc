"""Proxies, login pages and web servers that answer in the sidecar's place, and what the runbook says of failures."""

import ast
import asyncio
import logging
import re
from pathlib import Path

import grpc
import numpy as np
import pytest
import selector_client
from selector_client import AsyncSelector, Misrouted, Selector, Unreachable
from selector_client.metrics import REASONS
from support.foreign_http import ForeignServer
from support.selectors import independent, losses

ROOT = Path(__file__).resolve().parents[2]
LARGE = np.random.default_rng(0).random((2, 300_000), dtype=np.float32)
# What answers, and what the trainer is told of it.
LASTING = {
    "too large": ({"status": 413}, "HTTP status 413: it takes no request of this size .*client_max_body_size"),
    "a redirect": ({"status": 302}, "HTTP status 302: it redirects, as login pages do"),
    "a login": ({"status": 401}, "HTTP status 401: it wants a login of its own"),
    "forbidden": ({"status": 403}, "HTTP status 403: it wants a login of its own"),
    "no such route": (
        {"status": 404},
        "HTTP status 404: it does not know the way: .*SelectorService and /grpc.health.v1.Health .*grpc_pass",
    ),
    "a bad request": ({"status": 400}, "HTTP status 400: it expects something else than gRPC"),
    "its own fault": ({"status": 500}, "HTTP status 500: its own log may say why"),
    "a web page": ({"status": 200}, "a body without a gRPC status: .*such as a web page"),
    "HTTP/1.1": ({"status": 400, "http1": True}, r"HTTP/1.1, status 400: .*TLS"),
    "a redirect over HTTP/1.1": ({"status": 301, "http1": True}, r"HTTP/1.1, status 301: "),
}


@pytest.mark.parametrize(("answer", "text"), LASTING.values(), ids=LASTING)
def test_what_no_retry_mends_is_told_once_with_its_likely_cause(answer, text, caplog):
    with ForeignServer(**answer) as server, independent(server.address, timeout=10) as selector:
        assert losses(selector).fallback == "proxy"
        assert losses(selector).fallback == "proxy"
        assert (selector.statistics.retries > 0) == ("such as a web page" in text), "that may be a status that was lost"
        assert selector.statistics.fallbacks == {"proxy": 2}
        said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
        assert len(said) == 1
        assert re.search(text, said[0]), said
        assert "until somebody mends that, for no retry does" in said[0]
        assert losses(selector).fallback == "proxy"
        assert losses(selector).fallback == "breaker_open", "a large payload is not sent again for nothing"
    with ForeignServer(**answer) as server, independent(server.address, timeout=10, on_error="raise") as selector:
        with pytest.raises(Misrouted, match=text):
            losses(selector)
        with pytest.raises(Misrouted, match=text):
            selector.connect(60)


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_what_may_pass_is_tried_again(status):
    with ForeignServer(status) as server, independent(server.address, timeout=10, on_error="raise") as selector:
        with pytest.raises(Unreachable, match=f"a proxy on the way said HTTP status {status}") as caught:
            losses(selector)
        assert caught.value.reason == "unavailable"
        assert selector.statistics.retries == 2


def test_a_large_request_that_is_refused_while_it_is_sent():
    with ForeignServer(413) as server, Selector(server.address, policy="independent", shared_memory=False) as selector:
        assert selector.select_losses(*LARGE).fallback == "proxy"


def test_asyncio_is_told_too():
    async def main(address, values):
        async with AsyncSelector(address, policy="independent", timeout=10) as selector:
            return (await selector.select_losses(*values)).fallback

    with ForeignServer(302) as server:
        assert asyncio.run(main(server.address, LARGE[:, :50])) == "proxy"
    with ForeignServer(413) as server:
        # It may end the call while the request is sent, and then asyncio does not learn its status.
        assert asyncio.run(main(server.address, LARGE)) in ("proxy", "unavailable")


def test_a_proxy_that_is_mended_is_found(plain_server):
    with ForeignServer(302) as server, independent(server.address, timeout=10) as selector:
        assert losses(selector).fallback == "proxy"
        selector._link.address = plain_server.address  # where the proxy leads to from now on
        selector._link._left()
        assert losses(selector).fallback == ""


def reasons() -> set[str]:
    """Every reason that a fallback of this client can have: those that the code names, and the names of status."""
    found = {code.name.lower() for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
    kinds = {name for name, kind in vars(selector_client.errors).items() if isinstance(kind, type)} - {"PublishError"}
    for file in sorted((ROOT / "client" / "selector_client").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=reason), *_]) if kind in kinds:
                    found.add(reason)
    return found


def test_the_runbook_knows_every_reason_and_no_other():
    _, _, rest = (ROOT / "docs" / "runbook.md").read_text().partition("## SelectorFallbacks")
    section, _, _ = rest.partition("\n## ")
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = [reason for row in rows for reason in re.findall("`([a-z_]+)`", row)]
    assert len(told) == len(set(told))
    assert set(told) == reasons()
    assert set(REASONS) <= reasons()
    assert {"proxy", "unknown", "internal", "invalid_argument", "closed", "off"} <= set(told)
