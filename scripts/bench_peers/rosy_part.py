"""rosy: two nodes over a Unix socket, topics to callbacks, no balancing, as its own speed test has it.

    rosy_part.py first|second SETUP

It finds nodes by mDNS and needs a responder of the system for that. Here they find each other by files in a folder; what carries
the messages is untouched.
"""

import asyncio
import json
import logging
import os
import pickle
import sys
import time
from pathlib import Path

import rosy
import rosy.node.builder
from rosy.discovery.base import NodeDiscovery
from rosy.specs import MeshTopologySpec

SETUP = json.loads(sys.argv[2])
FOLDER = Path(SETUP["folder"]) / "nodes"
# Between warm-up and what counts, in seconds.
PAUSE = 0.4


class FolderDiscovery(NodeDiscovery):
    def __init__(self, domain_id, topology_changed_callback=None):
        self.topology_changed_callback = topology_changed_callback
        self._known = {}

    @property
    def topology(self):
        return MeshTopologySpec([pickle.loads(text) for text in self._known.values()])

    async def start(self):
        FOLDER.mkdir(exist_ok=True)
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self):
        self._watcher.cancel()

    async def _watch(self):
        while True:
            there = {file.name: file.read_bytes() for file in FOLDER.glob("*.node")}
            if there != self._known:
                self._known = there
                await self._call_topology_changed_callback()
            await asyncio.sleep(0.05)

    async def register_node(self, node):
        path = FOLDER / str(node.id.uuid)
        path.write_bytes(pickle.dumps(node))
        path.rename(path.with_suffix(".node"))

    update_node = register_node


def say(line):
    print(json.dumps(line), flush=True)


async def first():
    node = await node_named("receiver")
    received, began, last, told = 0, None, 0.0, False

    async def take(_topic, data):
        nonlocal received, began, last, told
        kind = data[0]
        if kind == 1:
            received, began = 0, None
        elif kind == 0:
            last = time.monotonic()
            began = began or last
            received += 1
        elif not told:
            told = True
            per_second = received / (last - began) if began and last > began else 0.0
            say({"counted": {"received": received, "per_second": per_second}})

    async def pong(_topic, data):
        await node.send("pong", data)

    await node.listen("flood", take)
    await node.listen("ping", pong)
    await asyncio.sleep(0.2)
    say({"ready": ""})


async def second():
    node = await node_named("sender")
    sizes = {"flood1k": 1 << 10, "flood64k": 64 << 10, "flood1m": 1 << 20}
    size = sizes.get(SETUP["work"], 64)
    data, start, end = (bytes([kind]) + bytes(size - 1) for kind in (0, 1, 2))
    warm, whole = SETUP["warm"], SETUP["warm"] + SETUP["seconds"]
    came = asyncio.Event()

    async def pong(_topic, _data):
        came.set()

    await node.listen("pong", pong)
    await node.wait_for_listener("flood", poll_interval=0.05)
    await node.wait_for_listener("ping", poll_interval=0.05)
    await asyncio.sleep(0.3)
    if SETUP["work"] == "trip":
        ping, taken = node.get_topic("ping"), []
        began = time.monotonic()
        while (at := time.monotonic()) - began < whole:
            came.clear()
            await ping.send(data)
            await came.wait()
            if at - began > warm:
                taken.append(time.monotonic() - at)
        taken.sort()
        say({"trip": {"p50": taken[len(taken) // 2] * 1e6, "p99": taken[len(taken) * 99 // 100] * 1e6}})
        say("done")
        return
    flood = node.get_topic("flood")
    began = time.monotonic()
    while time.monotonic() - began < warm:
        await flood.send(data)
        await asyncio.sleep(0)
    await asyncio.sleep(PAUSE)
    await flood.send(start)
    await asyncio.sleep(0.1)
    sent, began = 0, time.monotonic()
    while time.monotonic() - began < SETUP["seconds"]:
        await flood.send(data)
        sent += 1
        await asyncio.sleep(0)
    say({"sent": sent})
    while True:
        await flood.send(end)
        await asyncio.sleep(0.1)


async def node_named(name):
    rosy.node.builder.ZeroconfNodeDiscovery = FolderDiscovery
    return await rosy.build_node(
        name=name, allow_tcp_connections=False, topic_load_balancer=None, service_load_balancer=None
    )


async def main():
    logging.disable()  # it warns of every message that it drops; they are counted
    # Ends with whoever started it.
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    half = asyncio.create_task(first() if sys.argv[1] == "first" else second())
    try:
        await half
    except Exception as error:
        say({"skip": f"{type(error).__name__}: {error}"})
    await ended
    os._exit(0)  # there is nothing to tidy up


asyncio.run(main())
