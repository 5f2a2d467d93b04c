"""How peers find each other."""

import socket

from checks import check, holds_for, median, ms, now, secs, until


@check("three")
def three_hosts(lab, say):
    """three hosts with the key and nothing else configured find each other, and a fourth joins"""
    switch = lab.switch()
    *three, fourth = lab.lan("alder", "birch", "cedar", "dogwood", switch=switch)
    daemons = [host.run(wait=False) for host in three]
    met = [at - daemon.started for at, daemon in zip(lab.meet(three), daemons)]
    say.holds(
        max(met) <= 1.5,
        "three hosts started at once: each lists the other two within 1.5 s of its start",
        ", ".join(map(secs, met)),
    )

    listener = three[0].listen("joined")
    for host in three[1:]:
        host.heard("joined", 1)
    sent = []
    for round in range(ROUNDS):
        forget_addresses(fourth)
        daemon = fourth.run(wait=False)
        sender = send_when_it_serves(fourth, "joined", f"round {round}")
        at = listener.wait_message(f"round {round}")
        sent.append(at - daemon.started)
        sender.wait(10)
        fourth.stop()
        lab.meet(three)
    say.holds(
        max(sent) <= 0.5,
        "a fourth that joins later has its first message taken elsewhere within 500 ms of its start",
        list_of_ms(sent),
    )

    heard = []
    for round in range(ROUNDS):
        topic = f"welcome/{round}"
        forget_addresses(fourth)
        sender = three[1].start("send", topic, "hello", "--wait", "10s")
        daemon = fourth.run(wait=False)
        until("the fourth has a socket", 5, (fourth.home / "default/meshd.sock").exists, pace=0.001)
        listener = listen_when_it_serves(fourth, topic)
        at = listener.wait_message("hello")
        heard.append(at - daemon.started)
        sender.wait(10)
        fourth.stop()
        lab.meet(three)
    say.holds(
        max(heard) <= 0.5,
        "a fourth that joins later and listens gets its first message within 500 ms of its start",
        list_of_ms(heard),
    )


def forget_addresses(host):
    """Every start is the first one: no address is known from the last run."""
    (host.home / "default/peers").unlink(missing_ok=True)


def send_when_it_serves(host, topic, text):
    until("the daemon has a socket", 5, (host.home / "default/meshd.sock").exists, pace=0.001)
    return host.start("send", topic, text, "--wait", "10s")


def listen_when_it_serves(host, *words):
    until("the daemon has a socket", 5, (host.home / "default/meshd.sock").exists, pace=0.001)
    return host.start("listen", "--json", "-v", *words)


@check("loopback")
def same_host(lab, say):
    """two daemons on a host without a network find each other"""
    first = lab.host("solo")
    second = first.twin("second")
    lab.share_key([first, second])
    first.run("--no-mdns", local=True)
    listener = first.listen("joined")
    watch = first.watch()
    up, listed, taken, from_start = [], [], [], []
    for round in range(5):
        since = len(watch.out)
        daemon = second.run("--no-mdns", local=True)
        ready, _ = second.ready()
        seen = second.sees([first])
        at, _ = watch.wait_json(10, lambda event: event["event"] == "peer-up", since=since)
        up.append(at - daemon.started)
        listed.append(max(0, seen - ready))
        from_start.append(seen - daemon.started)
        second.stop()
        first.sees([])

        daemon = second.run("--no-mdns", local=True, wait=False)
        send_when_it_serves(second, "joined", f"round {round}")
        at = listener.wait_message(f"round {round}")
        taken.append(at - daemon.started)
        second.stop()
        first.sees([])
    say.holds(
        median(listed) <= 0.05,
        "two daemons of one host, with loopback only and no mDNS: listed within 50 ms of the ready line",
        f"median {ms(median(listed))}, from the start {ms(median(from_start))}",
    )
    say.holds(
        median(up) <= 0.05,
        "the first sees the second come up within 50 ms of the second's start",
        f"median {ms(median(up))}, {list_of_ms(up)}",
    )
    say.holds(
        median(taken) <= 0.05,
        "its first message is taken within 50 ms of its start",
        f"median {ms(median(taken))}, {list_of_ms(taken)}",
    )


@check("subnets")
def two_subnets(lab, say):
    """two subnets without multicast between them, and one bootstrap address"""
    switches = [lab.switch("west", "10.77.1"), lab.switch("east", "10.77.2")]
    lab.router(*switches)
    west = [lab.host(f"west{number}", switches[0]) for number in range(3)]
    east = [lab.host(f"east{number}", switches[1]) for number in range(3)]
    hosts = west + east
    lab.share_key(hosts)
    for host in hosts:
        host.space.ip(f"route add default via {host.address.rsplit('.', 1)[0]}.254")
    for host in west:
        host.run()
    lab.meet(west)
    bootstrap = west[0].reachable_at()
    began = now()
    for host in east:
        host.run(*(["--bootstrap", bootstrap] if host is east[0] else []), wait=False)
    met = max(lab.meet(hosts)) - began
    say.holds(
        met <= 3,
        "two subnets that a router joins, one bootstrap address at one host: 3 + 3 peers all meet within 3 s",
        secs(met),
    )


@check("mdns-taken")
def mdns_taken(lab, say):
    """UDP 5353 is taken by a program that does not share it"""
    taken, other = lab.lan("taken", "other")
    with taken.space.inside():
        holders = []
        for family, any_address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
            holder = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            holder.bind((any_address, 5353))
            holders.append(holder)
    other.run()
    daemon = taken.run("--bootstrap", other.reachable_at())
    met = lab.meet([taken, other])[0] - daemon.started
    say.holds(met <= 3, "UDP 5353 is held by another program: the peers meet by the bootstrap address", secs(met))

    def mdns():
        return next(way for way in taken.status()["discovery"] if way["source"] == "mdns")

    state = until(
        lambda: f"status says that mDNS does not work, not {mdns()}",
        5,
        lambda: mdns()["state"] not in ("ok", "off") and mdns()["state"],
    )
    say.holds(True, "`meshd status` says what is wrong with mDNS", state)

    def warnings():
        return [line for line in daemon.log().splitlines() if "WARN" in line and "mDNS" in line]

    once = holds_for(3 if lab.quick else 12, lambda: len(warnings()) == 1)
    say.holds(once, "it is warned of once, not at each new try", f"{len(warnings())} warnings", daemon.log())
    for holder in holders:
        holder.close()
    freed = now()
    until(lambda: f"mDNS works again, not {mdns()}", 40, lambda: mdns()["state"] == "ok", pace=0.1)
    say.holds(True, "once the port is free, mDNS works without a restart", secs(now() - freed))


def list_of_ms(times):
    return ", ".join(map(ms, times))


ROUNDS = 3
