"""The options that the ladder and the hard sets share: which checkout runs what, where, and under which name."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch
from harness import REPOSITORY, parse_overrides

RESULTS = REPOSITORY / "benchmarks" / "results"


def make_parser(
    description: str | None, actions: tuple[str, ...], results: str, box: int
) -> argparse.ArgumentParser:
    """A parser with the shared options; the first of ``actions`` is done by default, and it alone needs --work."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("what", nargs="?", default=actions[0], choices=actions)
    parser.add_argument("--work", type=Path, help="folder for simulations and runs, of this benchmark alone")
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared" / "data", help="test data")
    parser.add_argument("--other", type=Path, help="run this checkout instead of the script's own")
    parser.add_argument("--label", help="names what is run; by default the commit does")
    parser.add_argument("--extra", nargs="+", default=[], help="options of the runs, such as bootstrap.steps=120")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="delete neither sets nor the folders of the runs")
    parser.add_argument("--against", metavar="NAME", help="of table: compare with this label or commit")
    # To try the benchmark itself.
    parser.add_argument("--box", type=int, default=box, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS / results, help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; where runs follow, this process is ready for them."""
    args = parser.parse_args()
    if wrong := [word for word in args.extra if "=" not in word]:
        parser.error(f"--extra takes name=value, not {wrong[0]!r}")
    args.extra = parse_overrides(args.extra)
    if args.what != parser.get_default("what"):
        return args
    if args.work is None:
        parser.error("--work is missing")
    torch.set_num_threads(args.threads)
    # As Ctrl-C: what is running ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    return args
