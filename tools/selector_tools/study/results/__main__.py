"""`python -m selector_tools.study.results [FOLDER] [PAGE]` writes the page of results and its plots."""

import argparse
import sys
from pathlib import Path

from selector_tools.study.results import documents
from selector_tools.study.results.page import render
from selector_tools.study.results.plots import draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m selector_tools.study.results", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("benchmarks/results"), help="of training-*.json")
    parser.add_argument("page", nargs="?", type=Path, default=Path("docs/results.md"), help="what is written")
    a = parser.parse_args()
    try:
        studies = documents.read(a.folder)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    draw(documents.together(studies).found, a.page.parent)
    a.page.write_text(render(studies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
