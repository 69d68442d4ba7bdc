"""`selector export`: a bundle from a model of open_clip, of transformers, or of the trainer's own code."""

import argparse
import math
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.export import flags as flag_values

if TYPE_CHECKING:
    from selector_server.encoding.export import Exported
    from selector_server.encoding.source import Source
    from selector_tools.export.building import Architecture


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
    if flag_values.any_wrong(flags):
        return 2
    began = time.monotonic()
    from pydantic import ValidationError  # noqa: PLC0415 - not installed on a trainer
    from torch.onnx import OnnxExporterError  # noqa: PLC0415

    from selector_server.errors import SelectorError  # noqa: PLC0415

    try:
        with tempfile.TemporaryDirectory() as scratch:
            architecture, source = _source(flags, Path(scratch))
            exported = _export(source, flags)
    except SelectorError as error:
        return _failed(str(error))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return _failed(f"{'.'.join(map(str, first['loc'])) or 'input'} is {first.get('input')}; {first['msg']}")
    except OnnxExporterError as error:
        return _failed(f"{_chosen(flags)} cannot be traced by torch.export: {_cause(error)}")
    _report(source, exported, time.monotonic() - began)
    for note in architecture.notes if flags.tokenizer is None else architecture.notes[:0]:
        print(f"note: {note}")
    return 0


def _source(flags: argparse.Namespace, scratch: Path) -> "tuple[Architecture, Source]":
    from selector_server.encoding.bundle import ImageInput, TextInput  # noqa: PLC0415
    from selector_server.encoding.preprocess import load_tokenizer  # noqa: PLC0415
    from selector_tools.export.building import Look, prepared  # noqa: PLC0415

    load_tokenizer(flags.tokenizer)  # a broken one is found before the work
    architecture = _architecture(flags, scratch)
    look = Look(flags.image_size, flags.patch_size, flags.keep_patches, flags.interpolation, flags.antialias)
    source = prepared(architecture, look, flags.checkpoint, flags.seed, _say)
    image = {"mean": flag_values.numbers(flags.mean), "std": flag_values.numbers(flags.std), "fit": flags.fit}
    text = {"pad_token": flags.pad_token, "end_token": flags.end_token}
    random = flags.checkpoint is None and not architecture.has_weights
    weights = f"random weights (seed {flags.seed})" if random else flags.checkpoint or "its own weights"
    return architecture, replace(
        source,
        name=flags.name or source.name,
        image=ImageInput.model_validate(source.image.model_dump() | _given(image)),
        text=TextInput.model_validate(source.text.model_dump() | _given(text)),
        tokenizer=flags.tokenizer or source.tokenizer,
        origin=f"{source.origin}; {weights}"[:1024],
        licence=flags.licence,
    )


def _architecture(flags: argparse.Namespace, scratch: Path) -> "Architecture":
    if flags.open_clip is not None:
        from selector_tools.export import open_clip  # noqa: PLC0415

        return open_clip.architecture(flags.open_clip, scratch)
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


def _export(source: "Source", flags: argparse.Namespace) -> "Exported":
    from selector_server.encoding.export import export_learner, export_reference  # noqa: PLC0415

    _say("tracing both towers, then comparing them with torch")
    export = export_learner if flags.role == "learner" else export_reference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(source, flags.out, precision=flags.precision)


def _report(source: "Source", exported: "Exported", seconds: float) -> None:
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
    for name, resize in sorted(source.resizes.items()):
        how = f"{resize.interpolation}{', antialiased' if resize.antialias else ''}"
        print(
            f"resize: {name} ({resize.kind}), {' x '.join(map(str, resize.size))} to "
            f"{' x '.join(map(str, resize.to))}, {how}"
        )
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


def _chosen(flags: argparse.Namespace) -> str:
    return str(flags.open_clip or flags.transformers or flags.module)


def _cause(error: BaseException) -> str:
    """The first line of the innermost error: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _say(text: str) -> None:
    print(f"selector export: {text}", file=sys.stderr, flush=True)


def _failed(text: str) -> int:
    print(f"selector export: {' '.join(text.split())}", file=sys.stderr)
    return 2
