"""The server's settings: one frozen, validated object, built once from flags, environment and a TOML file."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from selector_proto.contract import is_local
from selector_proto.environment import variable_of
from selector_proto.weights.layout import Keys
from selector_proto.weights.link import LinkError, LinkOptions, masked
from selector_proto.weights.transports import check_link

from selector_server.device_kinds import DEVICE_NAMES, DEVICE_PATTERN
from selector_server.errors import SetupError


def _path(value: object) -> object:
    """An empty path is a mistake: it would mean the working directory."""
    if value == "":
        raise PydanticCustomError("empty", "must be a path, and is empty")
    return value


File = Annotated[Path, BeforeValidator(_path)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Config(BaseModel):
    """Every setting; the description of a field is its help text. Units are in the names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:50051", description="address of the gRPC server: host:port or unix:/path")
    admin_listen: str = Field(
        "",
        description="address of admin calls and the weights' status alone: host:port or unix:/path; empty for listen",
    )
    health_listen: str = Field(
        "", description="address of grpc.health.v1 alone, plain text, no token, for probes: host:port; empty for none"
    )
    metrics_listen: Annotated[str, BeforeValidator(lambda value: "" if value == "none" else value)] = Field(
        "127.0.0.1:9464", description="address of /metrics: host:port, or none"
    )
    tls_certificate_file: File | None = Field(
        None,
        description="this server's certificate, for listen and admin_listen but unix sockets; read again on change",
    )
    tls_key_file: File | None = Field(None, description="its key, unless the certificate's file has it")
    tls_client_ca_file: File | None = Field(
        None, description="who may sign clients' certificates; with it, clients must have one (mutual TLS)"
    )
    token_file: File | None = Field(
        None, description="tokens that data calls must carry, one a line; read again when it changes"
    )
    admin_token_file: File | None = Field(
        None, description="tokens that admin calls must carry, one a line; good for data calls too"
    )
    plaintext_tokens: bool = Field(
        False, description="take tokens without TLS from other hosts, where something else encrypts (a mesh)"
    )
    socket_mode: str = Field("0600", pattern=r"^0?[0-7]{3}$", description="permissions of unix sockets, octal")
    socket_group: str | None = Field(None, description="group of unix sockets, by name or number")
    reflection: bool = Field(True, description="tell whoever asks which services there are, without a token")
    max_connections: Positive = Field(1024, description="most connections to each address; one more is closed")
    max_connection_idle_seconds: Annotated[float, Field(ge=1, le=1e6)] = Field(
        600.0, description="a connection without calls for so long is closed; clients make another one by themselves"
    )
    max_connection_age_seconds: Annotated[float, Field(ge=1, le=1e6)] = Field(
        3600.0, description="a connection takes no more calls after so long; those that it has may end"
    )
    keepalive_seconds: Annotated[float, Field(ge=1, le=7200)] = Field(
        10.0,
        description="a connection silent for so long is pinged, and closed if it stays silent for as long again; "
        "clients are told to ping as often, and may ping twice as often",
    )
    learner: File | None = Field(None, description="learner's bundle; without it, raw samples cannot be sent")
    reference: File | None = Field(None, description="reference's bundle")
    redis: str | None = Field(
        None, description="where the trainer publishes weights: redis[s]://, unix://, redis+sentinel://… or file://"
    )
    redis_ca_file: File | None = Field(None, description="who may sign Redis's certificate, for rediss://")
    redis_certificate_file: File | None = Field(None, description="this side's certificate, for rediss://")
    redis_key_file: File | None = Field(None, description="its key, unless the certificate's file has it")
    redis_username: str | None = Field(None, description="user of Redis")
    redis_password_file: File | None = Field(None, description="file with its password, read at each connection")
    redis_sentinel_password_file: File | None = Field(None, description="file with the password of the Sentinels")
    run: str = Field("default", description="training run whose weights are served")
    device: str = Field("cpu", pattern=DEVICE_PATTERN, description=f"{DEVICE_NAMES}; never falls back")
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="CPU threads for encoders and sampler, 0 for what the cgroup's quota allows"
    )
    micro_batch: Annotated[int, Field(ge=0)] = Field(
        0, description="most samples a thread encodes at once, fewer when memory runs out; 0 suits the device"
    )
    preprocess_threads: Annotated[int, Field(ge=0)] = Field(
        0, description="threads that decode images beside the device, 0 for what the cgroup's quota allows"
    )
    cache: File | None = Field(None, description="folder of the reference cache, for requests with sample ids")
    cache_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 46)] = Field(32 << 30, description="largest reference cache")
    sampler_tile_bytes: Annotated[int, Field(ge=0)] = Field(
        0,
        description="bytes of logits that a thread of the sampler holds at once; bounds memory, 0 suits the device",
    )
    sampler_fused: bool = Field(False, description="sum strips by the fused GPU kernel, in bfloat16; CUDA only")
    weights_poll_seconds: Seconds = Field(0.25, description="how often the newest weights version is looked up")
    weights_share: File | None = Field(
        None, description="folder in memory where the sidecars of a host share what one of them fetched"
    )
    max_weights_bytes: Positive = Field(16 << 30, description="largest published weights taken")
    when_stale: Literal["serve", "wait", "refuse"] = Field(
        "serve", description="what happens to a request that accepts newer weights only: serve, wait or refuse"
    )
    max_weights_lag_steps: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(
        0, description="steps that weights may lie behind a request that names its step and no lag, 0 for any"
    )
    max_weights_age_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = Field(
        0.0, description="age of weights that requests accept unless they name one, 0 for any"
    )
    shared_memory_dir: File | None = Field(
        None, description="folder in memory where clients of this host leave payloads; of this sidecar alone"
    )
    max_message_bytes: Positive = Field(4 << 20, description="largest gRPC message taken")
    max_payload_bytes: Positive = Field(2 << 30, description="largest request taken")
    max_inflight_bytes: Positive = Field(4 << 30, description="payload bytes of all requests under way")
    max_pending_requests: Positive = Field(16, description="requests under way; one more is refused at once")
    max_super_batch: Positive = Field(1 << 20, description="most candidates of one request (B)")
    max_chunks: Positive = Field(1024, description="most chunks of one draw (N)")
    max_width: Positive = Field(8192, description="widest embedding taken (D)")
    max_image_bytes: Positive = Field(16 << 20, description="largest encoded image taken")
    max_image_pixels: Positive = Field(32 << 20, description="largest decoded image taken, height x width")
    max_text_bytes: Positive = Field(64 << 10, description="longest text taken")
    memory_guard_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.9,
        description="part of the memory that the cgroup or machine allows, above which requests are refused; 0: off",
    )
    receive_seconds: Seconds = Field(30.0, description="longest pause between two messages of a request")
    receive_min_bytes_per_second: Annotated[int, Field(ge=0)] = Field(
        1 << 20, description="a payload that comes slower, after receive_seconds for all of it, is refused; 0: any"
    )
    group_seconds: Seconds = Field(10.0, description="time that ranks which select as one wait for each other")
    peers: str = Field(
        "", description="tcp://host:port where sidecar 0 of those that select as one is found; empty for none"
    )
    peer_rank: Annotated[int, Field(ge=0)] = Field(
        0, description="this sidecar among its peers, and its trainer's rank"
    )
    peer_count: Positive = Field(1, description="sidecars that select as one, and their trainers' world_size")
    peer_seconds: Seconds = Field(10.0, description="time that peers wait for each other, and for any one exchange")
    stall_seconds: Seconds = Field(120.0, description="a request that computes longer makes the server unhealthy")
    stall_exit_seconds: Seconds = Field(
        300.0, description="a request that computes longer ends the process with status 1"
    )
    drain_seconds: Seconds = Field(25.0, description="time that running requests get after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log shown")
    log_format: Literal["plain", "json"] = Field("plain", description="plain lines, or one JSON object a line")
    access_log: bool = Field(False, description="log a line for each selection; else only at log_level debug")
    traces: Literal["off", "otlp", "console"] = Field("off", description="OpenTelemetry traces; needs the extra traces")
    otlp_endpoint: str = Field(
        "", description="OTLP collector, http[s]://host:4318; empty for what OTEL_EXPORTER_OTLP_ENDPOINT says"
    )
    inspect: bool = Field(False, description="keep what was selected lately, in numbers, for admin calls")
    inspect_content: bool = Field(
        False, description="keep pictures, captions, ids and tags for them too; with tokens, needs admin_token_file"
    )
    inspect_metrics: bool = Field(
        False, description="count by tag and by frequent words of captions on /metrics, which asks for no token"
    )
    inspect_listen: str = Field(
        "", description="address of the inspector's page, host:port, which keeps as inspect does; empty for none"
    )
    inspect_window: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="super-batches that are kept for inspection; the last 16 of them with their content"
    )
    record: File | None = Field(None, description="folder where every super-batch is written, in numbers, as Parquet")
    record_content: bool = Field(False, description="captions, ids and tags are written too")
    record_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 46)] = Field(
        1 << 30, description="most bytes of that folder; the oldest files go first"
    )

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port of `peers`. Raises ValueError."""
        url = urlsplit(self.peers)
        if url.scheme != "tcp" or not url.hostname or not url.port or url.path or url.query or url.username:
            raise ValueError("must be tcp://host:port")
        return url.hostname, url.port

    @property
    def observes(self) -> bool:
        """Whether selections are looked at for somebody."""
        return self.inspect or bool(self.inspect_listen) or self.record is not None

    def shown(self) -> dict[str, str]:
        """All settings as text, secrets masked."""
        values = {name: "" if value is None else str(value) for name, value in self}
        if self.redis is not None:
            values["redis"] = masked(self.redis)
        if self.redis_username is not None:
            values["redis_username"] = "***"
        if self.otlp_endpoint:
            values["otlp_endpoint"] = "set"  # It may hold a key.
        return values

    def link(self) -> LinkOptions:
        """Says how Redis is reached, besides its URL."""
        return LinkOptions(
            ca_file=self.redis_ca_file,
            certificate_file=self.redis_certificate_file,
            key_file=self.redis_key_file,
            username=self.redis_username,
            password_file=self.redis_password_file,
            sentinel_password_file=self.redis_sentinel_password_file,
        )


def load(flags: Mapping[str, str], environment: Mapping[str, str], file: Path | None) -> Config:
    """Merges file < environment (SELECTOR_…) < flags and validates. An empty environment variable counts as unset, for
    so it comes from files and scripts that leave something out. Raises SetupError naming the setting."""
    values: dict[str, object] = {}
    if file is not None:
        try:
            values |= tomllib.loads(file.read_text())
        except (
            OSError,
            ValueError,
            RecursionError,
        ) as error:  # TOMLDecodeError, or what is no text or nested too deep.
            raise SetupError("config", file, f"cannot be read: {error}") from error
    for name in Config.model_fields:
        if value := environment.get(variable_of(name)):
            values[name] = value
    values |= flags
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        value = repr(first.get("input"))
        secret = field.startswith("redis") and first["type"] != "empty"
        if secret or first["type"] == "extra_forbidden":  # It may hold a password.
            value = "not text" if field.startswith("redis") else "set"
        raise SetupError(field, value, first["msg"]) from error
    try:
        Keys(config.run)
    except ValueError as error:
        raise SetupError("run", repr(config.run), str(error).partition("; ")[2]) from error
    _check_peers(config)
    _check_access(config)
    _check_inspection(config)
    if config.stall_exit_seconds < config.stall_seconds:
        limit = f"must be at least stall_seconds, {config.stall_seconds:g}"
        raise SetupError("stall_exit_seconds", config.stall_exit_seconds, limit)
    try:
        if config.redis is not None:
            check_link(config.redis, config.link())
    except LinkError as error:
        raise SetupError(f"redis_{error.option}" if error.option else "redis", error.value, error.limit) from error
    return config


def _check_peers(config: Config) -> None:
    if not config.peers:
        return
    try:
        _ = config.peer_address
    except ValueError as error:
        raise SetupError("peers", repr(config.peers), str(error)) from error
    if config.peer_count < 2:
        raise SetupError("peer_count", config.peer_count, "must be 2 or more with peers")
    if config.peer_rank >= config.peer_count:
        raise SetupError("peer_rank", config.peer_rank, f"must be below peer_count, {config.peer_count}")


def _check_access(config: Config) -> None:
    for name in ("tls_key_file", "tls_client_ca_file"):
        if getattr(config, name) is not None and config.tls_certificate_file is None:
            raise SetupError(name, getattr(config, name), "needs tls_certificate_file too")
    if config.tls_certificate_file is not None or config.plaintext_tokens:
        return
    for name in ("token_file", "admin_token_file"):
        for address in ("listen", "admin_listen", "inspect_listen"):
            where = getattr(config, address)
            if getattr(config, name) is not None and where and not is_local(where):
                limit = f"{address} is {where}, where others can read tokens: needs tls_certificate_file, loopback or "
                raise SetupError(name, getattr(config, name), f"{limit}a unix socket, or plaintext_tokens")


def _check_inspection(config: Config) -> None:
    """Content is for operators: where others than this host's processes reach it, or trainers have tokens, it needs
    tokens that trainers do not have."""
    kept = config.inspect or bool(config.inspect_listen)
    for name, needed, there in (
        ("inspect_content", "inspect", kept),
        ("inspect_metrics", "inspect_content", config.inspect_content),
        ("record_content", "record", config.record is not None),
    ):
        if getattr(config, name) and not there:
            raise SetupError(name, True, f"needs {needed} too")
    if not config.inspect_content or config.admin_token_file is not None:
        return
    if config.token_file is not None:
        raise SetupError("inspect_content", True, "needs admin_token_file: a trainer's token must not open content")
    for name in ("admin_listen" if config.admin_listen else "listen", "inspect_listen"):
        if (where := getattr(config, name)) and not is_local(where):
            limit = f"{name} is {where}, which others reach: needs admin_token_file, loopback or a unix socket"
            raise SetupError("inspect_content", True, limit)
