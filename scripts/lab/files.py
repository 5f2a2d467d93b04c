"""What moves files: how fast, in how much memory, and through cut cables and kills."""

import filecmp
import json
import os
import random
import shutil
import statistics
import subprocess

from checks import Failed, check, now, secs
from hosts import Process
from links import MIB, Meter, forget, large_file, memory

# How often a rate is taken.
ROUNDS = 7
SHARES = """\
[[share]]
name = "{name}"
path = "{path}"
mode = "both"
"""


def pair(lab, share=None):
    """Two hosts at one switch, the second of which shares a directory; both, and that directory."""
    near, far = lab.lan("alder", "birch")
    share = share or lab.directory("share")
    (far.home / "default/config.toml").write_text(SHARES.format(name="data", path=share))
    for host in (near, far):
        host.run()
    lab.meet([near, far])
    return near, far, share


def size_of(lab):
    return (128 if lab.quick else 1024) * MIB


class Job:
    """A verb that moves files, and what it says of it."""

    def __init__(self, host, *words):
        self.host = host
        self.began = now()
        self.process = host.start(*words, "--json")

    def event(self, seconds, kind, test=lambda event: True):
        return self.process.wait_json(seconds, lambda event: event["event"] == kind and test(event))

    def midway(self, size, share=0.5):
        """Waits until so much of it has come, and gives how many bytes."""
        _, event = self.event(120, "progress", lambda event: event["bytes"] >= share * size)
        if event["bytes"] >= size:
            raise Failed(f"it was done before it could be seen midway: {event}")
        return event["bytes"]

    def end(self, seconds=180):
        """Waits for its end, which is to be good: how long it took, and the last event."""
        code, ended = self.process.wait(seconds)
        if code != 0:
            raise Failed(f"`{self.process.command()}` ended with {code}: {self.process.tail()}")
        events = [event for _, event in self.process.objects()]
        if not events or events[-1]["event"] != "finished":
            raise Failed(f"`{self.process.command()}` did not say that it is done: {events[-1:]}")
        return ended - self.began, events[-1]


def same(one, other):
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def left_over(directory, *expected):
    """What is in a directory besides what is expected."""
    return sorted(set(os.listdir(directory)) - set(expected))


def rate(size, seconds):
    return f"{size / MIB / seconds:.0f} MiB/s"


@check("files-large")
def files_large(lab, say):
    """a large file goes nearly as fast as messages do, in memory that does not depend on its size"""
    # In memory: it is the way of the bytes that is measured, and a disk that is behind with its writes would set the pace.
    place, room = lab.directory_in_memory("memory", 4 * size_of(lab), 256 * MIB)
    share, here, size = place / "share", place / "here", room // 4 // MIB * MIB
    share.mkdir(), here.mkdir()
    near, far, _ = pair(lab, share)
    source = share / "film"
    large_file(source, size)

    def stream():
        """MiB/s of 1 MiB messages, from one process to another over an encrypted link, without any program's socket."""
        code, out, err = near.meshd(
            "bench", "--only", "topic", "--size", "1MiB", "--transport", "tcp", "--time", "3s", "--json", seconds=60
        )
        if code != 0:
            raise Failed(f"`meshd bench` ended with {code}: {err}")
        lines = [json.loads(line) for line in out.splitlines()]
        return next(line["mb_per_s"] for line in lines if line.get("bench") == "topic") * 1e6 / MIB

    def piped():
        """MiB/s of 1 MiB messages from a program on one host to a program on the other."""
        count = size // MIB
        block = lab.dir / "block"
        block.write_bytes(random.Random(2).randbytes(MIB))
        listener = far.program("reader")
        listener.ask({"Listen": {"filter": "stream", "overflow": "Block"}})
        near.heard("stream", 1)
        began = now()
        words = ["sh", "-c", 'f="$1"; shift; exec "$@" <"$f"', "sh", str(block)]
        words += near.arguments(["send", "stream", "-", "--repeat", count, "--timeout", "60s", "--acked"])
        send = lab.with_process(Process(near.space, words, near.environment()))
        for _ in range(count):
            while listener.next()[0] != "Message":
                pass
        took = now() - began
        send.kill()
        listener.close()
        return size / MIB / took

    # As each was before: what it takes at the start does not count as growth.
    Job(near, "get", "birch:data/film", str(here / "first")).end()
    (here / "first").unlink()
    # In turns, and the best of each: what else the machine does makes each slower now and then, and none faster.
    streams, pipes, moved = [], [], {"get": [], "put": []}
    extra = {"get": [], "put": []}
    for _ in range(ROUNDS):
        streams.append(stream())
        pipes.append(piped())
        for what, words, copy in (
            ("get", ("get", "birch:data/film", str(here)), here / "film"),
            ("put", ("put", str(here / "film"), "birch:data/copy"), share / "copy"),
        ):
            for host in (near, far):
                forget(host.daemon)
            before = [memory(host.daemon, "VmRSS") for host in (near, far)]
            # The first copy into memory that was long unused takes far longer than the next one, whoever makes it (a guest has to
            # get it from its host, probably): so as much is taken and given back just before.
            large_file(place / "warm", size)
            (place / "warm").unlink()
            took, finished = Job(near, *words).end()
            extra[what] += [(memory(host.daemon, "VmHWM") - had) / 1024 for host, had in zip((near, far), before)]
            moved[what].append((size / MIB / took, same(source, copy) and finished["bytes"] == size))
        left = left_over(share, "film", "copy") + left_over(here, "film")
        say.holds(not left, "nothing else is left in either directory", evidence=left)
        (share / "copy").unlink(), (here / "film").unlink()
    bar, bar_piped = max(streams), max(pipes)

    def figures(rates):
        return f"{max(rates):.0f} MiB/s, median {statistics.median(rates):.0f}"

    print(f"     a stream of 1 MiB messages, process to process: {figures(streams)}")
    print(f"     the same, program to program: {figures(pipes)}")
    for what, runs in moved.items():
        rates = [rate for rate, _ in runs]
        speed = max(rates)
        say.holds(
            all(right for _, right in runs),
            f"{what} of {size // MIB} MiB between two hosts, verified, ends right, {ROUNDS} times",
            figures(rates),
        )
        say.holds(
            speed >= 0.5 * bar and speed >= 0.8 * bar_piped,
            "at no less than half of the rate of 1 MiB messages between processes, and 0.8 of it between programs",
            f"{speed / bar:.2f}, {speed / bar_piped:.2f}",
        )
        say.holds(
            max(extra[what]) < 96,
            "in memory that does not depend on its size: less than 96 MiB more at either daemon",
            f"{max(extra[what]):.0f} MiB",
        )


@check("files-cut")
def files_cut(lab, say):
    """a transfer whose cable is cut midway goes on when it is back, from where it was"""
    near, far, share = pair(lab)
    size = size_of(lab)
    source, here = share / "film", lab.directory("here")
    large_file(source, size)
    for what, words, copy in (
        ("get", ("get", "birch:data/film", str(here)), here / "film"),
        ("put", ("put", str(here / "film"), "birch:data/copy"), share / "copy"),
    ):
        meter = Meter(near.space)
        first = meter.read()
        job = Job(near, *words)
        had = job.midway(size)
        far.cable.pull()
        job.event(15, "waiting")
        early = copy.exists()
        far.cable.plug()
        plugged = now()
        took, finished = job.end()
        back = job.began + took - plugged
        crossed = meter.read()[0 if what == "get" else 2] - first[0 if what == "get" else 2]
        say.holds(
            same(source, copy) and not early,
            f"{what} of {size // MIB} MiB, cable cut at {had * 100 // size} %: it waits, goes on by itself and ends right",
            f"{secs(back)} after the cable was back",
            finished,
        )
        say.holds(
            crossed < size + size // 4,
            "what had come did not cross again",
            f"{crossed / size:.2f} times its size crossed the link in all",
        )
    left = left_over(share, "film", "copy") + left_over(here, "film")
    say.holds(not left, "nothing else is left in either directory", evidence=left)


@check("files-kill")
def files_kill(lab, say):
    """after kill -9 of either daemon, or of the command, a transfer goes on from where it was"""
    near, far, share = pair(lab)
    size = size_of(lab)
    source, here = share / "film", lab.directory("here")
    large_file(source, size)
    get = ("get", "birch:data/film", str(here))
    put = ("put", str(source), "birch:data/copy")  # the far directory is on this machine too

    def report(what, copy, resumed, early, took):
        say.holds(
            same(source, copy) and not early,
            f"{what}: it ends right, and nothing was there before",
            f"{secs(took)} for the rest",
        )
        say.holds(
            resumed > 0, "and goes on from what had come", f"{resumed / MIB:.0f} of {size // MIB} MiB were there already"
        )
        copy.unlink()

    for what, words, copy in (("get", get, here / "film"), ("put", put, share / "copy")):
        meter = Meter(near.space)
        way = 0 if what == "get" else 2
        first = meter.read()[way]
        job = Job(near, *words)
        job.midway(size)
        far.daemon.kill()
        early = copy.exists()
        far.run()
        began = now()
        job.end()
        crossed = meter.read()[way] - first
        say.holds(
            same(source, copy) and not early and crossed < size + size // 4,
            f"{what}, kill -9 of the far daemon at 50 % and its restart: the same command goes on and ends right",
            f"{secs(now() - began)} after the restart; {crossed / size:.2f} times its size crossed the link in all",
        )
        copy.unlink()
        lab.meet([near, far])

        job = Job(near, *words)
        job.midway(size)
        near.daemon.kill()
        code, _ = job.process.wait(20)
        early = copy.exists()
        near.run()
        lab.meet([near, far])
        took, finished = Job(near, *words).end()
        say.holds(code == 6, f"{what}, kill -9 of the near daemon at 50 %: the command says that it has ended", f"{code}")
        report(f"{what}, the same command after its restart", copy, finished["resumed"], early, took)

        job = Job(near, *words)
        job.midway(size)
        job.process.kill()
        early = copy.exists()
        took, finished = Job(near, *words).end()
        report(f"{what}, kill -9 of the command at 50 %, and again", copy, finished["resumed"], early, took)
    left = left_over(share, "film") + left_over(here)
    say.holds(not left, "nothing else is left in either directory", evidence=left)


@check("files-many")
def files_many(lab, say):
    """ten thousand small files go about as fast as rsync copies them from a directory to another"""
    # In memory: ext4 passes over the inodes of files that were deleted in the last minute, and looks at all of them again for
    # each new file, which takes longer than all the rest.
    place, _ = lab.directory_in_memory("memory", 1024 * MIB, 512 * MIB)
    source, share, here = (place / name for name in ("source", "share", "here"))
    source.mkdir(), share.mkdir(), here.mkdir()
    near, _, _ = pair(lab, share)
    count = 1_000 if lab.quick else 10_000
    dice = random.Random(3)
    for number in range(count):
        directory = source / f"{number // 100:03d}"
        directory.mkdir(exist_ok=True)
        (directory / f"{number:05d}").write_bytes(dice.randbytes(1024))

    def sync(*words):
        """How long it takes, and its last event. What it says is read at its end: reading 10,000 lines one by one here would
        take longer than all it does."""
        began = now()
        code, out, err = near.meshd("sync", *words, "--json", seconds=120)
        took = now() - began
        if code != 0:
            raise Failed(f"`meshd sync` ended with {code}: {err}")
        return took, json.loads(out.splitlines()[-1])

    def alike(one, other):
        return subprocess.run(["diff", "-r", one, other], capture_output=True).returncode == 0

    local, there, back = [], [], []
    for turn in range(3):
        if shutil.which("rsync"):
            began = now()
            subprocess.run(["rsync", "-a", f"{source}/", f"{place / f'rsync{turn}'}/"], check=True)
            local.append(now() - began)
        there.append(sync(source, f"birch:data/many{turn}"))
        back.append(sync(f"birch:data/many{turn}", here / f"many{turn}"))
    if local:
        local = sorted(local)[1]
        print(f"     rsync -a of {count} files of 1 KiB from a directory to another: {secs(local)}")
    else:
        print("     left out: there is no rsync to compare with")
    for what, runs, root, words in (
        ("to another host", there, share, (source, "birch:data/many0")),
        ("from there", back, here, ("birch:data/many0", here / "many0")),
    ):
        took, finished = sorted(runs, key=lambda run: run[0])[1]
        compared = f", {took / local:.2f} times as long as rsync" if local else ""
        say.holds(
            all(alike(source, root / f"many{turn}") for turn in range(3)) and (not local or took < 1.5 * local),
            f"{count} files of 1 KiB {what}" + (": in less than 1.5 times the time of rsync" if local else ""),
            f"{secs(took)}{compared}",
            finished,
        )
        again, finished = sync(*words)
        say.holds(
            finished["files"] == 0 and finished["bytes"] == 0,
            "and again, when there is nothing to do",
            secs(again),
            finished,
        )
