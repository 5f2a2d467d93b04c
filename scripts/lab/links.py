"""What links carry: between two daemons of one host, a message as large as can be, and one message for many."""

import random
import subprocess
import sys
import threading
from pathlib import Path

from checks import Failed, check, lasts, ms, now, secs, until
from hosts import Process

MIB = 1 << 20


@check("same-host")
def same_host(lab, say):
    """daemons of one host are linked by Unix sockets if they share a runtime directory and are not told otherwise"""
    one = lab.host("pair", lab.switch())
    two = one.twin("pair-two")
    apart = one.twin("pair-apart")
    apart.runtime = lab.directory("pair-apart-run")
    lab.share_key([one, two, apart])
    one.run("--no-mdns", local=True)
    two.run("--no-mdns", local=True)
    took = linked_by(one, two, "unix")
    say.holds(True, "two daemons on one host: `meshd peers` says `unix` on both", secs(took))
    works(say, one, two, "unix")

    two.daemon.kill()
    two.run("--no-mdns", local=True)
    took = linked_by(one, two, "unix")
    say.holds(True, "kill -9 of one and its restart: `unix` again on both", f"{secs(took)} after it was ready")
    until(lambda: f"two sockets for two daemons, not {sockets(one)}", 5, lambda: len(sockets(one)) == 2)
    say.holds(True, "and the socket of the killed one is gone", "2 sockets for 2 daemons")
    works(say, one, two, "unix, after kill -9 and restart")

    two.stop()
    at = f"127.0.0.1:{one.port()}"
    for other, local, what in (
        (two, False, "with `--no-local` and a bootstrap address on one of them"),
        (apart, True, "with two runtime directories, as in two containers, and a bootstrap address"),
    ):
        other.run("--no-mdns", "--bootstrap", at, local=local)
        took = linked_by(one, other, "tcp")
        # A move to a Unix socket would come right after the greeting.
        lasts(1)
        links = [link(one), link(other)]
        say.holds(links == [["tcp"]] * 2, f"{what}: both say `tcp`, and still do 1 s later", secs(took), links)
        works(say, one, other, "tcp")
        other.stop()

    two.run("--no-mdns", local=True)
    linked_by(one, two, "unix")
    two.daemon.kill()
    one.stop()
    stale = len(sockets(one))
    one.run("--no-mdns", local=True)
    until(lambda: f"one socket for one daemon, not {sockets(one)}", 5, lambda: len(sockets(one)) == 1)
    say.holds(stale == 1, "the socket of one that was killed and never came back goes with the next start of another")
    one.stop()
    left = sockets(one) + sockets(apart)
    say.holds(not left, "in the end, when all have stopped, no socket is left in <runtime>/links", evidence=left)


def link(host):
    return [peer["link"] for peer in host.ask("peers")]


def linked_by(one, other, kind, seconds=10):
    """Waits until each lists one peer with such a link; how long that took from when it is asked for."""
    began = now()
    for host in (one, other):
        until(
            lambda host=host: f"{host.name} has one {kind} link, but {link(host)}",
            seconds,
            lambda host=host: link(host) == [kind],
        )
    return now() - began


def sockets(host):
    return sorted(path.name for path in (host.runtime / "links").glob("*"))


def works(say, one, two, kind):
    """Messages, an acknowledged one and a call pass both ways."""
    count, took, wrong = 200, [], []
    for number, (sender, receiver) in enumerate(((one, two), (two, one))):
        topic = f"works/{number}"
        listener = receiver.listen(topic)
        sender.heard(topic, 1)
        program = sender.program()
        for message in range(count):
            program.ask({"Send": {"topic": topic, "codec": "Text", "payload": b"%d" % message}})
        program.close()
        listener.wait_message(str(count - 1))
        got = [int(message["data"]) for _, message in listener.objects()]
        if got != list(range(count)):
            wrong.append(f"{sender.name}: of {count} messages came {got}")
        code, out, err = sender.meshd("send", topic, "handled", "--acked")
        if code != 0:
            wrong.append(f"{sender.name}: acknowledged: {code} {out} {err}")
        listener.wait_message("handled")
        server = receiver.serve(f"echo{number}", "cat")
        until("the service is seen", 5, lambda: any(s["service"] == f"echo{number}" for s in sender.ask("services")))
        began = now()
        code, out, err = sender.meshd("call", f"echo{number}", "hello")
        took.append(now() - began)
        if code != 0 or out.strip() != "hello":
            wrong.append(f"{sender.name}: call: {code} {out} {err}")
        for process in (listener, server):
            process.terminate()
            process.wait(5)
    say.holds(
        not wrong,
        f"{kind}: {count} messages in order, an acknowledged one and a call, both ways",
        f"`meshd call` {', '.join(map(ms, took))}",
        "\n".join(wrong),
    )


class Meter:
    """Bytes that an interface has sent and taken."""

    def __init__(self, space, device="eth0"):
        self.space, self.device = space, device

    def read(self):
        """Bytes taken, packets taken, bytes sent, packets sent."""
        with self.space.inside():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        words = next(line.split(":")[1].split() for line in lines if line.strip().startswith(f"{self.device}:"))
        return [int(words[at]) for at in (0, 1, 8, 9)]


class Crossing:
    """When so many bytes crossed to a host, from the first percent to the last, and its daemon's memory till then."""

    def __init__(self, host, size):
        self.host, self.meter, self.size = host, Meter(host.space), size
        self.began, self.ended, self.peak, self.closing = None, None, None, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        first = self.meter.read()[0]
        while not self.closing.wait(0.01):
            taken = self.meter.read()[0] - first
            if self.began is None and taken > self.size / 100:
                self.began = now()
            if taken < self.size:
                self.peak = memory(self.host.daemon, "VmHWM")
            else:
                self.ended = now()
                return

    def stop(self):
        self.closing.set()
        self.thread.join()
        if self.ended is None:
            raise Failed(f"{self.size} bytes never crossed the link to {self.host.name}")


def memory(daemon, key):
    """KiB of memory that a process has (`VmRSS`), or had at most since `forget` (`VmHWM`)."""
    status = Path(f"/proc/{daemon.popen.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))


def forget(daemon):
    Path(f"/proc/{daemon.popen.pid}/clear_refs").write_text("5")


def percentile(numbers, share):
    return sorted(numbers)[min(len(numbers) - 1, int(len(numbers) * share))] if numbers else float("nan")


def lateness(numbers):
    figures = ((what, percentile(numbers, share)) for what, share in (("p50", 0.5), ("p99", 0.99), ("most", 1)))
    return f"{', '.join(f'{what} {late * 1000:.2f} ms' for what, late in figures)}; {len(numbers)} of them"


def large_file(path, size):
    """A file no two MiB of which are the same."""
    block = random.Random(1).randbytes(MIB)
    with path.open("wb") as file:
        for number in range(0, size, MIB):
            file.write((b"%016d" % number + block[16:])[: size - number])


@check("large")
def large(lab, say):
    """small messages hardly wait for a very large one, which takes no more memory than it must"""
    size = (1024 if lab.long else 64 if lab.quick else 256) * MIB
    sender, receiver = hosts = lab.lan("alder", "birch")
    for host in hosts:
        (host.home / "default/config.toml").write_text(f'[limits]\nmessage_bytes = "{size // MIB} MiB"\n')
        host.run()
    lab.meet(hosts)
    path = lab.dir / "large"
    large_file(path, size)

    def pacer(host, *words):
        program = Path(__file__).with_name("pacer.py")
        words = [sys.executable, "-B", str(program), words[0], str(host.socket()), *words[1:]]
        return lab.with_process(Process(host.space, words, host.environment()))

    small = pacer(receiver, "listen", "small")
    small.wait_line(5, lambda line: line == "listening")
    # Whoever prints it is no part of what is measured: it is compared, not kept.
    command = 'exec 3<"$1"; shift; "$@" | cmp - /dev/fd/3 && echo same'
    words = ["sh", "-c", command, "sh", str(path), *receiver.arguments(["listen", "big", "--raw", "--count", "1"])]
    big = lab.with_process(Process(receiver.space, words, receiver.environment()))
    sender.heard("small", 1)
    sender.heard("big", 1)
    paced = pacer(sender, "send", "small", "1000")
    until("small messages come", 5, lambda: len(small.out) > 200)
    lasts(2)
    for host in hosts:
        forget(host.daemon)
    before = [memory(host.daemon, "VmRSS") for host in hosts]
    crossing = Crossing(receiver, size)
    began = now()
    # The shell hands the file over: this process would keep all of it.
    words = ["sh", "-c", 'f="$1"; shift; exec "$@" <"$f"', "sh", str(path)]
    words += sender.arguments(["send", "big", "-", "--acked", "--timeout", "60s"])
    send = lab.with_process(Process(sender.space, words, sender.environment()))
    code, _ = send.wait(90)
    if code != 0:
        raise Failed(f"`meshd send big -` of {size // MIB} MiB ended with {code}: {send.log()}")
    came, _ = big.wait_line(60, lambda line: line == "same")
    crossing.stop()
    lasts(0.5)
    peak = [memory(host.daemon, "VmHWM") for host in hosts]
    lasts(1)
    after = [memory(host.daemon, "VmRSS") for host in hosts]
    paced.kill()

    lines = [tuple(map(int, line.split())) for _, line in small.out if line[:1].isdigit()]
    lost = lines[-1][0] - lines[0][0] + 1 - len(lines)
    times = [(due / 1e9, (at - due) / 1e9) for _, due, at in lines]

    def late(since, till):
        return [late for due, late in times if since <= due <= till]

    idle, during = late(began - 1.5, began), late(crossing.began, crossing.ended)
    phases = {
        "nothing else goes": idle,
        "a program hands it to its daemon": late(began, crossing.began),
        "it crosses the link": during,
        "a daemon hands it to its program": late(crossing.ended, came),
    }
    for phase, numbers in phases.items():
        print(f"     small messages while {phase}: {lateness(numbers)}")
    took = crossing.ended - crossing.began
    say.holds(
        True,
        f"a message of {size // MIB} MiB from a file on one host to a program on another, whole",
        f"{secs(came - began)}, {secs(took)} of them on the link: {size / MIB / took:.0f} MiB/s",
    )
    # In line behind the large one, they would be late by most of the time that it takes.
    say.holds(
        percentile(during, 0.99) < 0.1,
        "small ones, 1000 a second: 99 of 100 are less than 100 ms late while it crosses the link",
        lateness(during),
    )
    whole = late(began, came)
    say.holds(
        percentile(whole, 0.99) < 0.1,
        "and so they are while programs hand it to their daemons, and get it from them",
        lateness(whole),
    )
    say.holds(lost == 0, "none of them is lost", f"{len(lines)} came", f"{lost} lost")
    extra = [(most - had) / 1024 for most, had in zip(peak, before)]
    crossing_extra = crossing.peak / 1024 - before[1] / 1024
    mib = size // MIB
    say.holds(
        crossing_extra < mib + 64,
        f"the receiving daemon needs less than {mib} + 64 MiB while it comes",
        f"{crossing_extra:.0f} MiB over {before[1] / 1024:.0f} MiB",
    )
    say.holds(
        max(extra) < 2 * mib + 64,
        f"and both less than {2 * mib} + 64 MiB in all: the block for a program's socket is a copy",
        f"{extra[1]:.0f} MiB, the sending one {extra[0]:.0f} MiB; {max(after) / 1024:.0f} MiB each or less after",
    )


@check("fan-out")
def fan_out(lab, say):
    """one message for many nodes of a peer crosses the link to it once"""
    count, size, each = (2_000 if lab.quick else 10_000), 1024, 8
    source, *hosts = lab.mesh("source", "alder", "birch", "cedar", "dogwood")
    listeners = []
    for host in hosts:
        for number in range(each):
            # Whoever counts 32 times all of it is no part of what is measured.
            words = ["sh", "-c", '"$@" | cksum', "sh"]
            words += host.arguments(["listen", "news", "--name", f"{host.name}-{number}", "--raw", "--count", count])
            listeners.append(lab.with_process(Process(host.space, list(map(str, words)), host.environment())))
    source.heard("news", len(listeners), seconds=20)
    payloads = [(b"%08d " % number).ljust(size, b"x") for number in range(count)]
    expected = cksum(b"".join(payloads))
    program = source.program()
    meters = [Meter(host.space) for host in (source, *hosts)]
    before = [meter.read() for meter in meters]
    began = now()
    reports = windowed(program, "news", payloads)
    took = now() - began
    # The last acknowledgements of packets too.
    lasts(0.2)
    moved = [[b - a for a, b in zip(old, meter.read())] for old, meter in zip(before, meters)]
    for listener in listeners:
        listener.wait(20)
    got = [listener.out[0][1] if listener.out else "nothing" for listener in listeners]
    payload = count * size
    complete = [r for r in reports if r["matched"] == r["acknowledged"] == len(listeners)]
    say.holds(
        len(complete) == count,
        f"{count} messages for {len(listeners)} nodes of 4 peers: each is acknowledged by all",
        f"{secs(took)}, {count / took:.0f}/s, {count * len(listeners) / took:.0f} deliveries/s",
        [r for r in reports if r not in complete][:5],
    )
    say.holds(
        all(line == expected for line in got),
        "each node got all, in order, byte for byte",
        f"{len(got)} nodes",
        f"wanted {expected}, got {sorted(set(got))}",
    )
    sent, packets = moved[0][2:]
    links = [taken / payload for taken, *_ in moved[1:]]
    say.holds(
        4 <= sent / payload < 5,
        "the sender's interface carried each 4 times, once for each link, not 32 times",
        f"{sent / MIB:.1f} MiB for {payload / MIB:.1f} MiB, {sent / payload:.2f} times, in {packets} packets; "
        f"back came {moved[0][0] / MIB:.1f} MiB",
    )
    say.holds(
        all(1 <= times < 1.25 for times in links),
        "and each link carried each once",
        ", ".join(f"{times:.2f}" for times in links),
    )


def cksum(data):
    """What cksum(1) prints."""
    return subprocess.run(["cksum"], input=data, capture_output=True).stdout.decode().strip()


def windowed(program, topic, payloads, window=256):
    """Sends messages that are acknowledged, no more of them under way than a subscription keeps; their reports."""
    room = threading.Semaphore(window)
    answers = []
    for payload in payloads:
        room.acquire()
        answer = program.begin({"Send": {"topic": topic, "payload": payload, "acked": True, "timeout_ms": 30_000}})
        answer.add_done_callback(lambda _: room.release())
        answers.append(answer)
    return [answer.result(30)["Sent"] for answer in answers]
