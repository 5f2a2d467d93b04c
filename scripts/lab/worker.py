"""A worker, a process of its own: handles the messages on a topic one after the other, and prints each when it has.

Arguments: the daemon's socket, the node's name, the topic, milliseconds that a message takes. At SIGTERM it finishes
what it has in hand and leaves the rest to others.
"""

import signal
import sys
import time

from client import Program


def main():
    path, name, topic, length = sys.argv[1:]
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    program = Program(path, name)
    listen = {"filter": topic, "acknowledge": "Handled", "overflow": "Block"}
    subscription = program.ask({"Listen": listen})["Listening"]["subscription"]
    print("listening", flush=True)
    while not told:
        came = program.next()
        if came is None or program.ended:
            return 6  # what is not handled yet is somebody else's by now
        kind, message = came
        if kind == "Message":
            time.sleep(int(length) / 1000)
            print(message["payload"].decode(), flush=True)
            if "ack" in message:  # somebody waits for it
                program.tell({"Acknowledge": {"subscription": subscription, "acks": [message["ack"]]}})
    program.ask({"Unlisten": {"subscription": subscription}})
    program.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
