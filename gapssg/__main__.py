"""The entry of the program: `gapssg` and `python -m gapssg`."""

import sys


def main() -> None:
    """Run the program; an interrupt while it is being imported ends it as quietly as one later."""
    try:
        from gapssg.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
