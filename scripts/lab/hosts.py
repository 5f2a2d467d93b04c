"""Hosts, switches, cables and the programs on them.

A host is a network namespace and a UTS namespace (its host name). Neither has a name in the system: both end with the
last process or descriptor that holds them, so nothing can be left over.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alone import CLONE_NEWNET, LIBC, call
from checks import Failed, now, until
from client import Program

CLONE_NEWUTS = 0x04000000


def own_namespaces():
    return [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "uts")]


class Space:
    """A network and a host name of their own."""

    home = own_namespaces()

    def __init__(self, name):
        self.name = name
        try:
            call(LIBC.unshare, CLONE_NEWNET | CLONE_NEWUTS)
            socket.sethostname(name)
            self.handles = own_namespaces()
            # Addresses count at once, as on a host that has been up for a while.
            for family in ("all", "default"):
                for setting in ("accept_dad", "dad_transmits"):
                    Path(f"/proc/sys/net/ipv6/conf/{family}/{setting}").write_text("0")
        finally:
            self.enter(self.home)
        self.ip("link set lo up")

    @staticmethod
    def enter(handles):
        call(LIBC.setns, handles[0], CLONE_NEWNET)
        call(LIBC.setns, handles[1], CLONE_NEWUTS)

    @contextlib.contextmanager
    def inside(self):
        """This thread, the sockets that it opens and the processes that it starts are in the host."""
        self.enter(self.handles)
        try:
            yield
        finally:
            self.enter(self.home)

    def ip(self, *commands):
        """Runs commands of ip(8)."""
        with self.inside():
            done = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True)
        if done.returncode != 0:
            raise Failed(f"ip {commands} on {self.name}: {done.stderr}")

    def path(self):
        """How another process names this network."""
        return f"/proc/{os.getpid()}/fd/{self.handles[0]}"

    def close(self):
        for handle in self.handles:
            os.close(handle)


class Cable:
    """A cable from a host to a port of a switch."""

    def __init__(self, space, switch, device, address):
        self.switch, self.port = switch.space, switch.new_port()
        space.ip(f"link add name {device} type veth peer name {self.port} netns {self.switch.path()}")
        self.switch.ip(f"link set {self.port} master br0 up")
        space.ip(*([f"address add {address}/24 dev {device}"] if address else []), f"link set {device} up")

    def pull(self):
        """Cuts it in the middle: both ends lose their carrier and keep their addresses."""
        self.switch.ip(f"link set {self.port} down")
        return now()

    def plug(self):
        self.switch.ip(f"link set {self.port} up")
        return now()


class Switch:
    """A bridge that passes multicast on, and its subnet."""

    def __init__(self, name, subnet):
        self.space, self.subnet, self.ports = Space(name), subnet, 0
        # Ports forward from the moment that they are up.
        self.space.ip("link add name br0 type bridge mcast_snooping 0 stp_state 0 forward_delay 0", "link set br0 up")

    def new_port(self):
        self.ports += 1
        return f"p{self.ports}"

    def link(self, other):
        """A cable to another switch. They share a subnet from then on."""
        cable = Cable(self.space, other, f"to{other.space.name}", None)
        self.space.ip(f"link set to{other.space.name} master br0")
        return cable


class Process:
    """A running program: the lines that it printed, and when. `slowly`: seconds between two that are read."""

    def __init__(self, space, arguments, environment, feed=False, slowly=0):
        self.arguments, self.slowly = arguments, slowly
        self.out, self.err = [], []
        self.changed = threading.Condition()
        with space.inside():
            self.started = now()
            self.popen = subprocess.Popen(
                arguments,
                env=environment,
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
            )
        self.readers = [
            threading.Thread(target=self.read, args=pair, daemon=True)
            for pair in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        for reader in self.readers:
            reader.start()

    def read(self, pipe, lines):
        for line in pipe:
            at = now()
            with self.changed:
                lines.append((at, line.decode(errors="replace").rstrip("\n")))
                self.changed.notify_all()
            time.sleep(self.slowly)

    def wait_line(self, seconds, test, lines=None, since=0):
        """The first line that passes the test, from that number on: when it came, and what `test` made of it."""
        lines = self.out if lines is None else lines
        deadline, seen = now() + seconds, since
        with self.changed:
            while True:
                while seen < len(lines):
                    at, line = lines[seen]
                    seen += 1
                    result = test(line)
                    if result:
                        return at, result
                left = deadline - now()
                if left <= 0 or (self.popen.poll() is not None and not any(r.is_alive() for r in self.readers)):
                    raise Failed(f"`{self.command()}` did not print what was awaited in {seconds:g} s\n{self.tail()}")
                self.changed.wait(min(left, 0.2))

    def wait_json(self, seconds, test, since=0):
        """The first JSON object that passes the test: when it came, and the object."""

        def parse(line):
            value = json.loads(line)
            return value if test(value) else None

        return self.wait_line(seconds, parse, since=since)

    def wait_message(self, text, since=0):
        """When this text came as a message."""
        at, _ = self.wait_json(10, lambda message: message.get("data") == text, since)
        return at

    def objects(self):
        """The JSON objects printed so far, with their times."""
        with self.changed:
            lines = list(self.out)
        return [(at, json.loads(line)) for at, line in lines]

    def log(self):
        with self.changed:
            return "\n".join(line for _, line in self.err)

    def tail(self, lines=15):
        return "\n".join(self.log().splitlines()[-lines:])

    def command(self):
        return " ".join(Path(word).name if word.startswith("/") else word for word in self.arguments)

    def wait(self, seconds):
        """The exit code, and when it ended."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"`{self.command()}` still runs after {seconds:g} s\n{self.tail()}") from None
        at = now()
        for reader in self.readers:
            reader.join(2)
        return code, at

    def terminate(self):
        self.popen.send_signal(signal.SIGTERM)
        return now()

    def kill(self):
        """Ends it without a word."""
        self.popen.kill()
        at = now()
        self.popen.wait()
        return at


class Host:
    """A host with a home: what somebody at its terminal can do."""

    def __init__(self, lab, name, space, home, runtime):
        self.lab, self.name, self.space, self.home, self.runtime = lab, name, space, home, runtime
        self.address, self.cable, self.daemon = None, None, None

    def twin(self, name):
        """Another home on the same host."""
        twin = Host(self.lab, name, self.space, self.lab.directory(name), self.runtime)
        twin.address, twin.cable = self.address, self.cable
        return self.lab.with_host(twin)

    # Programs

    def arguments(self, words):
        return [str(self.lab.bin), "--home", str(self.home), *map(str, words)]

    def environment(self):
        return {"PATH": os.environ.get("PATH", ""), "HOME": str(self.home), "MESHD_RUNTIME_DIR": str(self.runtime)}

    def start(self, *words, **options):
        """Starts meshd with these arguments."""
        return self.lab.with_process(Process(self.space, self.arguments(words), self.environment(), **options))

    def meshd(self, *words, input=None, seconds=15):
        """Runs meshd to its end: exit code, stdout, stderr."""
        with self.space.inside():
            popen = subprocess.Popen(
                self.arguments(words),
                env=self.environment(),
                text=True,
                stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        try:
            out, err = popen.communicate(input, timeout=seconds)
        except subprocess.TimeoutExpired:
            popen.kill()
            raise Failed(f"`meshd {' '.join(map(str, words))}` on {self.name} still runs after {seconds} s") from None
        return popen.returncode, out, err

    def ask(self, *words):
        """The JSON objects that a verb prints. Nothing while no daemon runs."""
        code, out, err = self.meshd(*words, "--json")
        if code not in (0, 6):
            raise Failed(f"`meshd {' '.join(words)}` on {self.name} ended with {code}: {err}")
        return [json.loads(line) for line in out.splitlines()]

    # The daemon

    def run(self, *words, local=False, wait=True):
        """Starts the daemon."""
        self.daemon = self.start("run", "--json", *([] if local else ["--no-local"]), *words)
        self.daemon.host = self
        if wait:
            self.ready()
        return self.daemon

    def ready(self):
        """Waits until the daemon serves; when that was, and what it said."""
        return self.daemon.wait_json(10, lambda line: line["event"] == "ready")

    def stop(self):
        self.daemon.terminate()
        code, _ = self.daemon.wait(10)
        if code != 0:
            raise Failed(f"the daemon on {self.name} ended with {code}\n{self.daemon.tail()}")

    def peers(self):
        """Names of the hosts that it is linked to."""
        return sorted(peer["host"] for peer in self.ask("peers"))

    def sees(self, others, seconds=10):
        """Waits until `meshd peers` lists exactly these hosts; when that was."""
        wanted = sorted(other.space.name for other in others)
        until(
            lambda: f"{self.name} lists {wanted}, but {self.peers()}",
            seconds,
            lambda: self.peers() == wanted,
            pace=0.01,
        )
        return now()

    def status(self):
        return self.ask("status")[0]

    def fingerprint(self):
        return self.ask("key", "show")[0]["fingerprint"]

    def port(self):
        """The TCP port where the daemon listens."""
        address = until(
            f"{self.name} listens somewhere",
            5,
            lambda: [a for a in self.status()["addresses"] if a.startswith("/ip4/")],
        )
        return int(address[0].split("/tcp/")[1])

    def reachable_at(self):
        return f"{self.address}:{self.port()}"

    # Messages

    def listen(self, *words, seconds=5):
        """Listens, and waits until that holds."""
        listener = self.start("listen", "--json", "-v", *words)
        listener.wait_line(seconds, lambda line: "listening" in line, lines=listener.err)
        return listener

    # Services

    def serve(self, service, command, *words):
        """Offers a service that runs a command, and waits until that holds."""
        server = self.start("serve", service, "--exec", command, "-v", *words)
        server.wait_line(5, lambda line: "serving" in line, lines=server.err)
        return server

    def program(self, name=None, **options):
        """A program of the lab's own, attached to the daemon."""
        program = Program(self.socket(), name, **options)
        self.lab.closers.append(program.close)
        return program

    def socket(self):
        return self.home / "default/meshd.sock"

    def watch(self):
        """Watches events, and waits until that holds: the daemon sees this program's node as soon as it serves it."""
        watch = self.start("watch", "--json")
        # Nothing is printed when watching begins: an event of our own making shows that it has.
        probe = f"probe-{id(watch):x}"
        deadline = now() + 5
        while not any(event.get("node") == probe for _, event in watch.objects()):
            if now() > deadline:
                raise Failed(f"no event reached `meshd watch` on {self.name}\n{watch.tail()}")
            self.meshd("listen", "lab/probe", "--name", probe, "--timeout", "20ms")
            time.sleep(0.01)
        return watch

    def heard(self, topic, groups, seconds=5):
        """Waits until so many groups listen to a filter, as this host sees it."""

        def count():
            return [entry["groups"] for entry in self.ask("topics") if entry["topic"] == topic]

        until(
            lambda: f"{self.name} sees {groups} groups at {topic}, but {count()}",
            seconds,
            lambda: any(len(g) == groups for g in count()),
        )

    def stream(self, topic, pace, *words):
        return Stream(self, topic, pace, words)


class Stream:
    """Numbered messages at a steady pace, and what was reported of each."""

    def __init__(self, host, topic, pace, words):
        self.process = host.start("send", topic, "--lines", "--json", *words, feed=True)
        self.pace, self.written, self.ended = pace, [], threading.Event()
        self.writer = threading.Thread(target=self.write, daemon=True)
        self.writer.start()

    def write(self):
        pipe = self.process.popen.stdin
        due = now()
        with contextlib.suppress(OSError):
            while not self.ended.wait(max(0, due - now())):
                due += self.pace
                self.written.append(now())
                pipe.write(f"{len(self.written)}\n".encode())
                pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def wait_sent(self, count, seconds=10):
        """Waits for so many more reports."""
        wanted = len(self.process.out) + count
        until(f"{count} more messages sent", seconds, lambda: len(self.process.out) >= wanted, pace=0.005)

    def stop(self):
        """Ends it. The reports, one for each message: (when it came, report)."""
        self.ended.set()
        self.writer.join(5)
        self.process.wait(20)
        reports = self.process.objects()
        if len(reports) != len(self.written):
            raise Failed(f"{len(self.written)} messages, {len(reports)} reports\n{self.process.tail()}")
        return reports


def numbers(listener):
    """What arrived of a stream."""
    return [int(message["data"]) for _, message in listener.objects() if "data" in message]


def resident(peer):
    """KiB of memory of its daemon."""
    status = Path(f"/proc/{peer.daemon.popen.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class Lab:
    """One check's hosts, switches and programs. Leaving it ends them all."""

    PREFIX = "meshdlab-"

    def __init__(self, bin, quick, long, seed):
        self.bin, self.quick, self.long, self.seed = bin, quick, long, seed
        self.hosts, self.spaces, self.processes, self.closers = [], [], [], []

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(prefix=self.PREFIX))
        self.lock = os.open(self.dir, os.O_RDONLY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.kill()
        for process in self.processes:
            process.popen.wait()
        for close in self.closers + [space.close for space in self.spaces]:
            with contextlib.suppress(OSError):
                close()
        os.close(self.lock)
        shutil.rmtree(self.dir, ignore_errors=True)

    @classmethod
    def sweep(cls):
        """Removes the directories of labs that were killed: those that nobody holds."""
        for directory in Path(tempfile.gettempdir()).glob(f"{cls.PREFIX}*"):
            with contextlib.suppress(OSError):
                handle = os.open(directory, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(directory, ignore_errors=True)
                finally:
                    os.close(handle)

    def with_process(self, process):
        self.processes.append(process)
        return process

    def with_host(self, host):
        self.hosts.append(host)
        return host

    def directory(self, name):
        directory = self.dir / name
        directory.mkdir(mode=0o700)
        return directory

    def directory_in_memory(self, name, most, least):
        """A directory for files of so many bytes in all, which no disk slows down: where memory is short, for half as many, and
        so on. With the bytes that fit."""
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        with contextlib.suppress(OSError, ValueError):  # there is no limit, or it is "max"
            available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        while most > available // 2:
            most //= 2
        if most < least:
            raise Failed(f"files in memory take {2 * least >> 20} MiB, of which {available >> 20} are available")
        directory = self.directory(name)
        mounted = ["mount", "-t", "tmpfs", "-o", f"size={most},mode=700", "meshd-lab", str(directory)]
        subprocess.run(mounted, check=True)
        self.closers.append(lambda: subprocess.run(["umount", "--lazy", str(directory)], check=False))
        return directory, most

    def switch(self, name="lan", subnet="10.77.1"):
        switch = Switch(name, subnet)
        self.spaces.append(switch.space)
        return switch

    def host(self, name, switch=None, number=None):
        """A host, with a cable to the switch if there is one."""
        space = Space(name)
        self.spaces.append(space)
        host = Host(self, name, space, self.directory(name), self.directory(f"{name}-run"))
        if switch:
            host.address = f"{switch.subnet}.{number or len(self.hosts) + 1}"
            host.cable = Cable(space, switch, "eth0", host.address)
        return self.with_host(host)

    def lan(self, *names, switch=None):
        """Hosts at one switch, with the key of one mesh."""
        switch = switch or self.switch()
        hosts = [self.host(name, switch) for name in names]
        self.share_key(hosts)
        return hosts

    def mesh(self, *names, switch=None):
        """Hosts at one switch whose daemons are linked."""
        hosts = self.lan(*names, switch=switch)
        for host in hosts:
            host.run()
        self.meet(hosts)
        return hosts

    def router(self, *switches):
        """Joins subnets: forwards packets, but no multicast."""
        space = Space("router")
        self.spaces.append(space)
        for number, switch in enumerate(switches):
            Cable(space, switch, f"eth{number}", f"{switch.subnet}.254")
        with space.inside():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def share_key(self, hosts):
        """Gives the hosts the key of a new mesh: the file, and nothing else."""
        first, *others = hosts
        code, _, err = first.meshd("key", "new")
        if code != 0:
            raise Failed(f"no key: {err}")
        key = (first.home / "default/key").read_bytes()
        for host in others:
            self.give_key(host, key)

    @staticmethod
    def give_key(host, key):
        (host.home / "default").mkdir(mode=0o700, exist_ok=True)
        path = host.home / "default/key"
        path.touch(mode=0o600)
        path.write_bytes(key)

    def together(self, actions):
        """Does all at once, each in a thread of its own, and gives the results."""
        with ThreadPoolExecutor(len(actions)) as pool:
            return [future.result() for future in [pool.submit(action) for action in actions]]

    def meet(self, hosts, seconds=10):
        """Waits until each lists all the others."""
        return self.together(
            [lambda host=host: host.sees([other for other in hosts if other is not host], seconds) for host in hosts]
        )

    def logs(self):
        """The last words of every daemon."""
        daemons = [process for process in self.processes if hasattr(process, "host")]
        return "\n".join(
            f"--- {daemon.host.name} (pid {daemon.popen.pid}, exit code {daemon.popen.poll()})\n{daemon.tail()}"
            for daemon in daemons
        )
