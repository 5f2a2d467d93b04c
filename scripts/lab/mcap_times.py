"""What MCAP's own reader finds in a file: a line for each message, in the order of their times.

Argument: the file. A line is topic, encoding, number, nanoseconds since 1970, payload as text. Started with a Python that has
the package `mcap`.
"""

import sys

from mcap.reader import make_reader

with open(sys.argv[1], "rb") as file:
    for _, channel, message in make_reader(file).iter_messages():
        text = message.data.decode(errors="replace")
        print(channel.topic, channel.message_encoding, message.sequence, message.log_time, text)
