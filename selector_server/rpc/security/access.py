"""Who may call: TLS and tokens of all addresses, from files that may be rotated."""

import logging
from collections.abc import Callable
from threading import Event, Thread

import grpc
from selector_proto import certificates
from selector_proto.contract import is_local

from selector_server.config import Config
from selector_server.errors import SetupError
from selector_server.rpc.security.reloaded_files import ReloadedFiles
from selector_server.rpc.security.tokens import TokenInterceptor, Tokens
from selector_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# Files are looked at that often.
LOOK_SECONDS = 0.5

_OPTIONS = {
    "certificate_file": "tls_certificate_file",
    "key_file": "tls_key_file",
    "ca_file": "tls_client_ca_file",
}


class Access:
    """Reads the files of the configuration. Raises SetupError. From `start` to `stop`, a thread of its own takes files
    that changed, from the next connection or call on."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._certificates = self._read_certificates()
        self._tokens = self._read_tokens("token_file")
        self._admin_tokens = self._read_tokens("admin_token_file")
        self.interceptor = TokenInterceptor(self._tokens, self._admin_tokens)
        self._stopped = Event()

    def start(self) -> None:
        Thread(target=self._follow, name="access", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            for one in (self._certificates, self._tokens, self._admin_tokens):
                if one is not None:
                    one.refresh()

    def credentials(self, listen: str) -> grpc.ServerCredentials | None:
        """The credentials of one address. None: it is served without TLS, as a unix socket always is, for permissions
        guard that one."""
        if (source := self._certificates) is None or listen.startswith("unix:"):
            return None
        given = source.value

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Is called by grpc for every connection, and returns None if nothing changed."""
            nonlocal given
            if (now := source.value) is given:
                return None
            given = now
            return _configuration(now)

        mutual = self._config.tls_client_ca_file is not None
        return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch, mutual)  # type: ignore[arg-type] # None is taken

    def _read_certificates(self) -> ReloadedFiles[certificates.Certificates] | None:
        config = self._config
        if (certificate := config.tls_certificate_file) is None:
            return None
        key, ca = config.tls_key_file, config.tls_client_ca_file

        def parse() -> certificates.Certificates:
            try:
                return certificates.read(ca, certificate, key)
            except certificates.CertificateError as error:
                raise SetupError(_OPTIONS[error.option], error.value, error.limit) from None

        files = [file for file in (certificate, key, ca) if file is not None]
        return ReloadedFiles(files, [key or certificate], parse, self._counter("tls"))

    def _read_tokens(self, setting: str) -> ReloadedFiles[Tokens] | None:
        file = getattr(self._config, setting)
        if file is None:
            return None
        return ReloadedFiles([file], [file], lambda: Tokens.read(setting, file), self._counter(setting))

    def _counter(self, file: str) -> Callable[[str], None]:
        return lambda result: self._metrics.secrets.labels(file, result).inc()

    def warn(self) -> None:
        """Warns of addresses that are open to all: nobody should find out later."""
        config = self._config
        for setting, tokens in (("listen", self._tokens), ("admin_listen", self._admin_tokens or self._tokens)):
            where = getattr(config, setting)
            if where and not is_local(where) and tokens is None and config.tls_client_ca_file is None:
                log.warning("%s is %s: whoever reaches it may call; see docs/security.md", setting, where)


def _configuration(found: certificates.Certificates) -> grpc.ServerCertificateConfiguration:
    assert found.key is not None and found.certificate is not None  # noqa: PT018
    return grpc.ssl_server_certificate_configuration([(found.key, found.certificate)], found.ca)
