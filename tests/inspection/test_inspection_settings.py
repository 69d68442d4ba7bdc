"""Which settings of inspection fit together: content is never open to whoever has a trainer's token."""

import pytest

from selector_server.config import load
from selector_server.errors import SetupError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"inspect_content": "true"}, "inspect_content is True; needs inspect too"),
        ({"inspect_content": "true", "record": "r"}, "inspect_content is True; needs inspect too"),
        ({"inspect_metrics": "true", "inspect": "true"}, "inspect_metrics is True; needs inspect_content too"),
        ({"record_content": "true", "inspect": "true"}, "record_content is True; needs record too"),
        ({"inspect": "true", "inspect_content": "true", "token_file": "f"}, "needs admin_token_file: a trainer's"),
        ({"inspect": "true", "inspect_content": "true", "listen": "0.0.0.0:1"}, "listen is 0.0.0.0:1, which others"),
        ({"inspect_content": "true", "inspect_listen": "10.0.0.1:1"}, "inspect_listen is 10.0.0.1:1, which others"),
        (
            {"inspect": "true", "inspect_content": "true", "admin_listen": "[::]:1"},
            "admin_listen is [::]:1, which others reach: needs admin_token_file",
        ),
        (
            {"inspect_listen": "10.0.0.1:1", "admin_token_file": "f"},
            "admin_token_file is f; inspect_listen is 10.0.0.1:1, where others can read tokens",
        ),
        ({"inspect_window": "0"}, "inspect_window is '0'"),
        ({"inspect_window": "4097"}, "inspect_window is '4097'"),
        ({"record_bytes": "1"}, "record_bytes is '1'"),
        ({"record": ""}, "record is ''"),
    ],
)
def test_settings_that_cannot_be(flags, message):
    with pytest.raises(SetupError) as caught:
        load(flags, {}, None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "observes"),
    [
        ({}, False),
        ({"inspect": "true", "inspect_content": "true"}, True),
        ({"inspect_listen": "127.0.0.1:0", "inspect_content": "true"}, True),
        ({"inspect_listen": "10.0.0.1:1"}, True),  # numbers only, as metrics are
        ({"record": "r", "record_content": "true", "listen": "0.0.0.0:1"}, True),
        ({"inspect": "true", "inspect_content": "true", "token_file": "f", "admin_token_file": "g"}, True),
        (
            {"inspect": "true", "inspect_content": "true", "listen": "0.0.0.0:1", "admin_listen": "unix:/run/s.sock"},
            True,
        ),
        (
            {
                "inspect_content": "true",
                "inspect_listen": "0.0.0.0:1",
                "admin_token_file": "g",
                "tls_certificate_file": "c",
            },
            True,
        ),
    ],
    ids=range(8),
)
def test_settings_that_can_be(flags, observes):
    assert load(flags, {}, None).observes is observes
