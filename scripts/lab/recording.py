"""Recordings: what is in them, what a killed recorder leaves, and at what pace they are played."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

from checks import Failed, check, lasts
from hosts import resident


def record(host, file, *words):
    """Starts recording, and waits until that holds."""
    recorder = host.start("record", "--json", "-o", file, *words)
    recorder.wait_line(5, lambda line: line.startswith("recording into"), lines=recorder.err)
    return recorder


def end(process, seconds=15):
    """Ends it as Ctrl-C does; what it said."""
    process.terminate()
    code, _ = process.wait(seconds)
    if code != 0:
        raise Failed(f"`{process.command()}` ended with {code}\n{process.tail()}")
    return process.objects()[-1][1]


def read(file):
    """Times and payloads, by MCAP's own reader, or None without it."""
    python = os.environ.get("MESHD_LAB_PYTHON")
    if not python or not Path(python).exists():
        return None
    words = [python, "-B", str(Path(__file__).with_name("mcap_times.py")), str(file)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"MCAP's own reader cannot read {file}: {done.stderr}")
    lines = [line.split(" ", 4) for line in done.stdout.splitlines()]
    return [(int(line[3]), line[4]) for line in lines]


@check("record")
def recording(lab, say):
    """messages are recorded by the thousand, and come out again as they went in"""
    sender, keeper = lab.mesh("sender", "keeper")
    files = lab.directory("files")
    first, second = files / "first.mcap", files / "second.mcap"
    count = 50_000 if lab.quick else 300_000
    lines = "".join(f"{number:099}\n" for number in range(count))
    before = resident(keeper)
    recorder = record(keeper, first, "many")
    code, _, err = sender.meshd("send", "many", "--lines", input=lines, seconds=120)
    status = Path(f"/proc/{recorder.popen.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024
    said = end(recorder)
    say.holds(
        code == 0 and said["messages"] == count and said["lost"] == 0,
        f"of {count} messages as fast as they can be sent, all are recorded",
        f"{count / said['duration_s']:.0f}/s, {peak} MiB in the recorder, "
        f"{(resident(keeper) - before) // 1024:+} MiB in the daemon",
        f"{code} {said} {err}",
    )
    (info,) = keeper.ask("info", str(first))
    say.holds(info["messages"] == count and info["complete"], "`meshd info` agrees", evidence=info)
    again = record(sender, second, "many", "--count", count)
    code, out, err = keeper.meshd("play", first, "--immediate", "--json", seconds=120)
    again.wait(30)
    (copied,) = sender.ask("info", str(second))
    say.holds(code == 0 and copied["messages"] == count, "played at once, all come again", evidence=f"{out} {err} {copied}")
    found = read(first), read(second)
    if None in found:
        print("     skipped: MCAP's own reader is not here (package `mcap` for Python)", flush=True)
        return
    wanted = lines.splitlines()
    say.holds(
        all([payload for _, payload in one] == wanted for one in found),
        "MCAP's own reader finds all of them in both files, in order",
    )


@check("record-killed")
def killed(lab, say):
    """what a killed recorder leaves can be read up to its last second"""
    sender, keeper = lab.mesh("sender", "keeper")
    file = lab.directory("files") / "killed.mcap"
    recorder = record(keeper, file, "numbers")
    stream = sender.stream("numbers", 0.001, "--no-wait")
    stream.wait_sent(5000)
    sent = len(stream.process.out)
    recorder.kill()
    recorder.popen.wait()
    stream.stop()
    (info,) = keeper.ask("info", str(file))
    say.holds(
        not info["complete"] and info["messages"] > sent - 2500,
        "`kill -9` of a recorder costs no more than the last two seconds",
        f"{info['messages']} of {sent} messages, 1000 a second",
        info,
    )
    copy = file.with_name("copy.mcap")
    again = record(sender, copy, "numbers", "--count", info["messages"])
    code, out, err = keeper.meshd("play", file, "--immediate", "--json")
    again.wait(10)
    (copied,) = sender.ask("info", str(copy))
    found = [int(payload) for _, payload in read(copy) or []]
    say.holds(
        code == 1  # 0 would say that all was played
        and copied["messages"] == info["messages"]
        and found in ([], list(range(found[0], found[0] + copied["messages"])) if found else []),
        "what is left is played whole and in order",
        evidence=f"{copied} {out} {err}",
    )


@check("play-pace")
def pace(lab, say):
    """played messages have the time between them that they had"""
    sender, keeper = lab.mesh("sender", "keeper")
    files = lab.directory("files")
    first = files / "first.mcap"
    recorder = record(keeper, first, "numbers")
    stream = sender.stream("numbers", 0.002, "--no-wait")
    lasts(3 if lab.quick else 10)
    stream.stop()
    count = end(recorder)["messages"]
    was = read(first)
    rounds = []
    # The best of three: what else runs on this machine makes any of them late.
    for number in range(3):
        again = files / f"again{number}.mcap"
        # On the same host, so that the clock is one.
        listener = record(keeper, again, "numbers", "--count", count)
        bare = Bare()
        code, out, err = keeper.meshd("play", first, "--json", seconds=60)
        late = bare.end()
        listener.wait(10)
        if code != 0:
            raise Failed(f"`meshd play` ended with {code}: {err}")
        rounds.append(({**json.loads(out), "bare_p99_us": late}, was and off(was, read(again))))
    played = min((played for played, _ in rounds), key=lambda played: played["late_p99_us"])
    say.holds(
        played["late_p99_us"] <= 1000,
        "99 of 100 messages go out within a millisecond of when they are due",
        f"p50 {played['late_p50_us']} us, p99 {played['late_p99_us']} us, most {played['late_max_us']} us; "
        f"p99 of a bare sleep meanwhile {played['bare_p99_us']:.0f} us",
        [played for played, _ in rounds],
    )
    if not was:
        print("     skipped: MCAP's own reader is not here (package `mcap` for Python)", flush=True)
        return
    apart = min((apart for _, apart in rounds), key=lambda apart: at(apart, 0.99))
    say.holds(
        len(apart) == count and at(apart, 0.99) <= 1000,
        "and arrive at their places in time within a millisecond",
        f"p50 {at(apart, 0.5):.0f} us, p99 {at(apart, 0.99):.0f} us, most {apart[-1]:.0f} us",
    )


class Bare:
    """How late this machine wakes who sleeps and does nothing else, meanwhile."""

    def __init__(self):
        self.late, self.ended = [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        due = time.monotonic_ns()
        while not self.ended.is_set():
            due += 2_000_000
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            self.late.append(max(0, time.monotonic_ns() - due) / 1e3)

    def end(self):
        self.ended.set()
        self.thread.join()
        return at(sorted(self.late), 0.99)


def off(was, came):
    """Microseconds by which messages came too early or too late, by their middle one, sorted."""
    shifts = sorted((b[0] - a[0]) / 1e3 for a, b in zip(was, came, strict=True))
    middle = shifts[len(shifts) // 2]
    return sorted(abs(shift - middle) for shift in shifts)


def at(values, share):
    return values[int(len(values) * share)]
