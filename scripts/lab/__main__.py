"""The lab: what meshd does on hosts. Started by `scripts/lab.sh`."""

import sys

from alone import alone


def lab():
    # Here and not above: from here on this is another network.
    from run import main

    return main()


if __name__ == "__main__":
    sys.exit(alone(lab))
