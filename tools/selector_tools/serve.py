"""`selector serve` makes a configuration of flags, environment and file, and runs the server with it."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from selector_client.selecting.credentials import SETTINGS as CLIENT_SETTINGS
from selector_proto.environment import unknown

log = logging.getLogger(__name__)


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "serve",
        help="run the sidecar",
        description="Runs the sidecar. Every setting can also come from SELECTOR_<NAME> or from a TOML file; "
        "flags win over the environment, the environment over the file. An empty variable counts as unset.",
    )
    parser.set_defaults(handler=run, extra="server")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    try:
        from selector_server.config import Config  # noqa: PLC0415 - not installed on a trainer
    except ModuleNotFoundError:
        return
    for name, field in Config.model_fields.items():
        default = "" if field.default in (None, "") else f" (default {field.default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar="X",
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def run(arguments: argparse.Namespace) -> int:
    # This ends the process until the app handles SIGTERM: a container's first process has no default action for it.
    previous = signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    try:
        return _serve(arguments)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _serve(arguments: argparse.Namespace) -> int:
    from selector_server import app  # noqa: PLC0415 - torch and onnxruntime load only to serve
    from selector_server.config import Config, load  # noqa: PLC0415
    from selector_server.errors import SetupError  # noqa: PLC0415
    from selector_server.telemetry import logs  # noqa: PLC0415

    flags = {name: getattr(arguments, name) for name in Config.model_fields if getattr(arguments, name) is not None}
    try:
        config = load(flags, os.environ, arguments.config)
        if config.log_format == "json":
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines are no JSON
        logs.configure(config.log_level, config.log_format)
        for variable, nearest in unknown(os.environ, {*Config.model_fields, *CLIENT_SETTINGS}):
            meant = f"; did you mean {nearest}?" if nearest else ""
            log.warning(
                "%s is in the environment, but there is no such setting, and nothing comes of it%s", variable, meant
            )
        return app.run(config)
    except SetupError as error:
        print(f"selector serve: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
