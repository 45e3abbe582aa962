"""`python -m unstick.demo [--once]` plays the demo."""

import argparse
import sys

from unstick.demo.driver import PATIENCE, run


def main() -> int:
    """Read the command line and play."""
    parser = argparse.ArgumentParser(prog="unstick demo", description="A platform whose jobs get stuck, and Unstick.")
    parser.add_argument("--once", action="store_true", help="go once from stuck to finished; exit 0 only if seen")
    parser.add_argument("--port-base", type=int, metavar="PORT", help="serve Unstick here and the platform one above")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="SECONDS", help="give up after this long")
    options = parser.parse_args()
    return run(once=options.once, port_base=options.port_base, patience=options.patience)


if __name__ == "__main__":
    sys.exit(main())
