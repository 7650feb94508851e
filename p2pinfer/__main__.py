"""``python -m p2pinfer``."""

from p2pinfer.cli.main import main

main()
