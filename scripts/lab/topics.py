"""Who gets which message, and what there can be many of."""

import os
from pathlib import Path

from checks import check, lasts, now, secs, until
from hosts import resident


@check("groups")
def groups(lab, say):
    """each group gets each message once, and its nodes share them"""
    hosts = lab.mesh("alder", "birch", "cedar")
    sizes = {"one": 1, "two": 2, "other-two": 2, "three": 3, "five": 5}
    members = {
        name: [hosts[number % 3].listen("left", "right", "--name", name) for number in range(size)]
        for name, size in sizes.items()
    }
    alder = hosts[0]
    total = sum(sizes.values())
    until("all listeners are seen", 5, lambda: any(entry["nodes"] == total for entry in alder.ask("topics")))

    # Two topics at once: a node's turn on one is not its turn on the other.
    streams = [alder.stream(topic, 0.004) for topic in ("left", "right")]
    until("1000 messages on each", 30, lambda: all(len(stream.written) >= 1000 for stream in streams), pace=0.001)
    counts = [len(stream.stop()) for stream in streams]
    everyone = [listener for group in members.values() for listener in group]
    wanted = sum(counts) * len(sizes)
    until(
        lambda: f"{wanted} messages arrive, but {sum(len(listener.out) for listener in everyone)}",
        10,
        lambda: sum(len(listener.out) for listener in everyone) >= wanted,
    )
    for topic, count in zip(("left", "right"), counts):
        shares, once, ordered = {}, True, True
        for name, group in members.items():
            got = [[int(m["data"]) for _, m in listener.objects() if m["topic"] == topic] for listener in group]
            once &= sorted(number for one in got for number in one) == list(range(1, count + 1))
            ordered &= all(one == sorted(one) for one in got)
            shares[name] = [len(one) for one in got]
        even = all(max(share) - min(share) <= 1 for share in shares.values())
        figure = ", ".join(f"{name} {'+'.join(map(str, share))}" for name, share in shares.items())
        say.holds(
            once and ordered, f"{count} messages on topic {topic}: each group gets each once, in order", evidence=figure
        )
        say.holds(even, "the shares of a group's nodes differ by at most one", figure)


@check("filters")
def filters(lab, say):
    """2000 filters on one node are seen by all"""
    hosts = lab.mesh("alder", "birch", "cedar")
    wanted = {f"sensors/{number}/value" for number in range(2000)}
    listener = hosts[0].listen(*sorted(wanted), seconds=20)
    listening = listener.err[0][0]

    def missing(host):
        return wanted - {entry["topic"] for entry in host.ask("topics")}

    for host in hosts[1:]:
        until(
            lambda host=host: f"{host.name} sees all, but misses {len(missing(host))}",
            10,
            lambda host=host: not missing(host),
        )
    took = now() - listening
    say.holds(took <= 1, "2000 filters on one node are seen whole by all others within 1 s", secs(took))
    code, _, err = hosts[1].meshd("send", "sensors/1999/value", "1")
    listener.wait_json(5, lambda message: message["topic"] == "sensors/1999/value")
    say.holds(code == 0, "a message to the last one arrives", evidence=err)


@check("crowd")
def crowd(lab, say):
    """50 daemons on one host"""
    first = lab.host("crowd")
    peers = [first] + [first.twin(f"crowd{number}") for number in range(1, 50)]
    lab.share_key(peers)
    began = now()
    for peer in peers:
        peer.run("--no-mdns", local=True, wait=False)
    lab.together([lambda peer=peer: peer.ready() for peer in peers])

    for peer in peers:
        until(
            lambda peer=peer: f"{peer.name} has 49 peers, not {peer.status()['peers']}",
            30,
            lambda peer=peer: linked(peer) == 49,
        )
    met = now() - began
    say.holds(met <= 10, "50 daemons on one host form a full mesh within 10 s of the first one's start", secs(met))
    # What a start costs is over when a second costs what the next one does.
    lasts(5)
    before, began = sum(map(processor, peers)), now()
    lasts(5 if lab.quick else 20)
    share = (sum(map(processor, peers)) - before) / (now() - began) / len(peers)
    memory = sorted(resident(peer) for peer in peers)
    say.holds(share < 0.005, "idle, each uses under 0.5 % of a core", f"{share * 100:.2f} %")
    say.holds(
        memory[-1] < 20 << 10,
        "and under 20 MiB",
        f"median {memory[25] / 1024:.1f} MiB, most {memory[-1] / 1024:.1f} MiB",
    )


def linked(peer):
    status = peer.ask("status")
    return status[0]["peers"] if status else 0


def processor(peer):
    """Seconds of processor time that its daemon has used."""
    words = Path(f"/proc/{peer.daemon.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
