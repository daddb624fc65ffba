"""Re-entrance: every statement, every function of evpg among them, inside every kind of user code."""

import os
import random
import re
import time

import psycopg

import common
import values
from common import check, check_state, connect, fresh, options

# Kinds of user code: by what they are called.
SYNCHRONOUS = ('handler', 'reducer', 'invariant', 'interceptor', 'inline', 'key', 'inline_table', 'listener', 'translator', 'reset')
CONSUMERS = ('async', 'async_key', 'async_table')
SAGAS = ('saga', 'saga_key', 'rejection', 'timer')
KINDS = SYNCHRONOUS + CONSUMERS + SAGAS

STATEMENTS = """
COMMIT|COMMIT AND CHAIN|ROLLBACK|ABORT|END|BEGIN|SAVEPOINT s|RELEASE s|ROLLBACK TO s|PREPARE TRANSACTION 'x'
SET ROLE postgres|SET ROLE attack_reader|SET LOCAL ROLE attack_reader|RESET ROLE|SET SESSION AUTHORIZATION postgres|SET SESSION AUTHORIZATION attack_reader
RESET ALL|DISCARD ALL|DISCARD TEMP|DISCARD PLANS|SET search_path = public|SET LOCAL search_path = traps|SELECT set_config('search_path', 'public', false)
SET TRANSACTION READ ONLY|SET TRANSACTION ISOLATION LEVEL SERIALIZABLE|SET CONSTRAINTS ALL DEFERRED|SET statement_timeout = 1|SET LOCAL session_replication_role = replica
SET TimeZone = 'Asia/Tokyo'|SET LOCAL synchronous_commit = off|SELECT 1/0|RAISE|SELECT pg_sleep(0.002)|SET evpg.state_cache_size = 0
SELECT pg_cancel_backend(pg_backend_pid())|SELECT pg_terminate_backend(pg_backend_pid())|LISTEN x|LISTEN "evpg.resync"|UNLISTEN *|NOTIFY x|NOTIFY "evpg.resync"
LOAD 'evpg'|CHECKPOINT|VACUUM evpg.stream|ANALYZE evpg.event_log|REINDEX TABLE evpg.stream|CLUSTER evpg.event_log USING event_log_pkey|CREATE INDEX ON evpg.event_log (actor)
CREATE TEMP TABLE t (a int)|CREATE TEMP TABLE t (a int) ON COMMIT DROP|DROP TABLE evpg.stream|DROP TABLE evpg.consumer CASCADE|DROP TABLE attack.inline_row|TRUNCATE evpg.stream
TRUNCATE evpg.projection_state|TRUNCATE evpg.consumer|TRUNCATE evpg.saga_instance, evpg.saga_event, evpg.timer|DELETE FROM evpg.event_log|DELETE FROM evpg.projection
DELETE FROM evpg.saga|DELETE FROM evpg.aggregate_type|DELETE FROM evpg.timer|DELETE FROM evpg.saga_event|UPDATE evpg.stream SET aggregate_id = NULL|UPDATE evpg.saga_instance SET version = version + 1
INSERT INTO evpg.snapshot DEFAULT VALUES|LOCK TABLE evpg.stream|LOCK TABLE evpg.event_log IN ACCESS EXCLUSIVE MODE|ALTER TABLE evpg.event_log ADD COLUMN x int
ALTER TABLE evpg.stream ADD COLUMN x int|ALTER TABLE evpg.projection_state ADD COLUMN x int|ALTER TABLE evpg.saga_instance ALTER COLUMN undo TYPE text
ALTER TABLE evpg.stream SET (fillfactor = 70)|ALTER TABLE evpg.event_log RENAME TO log|ALTER TABLE attack.inline_row ADD COLUMN x int|ALTER TYPE evpg.command ADD ATTRIBUTE x int
CREATE POLICY p ON evpg.event_log USING (false)|CREATE TRIGGER x AFTER INSERT ON evpg.event_log FOR EACH STATEMENT EXECUTE FUNCTION suppress_redundant_updates_trigger()
CREATE PUBLICATION p FOR ALL TABLES|ALTER EXTENSION evpg SET SCHEMA attack|ALTER SCHEMA evpg RENAME TO evpg2|ALTER SCHEMA attack RENAME TO attack2|DROP EXTENSION evpg CASCADE
DROP SCHEMA attack CASCADE|DROP SCHEMA evpg CASCADE|DROP OWNED BY attack_operator|REASSIGN OWNED BY attack_operator TO postgres|DROP ROLE attack_writer
PREPARE p AS SELECT 1|EXECUTE p|DEALLOCATE ALL|DECLARE c CURSOR FOR SELECT 1|DECLARE c CURSOR WITH HOLD FOR SELECT 1|FETCH c|CLOSE ALL
COPY evpg.event TO PROGRAM 'cat >/dev/null'|DO 'BEGIN COMMIT; END'|DO 'BEGIN ROLLBACK; END'|CALL evpg_run()|EXPLAIN ANALYZE SELECT * FROM evpg_execute('note', 'other', 'X')
CREATE TEMP TABLE t AS SELECT * FROM evpg_execute('note', 'other', 'X')|SELECT * FROM evpg_execute('note', 'a', 'X')|SELECT * FROM evpg_execute('note', 'other', 'X')
SELECT * FROM evpg_execute('note', 'deep' || random(), 'Start', $1)|SELECT * FROM evpg_try_execute('note', 'deep' || random(), 'Start', $1)|SELECT * FROM evpg_translate('translator', $1)
SELECT * FROM evpg_receive_message('x', random()::text, 'translator', $1)|SELECT * FROM evpg_append('note', 'deep', ARRAY[evpg_event('Start', $1)])
SELECT * FROM evpg_append_event('note', 'deep', 'Start', $1)|SELECT * FROM evpg_append_event('note', 'other', 'Y', command_id => 'c1')
SELECT * FROM evpg_try_execute('note', 'other', 'X', command_id => 'c1')|SELECT * FROM evpg_append('note', 'other', ARRAY[evpg_event('Y')])
DO 'BEGIN BEGIN PERFORM evpg_execute($$note$$, $$sub$$, $$X$$); RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN PERFORM evpg_execute($$note$$, $$sub$$, $$X$$); END; END'
DO 'BEGIN BEGIN PERFORM evpg_drop_projection($$inline$$); RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END; PERFORM evpg_execute($$note$$, $$sub$$, $$X$$); END'
SELECT * FROM evpg_inject('note', 'other', evpg_event('Z'))|SELECT evpg_create_stream('note', 'fresh')|SELECT evpg_register_aggregate('note', 'attack.handle', 'attack.apply')
SELECT evpg_rebuild_projection('inline')|SELECT evpg_rebuild_projection('async')|SELECT evpg_rebuild_projection('inline_table')|SELECT evpg_rebuild_projection('async_table')
SELECT evpg_rebuild_projection('reset')|SELECT evpg_rebuild_projection('inline', 'a')|SELECT evpg_rebuild_projection('async', background => true)|SELECT evpg_rebuild_projection('inline', background => true)
SELECT evpg_wait_for('async', 1, '1 ms')|SELECT evpg_watch_projection('inline', 'a', timeout => '1 ms')|SELECT * FROM evpg_state('note', 'a')|SELECT * FROM evpg_read_all()
SELECT evpg_listen('inline')|SELECT evpg_schedule_command(now(), 'note', 'a', 'X')|SELECT evpg_set_clock_offset('1 day')|SELECT evpg_reject('no')|SELECT evpg_put_projection('inline', 'a', '{}')
SELECT evpg_rebuild_saga('saga')|SELECT evpg_run_sagas()|SELECT evpg_retry_dead_letters('saga')|SELECT evpg_replay_parked('async')|SELECT evpg_enable_index('event_type')
CREATE OR REPLACE FUNCTION attack.key(event evpg.event) RETURNS text LANGUAGE sql AS 'SELECT event.aggregate_id'
""".strip().replace('\n', '|').split('|')

# each function of the fixture that user code may drop, rename, change or give away while it runs
FUNCTIONS = ('handle', 'apply', 'keep', 'intercept', 'hear', 'translate', 'inline', 'async', 'key', 'async_key', 'write_inline', 'write_async', 'reset', 'saga', 'saga_key', 'reject', 'timer', 'upcast')
CHANGES = ('DROP FUNCTION attack.%s', 'ALTER FUNCTION attack.%s RENAME TO gone', 'ALTER FUNCTION attack.%s OWNER TO attack_reader', "ALTER FUNCTION attack.%s SET search_path = ''", 'ALTER FUNCTION attack.%s STRICT')
DROPS = ("aggregate('note')", "interceptor('interceptor')", "listener('listener')", "translator('translator')", "upcaster('Old', 1, 'note')", "projection('inline')", "projection('async')", "projection('inline_table')",
         "projection('async_table')", "projection('reset')", "saga('saga')")
CONSUMER_VERBS = ("SELECT evpg_pause_consumer('%s')", "SELECT evpg_resume_consumer('%s')", "SELECT evpg_skip_event('%s', 1, 'x')")

HEALTH = r"""SELECT md5(concat_ws(' ',
  (SELECT string_agg(concat_ws(' ', aggregate_type, handler, reducer, invariant, snapshot_every, registered_by), ',' ORDER BY aggregate_type) FROM evpg.aggregate_type),
  (SELECT string_agg(concat_ws(' ', name, interceptor), ',' ORDER BY name) FROM evpg.interceptor), (SELECT string_agg(concat_ws(' ', name, listener), ',' ORDER BY name) FROM evpg.listener), (SELECT string_agg(concat_ws(' ', name, translator), ',' ORDER BY name) FROM evpg.translator),
  (SELECT string_agg(concat_ws(' ', event_type, from_version, aggregate_type, upcaster), ',' ORDER BY event_type, from_version) FROM evpg.upcaster),
  (SELECT string_agg(concat_ws(' ', name, reducer, handler, mode, key_function, reset, tables), ',' ORDER BY name) FROM evpg.projection),
  (SELECT string_agg(concat_ws(' ', name, status), ',' ORDER BY name) FROM evpg.consumer), (SELECT string_agg(concat_ws(' ', name, handler, rejection_handler, timer_handler), ',' ORDER BY name) FROM evpg.saga),
  (SELECT string_agg(concat_ws(' ', proname, proowner, proconfig, proisstrict, md5(prosrc)), ',' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'attack'::regnamespace),
  (SELECT string_agg(concat_ws(' ', relname, (SELECT string_agg(attname || atttypid, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)), ',' ORDER BY relname)
    FROM pg_class c WHERE relnamespace IN ('attack'::regnamespace, 'evpg'::regnamespace) AND relkind IN ('r', 'c', 'v')),
  (SELECT md5(string_agg(concat_ws(' ', proname, proacl), ',' ORDER BY oid)) FROM pg_proc WHERE proname LIKE 'evpg\_%'), (SELECT md5(string_agg(concat_ws(' ', relname, relacl), ',' ORDER BY relname)) FROM pg_class WHERE relnamespace = 'evpg'::regnamespace),
  (SELECT clock_offset FROM evpg.clock), (SELECT count(*) FROM pg_policy), (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM evpg.rebuild), (SELECT count(*) FROM evpg.optional_index)))"""

with open(os.path.dirname(os.path.realpath(__file__)) + '/fixture.sql') as file:
    FIXTURE = file.read()


def statements(functions, rng):
    """All statements: the list, what user code can do to itself and to its consumer, and a call of each function."""
    return (STATEMENTS + [change % f for f in FUNCTIONS for change in CHANGES[:1]] + [change % rng.choice(FUNCTIONS) for change in CHANGES[1:] for _ in range(3)] +
            ['SELECT evpg_drop_' + drop for drop in DROPS] + [verb % name for name in ('inline', 'async', 'async_table', 'saga') for verb in CONSUMER_VERBS] +
            [('CALL ' if f[1] else 'SELECT * FROM ') + values.call(rng, f, True) for f in functions])


def scripts():
    """Data of commands and events with which the calls of the attack re-enter."""
    rng = random.Random(options.seed)
    return [values.script(rng.choice(KINDS), statement, rng.random() < .5) for statement in STATEMENTS if not re.search('^(DROP (EXT|SCHEMA|TABLE|OWNED|ROLE)|ALTER|TRUNCATE|DELETE FROM evpg)', statement)]


def mend(session):
    """The fixture again, whatever was dropped, and nothing besides."""
    for drops in ("evpg_drop_aggregate('note', true)", 'evpg_drop_interceptor(name) FROM evpg.interceptor', 'evpg_drop_listener(name) FROM evpg.listener', 'evpg_drop_translator(name) FROM evpg.translator',
                  'evpg_drop_upcaster(event_type, from_version, aggregate_type) FROM evpg.upcaster',
                  "evpg_drop_projection(name) FROM evpg.projection WHERE name NOT LIKE 'guard%'", "evpg_drop_saga(name) FROM (SELECT DISTINCT name FROM evpg.saga WHERE name NOT LIKE 'guard%') s"):
        try:
            session.execute('SELECT ' + drops)
        except psycopg.Error:
            pass
    session.execute(FIXTURE)


class Patient:
    """A database, a session in which user code runs, and one that looks whether all is as it was and mends it."""

    def __init__(self, number):
        self.database = 'evpg_attack_%d' % number
        self.session = self.doctor = None
        self.mended = self.admitted = 0
        self.admit()

    def admit(self):
        """Anew from the template."""
        self.admitted += 1
        for session in (self.session, self.doctor):
            if session:
                session.close()
        fresh(self.database)
        self.session = connect('attack_operator', self.database)
        self.doctor = connect('postgres', self.database)
        self.healthy = self.look()
        check(self.healthy, 'a new database is healthy')

    def look(self):
        """A fingerprint of all that is registered; None if no command can be executed."""
        try:
            self.doctor.execute("BEGIN; SET LOCAL lock_timeout = 2000; SELECT count(*) FROM evpg_execute('note', 'health', 'X'); ROLLBACK")
            return self.doctor.execute(HEALTH, prepare=True).fetchone()[0]
        except psycopg.Error:
            try:
                self.doctor.execute('ROLLBACK')
            except psycopg.Error:
                self.doctor = connect('postgres', self.database)
            return None

    def examine(self, detail, committed):
        """After each case: nothing is left in the session; what was broken on purpose is mended."""
        try:
            self.session.execute('ROLLBACK')
            row = self.session.execute("""SELECT pg_catalog.concat_ws(' ', current_user, session_user, pg_catalog.current_setting('search_path'), pg_catalog.current_setting('TimeZone'), pg_catalog.current_setting('session_replication_role')),
                (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND mode NOT IN ('AccessShareLock', 'SIReadLock') AND locktype <> 'virtualxid')""").fetchone()
            check(row == ('attack_operator attack_operator "$user", public UTC origin', 0), 'user code left something behind: %s' % (row,), detail)
        except psycopg.Error:
            self.session.close()
            self.session = connect('attack_operator', self.database)
        if not committed or self.look() == self.healthy:
            return
        self.mended += 1
        try:
            self.doctor.execute("SET lock_timeout = 2000")
            mend(self.doctor)
        except psycopg.Error:
            self.doctor.execute('ROLLBACK')
        if self.look() != self.healthy:
            self.admit()

    def run(self, lines, detail, statement):
        """Runs the lines of a case, up to the first error."""
        state, message = '00000', ''
        try:
            self.session.execute('SET statement_timeout = 10000; SET lock_timeout = 300')
            for line in lines:
                self.session.execute(line)
        except psycopg.Error as error:
            state, message = error.sqlstate or 'lost', str(error)
            if state == 'lost' and 'terminate' not in statement:
                check(False, 'the connection was lost', detail)
        check_state(state, message, detail)

    def lags(self):
        """Whether there is something that a consumer has not done."""
        try:
            return self.doctor.execute("""SELECT FROM evpg.consumer WHERE kind = 'projection' AND checkpoint < (SELECT max("position") FROM evpg.event_log)
                UNION ALL SELECT FROM evpg.saga_event WHERE dead_letter_id IS NULL UNION ALL SELECT FROM evpg.timer WHERE dead_letter_id IS NULL""").rowcount > 0
        except psycopg.Error:
            return True

    def close(self):
        self.session.close()
        self.doctor.close()
        with connect(database='postgres') as session:
            session.execute('DROP DATABASE IF EXISTS %s WITH (FORCE)' % self.database)


def cases(kind, aggregate_id, data):
    """How user code of a kind is called: lists of statements, those that are undone first."""
    name, text = values.literal(aggregate_id), values.literal(data)
    event = "SELECT * FROM evpg_append('note', %s, ARRAY[evpg_event('Start', %s)])" % (name, text)
    execute = "SELECT * FROM evpg_execute('note', %s, 'Go', %s)" % (name, text)
    if kind == 'translator':
        undone = ["SELECT * FROM evpg_translate('translator', %s)" % text]
        done = [["SELECT * FROM evpg_receive_message('s', %s, 'translator', %s)" % (name, text)]]
    elif kind == 'reset':
        undone = ["SET attack.reset = %s" % text, "SELECT evpg_rebuild_projection('reset')"]
        done = [undone]
    elif kind == 'reducer':
        undone = [event, "SELECT * FROM evpg_state('note', %s)" % name, "SELECT evpg_take_snapshot('note', %s)" % name]
        done = [[execute]]
    elif kind in SYNCHRONOUS:
        undone = [execute.replace('evpg_execute', 'evpg_try_execute')]
        done = [[execute]]
    elif kind in CONSUMERS:
        consumer = kind.replace('_key', '_table')
        undone = ["SELECT evpg_replay_parked('%s', key => %s)" % (consumer, name), "SELECT evpg_rebuild_projection('async', %s)" % name]
        done = [[event, 'CALL evpg_run(2)']]
    else:
        undone = ['SELECT evpg_run_sagas()', 'SELECT evpg_run_sagas()', 'SELECT evpg_run_sagas()', "SELECT evpg_retry_dead_letters('saga')", "SELECT evpg_rebuild_saga('saga', %s)" % name]
        return [[event], ['BEGIN'] + undone + ['ROLLBACK'], ['CALL evpg_run(3)'], ["SELECT evpg_discard_dead_letter(dead_letter_id, 'x') FROM evpg.dead_letter WHERE resolved_at IS NULL"]]
    undone = ['BEGIN'] + undone + ['ROLLBACK']
    return done + [undone] if kind in CONSUMERS else [undone] + done


def enter(number, kinds, todo):
    """The part of a process: some kinds, in a database of its own."""
    patient = Patient(number)
    rng = random.Random(options.seed + number)
    for kind in kinds:
        started = time.time()
        for n, statement in enumerate(todo):
            for catch in (True, False) if options.thorough else (rng.random() < .5,):
                data = values.script(kind, statement, catch)
                for lines in cases(kind, '%s %d %s' % (kind, n, catch), data):
                    patient.run(lines, '%s\n  %s' % (data, '; '.join(lines)[:200]), statement)
                    patient.examine(data, lines[0] != 'BEGIN')
            if kind not in SYNCHRONOUS and patient.lags():
                patient.admit()              # what ends each session that comes to it would be tried again with each case: nothing is counted then
        if kind in CONSUMERS + SAGAS:
            patient.admit()                  # what is parked would be tried again with each case of the next kind
        print('re-entrance of %s: %.0f s (%d times mended, %d databases so far)' % (kind, time.time() - started, patient.mended, patient.admitted), flush=True)
    patient.close()


def work(number, todo):
    """The same in background workers: a crash or an internal error is in the log."""
    patient = Patient(number)
    rng = random.Random(options.seed)
    for n, statement in enumerate(todo):
        for catch in (True, False) if options.thorough else (rng.random() < .5,):
            for kind in CONSUMERS + SAGAS:
                data = values.script(kind, statement, catch)
                patient.run(["SELECT * FROM evpg_append('note', %s, ARRAY[evpg_event('Start', %s)])" % (values.literal('%s %d %s' % (kind, n, catch)), values.literal(data))], data, statement)
        for _ in range(40):
            time.sleep(.02)
            if not patient.lags():
                break
        if patient.lags():
            patient.admit()
        patient.examine(statement, True)
    patient.close()


def set_workers(number):
    with connect(database='postgres') as session:
        session.execute('ALTER SYSTEM SET evpg.workers = %s' % number)
        session.execute('SELECT pg_reload_conf()')


def attack(functions, seed, in_parallel):
    """All kinds, in two databases at a time, without workers; then those that workers run, by workers."""
    todo = statements(functions, random.Random(seed))
    set_workers(0)
    for found in in_parallel([(enter, 0, SYNCHRONOUS, todo), (enter, 1, CONSUMERS + SAGAS, todo)]):
        common.add(found)
    set_workers(2)
    for found in in_parallel([(work, 2, todo)]):
        common.add(found)
