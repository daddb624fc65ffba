"""A consumer of a subscription of evpg, over psycopg 3.

    Consumer(dsn, subscription, name).run_in_transaction(handle)    handle(connection, event): exactly once
    Consumer(dsn, subscription, name).run_outside(handle)           handle(event): at least once

Both run until SIGTERM or SIGINT, connect again when the connection is lost, and wait for notifications, without which
they look for events every second.  The name tells the consumers of a group apart: no two processes have the same.
"""

import random
import select
import signal
import socket
import sys
import time

import psycopg
from psycopg.rows import namedtuple_row

# what passes by itself: a lost connection, a server that stops or recovers, too many connections, conflicts, timeouts
TRANSIENT = ("08", "40", "53", "57", "55P03", "25P03")


class LeaseLost(Exception):
    """Another consumer has the partitions, and what was handed out."""


class Consumer:
    def __init__(self, dsn, subscription, name, batch=100, interval=1.0, lease_time=30.0):
        self.dsn = dsn
        self.subscription = subscription
        self.name = name
        self.batch = batch
        self.interval = interval
        self.lease_time = lease_time        # of the subscription
        self.stopping = False
        self.notified = False               # while a statement ran
        self.wake, self.woken = socket.socketpair()
        self.woken.setblocking(False)
        self.wake.setblocking(False)

    def run_in_transaction(self, handle):
        self.run(lambda connection: self.take_in_transaction(connection, handle))

    def run_outside(self, handle):
        self.run(lambda connection: self.take_outside(connection, handle))

    # ------------------------------------------------------------------ what is done with a batch

    def take_in_transaction(self, connection, handle):
        """Fetches, works and acknowledges in one transaction: each event has its effect once."""
        with connection.transaction():
            events = self.fetch(connection)
            for event in events:
                try:
                    with connection.transaction():      # a savepoint
                        handle(connection, event)
                except psycopg.OperationalError:
                    raise
                except Exception as error:
                    # what was done for the events before it stays; this one comes again, or is parked
                    self.give_back(connection, event, error)
                    break
            else:
                if events:
                    self.acknowledge(connection, events[-1])
        return len(events)

    def take_outside(self, connection, handle):
        """Works outside of the database, then acknowledges: after a crash in between, events come again."""
        events = self.fetch(connection)
        renewed = time.monotonic()
        for event in events:
            try:
                handle(event)
            except Exception as error:
                self.give_back(connection, event, error)
                break
            if time.monotonic() - renewed > self.lease_time / 3:
                self.acknowledge(connection, event)     # which renews the lease
                renewed = time.monotonic()
        else:
            if events:
                self.acknowledge(connection, events[-1])
        return len(events)

    # ------------------------------------------------------------------ the functions of evpg

    def fetch(self, connection):
        return connection.execute("SELECT * FROM evpg_fetch(%s, %s, %s)",
                                  (self.subscription, self.name, self.batch)).fetchall()

    def acknowledge(self, connection, event):
        self.expect_lease(connection.execute("SELECT evpg_ack(%s, %s, %s)",
                                             (self.subscription, event.lease, event.position)))

    def give_back(self, connection, event, error):
        print(f"{self.name}: event {event.position}, attempt {event.attempt}: {error}", file=sys.stderr)
        self.expect_lease(connection.execute("SELECT evpg_nack(%s, %s, %s, reason => %s)",
                                             (self.subscription, event.lease, event.position, str(error))))

    def expect_lease(self, result):
        if not result.fetchone()[0]:
            raise LeaseLost(self.name)

    def leave(self, connection):
        """The partitions are free at once, not only when the lease has run out."""
        connection.execute("SELECT evpg_release_lease(%s, lease) FROM (SELECT DISTINCT lease FROM evpg.stat_subscription"
                           " WHERE name = %s AND consumer = %s) AS l", (self.subscription, self.subscription, self.name))

    # ------------------------------------------------------------------ the loop

    def run(self, take):
        for number in signal.SIGTERM, signal.SIGINT:
            signal.signal(number, self.stop)
        pause = 0.1
        while not self.stopping:
            try:
                with psycopg.connect(self.dsn, autocommit=True, row_factory=namedtuple_row) as connection:
                    connection.add_notify_handler(self.notice)
                    connection.execute("SELECT evpg_listen_subscription(%s)", (self.subscription,))
                    while not self.stopping:
                        self.notified = False
                        try:
                            count = take(connection)
                        except LeaseLost:
                            continue
                        pause = 0.1
                        if count == 0 and not self.notified and not self.stopping:
                            # a notification that comes now is in the socket
                            select.select([connection, self.woken], [], [], self.interval)
                    self.leave(connection)
            except psycopg.Error as error:
                if error.sqlstate is not None and not error.sqlstate.startswith(TRANSIENT):
                    raise
                print(f"{self.name}: connects again: {error}".rstrip(), file=sys.stderr)
                if not self.stopping:
                    select.select([self.woken], [], [], pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 10)

    def notice(self, notification):
        self.notified = True        # what it contains does not matter

    def stop(self, number, frame):
        self.stopping = True
        self.wake.send(b"x")
