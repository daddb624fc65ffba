#!/usr/bin/python3
#
# mail.py SUBSCRIPTION NAME DIRECTORY: writes a mail for each event, as a file.  A file is outside of the database, as a mail
# server or a message broker is: an event may come again after a crash, and finds the same name for its mail, by event_id.
#
# Connects as psql does.

import os
import sys

from subscription import Consumer


def send(event):
    path = os.path.join(sys.argv[3], str(event.event_id))
    with open(path + ".new", "w") as mail:
        mail.write(f"To: {event.aggregate_id}\n\n{event.type}: {event.data}\n")
        mail.flush()
        os.fsync(mail.fileno())
    os.rename(path + ".new", path)


if __name__ == "__main__":
    Consumer("", *sys.argv[1:3]).run_outside(send)
