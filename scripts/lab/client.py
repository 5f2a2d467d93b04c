"""A program attached to a daemon's socket: what docs/LOCAL.md describes, in the little that the lab needs."""

import queue
import socket
import struct
import threading
from concurrent.futures import Future


class Refusal(Exception):
    """A request that was not done. `failure` is what the daemon says of it."""

    def __init__(self, failure):
        super().__init__(f"{failure['kind']}: {failure['message']}")
        self.failure = failure


class Gone(Exception):
    """The daemon closed the connection, or this end did."""


class Program:
    """A connection, attached as a node if it has a name. Requests may come from any thread.

    `room`: how many answers that nobody asked for may wait for `next` before no more is read; 0 for any number.
    """

    def __init__(self, path, name=None, room=0):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self.socket.settimeout(None)
        self.lock, self.last, self.pending, self.ended = threading.Lock(), 0, {}, False
        # Answers that nobody asked for: (kind, what it says).
        self.unasked = queue.Queue(room)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.ask({"Hello": {"version": 1}})
        if name:
            self.ask({"Attach": {"name": name}})

    def begin(self, request):
        """Sends a request; its answer is in the future that it gives."""
        answer = Future()
        with self.lock:
            if self.ended:
                raise Gone
            self.last += 1
            self.pending[self.last] = answer
            self.write({"id": self.last, "request": request})
        return answer

    def ask(self, request, seconds=15):
        """What the daemon replies."""
        return self.begin(request).result(seconds)

    def tell(self, request):
        """Sends a request that has no answer, or whose answer does not matter."""
        with self.lock:
            self.last += 1
            self.write({"id": self.last, "request": request})

    def next(self, seconds=None):
        """The next answer that nobody asked for: its kind, and what it says. `None` when the connection is closed."""
        return self.unasked.get(timeout=seconds)

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        while self.reader.is_alive():  # it may wait for room
            try:
                self.unasked.get(timeout=0.05)
            except queue.Empty:
                pass
        self.socket.close()

    # Requests

    def call(self, service, payload=b"", **options):
        """What the service answers: `node`, `name`, `payload`, `latency_us`."""
        return self.begin({"Call": {"service": service, "payload": payload, **options}}).result(60)["Answered"]

    def providers(self, service, count, seconds=5):
        """Waits until so many nodes offer the service."""
        request = {"service": service, "count": count, "timeout_ms": int(seconds * 1000)}
        got = self.ask({"WaitForProviders": request}, seconds + 5)["Providers"]
        if got < count:
            raise TimeoutError(f"{got} of {count} offer {service} within {seconds:g} s")

    def listeners(self, topic, count, seconds=5):
        """Waits until so many nodes listen to the topic."""
        request = {"topic": topic, "count": count, "timeout_ms": int(seconds * 1000)}
        got = self.ask({"WaitForListeners": request}, seconds + 5)["Listeners"]
        if got < count:
            raise TimeoutError(f"{got} of {count} listen to {topic} within {seconds:g} s")

    # Blocks

    def write(self, question):
        body = encode(question)
        try:
            self.socket.sendall(struct.pack(">I", len(body)) + body)
        except OSError:
            pass  # the reader hears of it too, and fails whatever waits

    def read(self):
        stream = self.socket.makefile("rb")
        try:
            while length := stream.read(4):
                self.take(decode(stream.read(struct.unpack(">I", length)[0])))
        except (OSError, IndexError, struct.error):
            pass
        with self.lock:
            self.ended = True
            pending, self.pending = self.pending, {}
        for answer in pending.values():
            answer.set_exception(Gone())
        self.unasked.put(None)

    def take(self, answer):
        ((kind, said),) = answer.items()
        if kind not in ("Reply", "Failed"):
            return self.unasked.put((kind, said))
        with self.lock:
            waiting = self.pending.pop(said["id"], None)
        if waiting and kind == "Reply":
            waiting.set_result(said["reply"])
        elif waiting:
            waiting.set_exception(Refusal(said["failure"]))


def encode(value):
    """CBOR, with nothing but what requests are made of."""
    out = bytearray()
    write(out, value)
    return bytes(out)


def write(out, value):
    if value is None or isinstance(value, bool):
        out += {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    elif isinstance(value, int):
        head(out, 0, value) if value >= 0 else head(out, 1, -1 - value)
    elif isinstance(value, bytes):
        head(out, 2, len(value))
        out += value
    elif isinstance(value, str):
        text = value.encode()
        head(out, 3, len(text))
        out += text
    elif isinstance(value, (list, tuple)):
        head(out, 4, len(value))
        for item in value:
            write(out, item)
    else:
        head(out, 5, len(value))
        for key, item in value.items():
            write(out, key)
            write(out, item)


def head(out, kind, number):
    if number < 24:
        out.append(kind << 5 | number)
    else:
        out.append(kind << 5 | 27)
        out += struct.pack(">Q", number)


def decode(body):
    """The value in a block of CBOR."""
    return item(body, 0)[0]


def item(body, at):
    """A value, and where the next one begins."""
    kind, number = body[at] >> 5, body[at] & 31
    at += 1
    if kind == 7:
        if number < 24:
            return {20: False, 21: True}.get(number), at
        size = 1 << (number - 24)
        return struct.unpack({25: ">e", 26: ">f", 27: ">d"}[number], body[at : at + size])[0], at + size
    if number >= 24:
        size = 1 << (number - 24)
        number, at = int.from_bytes(body[at : at + size], "big"), at + size
    if kind < 2:
        return (number if kind == 0 else -1 - number), at
    if kind == 2:
        return body[at : at + number], at + number
    if kind == 3:
        return body[at : at + number].decode(), at + number
    if kind == 4:
        items = []
        for _ in range(number):
            one, at = item(body, at)
            items.append(one)
        return items, at
    entries = {}
    for _ in range(number):
        key, at = item(body, at)
        entries[key], at = item(body, at)
    return entries, at
