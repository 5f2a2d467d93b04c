"""Which checks are run, and what comes of them."""

import argparse
import atexit
import sys
from pathlib import Path

# Each theme adds its checks.
import calls  # noqa: F401
import delivery  # noqa: F401
import discovery  # noqa: F401
import errors  # noqa: F401
import exec  # noqa: F401
import failures  # noqa: F401
import files  # noqa: F401
import isolation  # noqa: F401
import keys  # noqa: F401
import links  # noqa: F401
import recording  # noqa: F401
import topics  # noqa: F401
from checks import CHECKS, Say, now
from hosts import Lab


def main():
    parser = argparse.ArgumentParser(prog="scripts/lab.sh")
    parser.add_argument("--only", action="append", metavar="WORD", help="only checks with this word in their name")
    parser.add_argument("--quick", action="store_true", help="look for shorter at what must not happen")
    parser.add_argument("--long", action="store_true", help="a minute of what is done at random, 1 GiB in one message")
    parser.add_argument("--seed", type=int, metavar="N", help="of what is done at random: each check says its own")
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

    Lab.sweep()
    atexit.register(Lab.sweep)
    say, began = Say(), now()
    for check in wanted:
        began_check = now()
        with Lab(options.bin, options.quick, options.long, options.seed) as lab:
            say.logs = lab.logs
            try:
                check(lab, say)
            except Exception as error:
                say.broken(check.__doc__.splitlines()[0], error)
        print(f"     {check.name}: {now() - began_check:.1f} s", file=sys.stderr, flush=True)
    print(f"{say.passed} passed, {say.failed} failed  ({now() - began:.0f} s)")
    return 1 if say.failed else 0
