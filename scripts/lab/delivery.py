"""Messages that are acknowledged, go to another worker, or are kept for who comes later."""

import random
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from checks import check, lasts, now, secs, until
from hosts import Process, numbers


def worker(host, name, topic, takes):
    """Starts a process that handles messages, each in so many milliseconds."""
    program = Path(__file__).with_name("worker.py")
    words = [sys.executable, "-B", str(program), str(host.socket()), name, topic, str(takes)]
    process = host.lab.with_process(Process(host.space, words, host.environment()))
    process.wait_line(5, lambda line: line == "listening")
    return process


def handled(process):
    """The messages that a worker handled, in order."""
    with process.changed:
        return [int(line) for _, line in process.out if line.isdigit()]


def send(program, topic, number, **options):
    """Sends a message that is to be acknowledged; its report is in the future that it gives."""
    options = {"acked": True, "timeout_ms": 60_000, **options}
    return program.begin({"Send": {"topic": topic, "codec": "Text", "payload": b"%d" % number, **options}})


@check("redelivery")
def redelivery(lab, say):
    """messages that are acknowledged are all handled, through cut cables and killed workers"""
    count, length = (10_000, 60) if lab.long else (2_000, 8)
    seed = lab.seed if lab.seed is not None else random.SystemRandom().randrange(1 << 32)
    boss, *hosts = everyone = lab.mesh("boss", "one", "two")
    program = boss.program("boss")
    # Two are a little faster than the messages come, one alone is not.
    crews = [Crew(host, round(length / count * 1500)) for host in hosts]
    program.listeners("jobs", 2)
    sender = Sender(program, count, length, redeliver=True)
    chaos = Chaos(lab, random.Random(seed), everyone, crews)
    deadline = now() + length
    while now() < deadline:
        chaos.strike()
    struck = now()
    sender.wait(30)
    settled = now() - struck

    done = [handled(process) for crew in crews for process in crew.processes]
    reports = sender.reports
    acknowledged = {number for number, report in reports.items() if report["acknowledged"] == 1}
    anywhere = {number for one in done for number in one}
    by_two = sum(len(one) for one in map(set, done)) - len(anywhere)
    again = sum(report["redelivered"] for report in reports.values())
    figure = (
        f"seed {seed}: {chaos.kills} workers and {chaos.crashes} daemons killed, {chaos.cuts} cuts; "
        f"{again} redelivered, {sender.unheard} sent while nobody listened and again, the last {secs(settled)} after"
    )
    missing = sorted(set(range(1, count + 1)) - acknowledged)
    evidence = "\n".join(f"{number}: {reports.get(number)}" for number in missing[:20])
    say.holds(
        not missing,
        f"{count} messages in {length} s of killed workers and cut cables: all are acknowledged",
        f"{len(acknowledged)}; {figure}",
        f"seed {seed}\n{evidence}",
    )
    say.holds(
        acknowledged <= anywhere,
        "each that is acknowledged was handled",
        f"{len(anywhere)} handled, {by_two} of them by two processes",
        f"seed {seed}, not handled: {sorted(acknowledged - anywhere)[:20]}",
    )
    twice = [sorted(number for number in set(one) if one.count(number) > 1) for one in done if len(one) > len(set(one))]
    say.holds(
        not twice, "no process handled one twice", f"{len(done)} processes", f"seed {seed}, twice: {str(twice)[:500]}"
    )
    say.holds(chaos.kills and chaos.cuts, "(workers were killed and cables cut)", "", figure)


class Crew:
    """A worker on a host, and those before it that were killed."""

    def __init__(self, host, takes):
        self.host, self.takes, self.processes = host, takes, []
        self.start()

    def start(self):
        self.processes.append(worker(self.host, "crew", "jobs", self.takes))

    def kill(self):
        self.processes[-1].kill()


class Chaos:
    """Does one bad thing after the other. The same seed does the same."""

    def __init__(self, lab, dice, hosts, crews):
        self.lab, self.dice, self.hosts, self.crews = lab, dice, hosts, crews
        self.kills, self.crashes, self.cuts = 0, 0, 0
        self.deeds = []

    def strike(self):
        # Mixed like cards, so that there is some of each.
        if not self.deeds:
            self.deeds = [self.cut] * 3 + [self.kill] * 3 + [self.crash]
            self.dice.shuffle(self.deeds)
        self.deeds.pop()()
        lasts(self.dice.uniform(0.1, 0.5))

    def cut(self):
        # A link that is down for longer than `times.resume` is another story: messages may then come twice.
        self.lab.meet(self.hosts)
        host = self.dice.choice(self.hosts)
        length = self.dice.uniform(0.3, 2)
        self.cuts += 1
        if self.dice.random() < 0.5:
            host.cable.pull()
            lasts(length)
            host.cable.plug()
        else:
            host.space.ip("link set eth0 down")
            lasts(length)
            host.space.ip("link set eth0 up")

    def kill(self):
        crew = self.dice.choice(self.crews)
        length = self.dice.uniform(0, 0.5)
        self.kills += 1
        crew.kill()
        lasts(length)
        crew.start()

    def crash(self):
        crew = self.dice.choice(self.crews)
        self.crashes += 1
        crew.host.daemon.kill()
        crew.processes[-1].wait(5)
        crew.host.run()
        crew.start()


class Sender:
    """Sends numbers at a steady pace, whatever becomes of those before, and keeps what is reported of each."""

    def __init__(self, program, count, length, **options):
        self.program, self.count, self.pace, self.options = program, count, length / count, options
        self.reports, self.unheard, self.open = {}, 0, threading.Semaphore(1000)
        self.lock, self.finished = threading.Condition(), False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        due = now()
        for number in range(1, self.count + 1):
            due += self.pace
            time.sleep(max(0, due - now()))
            self.open.acquire()
            self.send(number)

    def send(self, number):
        send(self.program, "jobs", number, **self.options).add_done_callback(lambda answer: self.took(number, answer))

    def took(self, number, answer: Future):
        report = answer.result()["Sent"] if not answer.exception() else {"acknowledged": 0, "why": answer.exception()}
        if report.get("matched") == 0:
            # Nobody listened when it was sent, and it says so: that is for the sender to try again.
            self.unheard += 1
            threading.Timer(0.1, self.send, [number]).start()
            return
        self.open.release()
        with self.lock:
            self.reports[number] = {"redelivered": 0, **report}
            self.lock.notify_all()

    def wait(self, seconds):
        """Waits until there is a report of all, or time is up."""
        with self.lock:
            self.lock.wait_for(lambda: len(self.reports) == self.count, seconds)


@check("acknowledged")
def acknowledged(lab, say):
    """acknowledged messages come once and in order, through cut cables"""
    boss, one = hosts = lab.mesh("boss", "one")
    taker = worker(one, "taker", "jobs", 0)
    program = boss.program("boss")
    program.listeners("jobs", 1)
    count, length = 2000, 8
    sender = Sender(program, count, length)
    for host, out in ((one, 0.5), (boss, 2), (one, 1.5)):
        lab.meet(hosts)
        host.cable.pull()
        lasts(out)
        host.cable.plug()
        lasts(0.5)
    sender.wait(30)
    taken = sum(report["acknowledged"] for report in sender.reports.values())
    got = handled(taker)
    swapped = [pair for pair in zip(got, got[1:]) if pair[0] >= pair[1]]
    say.holds(
        taken == count and got == list(range(1, count + 1)),
        f"{count} acknowledged messages through three cuts of up to 2 s: each comes once, in order",
        f"{taken} acknowledged",
        f"{len(got)} came, swapped or twice: {swapped[:10]}, sent again: {sender.unheard}",
    )


@check("leaving")
def leaving(lab, say):
    """a worker that is told to end has 100 messages waiting"""
    boss, *hosts = lab.mesh("boss", "one", "two")
    program = boss.program("boss")
    for what, end in (("worker", lambda worker: worker), ("worker's daemon", lambda _: hosts[0].daemon)):
        workers = [worker(host, "crew", "jobs", 20) for host in hosts]
        program.listeners("jobs", 2)
        answers = [send(program, "jobs", number, redeliver=True) for number in range(200)]
        until("the first handles some", 5, lambda: len(handled(workers[0])) >= 5)
        leaver = end(workers[0])
        asked = leaver.terminate()
        had = len(handled(workers[0]))
        code, at = leaver.wait(10)
        reports = [answer.result(30)["Sent"] for answer in answers]
        workers[0].wait(5)
        acknowledged = sum(report["acknowledged"] for report in reports)
        again = sum(report["redelivered"] for report in reports)
        done = [handled(process) for process in workers]
        everything = sorted(done[0] + done[1])
        figure = f"{len(done[0])} by it, {had} of them before; {len(done[1])} by the other, {again} redelivered"
        say.holds(
            code == 0 and at - asked <= 5,
            f"SIGTERM to a {what} with 100 messages waiting: it exits within 5 s",
            secs(at - asked),
            f"exit code {code}\n{leaver.tail()}",
        )
        say.holds(
            acknowledged == 200 and set(everything) == set(range(200)),
            "all are handled and acknowledged, none is lost",
            figure,
            f"{acknowledged} acknowledged; {[report for report in reports if report['acknowledged'] != 1][:5]}",
        )
        say.holds(everything == list(range(200)), "none is handled twice", evidence=everything)
        workers[1].kill()
        until("no worker is left", 5, lambda: not any(entry["topic"] == "jobs" for entry in boss.ask("topics")))


@check("retained")
def retained(lab, say):
    """the last value comes first, and once, to who listens later"""
    alder, birch = hosts = lab.mesh("alder", "birch")
    program = alder.program("sensor")

    def tell(topic, number):
        send(program, topic, number, acked=False, retain=True).result(5)

    for topic in ("same", "newer"):
        tell(topic, 1)
        tell(topic, 2)
    early = {topic: birch.listen(topic) for topic in ("same", "newer")}
    for listener in early.values():
        listener.wait_message("2")
    tell("same", 3)
    early["same"].wait_message("3")
    say.holds(
        numbers(early["same"]) == [2, 3],
        "who listens later on another host gets the last value first, and once",
        evidence=numbers(early["same"]),
    )

    # Values come all the time while somebody begins to listen.
    values = iter(range(1, 100_000))
    ended = threading.Event()

    def flow():
        while not ended.wait(0.002):
            tell("flow", next(values))

    flowing = threading.Thread(target=flow, daemon=True)
    flowing.start()
    joined = []
    for _ in range(10):
        listener = birch.listen("flow")
        listener.wait_json(5, lambda _: True)
        until("50 values", 10, lambda listener=listener: len(listener.out) >= 50)
        joined.append(numbers(listener))
        listener.kill()
    ended.set()
    flowing.join(5)
    gaps = [one[:5] for one in joined if one != list(range(one[0], one[0] + len(one)))]
    say.holds(
        not gaps, "in the middle of a stream too: no older value after a newer one, none twice", "10 listeners", gaps
    )

    birch.cable.pull()
    pulled = now()
    alder.sees([])
    tell("newer", 3)
    late = {topic: birch.listen(topic) for topic in ("same", "newer")}
    lasts(5 - (now() - pulled))
    birch.cable.plug()
    lab.meet(hosts)
    for topic, listener in late.items():
        listener.wait_message("3")
    early["newer"].wait_message("3")
    for topic in ("same", "newer"):
        tell(topic, 4)
    got = {}
    for when, listeners in (("early", early), ("late", late)):
        for topic, listener in listeners.items():
            listener.wait_message("4")
            got[when, topic] = numbers(listener)
    wanted = {"early": [2, 3, 4], "late": [3, 4]}
    say.holds(
        all(values == wanted[when] for (when, _), values in got.items()),
        "the cable out for 5 s: each gets the last value once, whether it came meanwhile or before",
        ", ".join(f"{when} {topic} {values}" for (when, topic), values in got.items()),
        f"wanted {wanted}",
    )
