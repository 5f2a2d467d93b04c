"""Clients that are no members: `strangers.py KIND ADDRESS PORT COUNT`. They run until they are killed.

Each kind keeps COUNT connections open and opens a new one for each that the other side closes.
"""

import os
import selectors
import socket
import struct
import sys
import time

NOISE = b"\x13/multistream/1.0.0\n\x07/noise\n"
KINDS = {
    # what is said at once, and what is said to what is heard
    "silent": (lambda: b"", lambda heard: b""),
    "echo": (lambda: b"", lambda heard: heard),
    "noise-echo": (lambda: NOISE, lambda heard: heard),
    "random": (lambda: os.urandom(4096), lambda heard: os.urandom(len(heard))),
    "noise-random": (lambda: NOISE + os.urandom(512), lambda heard: b""),
}


def connect(kind, target, count):
    """Keeps connections open."""
    greeting, answer = KINDS[kind]
    select, opened = selectors.DefaultSelector(), 0
    while True:
        # A few at once, and then a pause: what is tried is what meshd bears, not how fast Python runs.
        for _ in range(min(20, count - len(select.get_map()))):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(target)
            select.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
            opened += 1
            if opened == count:
                print("all", flush=True)
        for key, events in select.select(0.1):
            client = key.fileobj
            try:
                if events & selectors.EVENT_WRITE:
                    select.modify(client, selectors.EVENT_READ)
                    client.send(greeting())
                if events & selectors.EVENT_READ:
                    heard = client.recv(65536)
                    if not heard:
                        raise ConnectionResetError
                    client.send(answer(heard))
            except BlockingIOError:
                pass
            except OSError:
                select.unregister(client)
                client.close()
        time.sleep(0.02)


def serve(port):
    """Answers whoever connects with the same bytes: a peer that is led here talks to itself."""
    select = selectors.DefaultSelector()
    server = socket.create_server(("0.0.0.0", port))
    select.register(server, selectors.EVENT_READ)
    print("all", flush=True)
    while True:
        for key, _ in select.select():
            if key.fileobj is server:
                select.register(server.accept()[0], selectors.EVENT_READ)
                continue
            try:
                heard = key.fileobj.recv(65536)
                key.fileobj.sendall(heard)
            except OSError:
                heard = b""
            if not heard:
                select.unregister(key.fileobj)
                key.fileobj.close()


def half_open(target, count):
    """Begins connections from an address where nobody answers, over and over."""
    source = target[0].rsplit(".", 1)[0] + ".250"
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ends = socket.inet_aton(source) + socket.inet_aton(target[0])
    for number in range(10**9):
        tcp = struct.pack(">HHLLBBHHH", 10000 + number % 50000, target[1], number, 0, 5 << 4, 0x02, 65535, 0, 0)
        tcp = tcp[:16] + struct.pack(">H", checksum(ends + struct.pack(">HH", 6, len(tcp)) + tcp)) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + ends
        raw.sendto(ip + tcp, target)
        if number == count:
            print("all", flush=True)
        if number % 10 == 9:
            time.sleep(0.02)


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    os.nice(19)  # What is tried is what they cost meshd, not what they cost a machine that plays all hosts.
    kind, address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if kind == "serve-echo":
        serve(port)
    elif kind == "half-open":
        half_open((address, port), count)
    else:
        connect(kind, (address, port), count)
