"""Small messages at a steady pace, each a process of its own: sends them, or prints how late each comes.

Arguments: `send`, the daemon's socket, the topic, messages a second; or `listen`, the socket, the topic. A message says
when it was due to be sent, whenever it was sent: what waits to be sent is late too. The clock is the machine's, and so
that of all hosts here.
"""

import struct
import sys
import time

from client import Program

SIZE = 64


def send(path, topic, rate):
    program = Program(path)
    pace, due, number = 10**9 // int(rate), time.monotonic_ns(), 0
    while not program.ended:
        due += pace
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        number += 1
        payload = struct.pack(">QQ", number, due).ljust(SIZE, b".")
        program.tell({"Send": {"topic": topic, "payload": payload, "timeout_ms": 60_000}})


def listen(path, topic):
    program = Program(path, "pacer")
    program.ask({"Listen": {"filter": topic, "overflow": "Block"}})
    print("listening", flush=True)
    while (came := program.next()) is not None:
        arrived = time.monotonic_ns()
        if came[0] == "Message":
            number, due = struct.unpack_from(">QQ", came[1]["payload"])
            print(number, due, arrived, flush=True)


if __name__ == "__main__":
    {"send": send, "listen": listen}[sys.argv[1]](*sys.argv[2:])
