"""execnet: a gateway of its own process over a pipe, and one channel. Both halves start from here.

    execnet_part.py SETUP
"""

import json
import sys
import threading
import time

# Between warm-up and what counts, in seconds.
PAUSE = 0.4


def answer(channel):
    """Runs in the other process: echoes, or counts what comes and tells it at the end."""
    import time as clock

    if channel.receive():
        for item in channel:
            channel.send(item)
        return
    received = 0
    while True:
        kind = channel.receive()[0]
        if kind == 1:
            received = 0
            channel.send("drained")
        elif kind == 2:
            channel.send((received, clock.monotonic()))
            return
        else:
            received += 1


def say(line):
    print(json.dumps(line), flush=True)


def quantiles(taken):
    taken.sort()
    return {"p50": taken[len(taken) // 2] * 1e6, "p99": taken[len(taken) * 99 // 100] * 1e6}


def measure(setup):
    import execnet

    sizes = {"flood1k": 1 << 10, "flood64k": 64 << 10, "flood1m": 1 << 20}
    size = sizes.get(setup["work"], 64)
    data, start, end = (bytes([kind]) + bytes(size - 1) for kind in (0, 1, 2))
    warm, whole = setup["warm"], setup["warm"] + setup["seconds"]
    channel = execnet.makegateway("popen").remote_exec(answer)
    trip = setup["work"] == "trip"
    channel.send(trip)
    began = time.monotonic()
    if trip:
        taken = []
        while (at := time.monotonic()) - began < whole:
            channel.send(data)
            channel.receive()
            if at - began > warm:
                taken.append(time.monotonic() - at)
        say({"trip": quantiles(taken)})
    else:
        while time.monotonic() - began < warm:
            channel.send(data)
        channel.send(start)
        channel.receive(timeout=20)  # its queue has no end: nothing may stand in it when what counts begins
        time.sleep(PAUSE)
        sent, began = 0, time.monotonic()
        while time.monotonic() - began < setup["seconds"]:
            channel.send(data)
            sent += 1
        channel.send(end)
        say({"sent": sent})
        # From the first send on, by the clock that both processes see: what receives may sleep while its queue fills.
        received, ended = channel.receive(timeout=20)
        say({"counted": {"received": received, "per_second": received / (ended - began)}})
    say("done")


def main():
    # Ends with whoever started it.
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), done.set()), daemon=True).start()

    def run():
        try:
            measure(json.loads(sys.argv[1]))
        except BaseException as error:
            say({"skip": f"{type(error).__name__}: {error}"})

    threading.Thread(target=run, daemon=True).start()
    done.wait()


main()
