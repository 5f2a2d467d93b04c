"""Cut cables, dead processes, partitions, orderly ends."""

import signal

from checks import check, lasts, ms, now, secs, until
from hosts import numbers
from keys import differences


@check("cable")
def cable(lab, say):
    """a cable is pulled, and plugged in again"""
    alder, birch, cedar = hosts = lab.mesh("alder", "birch", "cedar")
    cedar.listen("t", "--name", "far")
    watches = [alder.watch(), birch.watch()]
    alder.heard("t", 1)
    birch.heard("t", 1)
    pulled = cedar.cable.pull()
    gone = [
        watch.wait_json(6, lambda e: e["event"] == "peer-down" and e["host"] == "cedar")[0] - pulled
        for watch in watches
    ]
    routes = [host.ask("topics") for host in (alder, birch)]
    left = all(not any("far" in entry["groups"] for entry in route) for route in routes)
    say.holds(
        max(gone) <= 3 and left,
        "cable pulled: out of the routes of the others within 3 s",
        ", ".join(map(secs, gone)),
        routes,
    )
    back = cedar.cable.plug()
    met = max(lab.meet(hosts)) - back
    say.holds(met <= 5, "cable plugged in again: linked to all within 5 s", secs(met))


@check("short-cut")
def short_cut(lab, say):
    """the cable is out for 2 s in the middle of a stream"""
    alder, birch = hosts = lab.mesh("alder", "birch")
    for length in (2.0, 4.0):
        listener = birch.listen("stream")
        alder.heard("stream", 1)
        watch = alder.watch()
        stream = alder.stream("stream", 0.002)
        stream.wait_sent(300)
        pulled = birch.cable.pull()
        lasts(length)
        birch.cable.plug()
        lab.meet(hosts)
        alder.heard("stream", 1)
        resumed = len(stream.written)
        listener.wait_json(10, lambda message: int(message["data"]) > resumed)
        resumed = now() - pulled - length
        stream.wait_sent(200)
        reports = stream.stop()
        last = len(reports)
        listener.wait_message(str(last))
        arrived = numbers(listener)
        sent = {number for number, (_, report) in enumerate(reports, 1) if report["sent"]}
        lost = [event for _, event in watch.objects() if event["event"] == "messages-lost"]
        counted = sum(event["unsent"] + event["in_flight"] for event in lost)
        missing = sorted(set(sent) - set(arrived))
        evidence = f"{differences(arrived, reports)}\nlost: {lost}"
        say.holds(
            arrived == sorted(set(arrived)),
            f"cable out for {length:g} s in the middle of a stream: nothing twice, order kept",
            f"{len(arrived)} of {last} arrived, resumed {secs(resumed)} after the cable was back",
            evidence,
        )
        say.holds(
            set(arrived) <= sent,
            "nothing arrives that was reported as not sent",
            f"{last - len(sent)} not sent",
            evidence,
        )
        say.holds(
            len(missing) <= counted,
            "what is missing was counted as lost with the link",
            f"{len(missing)} missing, {counted} counted as unsent or in flight",
            evidence,
        )
        listener.kill()
        watch.kill()
        until("no listener is left", 5, lambda: not any(entry["topic"] == "stream" for entry in alder.ask("topics")))


@check("worker")
def worker(lab, say):
    """one of two workers is killed, and comes back"""
    boss, one, two = lab.mesh("boss", "one", "two")
    workers = [host.listen("jobs", "--name", "work") for host in (one, two)]
    until("both workers are seen", 5, lambda: any(entry["nodes"] == 2 for entry in boss.ask("topics")))
    stream = boss.stream("jobs", 0.005)
    stream.wait_sent(100)
    workers[1].popen.kill()
    killed = two.daemon.kill()
    stream.wait_sent(400)

    restarted = two.run().started
    again = two.listen("jobs", "--name", "work")
    at, _ = again.wait_json(10, lambda message: "data" in message)
    back = at - restarted
    stream.wait_sent(100)
    reports = stream.stop()
    until("the last message arrives", 5, lambda: len(reports) in numbers(workers[0]) + numbers(again))
    done = [number for worker in (*workers, again) for number in numbers(worker)]
    missing = sorted(set(range(1, len(reports) + 1)) - set(done))
    late = max((stream.written[number - 1] - killed for number in missing), default=0)
    say.holds(
        late <= 1,
        "kill -9 of one of two workers and its daemon: within 1 s all messages go to the other",
        f"{len(missing)} lost, the last {ms(max(0, late))} after the kill",
        f"missing {missing[:30]}",
    )
    twice = len(done) - len(set(done))
    say.holds(twice == 0, "no job is done twice", f"{twice} of {len(reports)}")
    say.holds(back <= 1, "restarted under the same name it is back in the group within 1 s of its start", secs(back))


@check("partition")
def partition(lab, say):
    """3 + 3 hosts are cut apart and joined again"""
    switches = [lab.switch("west"), lab.switch("east")]
    trunk = switches[0].link(switches[1])
    sides = [[lab.host(f"{switch.space.name}{number}", switch) for number in range(3)] for switch in switches]
    hosts = sides[0] + sides[1]
    lab.share_key(hosts)
    for host in hosts:
        host.run(wait=False)
    lab.meet(hosts)
    listeners = [host.listen("news") for host in hosts]
    for host in hosts:
        host.heard("news", 6)
    length = 8 if lab.quick else 20
    cut = trunk.pull()
    split = max(max(lab.meet(side)) for side in sides) - cut
    say.holds(split <= 3, "3 + 3 hosts cut apart: each side sees itself only within 3 s", secs(split))
    lasts(length - split)
    healed = trunk.plug()
    met = max(lab.meet(hosts, 40)) - healed
    for host in hosts:
        host.heard("news", 6)
    one = now() - healed
    say.holds(
        one <= 5,
        f"joined again after {length} s: one view everywhere within 5 s",
        f"all peers {secs(met)}, all topics {secs(one)}",
    )
    views = [sorted((node["node"], node["id"]) for node in host.ask("nodes")) for host in hosts]
    say.holds(
        all(view == views[0] for view in views), "`meshd nodes` is the same everywhere", f"{len(views[0])} nodes", views
    )
    code, _, err = hosts[0].meshd("send", "news", "healed")
    for listener in listeners:
        listener.wait_message("healed")
    say.holds(code == 0, "a message reaches all six", evidence=err)


@check("sigterm")
def sigterm(lab, say):
    """a daemon is stopped by SIGTERM"""
    hosts = lab.mesh("alder", "birch", "cedar")
    watches = [host.watch() for host in hosts[:2]]
    attached = hosts[2].listen("t")
    for host in hosts[:2]:
        host.heard("t", 1)
    asked = hosts[2].daemon.terminate()
    told = [watch.wait_json(5, lambda e: e["event"] == "peer-down" and e["host"] == "cedar") for watch in watches]

    def shown():
        return [(host.name, verb) for host in hosts[:2] for verb in ("peers", "nodes", "topics") if shows(host, verb)]

    def shows(host, verb):
        return any(entry.get("host") == "cedar" or entry.get("topic") == "t" for entry in host.ask(verb))

    until(lambda: f"gone from all views, but {shown()}", 5, lambda: not shown(), pace=0.001)
    gone = now() - asked
    figure = f"all views {ms(gone)}; events {', '.join(ms(at - asked) for at, _ in told)}, {told[0][1]['reason']}"
    say.holds(gone <= 0.2, "a daemon stopped by SIGTERM is gone from all views within 200 ms", figure)
    code, at = hosts[2].daemon.wait(10)
    say.holds(code == 0, "it exits with 0", f"after {ms(at - asked)}", hosts[2].daemon.log())
    code, _ = attached.wait(5)
    words = [line for line in attached.log().splitlines() if line != "listening"]
    say.holds(
        code == 6 and words[0].startswith("meshd: ") and words[-1].startswith("hint: "),
        "its attached `meshd listen` ends with an error that says so",
        f"exit code {code}; {' / '.join(words)}",
    )
    say.holds(not hosts[2].socket().exists(), "its socket is gone")


@check("unreachable")
def unreachable(lab, say):
    """a peer in the view cannot be reached"""
    alder, birch, cedar = lab.mesh("alder", "birch", "cedar")
    listener = birch.listen("t")
    cedar.listen("t")
    alder.heard("t", 2)
    sender = alder.start("send", "t", "--lines", "--json", feed=True)
    cedar.cable.pull()
    took = []
    for number in range(100):
        began = now()
        sender.popen.stdin.write(f"{number}\n".encode())
        sender.popen.stdin.flush()
        at = listener.wait_message(str(number), since=number)
        took.append(at - began)
    until("100 reports", 5, lambda: len(sender.out) == 100)
    in_view = all(report["matched"] == 2 for _, report in sender.objects())
    say.holds(
        max(took) <= 0.1,
        "an unreachable peer delays no message to another: 100 messages right after its cable was pulled",
        f"slowest {ms(max(took))}, all in {secs(sum(took))}",
    )
    say.holds(in_view, "(the unreachable peer was in the view all that time)", sender.out[-1][1])


@check("late-network")
def late_network(lab, say):
    """the network comes up after the daemon"""
    switch = lab.switch()
    hosts = lab.lan("early", "late", switch=switch)
    early, late = hosts

    def disconnect():
        late.cable.pull()
        late.space.ip(f"address del {late.address}/24 dev eth0", "link set eth0 down")

    def connect():
        late.cable.plug()
        late.space.ip("link set eth0 up", f"address add {late.address}/24 dev eth0")
        return now()

    disconnect()
    early.run()
    late.run()
    came = connect()
    met = max(lab.meet(hosts, 40)) - came
    say.holds(met <= 8, "a network that comes up after the daemon: linked within 8 s", secs(met))
    disconnect()
    early.sees([])
    came = connect()
    met = max(lab.meet(hosts, 40)) - came
    say.holds(met <= 5, "it goes away and comes back: linked within 5 s", secs(met))


@check("new-address")
def new_address(lab, say):
    """a host gets another address"""
    hosts = lab.mesh("alder", "birch", "mover")
    mover = hosts[2]
    listener = mover.listen("t")
    hosts[0].heard("t", 1)
    mover.space.ip(f"address del {mover.address}/24 dev eth0", "address add 10.77.1.99/24 dev eth0")
    moved = now()

    def seen_at(host):
        return [peer["addresses"] for peer in host.ask("peers") if peer["host"] == "mover"]

    def moved_for(host):
        return len(host.peers()) == 2 and "10.77.1.99" in str(seen_at(host))

    until(
        lambda: f"it is linked, but at {[seen_at(host) for host in hosts]}", 40, lambda: all(map(moved_for, hosts[:2]))
    )
    known = now() - moved
    say.holds(known <= 8, "a host gets another address: all are linked by it within 8 s", secs(known))
    code, _, err = hosts[0].meshd("send", "t", "hello")
    listener.wait_message("hello")
    say.holds(code == 0, "a message reaches it there", evidence=err)


@check("frozen")
def frozen(lab, say):
    """a process stands still for a while"""
    hosts = lab.mesh("alder", "birch", "sleeper")
    hosts[2].listen("jobs", "--name", "work")
    awake = hosts[1].listen("jobs", "--name", "work")
    until("both are seen", 5, lambda: any(entry["nodes"] == 2 for entry in hosts[0].ask("topics")))
    sleeper = hosts[2].daemon.popen
    sleeper.send_signal(signal.SIGSTOP)
    asleep = now()
    lab.together(
        [lambda host=host: host.sees([other for other in hosts[:2] if other is not host]) for host in hosts[:2]]
    )
    gone = now() - asleep
    say.holds(gone <= 3, "a daemon that stands still is out of the routes within 3 s", secs(gone))
    code, _, err = hosts[0].meshd("send", "jobs", "x", "--repeat", "10")
    until("the other worker gets all", 5, lambda: sum(m.get("data") == "x" for _, m in awake.objects()) == 10)
    say.holds(code == 0, "all messages go to the other worker", evidence=err)
    lasts(6 - (now() - asleep))
    sleeper.send_signal(signal.SIGCONT)
    woken = now()
    met = max(lab.meet(hosts, 40)) - woken
    say.holds(met <= 5, "after 6 s it goes on: linked to all within 5 s", secs(met))
