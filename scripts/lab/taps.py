"""Who tries to connect to whom, as seen from a switch."""

import socket
import struct
import threading

from checks import now


class Taps:
    """Counts the attempts to connect that cross a switch."""

    def __init__(self, switch):
        with switch.space.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self.socket.settimeout(0.2)
        self.flows, self.closing = {}, False
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        while not self.closing:
            try:
                frame, (_, _, direction, _, _) = self.socket.recvfrom(128)
            except TimeoutError:
                continue
            except OSError:
                return
            if direction != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
                self.take(frame[14:])

    def take(self, packet):
        tcp = packet[(packet[0] & 15) * 4 :]
        source, target = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
        ports, flags = struct.unpack(">HH", tcp[:4]), tcp[13]
        if flags & 0x12 == 0x02:  # SYN without ACK
            self.flows.setdefault((source, ports[0], target, ports[1]), [now(), None, None])
        if flags & 0x05:  # FIN or RST
            for at, flow in ((1, (source, ports[0], target, ports[1])), (2, (target, ports[1], source, ports[0]))):
                if flow in self.flows and self.flows[flow][at] is None:
                    self.flows[flow][at] = now()

    def dials(self, sources, targets):
        """Connections tried from these addresses to those: {(source, target, port): [(begin, ends..)]}."""
        found = {}
        for (source, _, target, port), times in list(self.flows.items()):
            if source in sources and target in targets:
                found.setdefault((source, target, port), []).append(times)
        return found

    def close(self):
        self.closing = True
        self.thread.join()
        self.socket.close()
