"""A real S3-compatible store, and the inspector's page in a real headless Chromium."""

import pytest
from selector_tools.pools import storage
from support.chromium import chromium, needs_chromium

from selector_server.inspection.web.server import PageServer


@pytest.fixture(scope="module")
def store():
    """A client of a local S3; the environment leads s3fs there, as it leads it to a user's own."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # those of an earlier store would still ask that one
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(storage, "RETRY_SECONDS", (0.01, 0.01))
        yield boto3.client("s3")
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def browser():
    needs_chromium()
    with chromium() as one:
        yield one


@pytest.fixture
def serve():
    """serve(source, …) is the address of a page that ends with the test."""
    servers = []

    def start(source, authorise=lambda header: None) -> str:
        servers.append(PageServer(source, "127.0.0.1:0", authorise))
        return servers[-1].url

    yield start
    for one in servers:
        one.close()


@pytest.fixture
def visit(browser, serve):
    """visit(source, fragment, …) is a tab with its page; at the end of the test, its console must have been silent and
    nothing may have been asked of anybody else."""
    tabs = []

    def open_tab(source, fragment="", authorise=lambda header: None, **options):
        url = serve(source, authorise)
        tab = browser.page(f"{url}{fragment}", **options)
        tab.home = url
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        assert tab.errors == []
        assert [one for one in tab.requests if not one.startswith((tab.home, "blob:"))] == []
        assert tab.js("window.hacked") is None
        tab.close()
