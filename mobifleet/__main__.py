"""The command line: `mobifleet VERB`, or `python -m mobifleet VERB`."""

import os
import sys

from mobifleet.hidden import explained, hidden


def main() -> None:
    """Run the command line, unless a file of the user's hides a package that it needs."""
    if (found := hidden()) is not None:
        print(explained(*found), file=sys.stderr)
        sys.exit(2)
    # its own allocator keeps what a run's tables have freed: a tenth of a large run's memory
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from sim.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
