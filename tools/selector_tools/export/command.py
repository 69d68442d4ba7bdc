"""`selector export` writes a bundle of a model of open_clip, of transformers, or of the trainer's own code."""

import argparse
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.export import flags as flag_values
from selector_tools.mistakes import exit_status, in_one_line

if TYPE_CHECKING:
    from selector_tools.export.building import Architecture
    from selector_tools.export.bundle_writer import Exported
    from selector_tools.export.torch_model import TorchModel

COMMAND = "selector export"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "export",
        help="write a bundle from a torch model",
        description="Writes the bundle of a learner or a reference, and compares it with torch before it gets its "
        "name. Exactly one of --open-clip, --transformers and --module says which model.",
    )
    parser.set_defaults(handler=run, extra="server,export")
    flag_values.add(parser)


def run(flags: argparse.Namespace) -> int:
    if flag_values.any_wrong(flags, COMMAND):
        return 2
    return exit_status(COMMAND, lambda: _run(flags))


def _run(flags: argparse.Namespace) -> None:
    began = time.monotonic()
    with built(flags, COMMAND) as (architecture, plain):
        model = named(plain, flags)
        exported = _export(model, flags)
    _report(model, exported, time.monotonic() - began)
    for note in architecture.notes if flags.mean is None else ():
        print(f"note: {note}")
    if exported.bundle.tokenizer is None:
        print("note: the bundle has no tokenizer, so texts must come as tokens; --tokenizer gives it one")


@contextmanager
def built(
    flags: argparse.Namespace, command: str, opened: "Callable[[argparse.Namespace], Architecture] | None" = None
) -> "Iterator[tuple[Architecture, TorchModel]]":
    """Yields the model that the flags of `flags.add_model` ask for, and removes its temporary files at the end. Where
    a source of the command's own says which model, `opened` opens it. Raises SelectorError, also if torch fails to
    trace the model inside the block."""
    from pydantic import ValidationError  # noqa: PLC0415 - not installed on a trainer
    from torch.onnx import OnnxExporterError  # noqa: PLC0415

    from selector_server.encoding.preprocess import load_tokenizer  # noqa: PLC0415
    from selector_server.errors import SetupError  # noqa: PLC0415

    try:
        with tempfile.TemporaryDirectory() as scratch:
            load_tokenizer(flags.tokenizer)  # a broken one is found before the work
            architecture = opened(flags) if opened else _architecture(flags, Path(scratch))
            yield architecture, _built(flags, architecture, lambda text: _say(command, text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "input"
        raise SetupError(field, first.get("input"), first["msg"]) from error
    except OnnxExporterError as error:
        sources = ("open_clip", "transformers", "module", "image_tower")
        flag = next(name for name in sources if getattr(flags, name, None) is not None)
        limit = f"cannot be traced by torch.export: {_cause(error)}"
        raise SetupError(f"--{flag.replace('_', '-')}", getattr(flags, flag), limit) from error


def _built(flags: argparse.Namespace, architecture: "Architecture", say: Callable[[str], None]) -> "TorchModel":
    from selector_server.encoding.bundle import ImageInput, TextInput  # noqa: PLC0415
    from selector_tools.export.building import Look, prepared  # noqa: PLC0415
    from selector_tools.export.checkpoint import Checkpoint  # noqa: PLC0415

    look = Look(flags.image_size, flags.patch_size, flags.keep_patches, flags.interpolation, flags.antialias)
    weights = None
    if flags.checkpoint is not None:
        weights = Checkpoint(flags.checkpoint, flags.strip_prefix, flags.add_prefix)
    model = prepared(architecture, look, weights, flags.seed, say)
    image = {"mean": flag_values.numbers(flags.mean), "std": flag_values.numbers(flags.std), "fit": flags.fit}
    text = {"pad_token": flags.pad_token, "end_token": flags.end_token}
    random = flags.checkpoint is None and not architecture.has_weights
    origin = (
        f"random weights (seed {flags.seed})" if random else flags.checkpoint or flags.pretrained or "its own weights"
    )
    return replace(
        model,
        image=ImageInput.model_validate(model.image.model_dump() | _given(image)),
        text=TextInput.model_validate(model.text.model_dump() | _given(text)),
        tokenizer=flags.tokenizer or model.tokenizer,
        origin=f"{model.origin}; {origin}"[:1024],
    )


def named(model: "TorchModel", flags: argparse.Namespace) -> "TorchModel":
    """Returns the model as the flags of `flags.add_bundle` call it."""
    return replace(model, name=flags.name or model.name, licence=flags.licence)


def _architecture(flags: argparse.Namespace, scratch: Path) -> "Architecture":
    if flags.open_clip is not None:
        from selector_tools.export import open_clip  # noqa: PLC0415

        return open_clip.architecture(
            flags.open_clip,
            scratch,
            flags.pretrained,
            quick_gelu=flags.force_quick_gelu,
            checkpoint=flags.checkpoint,
        )
    if flags.transformers is not None:
        from selector_tools.export import transformers  # noqa: PLC0415

        return transformers.architecture(flags.transformers)
    from selector_tools.export import own  # noqa: PLC0415

    told = own.Told(
        channels=flags.channels or 3,
        max_tokens=flags.max_tokens,
        vocabulary=flags.vocabulary,
        logit_scale=flags.logit_scale or "logit_scale",
        logit_scale_is_log=flags.logit_scale_is_log is not False,
        logit_bias=flags.logit_bias,
        loss=flags.loss,
        tokens_at=flags.tokens_at or "",
    )
    return own.architecture(flags.module, told, flags.image_size, flags.patch_size)


def _export(model: "TorchModel", flags: argparse.Namespace) -> "Exported":
    from selector_tools.export.bundle_writer import export_learner, export_reference  # noqa: PLC0415

    _say(COMMAND, "tracing both towers, then comparing them with torch")
    export = export_learner if flags.role == "learner" else export_reference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(model, flags.out, precision=flags.precision)


def _report(model: "TorchModel", exported: "Exported", seconds: float) -> None:
    manifest, difference = exported.bundle.manifest, exported.difference
    image, text = manifest.image, manifest.text
    print(f"bundle: {exported.bundle.path}")
    print(
        f"model: {manifest.name}, {manifest.role}, width {manifest.width}, {manifest.precision}, {manifest.loss} loss"
    )
    print(
        f"image: {image.height} x {image.width} x {image.channels}, {image.fit}, {image.interpolation}, "
        f"mean {_listed(image.mean)}, std {_listed(image.std)}"
    )
    end = "" if text.end_token is None else f", end token {text.end_token}"
    tokenizer = "with" if exported.bundle.tokenizer else "without"
    print(
        f"text: {text.max_tokens} tokens of {text.vocabulary}, pad token {text.pad_token}{end}, {tokenizer} tokenizer"
    )
    for name, resize in sorted(model.resizes.items()):
        how = f"{resize.interpolation}{', antialiased' if resize.antialias else ''}"
        print(
            f"resize: {name} ({resize.kind}), {' x '.join(map(str, resize.size))} to "
            f"{' x '.join(map(str, resize.to))}, {how}"
        )
    if manifest.activations:
        print(f"activation: {', '.join(manifest.activations)}")
    if manifest.patches_kept < 1:
        print(f"patches kept: {manifest.patches_kept:.3g}")
    if math.isnan(difference):
        print("not compared with torch: no CPU runs bfloat16 graphs")
    else:
        print(f"max absolute difference to torch {difference:.1e}")
    print(f"time: {seconds:.0f} s")


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _cause(error: BaseException) -> str:
    """Returns the first line of the innermost error, because torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return in_one_line(error)


def _say(command: str, text: str) -> None:
    print(f"{command}: {text}", file=sys.stderr, flush=True)
