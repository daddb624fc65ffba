#!/usr/bin/python3
#
# react.py SUBSCRIPTION NAME: answers each event by a command.  The command may go to another database than the one that the
# event comes from, so the two are not one transaction: after a crash in between the event comes again, and so does the
# command, under the same command_id, which makes the second one do nothing.
#
# Connects as psql does; with TARGET, a connection string, the commands go there.

import os
import sys

import psycopg
from psycopg.types.json import Jsonb

from subscription import Consumer


class Reactor:
    def __init__(self, dsn):
        self.dsn = dsn
        self.connection = None

    def react(self, event):
        if self.connection is None or self.connection.closed:
            self.connection = psycopg.connect(self.dsn, autocommit=True)
        # what one event causes has the event's correlation, and the event as its cause
        status, message = self.connection.execute(
            "SELECT status, message FROM evpg_try_execute('notice', %s, 'Note', %s, command_id => %s,"
            " correlation_id => %s, causation_id => %s)",
            (event.aggregate_id, Jsonb({"text": f"{event.type} of {event.data['amount']}"}), f"note {event.event_id}",
             event.correlation_id, str(event.event_id))).fetchone()
        # "duplicate" is as good as "ok"; a refusal is the answer, too, and does not get better by asking again
        if status not in ("ok", "duplicate", "noop", "rejected"):
            raise RuntimeError(f"the command ended with {status}: {message}")


if __name__ == "__main__":
    Consumer("", *sys.argv[1:3]).run_outside(Reactor(os.environ.get("TARGET", "")).react)
