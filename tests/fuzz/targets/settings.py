"""What an operator gives: settings, links and the manifest of a bundle. Secrets must stay out of every error."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from selector_proto.weights.link import LinkError, masked
from selector_proto.weights.redis_url import SCHEMES, parse
from selector_proto.weights.transports import check_link

from fuzz.frames import each, joined, split
from fuzz.mutate_json import tree
from fuzz.mutation import raw
from fuzz.target import Decode, Target
from selector_server import config
from selector_server.encoding import bundle
from selector_server.errors import BundleError, SetupError

_SECRET = "s3cr3tw0rd"


def _secret_in(url: str) -> bool:
    """Whether it has the password where a password stands."""
    return (
        "@" in url
        and url.partition("@")[0].endswith(f":{_SECRET}")
        and url.count(_SECRET) == 1
        and url.startswith(("redis://", "rediss://", "redis+", "rediss+", "unix://"))
        and not url.startswith("unix:///")  # a path may look like anything
    )


@contextmanager
def links(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        url = data.decode(errors="surrogateescape")
        assert not (_secret_in(url) and _SECRET in masked(url)), "a password is shown"
        try:
            check_link(url)
            address = parse(url) if url.partition(":")[0].lower() in SCHEMES else None
        except LinkError as error:
            assert not (_secret_in(url) and _SECRET in f"{error}{error.value}{error.limit}"), "a password is told"
            raise
        if address is None:
            return "folder"
        assert all(0 < port < 1 << 16 for _, port in address.hosts)
        assert _SECRET not in repr(address) or not _secret_in(url), "a password is in the repr"
        return address.kind

    yield decode


def link_seeds() -> list[bytes]:
    user = f"user:{_SECRET}@".encode()
    return [
        b"redis://" + user + b"host:6379/0",
        b"rediss://" + user + b"[::1]/1?ssl_cert_reqs=none",
        b"redis://host",
        b"redis+sentinel://" + user + b"h1:26379,h2:26379/service/0",
        b"rediss+cluster://" + user + b"h1:7000,h2:7001",
        b"unix://" + user + b"/run/redis.sock?db=2",
        b"file:///folder%20name",
        b"redis://h/0?socket_timeout=5&protocol=3",
    ]


@contextmanager
def configs(folder: Path) -> Iterator[Decode]:
    file = folder / "config.toml"

    def decode(data: bytes) -> str:
        text, environment, flags = split(data, 3)[:3]
        file.write_bytes(text)
        misplaced = any(map(_misplaced, (_toml(text), _texts(environment), _texts(flags))))
        misplaced |= any(part.count(_SECRET.encode()) > part.count(f":{_SECRET}@".encode()) for part in split(data))
        try:
            loaded = config.load(_texts(flags), _texts(environment), file)
        except SetupError as error:
            assert misplaced or _SECRET not in str(error), "a password is told"
            raise
        assert misplaced or _SECRET not in str(loaded.shown()), "a password is shown"
        assert loaded.peer_address if loaded.peers else True
        return ""

    yield decode


def _misplaced(values: Mapping[str, object]) -> bool:
    """Whether the password stands in another setting than the link: those are shown."""
    known = config.Config.model_fields.keys() - {"redis"}
    names = [name.removeprefix("SELECTOR_").lower() for name, value in values.items() if _SECRET in str(value)]
    return any(name in known for name in names)


def _toml(data: bytes) -> dict[str, object]:
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return {}


def _texts(data: bytes) -> dict[str, str]:
    """A map of texts, such as the system gives."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def config_seeds() -> list[bytes]:
    redis = f"redis://user:{_SECRET}@host/0"
    toml = f'redis = "{redis}"\nrun = "a"\nmax_super_batch = 5\ndevice = "cuda:0"\nwhen_stale = "wait"\n'.encode()
    peers = b'peers = "tcp://h:1"\npeer_count = 2\npeer_rank = 1\nreceive_seconds = 1.5\nsampler_fused = true\n'
    names = list(config.Config.model_fields)
    every = json.dumps({f"SELECTOR_{name.upper()}": "1" for name in names[::4]}).encode()
    flags = json.dumps({"redis": redis, "threads": "3", "cache_bytes": "2097152"}).encode()
    return [joined([toml, b"{}", b"{}"]), joined([peers, every, b"{}"]), joined([b"", b'{"SELECTOR_RUN": "r"}', flags])]


@contextmanager
def bundles(folder: Path) -> Iterator[Decode]:
    for name in ("image.onnx", "text.onnx", "weights.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"x")

    def decode(data: bytes) -> str:
        (folder / bundle.MANIFEST).write_bytes(data)
        loaded = bundle.load(folder, "reference" if b'"reference"' in data else "learner")
        manifest = loaded.manifest
        assert manifest.text.pad_token < manifest.text.vocabulary
        assert all("/" not in name and (folder / name).is_file() for name in manifest.files), "a file outside"
        return ""

    yield decode


def bundle_seeds() -> list[bytes]:
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    files = dict.fromkeys(("image.onnx", "text.onnx", "weights.safetensors", "tokenizer.json"), digest)
    resize = {"kind": "patch", "size": [4, 4], "to": [2, 2], "interpolation": "bilinear", "antialias": True}
    common = {
        "name": "n",
        "width": 4,
        "image": {"height": 8, "width": 8, "channels": 3, "mean": [0.5, 0.5, 0.5], "std": [0.5]},
        "text": {"max_tokens": 4, "vocabulary": 9, "end_token": 8},
        "files": files,
        "precision": "fp16",
    }
    learner = common | {
        "role": "learner",
        "logit": {"scale_parameter": "s", "scale_is_log": True},
        "parameters": {"p": {"input": "i", "resize": resize}},
    }
    reference = common | {"role": "reference", "logit_scale": 10.0, "logit_bias": -10.0}
    return [json.dumps(one).encode() for one in (learner, reference)]


_URL = (
    _SECRET.encode(),
    f":{_SECRET}@".encode(),
    b"redis://",
    b"rediss+cluster://",
    b"unix://",
    b"?",
    b"#",
    b"%2F",
    b"@",
    b"[",
    b"]",
    b"\xd9\xa3",
    b"/" + b"9" * 5000,
    b"&db=1",
    b"ssl_ca_certs=",
)
_TOML = (
    b"[" * 3000,
    b"a=" + b"[" * 3000,
    b"[a]\n",
    b"[[a]]\n",
    b"1979-05-27T07:32:00Z",
    b"inf",
    b"nan",
    b"0x7fffffffffffffffffff",
    b'"""',
    b"9" * 5000,
    b"redis = ",
    _SECRET.encode(),
)
_MAP = tree(
    "serve",
    "cpu",
    "cuda:1",
    "tcp://[::1]:99999",
    "tcp://h:1/x",
    f"redis://u:{_SECRET}@h/9",
    "1e400",
    "9" * 5000,
    "\ud800",
    syntax=0.03,
)
TARGETS = (
    Target("link-url", "where weights travel", links, link_seeds, raw(*_URL), (LinkError,), share=2.0),
    Target(
        "config",
        "TOML file, environment and flags",
        configs,
        config_seeds,
        each([raw(*_TOML), _MAP], move=0.02),
        (SetupError,),
        share=0.5,
    ),
    Target(
        "bundle",
        "a bundle's manifest.json",
        bundles,
        bundle_seeds,
        tree("learner", "reference", "../x", "/etc/passwd", "image.onnx", 1e-320, 1 << 24),
        (BundleError,),
    ),
)
