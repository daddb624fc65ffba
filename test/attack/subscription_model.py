"""Consumers of a subscription, at random, against a model of what they must get.

PGHOST and PGDATABASE lead to a database with evpg whose clock nothing else moves.  One process drives many connections,
so a seed repeats a run: consumers fetch, acknowledge, give back, release, extend, roll back whole transactions or to
savepoints, prepare them, crash, come and go, two sessions under one name; writers append and roll back; the clock is
moved so that leases run out; parked events are replayed and skipped; the subscription is moved, paused, resumed and
dropped.  The model knows what was handed out, what is done and what is put aside, as it is committed, and what a
transaction sees of its own.  A statement that another transaction blocks ends by lock_timeout.

With --kill server processes are killed while they run a statement, as the user of the server; with --restart, a command
that starts the server, its postmaster as well.  Clients connect again, with what they had when their last transaction
had committed.
"""

import argparse
import os
import random
import signal
import subprocess
import threading
import time

import psycopg

parser = argparse.ArgumentParser()
parser.add_argument('--seed', type=int, default=int(time.time()))
parser.add_argument('--runs', type=int, default=1, help='so many seeds, one after the other')
parser.add_argument('--steps', type=int, default=600)
parser.add_argument('--replay', type=int, default=0, help='how often parked events are replayed; 0: never')
parser.add_argument('--control', type=int, default=0, help='how often the subscription is moved, paused, dropped; 0: never')
parser.add_argument('--kill', type=int, default=0, help='how often a server process is killed; 0: never')
parser.add_argument('--restart', help='starts the server when its postmaster is killed')
parser.add_argument('--trace', action='store_true', help='print each step')
options = parser.parse_args()

# What a statement may fail by: a lost lease, a lock of another transaction of this test.
EXPECTED = ('VE024', '55P03')


FETCH = "SELECT lease, partition, attempt, position, aggregate_id FROM evpg_fetch('model', %s, %s, lease => %s)"


class Wrong(Exception):
    """The model does not agree."""


class World:
    """What is committed, as the model knows it."""

    def __init__(self):
        self.events = {}        # position -> stream
        self.done = {}          # position -> lease that has acknowledged it
        self.aside = {}         # position -> 'parked' or 'skipped'
        self.given = {}         # position -> how often it was handed out
        self.clock = 0          # hours
        self.paused = False


class Session:
    """A connection that is a consumer."""

    def __init__(self, model, name):
        self.model = model
        self.name = name
        self.lease = None
        self.flight = []        # (position, stream, partition)
        self.until = 0
        self.journal = None     # of a transaction: undo functions, and marks of savepoints
        self.connection = model.connect()

    def execute(self, statement, *values):
        self.model.trace(self.name, statement, values)
        return self.connection.execute(statement, values).fetchall()

    def set(self, target, key, value):
        """Changes the model; undone when the transaction, or its part, is rolled back."""
        if self.journal is not None:
            self.journal.append(('set', target, key, key in target, target.get(key)))
        target[key] = value

    def keep(self):
        """Remembers what the client has before it changes."""
        if self.journal is not None:
            self.journal.append(('client', self.lease, list(self.flight), self.until))

    def undo(self, mark=0):
        while len(self.journal) > mark:
            entry = self.journal.pop()
            if entry[0] == 'set':
                _, target, key, had, value = entry
                if had:
                    target[key] = value
                else:
                    target.pop(key, None)
            elif entry[0] == 'client':
                self.lease, self.flight, self.until = entry[1:]


class Model:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.log = []
        self.world = World()
        self.states = {}
        self.counts = {}
        self.places = {}
        self.control = self.connect()
        self.control.execute("SELECT evpg_register_aggregate('model')")
        self.control.execute('SELECT evpg_set_clock_offset()')
        self.control.execute("SELECT evpg_drop_subscription('model', missing_ok => true)")
        self.create(self.control.execute('SELECT evpg_stable_position()').fetchone()[0])
        self.streams = ['s%d' % n for n in range(self.random.choice((2, 6, 20)))]
        self.names = 0
        self.sessions = []
        self.writers = [[self.connect(), None] for _ in range(3)]
        self.prepared = []      # (name, journal, name of consumer)
        self.prepared_names = 0

    def create(self, start):
        self.start = start
        self.partitions = self.random.choice((1, 2, 3, 8))
        self.max_attempts = self.random.choice((1, 2, 3, 10))
        self.control.execute(
            "SELECT evpg_create_subscription('model', aggregate_types => '{model}', start_position => %s, partitions => %s,"
            " lease_time => '1 hour', max_attempts => %s)", (start, self.partitions, self.max_attempts))

    def connect(self):
        connection = psycopg.connect('', autocommit=True, prepare_threshold=None)
        connection.execute("SET lock_timeout = '30ms'")
        return connection

    def trace(self, *what):
        self.log.append(what)
        if options.trace:
            print(*what, flush=True)

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---------------------------------------------------------------- transactions

    def fail(self, session, error):
        self.states[error.sqlstate] = self.states.get(error.sqlstate, 0) + 1
        if error.sqlstate not in EXPECTED:
            raise Wrong('unexpected error %s %s' % (error.sqlstate, error))
        if session.journal is not None:
            session.connection.execute('ROLLBACK')
            session.undo()
            session.journal = None
            self.trace(session.name, 'rolled back by', error.sqlstate)

    def open(self):
        """Other transactions than autocommit that may hold a lease."""
        return [s for s in self.sessions if s.journal] + [p for p in self.prepared]

    # ---------------------------------------------------------------- steps

    def step_come(self):
        if len(self.sessions) >= 6:
            return
        if self.sessions and self.random.random() < 0.2:
            name = self.random.choice(self.sessions).name
        else:
            self.names += 1
            name = 'c%d' % (self.names % 9)
        self.sessions.append(Session(self, name))

    def pick(self):
        if not self.sessions:
            self.step_come()
        return self.random.choice(self.sessions)

    def step_crash(self):
        session = self.pick()
        self.trace(session.name, 'crashes')
        self.close_session(session)
        if session.journal is not None:
            session.undo()
        self.sessions.remove(session)

    def close_session(self, session):
        """Ends a connection; its server process may take a moment to give its locks back."""
        pid = session.connection.info.backend_pid
        session.connection.close()
        for _ in range(3000):
            if not self.control.execute('SELECT FROM pg_stat_activity WHERE pid = %s', (pid,)).fetchall():
                return
            time.sleep(0.01)
        raise Wrong('a session does not end')

    def step_begin(self):
        session = self.pick()
        if session.journal is None:
            session.connection.execute('BEGIN')
            session.journal = []
            self.trace(session.name, 'BEGIN')
        else:
            self.end(session)

    def step_end(self):
        for session in self.sessions:
            if session.journal is not None and len(session.journal) > 6:
                return self.end(session)

    def end(self, session):
        how = self.random.random()
        if how < 0.55:
            session.connection.execute('COMMIT')
            self.trace(session.name, 'COMMIT')
            session.journal = None
        elif how < 0.7 and len(self.prepared) < 2:
            self.prepared_names += 1
            name = 'model_%d_%d' % (self.control.info.backend_pid, self.prepared_names)
            session.connection.execute("PREPARE TRANSACTION '%s'" % name)
            self.trace(session.name, 'PREPARE', name)
            other = Session.__new__(Session)
            other.__dict__.update(session.__dict__)
            self.prepared.append((name, other))
            # the client has nothing until it is known how that ends: it is a new one
            self.sessions.remove(session)
            self.close_session(session)
        else:
            session.connection.execute('ROLLBACK')
            self.trace(session.name, 'ROLLBACK')
            session.undo()
            session.journal = None

    def step_savepoint(self):
        session = self.pick()
        if session.journal is None:
            return
        marks = [n for n, entry in enumerate(session.journal) if entry[0] == 'savepoint']
        if marks and self.random.random() < 0.6:
            mark = self.random.choice(marks)
            name = session.journal[mark][1]
            session.connection.execute('ROLLBACK TO %s' % name)
            self.trace(session.name, 'ROLLBACK TO', name)
            session.undo(mark + 1)
        else:
            name = 's%d' % len(session.journal)
            session.connection.execute('SAVEPOINT %s' % name)
            self.trace(session.name, 'SAVEPOINT', name)
            session.journal.append(('savepoint', name))

    def step_prepared(self):
        if not self.prepared:
            return
        entry = self.prepared.pop(self.random.randrange(len(self.prepared)))
        name, other = entry
        if self.random.random() < 0.6:
            self.control.execute("COMMIT PREPARED '%s'" % name)
            self.trace('COMMIT PREPARED', name)
        else:
            self.control.execute("ROLLBACK PREPARED '%s'" % name)
            self.trace('ROLLBACK PREPARED', name)
            other.undo()

    def step_clock(self):
        if self.random.random() < 0.25:
            self.world.clock += 2
        else:
            self.world.clock += self.random.choice((0.01, 0.2))
        self.trace('clock', self.world.clock)
        self.control.execute('SELECT evpg_set_clock_offset(make_interval(secs => %s))', (self.world.clock * 3600,))

    def step_append(self):
        writer = self.random.choice(self.writers)
        connection, events = writer
        if events is None:
            connection.execute('BEGIN')
            writer[1] = events = []
        elif self.random.random() < 0.5:
            if self.random.random() < 0.7:
                connection.execute('COMMIT')
                self.world.events.update(events)
                self.trace('writer COMMIT', events)
            else:
                connection.execute('ROLLBACK')
                self.trace('writer ROLLBACK')
            writer[1] = None
            return
        back = self.random.random() < 0.2
        if back:
            connection.execute('SAVEPOINT w')
        mine = []
        try:
            for _ in range(self.random.randrange(1, 8)):
                stream = self.random.choice(self.streams)
                position = connection.execute(
                    "SELECT position FROM evpg_append_event('model', %s, 'E')", (stream,)).fetchone()[0]
                mine.append((position, stream))
        except psycopg.Error as error:
            if error.sqlstate != '55P03':
                raise Wrong('append: %s %s' % (error.sqlstate, error))
            connection.execute('ROLLBACK')
            writer[1] = None
            return
        if back:
            connection.execute('ROLLBACK TO w')
        else:
            events += mine

    # what a consumer does

    def step_fetch(self):
        session = self.pick()
        if session.flight and self.random.random() < 0.6:
            return
        lease = session.lease if session.lease is not None and self.random.random() < 0.7 else None
        most = self.random.choice((1, 2, 5, 20))
        try:
            rows = session.execute(FETCH, session.name, most, lease)
        except psycopg.Error as error:
            if error.sqlstate == 'VE024' and session.journal is None:
                session.lease, session.flight = None, []
            return self.fail(session, error)
        self.note_rows(session, rows, most, lease)

    def note_rows(self, session, rows, most, lease):
        """A fetch has returned."""
        self.trace('  ', rows)
        session.keep()
        if lease is None:
            # what was in flight comes again, also if there is none of it just now
            session.flight = []
            session.lease = None
        if rows:
            self.check_rows(session, rows, most, lease)

    def check_rows(self, session, rows, most, lease):
        world = self.world
        self.count('batches')
        if world.paused:
            raise Wrong('a batch while the subscription is paused')
        if len(rows) > most:
            raise Wrong('more than max_events')
        if len({row[0] for row in rows}) != 1:
            raise Wrong('a batch of several leases')
        if lease is not None and rows[0][0] != lease:
            raise Wrong('another lease than asked for')
        before = session.flight[-1][0] if session.flight else 0
        flying = {f[0] for f in session.flight}
        session.lease = rows[0][0]
        for number, partition, attempt, position, stream in rows:
            if position <= before:
                raise Wrong('position %d is not above %d' % (position, before))
            before = position
            if world.events.get(position) != stream:
                raise Wrong('event %d was never committed' % position)
            if position in world.done:
                raise Wrong('event %d was acknowledged, and is handed out again' % position)
            if world.aside.get(position, 'due') != 'due':
                raise Wrong('event %d is %s, and is handed out' % (position, world.aside[position]))
            # what becomes due in the course of a replay waits for the next one
            due = [p for p, kind in world.aside.items() if kind == 'due' and p < position and p not in flying and
                   position not in world.aside and self.partition_of(world.events[p]) == partition]
            # one whose replay has failed is parked again, with the later ones of its stream
            if due and any(p not in dict(self.parked(session.connection)) for p in due):
                raise Wrong('event %d is handed out before %s of its partition, which are replayed' % (position, due))
            for earlier in (p for p, s in world.events.items() if s == stream and p < position):
                if world.aside.get(earlier) in ('parked', 'due') and earlier not in flying:
                    raise Wrong('event %d is handed out, but %d of its stream is parked' % (position, earlier))
                if earlier not in world.done and earlier not in world.aside and earlier not in flying:
                    raise Wrong('event %d is handed out before %d of its stream' % (position, earlier))
            # an event of a lost batch is tried alone in any case
            if attempt > max(self.max_attempts, 2):
                raise Wrong('attempt %d of %d' % (attempt, self.max_attempts))
            if attempt > 1 and len(rows) > 1:
                raise Wrong('attempt %d is not alone' % attempt)
            if attempt > world.given.get(position, 0) + 1:
                raise Wrong('attempt %d, but it was handed out %d times' % (attempt, world.given.get(position, 0)))
            session.set(world.given, position, world.given.get(position, 0) + 1)
            flying.add(position)
            session.flight.append((position, stream, partition))
            self.count('events')

    def finish(self, session, upto, but=None):
        """What is in flight up to a position is done."""
        for position, stream, partition in session.flight:
            if position > upto:
                continue
            if position == but:
                continue
            if position in self.world.done:
                raise Wrong('event %d is acknowledged by leases %d and %d' %
                            (position, self.world.done[position], session.lease))
            session.set(self.world.done, position, session.lease)
            if position in self.world.aside:
                session.set(self.world.aside, position, 'done')
        session.flight = [f for f in session.flight if f[0] > upto]

    def step_ack(self):
        session = self.pick()
        if not session.flight:
            return
        position = self.random.choice(session.flight)[0] if self.random.random() < 0.5 else session.flight[-1][0]
        try:
            good = session.execute("SELECT evpg_ack('model', %s, %s)", session.lease, position)[0][0]
        except psycopg.Error as error:
            return self.fail(session, error)
        session.keep()
        self.trace('  ', good)
        self.count('acks' if good else 'acks in vain')
        if good:
            self.finish(session, position)
        else:
            session.lease, session.flight = None, []

    def step_nack(self):
        session = self.pick()
        if not session.flight:
            return
        position, stream, partition = self.random.choice(session.flight)
        action = self.random.choice(('retry', 'retry', 'park', 'skip'))
        delay = self.random.choice((None, '0 s', '10 min')) if action == 'retry' else None
        try:
            good = session.execute("SELECT evpg_nack('model', %s, %s, %s, %s::interval)",
                                   session.lease, position, action, delay)[0][0]
        except psycopg.Error as error:
            return self.fail(session, error)
        session.keep()
        self.trace('  ', good)
        if not good:
            session.lease, session.flight = None, []
            return
        self.count(action)
        parked = dict(self.parked(session.connection))
        self.finish(session, position, position)
        if action == 'skip':
            session.set(self.world.aside, position, 'skipped')
        elif action == 'park' or position in parked:
            if position not in parked:
                raise Wrong('event %d is not parked' % position)
            for other, own, _ in [(position, stream, partition)] + session.flight:
                if own == stream:
                    if other not in parked:
                        raise Wrong('event %d is not parked behind %d' % (other, position))
                    session.set(self.world.aside, other, 'parked')
            session.flight = [f for f in session.flight if f[1] != stream]
        if action == 'retry':
            session.flight = [f for f in session.flight if f[2] != partition]

    def parked(self, connection):
        return connection.execute(
            "SELECT position, key FROM evpg.parked_event WHERE name = 'model' AND skip_reason IS NULL AND NOT due"
            " ORDER BY 1").fetchall()

    def step_replay(self):
        """Parked events become due again: they may be handed out, in order, and are done when acknowledged."""
        if self.open() or not any(kind == 'parked' for kind in self.world.aside.values()):
            return
        most = self.random.choice((1, 3, None))
        if not self.operate("SELECT evpg_replay_parked('model', %s)", most):
            return
        self.count('replays')
        due = self.control.execute("SELECT position FROM evpg.parked_event WHERE name = 'model' AND due").fetchall()
        for position, in due:
            self.world.aside[position] = 'due'

    # what an operator does

    def partition_of(self, stream):
        """The partition of a stream, which never changes."""
        key = (stream, self.partitions)
        if key not in self.places:
            self.places[key] = self.control.execute(
                'SELECT evpg.partition_of(%s, %s)', ('model/' + stream, self.partitions)).fetchone()[0]
        return self.places[key]

    def operate(self, statement, *values):
        """Returns whether an operator can do that now: what has fetched keeps the subscription to its end."""
        self.trace(statement, values)
        try:
            with self.control.transaction():
                self.control.execute(statement, values)
        except psycopg.Error as error:
            self.trace('  ', error.sqlstate)
            # a lock, or a position that is not stable yet
            if error.sqlstate not in ('55P03', '22023'):
                raise Wrong('%s: %s %s' % (statement, error.sqlstate, error))
            return False
        return True

    def choose_position(self):
        return self.random.choice([self.start] + sorted(self.world.events))

    def forget_after(self, position):
        """The subscription goes on behind a position: what is before is done, what comes later is not."""
        world = self.world
        waiting = {p for p, in self.control.execute(
            "SELECT position FROM evpg.parked_event WHERE name = 'model'").fetchall()}
        world.aside = {p: kind for p, kind in world.aside.items() if p in waiting}
        world.done = {p: 0 for p in world.events if p <= position and p not in world.aside}

    def step_seek(self):
        position = self.choose_position()
        if self.operate("SELECT evpg_seek('model', %s)", position):
            self.count('seeks')
            self.note_parked()
            self.forget_after(position)

    def step_pause(self):
        if self.operate('SELECT evpg_%s_consumer(\'model\')' % ('resume' if self.world.paused else 'pause')):
            self.count('resumed' if self.world.paused else 'paused')
            self.world.paused = not self.world.paused

    def step_drop(self):
        """Drops the subscription, and creates it with other properties."""
        if self.random.random() < 0.5 or not self.operate("SELECT evpg_drop_subscription('model')"):
            return
        self.count('drops')
        stable = self.control.execute('SELECT evpg_stable_position()').fetchone()[0]
        self.create(min(self.choose_position(), stable))
        self.world.given = {}
        self.world.paused = False
        self.forget_after(self.start)

    # kill -9

    def step_kill(self):
        """Kills the server process of a consumer, at a place of what it does, or the postmaster."""
        session = self.pick()
        outcome = []
        if session.flight and self.random.random() < 0.6:
            position = self.random.choice(session.flight)[0]
            statement, values = self.random.choice((
                ("SELECT evpg_ack('model', %s, %s)", (session.lease, position)),
                ("SELECT evpg_nack('model', %s, %s, 'retry')", (session.lease, position)),
                ("SELECT evpg_nack('model', %s, %s, 'park')", (session.lease, position))))
        else:
            statement, values = FETCH, (session.name, 5, None)
        point = self.random.choice(('lease_create', 'row_replace', 'row_replace:2', 'row_replace:3'))
        self.trace(session.name, statement, values, 'killed at', point)
        self.count('kills')
        self.control.execute('SELECT pg_advisory_lock(17700)')
        # a transaction, so that the statement has no effect when it was not killed there
        if session.journal is None:
            session.connection.execute('BEGIN')
        session.connection.execute("SET LOCAL evpg.test_wait = '%s'" % point)
        session.connection.execute('SET LOCAL lock_timeout = 0')

        def run():
            try:
                outcome.append(session.connection.execute(statement, values).fetchall())
            except psycopg.Error as error:
                outcome.append(error.sqlstate)

        pid = session.connection.info.backend_pid
        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive() and not self.control.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", (pid,)).fetchall():
            thread.join(0.01)
        self.trace('  ', outcome or 'waits')
        self.count('kills in a statement' if thread.is_alive() else 'kills after one')
        if options.restart and self.random.random() < 0.3:
            directory = self.control.execute('SHOW data_directory').fetchone()[0]
            with open(directory + '/postmaster.pid') as file:
                victim = int(file.readline())
        else:
            victim = pid
        os.kill(victim, signal.SIGKILL)
        thread.join()
        self.come_back(victim != pid)

    def come_back(self, start):
        """Connects all clients again when the server has come to its end."""
        # until then it may still answer
        while True:
            try:
                self.control.execute('SELECT')
                time.sleep(0.01)
            except psycopg.Error:
                break
        for attempt in range(600):
            if start:
                subprocess.run(options.restart, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                self.control = self.connect()
                break
            except psycopg.Error:
                time.sleep(0.1)
        else:
            raise Wrong('the server does not come back')
        for session in self.sessions:
            if session.journal is not None:
                session.undo()
                session.journal = None
            session.connection = self.connect()
        self.writers = [[self.connect(), None] for _ in self.writers]

    def step_extend(self):
        session = self.pick()
        if session.lease is not None:
            try:
                session.execute("SELECT evpg_extend_lease('model', %s)", session.lease)
            except psycopg.Error as error:
                self.fail(session, error)

    def step_release(self):
        session = self.pick()
        if session.lease is not None and self.random.random() < 0.3:
            try:
                session.execute("SELECT evpg_release_lease('model', %s)", session.lease)
            except psycopg.Error as error:
                return self.fail(session, error)
            session.keep()
            session.lease, session.flight = None, []

    def note_parked(self):
        """Fetches park, too: the model learns that from the table, and checks that these are right."""
        parked = self.parked(self.control)
        for position, key in parked:
            stream = key.split('/', 1)[1]
            if position in self.world.done:
                raise Wrong('event %d is acknowledged and parked' % position)
            if self.world.events.get(position) != stream:
                raise Wrong('event %d of %s is parked, and was never committed' % (position, stream))
            if self.world.aside.get(position) != 'parked':
                first = min(p for p, k in parked if k == key)
                if position == first and self.world.given.get(position, 0) < self.max_attempts:
                    raise Wrong('event %d is parked after %d of %d attempts' %
                                (position, self.world.given.get(position, 0), self.max_attempts))
                self.world.aside[position] = 'parked'
                self.count('parked by a fetch')

    # ---------------------------------------------------------------- a run

    def run(self):
        steps = ([self.step_fetch] * 12 + [self.step_ack] * 10 + [self.step_append] * 8 + [self.step_begin] * 2 +
                 [self.step_end] * 4 + [self.step_prepared] * 3 + [self.step_nack] * 2 + [self.step_savepoint] * 2 +
                 [self.step_come, self.step_crash, self.step_clock, self.step_extend, self.step_release] +
                 [self.step_replay] * options.replay +
                 [self.step_seek, self.step_pause, self.step_pause, self.step_drop] * options.control +
                 [self.step_kill] * options.kill)
        for _ in range(options.steps):
            self.random.choice(steps)()
            if not self.open():
                self.note_parked()
        self.drain()

    def drain(self):
        """Lets one consumer have all that is left: then each event is done or put aside."""
        while self.prepared:
            self.step_prepared()
        for session in list(self.sessions):
            self.close_session(session)
            if session.journal is not None:
                session.undo()
        self.sessions = []
        for writer in self.writers:
            writer[0].execute('ROLLBACK')
        if self.world.paused:
            self.control.execute("SELECT evpg_resume_consumer('model')")
            self.world.paused = False
        self.note_parked()
        self.world.clock += 1000
        self.control.execute('SELECT evpg_set_clock_offset(make_interval(secs => %s))', (self.world.clock * 3600,))
        session = Session(self, 'last')
        self.sessions = [session]
        vain = 0
        while vain < 3:
            rows = session.execute(FETCH, 'last', 50, None)
            self.note_parked()
            vain = vain + 1 if not rows else 0
            if rows:
                session.flight = []
                self.check_rows(session, rows, 50, None)
                if not session.execute("SELECT evpg_ack('model', %s, %s)", session.lease, rows[-1][3])[0][0]:
                    raise Wrong('the only consumer has lost its lease')
                self.finish(session, rows[-1][3])
        left = [p for p in self.world.events
                if p not in self.world.done and self.world.aside.get(p) not in ('parked', 'skipped')]
        if left:
            raise Wrong('events %s were never handed out' % left)
        self.close()

    def close(self):
        for connection in [self.control] + [w[0] for w in self.writers] + [s.connection for s in self.sessions]:
            connection.close()


failed = 0
for seed in range(options.seed, options.seed + options.runs):
    model = Model(seed)
    what = 'seed %d, %d partitions, max_attempts %d, %d streams' % (
        seed, model.partitions, model.max_attempts, len(model.streams))
    again = '--seed %d --steps %d --replay %d --control %d --kill %d' % (
        seed, options.steps, options.replay, options.control, options.kill)
    try:
        model.run()
        print('ok - %s: %d events, %s, errors %s' % (what, len(model.world.events), model.counts, model.states), flush=True)
    except Wrong as wrong:
        failed += 1
        print('not ok - %s: %s' % (what, wrong), flush=True)
        print('# again with %s%s' % (again, " --restart '%s'" % options.restart if options.restart else ''))
        for line in model.log[-25:]:
            print('#', *line)
        for name, _ in model.prepared:
            model.control.execute("ROLLBACK PREPARED '%s'" % name)
        model.close()
raise SystemExit(failed > 0)
