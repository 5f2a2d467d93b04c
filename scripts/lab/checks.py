"""What checks are, what they say, and how they wait."""

import time
import traceback

CHECKS = []


class Failed(Exception):
    """What had to be so is not so; the check cannot go on."""


def check(name):
    """Makes a function a check. It gets a `Lab` and a `Say`; its first line of documentation says what must hold."""

    def register(function):
        function.name = name
        CHECKS.append(function)
        return function

    return register


class Say:
    """Prints one line for each thing that must hold, and counts."""

    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.logs = lambda: ""

    def holds(self, so, sentence, figure="", evidence=""):
        """`sentence` is true if `so`; `figure` is what was measured, `evidence` what to show if it is not true."""
        measured = f"  ({figure})" if figure else ""
        print(f"{'ok  ' if so else 'FAIL'} {sentence}{measured}", flush=True)
        if so:
            self.passed += 1
            return
        self.failed += 1
        for text in (evidence, self.logs()):
            for line in str(text).splitlines():
                print(f"     | {line}", flush=True)

    def broken(self, sentence, error):
        """The check ended early."""
        known = isinstance(error, Failed)
        self.holds(
            False, sentence, str(error) if known else "", "" if known else "".join(traceback.format_exception(error))
        )


def now():
    """Seconds of a clock that never jumps."""
    return time.monotonic()


def until(what, seconds, test, pace=0.02):
    """Polls `test` until it gives something true, and gives that. Fails when time is up, for want of `what`."""
    deadline = now() + seconds
    while True:
        result = test()
        if result:
            return result
        if now() > deadline:
            raise Failed(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(pace)


def holds_for(seconds, test, pace=0.1):
    """Whether `test` stays true for that long: for what must never happen, where no event ends the wait."""
    deadline = now() + seconds
    while now() < deadline:
        if not test():
            return False
        time.sleep(pace)
    return test()


def lasts(seconds):
    """Lets time pass, where how long something lasts is part of what is checked."""
    time.sleep(max(0, seconds))


def median(numbers):
    return sorted(numbers)[len(numbers) // 2]


def ms(seconds):
    return f"{seconds * 1000:.0f} ms"


def secs(seconds):
    return f"{seconds:.2f} s"
