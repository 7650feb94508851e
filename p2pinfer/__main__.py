"""``python -m p2pinfer``."""

from p2pinfer.cli import main

main()
