"""Calls: who answers, and what becomes of them when a provider is lost."""

import subprocess
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checks import check, lasts, ms, now, secs, until
from client import Gone, Refusal
from hosts import numbers, resident


@check("calls")
def calls(lab, say):
    """a command is a service, and two of them share the calls"""
    caller, *providers = lab.mesh("caller", "one", "two")
    servers = [host.serve("wc", "wc -c") for host in providers]
    program = caller.program()
    program.providers("wc", 2)

    text = "ten bytes\n" * 12345
    wanted = subprocess.run(["wc", "-c"], input=text, text=True, capture_output=True).stdout
    code, out, err = caller.meshd("call", "wc", input=text)
    say.holds(
        code == 0 and out == wanted,
        "`meshd call wc < file` prints what `wc -c` prints",
        out.strip(),
        f"{code} {out!r}, wanted {wanted!r}\n{err}",
    )

    def call(number):
        answer = program.call("wc", b"x" * number)
        return int(answer["payload"]) == number

    def ran():
        return [sum("done after" in line for _, line in list(server.err)) for server in servers]

    def rounds(count, at_a_time):
        """How many each provider ran, if all were answered rightly, and how long that took."""
        before, began = ran(), now()
        with ThreadPoolExecutor(at_a_time) as pool:
            right = sum(pool.map(call, range(count)))
        took = now() - began
        until("the providers said what they ran", 5, lambda: sum(ran()) - sum(before) == count)
        return right, [after - count for after, count in zip(ran(), before)], took

    right, shares, took = rounds(1000, 1)
    say.holds(right == 1000, "1000 calls one after the other: each gets its own answer", secs(took))
    say.holds(abs(shares[0] - shares[1]) <= 4, "two providers share them evenly", " and ".join(map(str, shares)))
    right, shares, took = rounds(1000, 16)
    say.holds(right == 1000, "1000 more, 16 at a time: each gets its own answer", secs(took))
    say.holds(min(shares) >= 400, "whoever is less busy gets the next", " and ".join(map(str, shares)))

    def counted():
        (service,) = caller.ask("services")
        return sorted((node["host"], node["calls"], node["errors"]) for node in service["nodes"])

    listed = until(
        lambda: f"`meshd services` counts them, but {counted()}",
        5,
        lambda: sum(calls for _, calls, _ in counted()) == 2001 and counted(),
    )
    say.holds(
        listed == [(host.name, count, 0) for host, count in zip(providers, ran())],
        "`meshd services` counts what they ran",
        evidence=f"{listed}, ran {ran()}",
    )


@check("call-ends")
def call_ends(lab, say):
    """a call ends before its command does"""
    caller, provider = lab.mesh("caller", "provider")
    server = provider.serve("wait", "read -r length; sleep $length; echo waited", "--jobs", "1")
    program = caller.program()
    program.providers("wait", 1)
    length = "10.0625"  # no other process has this argument

    def gone():
        began = now()
        until("the command has ended", 5, lambda: not running(length), pace=0.005)
        return now() - began

    began = now()
    call = caller.start("call", "wait", length, "--timeout", "1s")
    until("the command runs", 0.9, lambda: running(length))
    code, ended = call.wait(5)
    took = gone()
    lines = call.log().splitlines()
    say.holds(
        code == 4 and not call.out and 1 <= ended - began <= 1.3 and lines[-1].startswith("hint: "),
        "a call with 1 s for a service that takes 10 s: exit code 4 in time",
        f"{secs(ended - began)}; {lines[0]}",
        f"{code} {call.out} {lines}",
    )
    say.holds(took <= 1, "within 1 s the command is gone from the provider's host", ms(took))
    code, out, err = caller.meshd("call", "wait", "0", "--timeout", "1s")
    say.holds(
        code == 0 and out == "waited\n",
        "the provider, which does one at a time, is free",
        secs(now() - ended),
        f"{code} {err}",
    )

    call = caller.start("call", "wait", length)
    until("the command runs", 5, lambda: running(length))
    call.kill()
    took = gone()
    say.holds(took <= 1, "kill -9 of who called: the command is gone within 1 s", ms(took))

    call = caller.start("call", "wait", length, "--json")
    until("the command runs", 5, lambda: running(length))
    killed = server.kill()
    code, at = call.wait(5)
    took = gone()
    kinds = [line["kind"] for _, line in call.objects()]
    say.holds(
        code == 1 and kinds == ["disconnected"] and at - killed <= 1,
        "kill -9 of `meshd serve`: who called is told `disconnected` within 1 s, exit code 1",
        ms(at - killed),
        f"{code} {kinds} {call.log()}",
    )
    say.holds(took <= 1, "and the command that ran is gone", ms(took))


def running(argument):
    """Processes with this argument."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if words[0].endswith(b"sleep") and argument.encode() in words:
            found.append(process.parent.name)
    return found


@check("provider-lost")
def provider_lost(lab, say):
    """one of two providers is lost under 64 callers"""
    caller, stays, lost = hosts = lab.mesh("caller", "stays", "lost")
    program = caller.program("callers")

    def serve(host):
        # Notes each call that it begins.
        return host.serve("work", f"read -r n; echo $n >>{host.home}/begun; sleep 0.2; echo $n", "--jobs", "64")

    serve(stays)
    server = serve(lost)

    def kill_server():
        return server.kill()

    def kill_daemon():
        return lost.daemon.kill()

    # What is lost, how, within what time that is known, and how long to look.
    rounds = [
        ("kill -9 of a provider's `meshd serve`", kill_server, 1.0, 2.5),
        ("the cable of a provider pulled", lost.cable.pull, 3.0, 4.5),
        ("kill -9 of a provider's daemon", kill_daemon, 1.0, 2.5),
    ]
    for number, (what, lose, known, length) in enumerate(rounds):
        program.providers("work", 2)
        for host in (stays, lost):
            (host.home / "begun").write_text("")
        callers = Callers(program, "work", 64)
        lasts(1)
        at = lose()
        lasts(length)
        callers.stop()
        losses(say, what, callers, at, known, [begun(host) for host in (stays, lost)])
        if number == 0:
            server = serve(lost)
        elif number == 1:
            lost.cable.plug()
            lab.meet(hosts)
    code, out, err = stays.meshd("call", "work", "0\n")
    say.holds(
        code == 0 and out == "0\n", "a call on the provider's own host, the first one there, is answered", evidence=err
    )


def losses(say, what, callers, at, known, begun):
    """What must hold of calls when a provider was lost at a time, and whoever calls knows it a while later."""
    stayed, lost = begun
    failed = [call for call in callers.done if call.failure]
    under_way = [call for call in callers.done if call.began < at < call.ended]
    last = max((call.ended - at for call in failed), default=0)
    longest = max(call.ended - call.began for call in callers.done)
    ended = max((call.ended - at for call in under_way), default=0)
    later = sum(call.began > at + known and not call.failure for call in callers.done)
    evidence = "\n".join(map(str, failed[:10]))
    figure = f"{len(callers.done)} calls, {len(failed)} failed, longest {secs(longest)}"
    say.holds(
        not callers.hang and ended <= max(2, known + 0.5) and later > 0,
        f"{what}: no call hangs, what was under way ends in {max(2, known + 0.5):g} s",
        f"{figure}; {len(under_way)} under way, the last ended after {secs(ended)}; {later} later ones done",
        evidence,
    )
    say.holds(last <= known, f"after {known:g} s no call fails", f"the last after {secs(last)}", evidence)
    says = all(call.failure["kind"] == "Failed" and "may have run" in call.failure["message"] for call in failed)
    say.holds(
        says and failed,
        "who fails is told that it was lost and may have run",
        failed[0].failure["message"] if failed else "",
        evidence,
    )
    elsewhere = [call for call in failed if call.number in stayed]
    # Those on their way there may fail as well: when it was lost, or before that was known.
    unbegun = [call for call in failed if call.number not in lost and call.began < at - 0.1]
    say.holds(
        not elsewhere and not unbegun,
        "only calls that ran there failed",
        f"{len(failed)} of {len(under_way)}",
        "\n".join(map(str, elsewhere + unbegun)),
    )
    say.holds(
        not any(call.idempotent for call in failed),
        "calls that may run twice all succeed",
        f"{sum(call.idempotent for call in callers.done)}",
        evidence,
    )
    once = {call.number for call in callers.done if not call.idempotent}
    twice = [number for number in once if (stayed + lost).count(number) > 1]
    wrong = [call for call in callers.done if not call.failure and call.answer != call.number]
    say.holds(not twice and not wrong, "no other runs twice, and each gets its own answer", evidence=f"{twice} {wrong}")


def begun(host):
    """The numbers of the calls that were begun on a host."""
    return [int(line) for line in (host.home / "begun").read_text().split()]


@dataclass
class Call:
    """What became of a call."""

    number: int
    idempotent: bool
    began: float
    ended: float
    answer: int | None = None
    failure: dict | None = None


class Callers:
    """Many who call a service again and again. Every second one's calls may run twice."""

    def __init__(self, program, service, count):
        self.program, self.service = program, service
        self.lock, self.last, self.done, self.ended = threading.Lock(), 0, [], threading.Event()
        self.threads = [threading.Thread(target=self.run, args=[n % 2 == 0], daemon=True) for n in range(count)]
        self.hang = 0
        for thread in self.threads:
            thread.start()

    def run(self, idempotent):
        while not self.ended.is_set():
            with self.lock:
                self.last += 1
                number = self.last
            call = Call(number, idempotent, now(), 0)
            try:
                answer = self.program.call(self.service, b"%d\n" % number, idempotent=idempotent)
                call.answer = int(answer["payload"])
            except Refusal as refusal:
                call.failure = refusal.failure
            call.ended = now()
            self.done.append(call)

    def stop(self):
        """Ends it, when all calls have ended."""
        self.ended.set()
        deadline = now() + 11  # the time that calls have
        for thread in self.threads:
            thread.join(max(0, deadline - now()))
        self.hang = sum(thread.is_alive() for thread in self.threads)


@check("slow-reader")
def slow_reader(lab, say):
    """replies of a stream are read much slower than they could come"""
    reader, writer = hosts = lab.mesh("reader", "writer")
    floods = [Flood(writer.program(service), service) for service in ("numbers", "lines")]
    slow = reader.program("slow", room=1)
    slow.providers("numbers", 1)
    slow.ask({"Open": {"service": "numbers"}})
    lines = reader.start("call", "lines", "--stream", "--json", slowly=0.005)
    last, wrong = 0, []

    def read(length):
        nonlocal last
        began = now()
        while now() - began < length:
            _, item = slow.next(5)
            number = int(item["payload"])
            wrong.extend([] if number == last + 1 else [(last, number)])
            last = number
            lasts(0.001)

    read(2)  # until all that can wait does
    length = 30 if lab.long else 4
    memory, begun = [], last
    for _ in range(length):
        read(1)
        memory.append([resident(host) for host in hosts])
    printed = numbers(lines)
    for what, got, ahead in (("a program", last, floods[0]), ("a pipe behind `meshd call`", len(printed), floods[1])):
        say.holds(
            got > length * 50 and not wrong and printed == list(range(1, len(printed) + 1)),
            f"{what} that reads a stream slowly gets all in order, {length} s long",
            f"{got}, and {ahead.sent - got} wait",
            f"{wrong[:10]} {printed[:10]}",
        )
    spread = max(max(one) - min(one) for one in zip(*memory))
    say.holds(
        spread <= 4 << 10,
        "the memory of both daemons stays as it is",
        f"within {spread / 1024:.1f} MiB, most {max(map(max, memory)) / 1024:.1f} MiB",
        memory,
    )
    left = now()
    slow.close()
    lines.kill()
    told = max(flood.ended_at(5) for flood in floods) - left
    say.holds(told <= 1, "the writers are told when the readers have gone", ms(told))


class Flood:
    """A service whose first caller gets numbers, as many as it takes."""

    WINDOW = 256

    def __init__(self, program, service):
        self.program, self.sent, self.ended = program, 0, Future()
        program.ask({"Serve": {"service": service, "channels": True}})
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while came := self.program.next():
            kind, said = came
            if kind == "Incoming":
                threading.Thread(target=self.write, args=[said["channel"]], daemon=True).start()
            if kind == "Closed":
                break
        self.ended.set_result(now())

    def write(self, channel):
        under_way = deque()
        try:
            while not self.ended.done():
                item = {"channel": channel, "codec": "Text", "payload": b"%d" % (self.sent + 1)}
                under_way.append(self.program.begin({"Item": item}))
                self.sent += 1
                if len(under_way) >= self.WINDOW:
                    under_way.popleft().result()
        except (Refusal, Gone):
            pass  # the channel is over

    def ended_at(self, seconds):
        """When it was told that the stream is over."""
        return self.ended.result(seconds)
