"""The lab: what meshd does on hosts. `scripts/lab.sh` runs this with namespaces of its own around it."""

import argparse
import atexit
import signal
import sys
from pathlib import Path

import discovery, errors, failures, isolation, keys, topics  # noqa: E401, F401  each adds its checks
from checks import CHECKS, Say, now
from hosts import Lab


def main():
    parser = argparse.ArgumentParser(prog="scripts/lab.sh")
    parser.add_argument("--only", action="append", metavar="WORD", help="only checks with this word in their name")
    parser.add_argument("--quick", action="store_true", help="look for shorter at what must not happen")
    parser.add_argument("--list", action="store_true", help="say what would be checked")
    parser.add_argument("--bin", type=Path, required=True, help="the program")
    options = parser.parse_args()
    wanted = [c for c in CHECKS if not options.only or any(word in c.name for word in options.only)]
    if options.list:
        for check in wanted:
            print(f"{check.name:<20} {check.__doc__.splitlines()[0]}")
        return 0
    if not wanted:
        parser.error(f"no check has such a word in its name: {', '.join(c.name for c in CHECKS)}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    Lab.sweep()
    atexit.register(Lab.sweep)
    say, began = Say(), now()
    for check in wanted:
        began_check = now()
        with Lab(options.bin, options.quick) as lab:
            say.logs = lab.logs
            try:
                check(lab, say)
            except Exception as error:
                say.broken(check.__doc__.splitlines()[0], error)
        print(f"     {check.name}: {now() - began_check:.1f} s", file=sys.stderr, flush=True)
    print(f"{say.passed} passed, {say.failed} failed  ({now() - began:.0f} s)")
    return 1 if say.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
