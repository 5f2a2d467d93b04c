"""Programs that hosts run for each other: all that they print, and nothing of them left behind."""

import os
import subprocess
import threading
import time
from pathlib import Path

from checks import check, lasts, now, secs, until
from links import MIB, forget, memory


def allow(host, settings="[exec]\nany = true\n"):
    config = host.home / "default/config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text((config.read_text() if config.exists() else "") + settings)


def pair(lab):
    near, far = hosts = lab.lan("near", "far")
    allow(far)
    for host in hosts:
        host.run()
    lab.meet(hosts)
    return near, far


def on(host, target, *command):
    return host.start("exec", "--on", target.name, "--", *command)


def family(path, first=""):
    """A shell line: three processes, which say who they are in a file that is whole when it is there."""
    return f"{first} sleep 1000 & sleep 1001 & echo $$ $! > {path}.new; mv {path}.new {path}; wait; wait"


def pids(path, seconds=10):
    until(f"{path.name} is there", seconds, path.exists)
    return [int(pid) for pid in path.read_text().split()]


def alive(processes):
    """Those that still run; zombies do not."""
    found = []
    for pid in processes:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


@check("exec-flood")
def flood(lab, say):
    """a program that prints 1 GiB to a slow reader waits for it, and no memory holds what it printed"""
    near, far = pair(lab)
    mib = 64 if lab.quick else 1024
    lasts(1)
    for host in (near, far):
        forget(host.daemon)
    before = [memory(host.daemon, "VmRSS") for host in (near, far)]
    with near.space.inside():
        words = near.arguments(["exec", "--on", "far", "--", "head", "-c", mib * MIB, "/dev/zero"])
        caller = subprocess.Popen(words, env=near.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    read, began = 0, now()
    # Slow at first: a MiB, and a while. Then as fast as it comes.
    while block := caller.stdout.read(MIB):
        read += len(block)
        if read <= 16 * MIB:
            time.sleep(0.1)
    code, took = caller.wait(), now() - began
    grown = [(memory(host.daemon, "VmHWM") - had) / 1024 for host, had in zip((near, far), before)]
    say.holds(
        code == 0 and read == mib * MIB,
        f"{mib} MiB of stdout, the first 16 read slowly: all of it comes, with exit code 0",
        f"{secs(took)}, {(mib - 16) / (took - 1.6):.0f} MiB/s when read as it comes",
        f"{code}, {read} bytes",
    )
    say.holds(max(grown) < 32, "neither daemon's memory grew by 32 MiB", f"{grown[0]:.1f} and {grown[1]:.1f} MiB")


@check("exec-stdin")
def through(lab, say):
    """what goes into a program on another host comes out of it, whatever its size"""
    near, far = pair(lab)
    for mib in (1, 10, 100):
        data = os.urandom(MIB) * mib
        began = now()
        with near.space.inside():
            words = near.arguments(["exec", "--on", "far", "--", "cat"])
            done = subprocess.run(words, env=near.environment(), input=data, capture_output=True, timeout=60)
        took = now() - began
        say.holds(
            done.returncode == 0 and done.stdout == data,
            f"{mib} MiB through `cat` on another host come back whole",
            f"{secs(took)}, {mib / took:.0f} MiB/s each way",
            f"{done.returncode} {len(done.stdout)} bytes {done.stderr.decode()}",
        )


@check("exec-ends")
def ends(lab, say):
    """whoever is killed, and whatever a program does about it, nothing of it is left"""
    near, far = pair(lab)
    scratch = lab.directory("exec-ends")

    def gone(ran, what, seconds):
        began = now()
        until(f"all of {ran} have ended, but {alive(ran)}", seconds, lambda: not alive(ran))
        say.holds(True, what, secs(now() - began))

    caller = on(near, far, "sh", "-c", family(scratch / "caller"))
    ran = pids(scratch / "caller")
    caller.kill()
    gone(ran, "kill -9 of the caller: the program and its children are gone", 5)

    caller = on(near, far, "sh", "-c", family(scratch / "deaf", "trap '' TERM;"))
    ran = pids(scratch / "deaf")
    caller.kill()
    lasts(3)
    still = alive(ran)
    say.holds(len(still) == len(ran), "one that ignores SIGTERM has time: 3 s later it runs", evidence=still)
    gone(ran, "and is gone after 5 s", 5)

    caller = on(near, far, "sh", "-c", family(scratch / "daemon"))
    ran = pids(scratch / "daemon")
    near.daemon.kill()
    code, _ = caller.wait(5)
    say.holds(code == 6, "kill -9 of the caller's daemon: the caller ends with 6", evidence=f"{code} {caller.log()}")
    gone(ran, "and the program is gone", 8)
    near.run()
    lab.meet([near, far])

    caller = on(near, far, "sh", "-c", family(scratch / "far"))
    ran = pids(scratch / "far")
    killed = far.daemon.kill()
    code, at = caller.wait(10)
    say.holds(
        code == 1 and "meshd: far: " in caller.log(),
        "kill -9 of the daemon that runs it: the caller ends with 1 and says why",
        secs(at - killed),
        f"{code} {caller.log()}",
    )
    gone(ran, "and the program is gone there", 8)


@check("exec-cut")
def cut(lab, say):
    """a program goes on over a link that is cut for a second"""
    near, far = pair(lab)
    count = "i=0; while [ $i -lt 60 ]; do i=$((i + 1)); echo $i; sleep 0.05; done; exit 7"
    caller = on(near, far, "sh", "-c", count)
    caller.wait_line(5, lambda line: line == "5")
    far.cable.pull()
    lasts(1)
    far.cable.plug()
    code, _ = caller.wait(20)
    lines = [line for _, line in caller.out]
    whole = lines == [str(number) for number in range(1, 61)]
    say.holds(code == 7 and whole, "all of its lines come, in order and once, and its exit code", evidence=f"{code} {lines}")

    path = lab.directory("exec-cut") / "long"
    caller = on(near, far, "sh", "-c", family(path))
    ran = pids(path)
    far.cable.pull()
    code, _ = caller.wait(20)
    say.holds(code == 1, "cut for good: the caller ends with 1", evidence=f"{code} {caller.log()}")
    until(f"the program has ended, but {alive(ran)}", 20, lambda: not alive(ran))
    say.holds(True, "and the program is ended at the other end of the cable")


@check("exec-many")
def many(lab, say):
    """fifty at once, and one on every host"""
    near, far = pair(lab)
    results, began = [None] * 50, now()

    def one(number):
        results[number] = near.meshd("exec", "--on", "far", "--", "sh", "-c", f"cat; exit {number}", input=str(number), seconds=60)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [(n, result) for n, result in enumerate(results) if result != (n, str(n), "")]
    say.holds(not wrong, "50 at once: each has its own input, output and exit code", secs(now() - began), wrong[:3])
    code, out, err = near.meshd("exec", "--all", "--", "hostname")
    say.holds((code, out.split()) == (0, ["far", "far"]), "`--all`: each line says which host", evidence=f"{code} {out} {err}")
    code, out, err = far.meshd("exec", "--on", "near", "--", "hostname")
    say.holds(
        code == 5 and "[exec] allow" in err,
        "a host whose settings say nothing refuses, with exit code 5 and the setting's name",
        evidence=f"{code} {err}",
    )
