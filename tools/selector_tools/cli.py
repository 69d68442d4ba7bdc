"""The `selector` command. Each verb imports what it needs when it runs: a trainer's light install has the verbs too."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import selector_proto

from selector_tools import cache, health, info, serve, weights
from selector_tools.bench import command as bench
from selector_tools.datasets import command as data
from selector_tools.demo import command as demo
from selector_tools.export import command as export
from selector_tools.inspector import command as inspector
from selector_tools.reference import command as reference


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers a mistake on the command line with one line and exit 2."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="selector", description="Data selection for contrastive image-text training.")
    parser.add_argument("--version", action="version", version=selector_proto.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    serve.add_parser(verbs)
    info.add_parser(verbs)
    health.add_parser(verbs)
    weights.add_parser(verbs)
    inspector.add_parser(verbs)
    export.add_parser(verbs)
    reference.add_parser(verbs)
    cache.add_parser(verbs)
    data.add_parser(verbs)
    demo.add_parser(verbs)
    bench.add_parser(verbs)
    arguments = parser.parse_args(argv)
    handler: Callable[[argparse.Namespace], int] = arguments.handler
    try:
        return handler(arguments)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.startswith("selector_"):
            raise
        extra = arguments.extra
        print(
            f"selector {arguments.verb}: needs {missing}: pip install 'jest-selector[{extra}]'",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
