"""The network key changes while the mesh works."""

from checks import check, now, secs, until
from hosts import numbers


@check("rotation")
def rotation(lab, say):
    """the network key is rotated under traffic"""
    alder, birch, cedar, away = hosts = lab.mesh("alder", "birch", "cedar", "away")
    old = away.fingerprint()
    away.stop()
    lab.meet(hosts[:3])

    listener = birch.listen("stream")
    cedar.heard("stream", 1)
    stream = cedar.stream("stream", 0.005)
    stream.wait_sent(100)
    began = now()
    rotate(alder, "7d")
    new = all_hold_another(hosts[:3], old)
    took = now() - began
    say.holds(True, "`meshd key rotate` on one of three hosts: all three hold the new key", secs(took))
    # Old connections have ended by then, if they are going to.
    stream.wait_sent(400)
    reports = stream.stop()
    arrived = until_arrived(listener, reports)
    whole = arrived == list(range(1, len(reports) + 1))
    say.holds(
        whole,
        "no message of a stream between the other two is lost meanwhile",
        f"{len(arrived)} of {len(reports)}",
        differences(arrived, reports),
    )

    daemon = away.run(wait=False)
    lab.meet(hosts)
    met = now() - daemon.started
    until(lambda: f"away is given the new key, but has {away.fingerprint()}", 5, lambda: away.fingerprint() == new)
    say.holds(
        True, "a host that was off joins by the previous key and is given the new one", f"joined after {secs(met)}"
    )
    stored = away.ask("key", "fingerprint")[0]["fingerprint"]
    say.holds(stored == new, "it has stored the new key", stored)
    away.stop()
    lab.meet(hosts[:3])

    rotate(alder, "0")
    newest = all_hold_another(hosts[:3], new)
    daemon = away.run()

    def told():
        return [
            line
            for line in daemon.log().splitlines()
            if "another network key" in line or "wrong key" in line or "wrong network key" in line
        ]

    line = until("the daemon of the host that was off says that its key is another", 5, told)[0]
    say.holds(
        True,
        "with `--grace 0` a host that was off is refused, and its log says why",
        line.split("INFO")[-1].split("WARN")[-1].strip(),
    )
    foreign = until(
        "status of the host that was off tells of it",
        5,
        lambda: [foreign for foreign in [away.status()["foreign"]] if foreign["addresses"] and foreign["refused"]],
    )
    say.holds(
        away.peers() == [] and away.fingerprint() == new,
        "its status says so too, and it is in no mesh",
        f"foreign: {foreign}",
    )
    say.holds(alder.fingerprint() == newest, "the linked ones have the newest key")
    lab.meet(hosts[:3])
    code, _, err = cedar.meshd("send", "stream", "after")
    listener.wait_message("after")
    say.holds(code == 0, "and go on exchanging messages", evidence=err)


def rotate(host, grace):
    code, _, err = host.meshd("key", "rotate", "--grace", grace)
    if code != 0:
        raise AssertionError(f"meshd key rotate ended with {code}: {err}")


def all_hold_another(hosts, old):
    """Waits until all hold one key that is not `old`."""

    def one():
        held = {host.fingerprint() for host in hosts}
        return held.pop() if len(held) == 1 and old not in held else None

    return until(lambda: f"one new key everywhere, but {[host.fingerprint() for host in hosts]}", 5, one)


def until_arrived(listener, reports):
    """Waits for the last message that was sent; the numbers that arrived."""
    last = max((number for number, (_, report) in enumerate(reports, 1) if report["sent"]), default=0)
    if last:
        listener.wait_message(str(last))
    return numbers(listener)


def differences(arrived, reports):
    missing = sorted(set(range(1, len(reports) + 1)) - set(arrived))
    not_sent = [(number, report) for number, (_, report) in enumerate(reports, 1) if report["sent"] != 1]
    return f"""missing: {missing[:20]}
in order: {arrived == sorted(arrived)}, twice: {len(arrived) - len(set(arrived))}
not sent: {not_sent[:20]}"""
