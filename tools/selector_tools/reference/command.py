"""`selector reference`: its verbs."""

from typing import Any

from selector_tools.reference import fit, quantise, report, score


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("reference", help="train a reference, score a pool with it, see what it knows")
    leaves = parser.add_subparsers(dest="reference_verb", required=True, metavar="VERB")
    for verb in (fit, score, report, quantise):
        verb.add_parser(leaves)
