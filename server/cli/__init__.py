"""The `kerf` command."""

import sys

__all__ = ["main"]

_EXIT_BAD_INPUT = 2


def main() -> None:
    """Run the command line, or say what is missing for it: the Python client needs less."""
    try:
        from server.cli.main import main as run
    except ModuleNotFoundError as error:
        print(f"error: {error}: the command line needs pip install 'kerf[server]'", file=sys.stderr)
        sys.exit(_EXIT_BAD_INPUT)
    run()
