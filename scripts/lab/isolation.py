"""Several meshes at one switch, and strangers."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from checks import Failed, check, holds_for, ms, now, secs, until
from hosts import Process
from taps import Taps
from keys import differences, until_arrived


@check("two-meshes")
def two_meshes(lab, say):
    """two meshes at one switch see nothing of each other"""
    switch = lab.switch()
    meshes = [lab.lan(*(f"{side}{number}" for number in range(3)), switch=switch) for side in ("ash", "beech")]
    taps = Taps(switch)
    lab.closers.append(taps.close)
    ash, beech = meshes
    for host in ash:
        host.run()
    lab.meet(ash)
    astray = beech[0]
    victim = ash[0].reachable_at()
    for host in beech:
        host.run(*(["--bootstrap", victim] if host is astray else []), wait=False)
    lab.meet(beech)
    for side, hosts in zip(("ash", "beech"), meshes):
        for number, host in enumerate(hosts):
            host.listen(f"{side}/topic", "--name", f"{side}-listener{number}")
            host.heard(f"{side}/topic", number + 1)

    shown, wrong = 0, []

    def apart():
        nonlocal shown
        for own, hosts in zip(("ash", "beech"), meshes):
            other = "beech" if own == "ash" else "ash"
            foreign = [word for host in meshes[hosts is ash] for word in (ids[host], host.address + "/")] + [other]
            for host in hosts:
                told = json.dumps([host.ask(verb) for verb in ("peers", "nodes", "topics")])
                shown += 1
                wrong.extend(f"{host.name} shows {word}: {told}" for word in foreign if word in told)
        return not wrong

    ids = {host: host.status()["peer"] for hosts in meshes for host in hosts}
    length = 15 if lab.quick else 60
    kept = holds_for(length, apart, pace=1)
    say.holds(
        kept,
        f"two meshes of three hosts at one switch: over {length} s neither shows anything of the other",
        f"{shown} views",
        "\n".join(wrong),
    )
    full = all(len(host.peers()) == 2 for hosts in meshes for host in hosts)
    say.holds(full, "each is whole all the same")

    addresses = [{host.address for host in hosts} for hosts in meshes]
    dials = {**taps.dials(addresses[0], addresses[1]), **taps.dials(addresses[1], addresses[0])}
    most = max((len(times) for times in dials.values()), default=0)
    figures = ", ".join(f"{source} to {target}:{port} {len(times)}" for (source, target, port), times in dials.items())
    say.holds(
        0 < most <= 2,
        f"a bootstrap address of the other mesh: no foreign address is dialled more than twice in {length} s",
        figures or "no dial at all",
    )
    ends = [(max(times[1:]) - times[0]) if None not in times else 99 for flows in dials.values() for times in flows]
    say.holds(
        bool(ends) and max(ends) <= 0.1,
        "a dial with the wrong key ends on both sides within 100 ms",
        ", ".join(map(ms, ends)),
    )
    counted = {host.name: host.status()["foreign"] for host in (astray, ash[0])}
    both = all(foreign["refused"] > 0 for foreign in counted.values())
    say.holds(both, "`meshd status` counts it on both sides", json.dumps(counted))
    once = [line for line in astray.daemon.log().splitlines() if "another network key" in line]
    say.holds(
        len(once) == 1,
        "the log of the host that was led astray says so, once",
        once[0] if once else "not a word",
        astray.daemon.log(),
    )


@check("strangers")
def strangers(lab, say):
    """strangers are never listed and disturb nobody"""
    switch = lab.switch()
    alder, birch, cedar = hosts = lab.mesh("alder", "birch", "cedar", switch=switch)
    stranger = lab.host("stranger", switch)
    port = alder.port()
    streams = [stream_for(lab, birch, alder)]
    before = use(alder)

    listed = []
    crowds = [(kind, 200) for kind in ("silent", "echo", "noise-echo", "random", "half-open")]
    for kind, count in [(kind, 1) for kind, _ in crowds[:4]] + [("noise-random", 1)] + crowds:
        clients = come(lab, stranger, kind, alder.address, port, count)
        streams.append(stream_for(lab, birch, alder, f"with {count} x {kind}"))
        listed += [f"{kind}: {host.name} lists {host.peers()}" for host in hosts if len(host.peers()) != 2]
        if (kind, count) == ("silent", 200):
            cedar.stop()
            daemon = cedar.run(wait=False)
            joined = max(lab.meet(hosts)) - daemon.started
            say.holds(joined <= 1.5, "a member joins within 1.5 s while 200 strangers sit there", ms(joined))
        clients.kill()
    say.holds(
        not listed,
        "strangers that say nothing, echo, send noise or never finish, one and 200 at once: none is ever listed",
        evidence="\n".join(listed),
    )
    lost = "\n".join(stream.lost for stream in streams if stream.lost)
    say.holds(
        not lost,
        "no message between members is lost meanwhile",
        f"{sum(stream.sent for stream in streams)} messages",
        lost,
    )
    slowest = min(streams[1:], key=lambda stream: stream.rate)
    figure = f"{streams[0].rate:.0f}/s before, at least {slowest.rate:.0f}/s {slowest.when}"
    say.holds(
        slowest.rate >= 0.8 * streams[0].rate,
        "members exchange at least 80 % of the messages per second that they did before",
        figure,
        streams,
    )

    # The last ones vanish: no end of their connections is ever seen.
    clients = come(lab, stranger, "silent", alder.address, port, 200)
    until("they were counted", 5, lambda: alder.status()["foreign"]["crowded_out"] > 0)
    stranger.cable.pull()
    vanished = now()
    clients.kill()

    def returned():
        memory, files = use(alder)
        return memory <= before[0] * 1.1 and files <= before[1] + 5

    try:
        until("", 10, returned)
        back = f"after {secs(now() - vanished)}"
    except Failed:
        back = None
    after = use(alder)
    figure = f"{back or 'never'}; {before[0] / 1024:.1f} to {after[0] / 1024:.1f} MiB, {before[1]} to {after[1]} files"
    say.holds(
        back, "memory and files return to within 10 % and 5 of before, 10 s after 200 vanish without a word", figure
    )
    say.holds(
        alder.peers() == ["birch", "cedar"],
        "the members are linked as before",
        f"foreign: {json.dumps(alder.status()['foreign'])}",
    )


@check("echo-server")
def echo_server(lab, say):
    """a member is led to a server that echoes every byte"""
    switch = lab.switch()
    hosts = lab.lan("alder", "birch", switch=switch)
    stranger = lab.host("stranger", switch)
    come(lab, stranger, "serve-echo", "", 4001, 1)
    hosts[0].run("--bootstrap", f"{stranger.address}:4001")
    hosts[1].run()
    lab.meet(hosts)
    until("the failed handshake is seen", 8, lambda: dialled(hosts[0]))
    listed = [host.peers() for host in hosts]
    say.holds(
        listed == [["birch"], ["alder"]],
        "a host led to a server that echoes every byte does not list it",
        evidence=listed,
    )


def dialled(host):
    foreign = host.status()["foreign"]
    return foreign["refused"] or foreign["addresses"]


def come(lab, host, kind, address, port, count):
    """Starts strangers, and waits until they are there."""
    program = Path(__file__).with_name("strangers.py")
    clients = Process(
        host.space, [sys.executable, "-B", str(program), kind, address, str(port), str(count)], dict(os.environ)
    )
    lab.with_process(clients)
    clients.wait_line(10, lambda line: line == "all")
    return clients


@dataclass
class Streamed:
    when: str
    sent: int
    rate: float
    lost: str


def stream_for(lab, sender, receiver, when="alone", count=2000):
    """Sends messages at a pace of 2000/s; how many arrived in a second, and which did not."""
    listener = receiver.listen("paced")
    sender.heard("paced", 1)
    stream = sender.stream("paced", 1 / 2000)
    stream.wait_sent(count)
    reports = stream.stop()
    arrived = until_arrived(listener, reports)
    times = [at for at, _ in listener.objects()]
    listener.kill()
    until("no listener is left", 5, lambda: not any(entry["topic"] == "paced" for entry in sender.ask("topics")))
    whole = arrived == list(range(1, len(reports) + 1))
    return Streamed(
        when,
        len(reports),
        len(arrived) / (times[-1] - times[0]),
        "" if whole else f"{when}: {differences(arrived, reports)}",
    )


def use(host):
    """KiB of memory and number of open files."""
    pid = host.daemon.popen.pid
    status = Path(f"/proc/{pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return memory, len(os.listdir(f"/proc/{pid}/fd"))
