"""`python -m unstick` is the `unstick` command."""

from unstick.cli import main

main()
