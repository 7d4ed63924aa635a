"""`python -m gapssg` is `gapssg`."""

from gapssg.cli.app import main

main()
