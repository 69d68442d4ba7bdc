"""Who may call: TLS and tokens of all addresses, from files that may be rotated."""

import logging
import ssl
from collections.abc import Callable
from threading import Event, Thread

import grpc
from selector_proto import certificates
from selector_proto.contract import is_local

from selector_server.config import Config
from selector_server.errors import SetupError
from selector_server.rpc.security.reloaded_files import ReloadedFiles
from selector_server.rpc.security.tokens import TokenInterceptor, Tokens
from selector_server.rpc.status import INSPECTION_SERVICE
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

    def check_inspection(self, authorization: str | None) -> None:
        """Raises Unauthenticated or PermissionDenied unless the page may be read by who sends this header."""
        self.interceptor.check(INSPECTION_SERVICE, [("authorization", authorization)] if authorization else [])

    def page_tls(self) -> ssl.SSLContext | None:
        """TLS of the page, whose connections each get the files' present certificate; None: it is served without."""
        if (source := self._certificates) is None:
            return None
        given = source.value
        first = context = certificates.server_context(given)

        def take_present(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            nonlocal given, context
            if source.value is not given:
                given = source.value
                context = certificates.server_context(given)
            connection.context = context

        first.sni_callback = take_present
        return first

    @property
    def guards_inspection(self) -> bool:
        """Whether who reads the page must have a token, or trusts a certificate: then nobody is misled by a name."""
        return (self._admin_tokens or self._tokens or self._certificates) is not None

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
        operators = self._admin_tokens or self._tokens
        for setting, tokens in (("listen", self._tokens), ("admin_listen", operators), ("inspect_listen", operators)):
            where = getattr(config, setting)
            if where and not is_local(where) and tokens is None and config.tls_client_ca_file is None:
                log.warning("%s is %s: whoever reaches it may call; see docs/security.md", setting, where)


def _configuration(found: certificates.Certificates) -> grpc.ServerCertificateConfiguration:
    assert found.key is not None and found.certificate is not None  # noqa: PT018
    return grpc.ssl_server_certificate_configuration([(found.key, found.certificate)], found.ca)
