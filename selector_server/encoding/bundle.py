"""A bundle is a folder with one model's towers as ONNX, its manifest and its tokenizer. It is checked before it is
used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from selector_server.errors import BundleError
from selector_server.sampling import MAX_LOGIT, Loss

FORMAT = 1
MANIFEST = "manifest.json"
IMAGE_TOWER, TEXT_TOWER, WEIGHTS, TOKENIZER = "image.onnx", "text.onnx", "weights.safetensors", "tokenizer.json"
# Every tower's graph has an input PIXELS or TOKENS, and an output EMBEDDING.
PIXELS, TOKENS, EMBEDDING = "pixels", "tokens", "selector_embedding"

Size = Annotated[int, Field(gt=0, le=1 << 24)]
Grid = tuple[Annotated[int, Field(gt=0, le=1024)], Annotated[int, Field(gt=0, le=1024)]]
Channels = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=3)]
Interpolation = Literal["bilinear", "bicubic"]


def _known_loss(name: str) -> str:
    if name not in (names := [loss.value for loss in Loss]):
        raise ValueError(f"must be one of {', '.join(names)}")
    return name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageInput(_Part):
    """The image tower takes uint8 RGB (or grey) [B, height, width, channels] and normalises it itself as
    (x / 255 - mean) / std, with one value for all channels or one for each. `fit` and `interpolation` say how files
    are brought to that size: `squash` ignores the aspect, `crop` scales the shorter side and takes the centre."""

    height: Size
    width: Size
    channels: Literal[1, 3]
    mean: Channels = (0.5,)
    std: Channels = (0.5,)
    fit: Literal["squash", "crop"] = "squash"
    interpolation: Interpolation = "bicubic"

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        for values in (self.mean, self.std):
            if len(values) not in (1, self.channels):
                raise ValueError(f"mean and std need 1 or {self.channels} values, not {len(values)}")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class TextInput(_Part):
    """The text tower takes int64 [B, max_tokens] with 0 <= id < vocabulary; short rows are filled with `pad_token`. A
    text of more tokens is cut (its last token is then `end_token`, where the model needs one) or refused."""

    max_tokens: Size
    vocabulary: Size
    pad_token: Annotated[int, Field(ge=0)] = 0
    end_token: Annotated[int, Field(ge=0)] | None = None
    too_long: Literal["cut", "refuse"] = "cut"

    @model_validator(mode="after")
    def _tokens_in_vocabulary(self) -> Self:
        if max(self.pad_token, self.end_token or 0) >= self.vocabulary:
            raise ValueError(f"pad_token and end_token must be below the vocabulary, {self.vocabulary}")
        return self


class Logit(_Part):
    """A learner's logit scale and bias come from these parameters of the trainer; the scale may be stored as its
    logarithm."""

    scale_parameter: str
    scale_is_log: bool
    bias_parameter: str | None = None


class Resize(_Part):
    """A linear map takes a trainer's parameter to the graph's at another resolution. `patch` maps kernels
    [O, C, *size], and `patch-linear` the same as a matrix [O, size x C], both by pseudo-inverse (FlexiViT). `positions`
    maps a table [prefix + tokens, W] over a grid, whose first `prefix` rows stay as they are."""

    kind: Literal["patch", "patch-linear", "positions"]
    size: Grid
    to: Grid
    prefix: Annotated[int, Field(ge=0, le=64)] = 0
    interpolation: Interpolation
    antialias: bool


class Parameter(_Part):
    """A trainer's parameter goes to the graph input `input`, and is resized on the way if `resize` is set."""

    input: str
    resize: Resize | None = None


class Manifest(_Part):
    """The content of manifest.json. `parameters` maps each parameter of the trainer to the graph input that takes it
    (learner only); `logit_scale` and `logit_bias` are numbers for a reference, `logit` names parameters for a learner.
    `patches_kept` is the share of image patches that a patch-dropping tower looks at. `activations` are the kinds of
    GELU that the towers compute with, empty where that is not known (older bundles)."""

    format: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=128)]
    role: Literal["learner", "reference"]
    source: Annotated[str, Field(max_length=1024)] = ""
    licence: Annotated[str, Field(max_length=128)] = ""
    width: Size
    image: ImageInput
    text: TextInput
    loss: Annotated[str, AfterValidator(_known_loss)] = "sigmoid"
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    patches_kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    activations: Annotated[tuple[Annotated[str, Field(max_length=32)], ...], Field(max_length=8)] = ()
    logit: Logit | None = None
    logit_scale: Annotated[float, Field(gt=0, le=MAX_LOGIT, allow_inf_nan=False)] | None = None
    logit_bias: Annotated[float, Field(ge=-MAX_LOGIT, le=MAX_LOGIT, allow_inf_nan=False)] = 0.0
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    # The SHA-256 of every other file, hexadecimal, by the file's name.
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match their digests. The fingerprint covers all that decides an embedding."""

    path: Path
    manifest: Manifest
    fingerprint: str

    @property
    def tokenizer(self) -> Path | None:
        """The path of the tokenizer's file, if the bundle has one."""
        return self.path / TOKENIZER if TOKENIZER in self.manifest.files else None

    @property
    def tokenizer_digest(self) -> str:
        """The tokenizer's SHA-256, empty without a tokenizer."""
        return self.manifest.files.get(TOKENIZER, "")


def load(path: Path, role: Literal["learner", "reference"]) -> Bundle:
    """Reads and verifies the bundle in the folder `path`. Raises BundleError."""
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError as error:
        raise BundleError(role, path, f"must be a folder with a {MANIFEST}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = f"{path / MANIFEST}: {'.'.join(map(str, first['loc']))}"
        raise BundleError(field, first.get("input"), first["msg"]) from error
    if manifest.role != role:
        raise BundleError(f"{path}: role", manifest.role, f"must be {role}")
    needed = {IMAGE_TOWER, TEXT_TOWER} | ({WEIGHTS} if role == "learner" else set())
    if missing := needed - manifest.files.keys():
        raise BundleError(f"{path}: files", sorted(manifest.files), f"must list {', '.join(sorted(missing))}")
    has_logit = manifest.logit is not None if role == "learner" else manifest.logit_scale is not None
    if not has_logit:
        raise BundleError(f"{path}: logit", "missing", "a learner needs `logit`, a reference `logit_scale`")
    for name, digest in manifest.files.items():
        if "/" in name or "\0" in name or name in ("..", MANIFEST):
            raise BundleError(f"{path}: files", repr(name), "must be a plain file name")
        if (found := digest_of(path / name)) != digest:
            raise BundleError(f"{path / name}: SHA-256", found, f"the manifest says {digest}")
    if unlisted := {file.name for file in path.glob("*.onnx*")} - manifest.files.keys():
        raise BundleError(f"{path}: files", sorted(manifest.files), f"must list {', '.join(sorted(unlisted))}")
    return Bundle(path, manifest, _fingerprint(manifest))


def _fingerprint(manifest: Manifest) -> str:
    """Covers all that decides an embedding: the files, and how samples become their input."""
    parts = [f"{name}:{digest}" for name, digest in sorted(manifest.files.items())]
    parts += [manifest.image.model_dump_json(), manifest.text.model_dump_json()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest_of(file: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal. Raises BundleError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError("bundle file", file, str(error.strerror)) from error
