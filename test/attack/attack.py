#!/usr/bin/python3
"""attack.py: hostile calls of every function of evpg; see README.md."""

import argparse
import json
import random
import re
import sys
import threading
import time

import psycopg

parser = argparse.ArgumentParser()
parser.add_argument('--calls', type=int, default=20000)
parser.add_argument('--seed', type=int, default=int(time.time()))
parser.add_argument('--sessions', type=int, default=6)
parser.add_argument('--documents', type=int, default=500)
parser.add_argument('--symbols', default='')
parser.add_argument('--log', required=True)
options = parser.parse_args()

DATABASE = 'evpg_attack'
KNOWN_INTERNAL = ('missing magic block', 'incompatible library')
passed = failed = 0
lock = threading.Lock()
states = {}


def check(good, what, detail=''):
    """Counts a check; a failure is printed with what reproduces it."""
    global passed, failed
    with lock:
        if good:
            passed += 1
        else:
            failed += 1
            print('FAILED: %s\n  %s' % (what, detail), flush=True)


def connect(user='postgres', database=DATABASE):
    return psycopg.connect('user=%s dbname=%s' % (user, database), autocommit=True, prepare_threshold=None)


def connect_again(user):
    """A server that restarts after a crash takes a moment; the crash itself is counted at the end."""
    for _ in range(300):
        try:
            return connect(user)
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise SystemExit('the server does not come back')


# ---------------------------------------------------------------- what is attacked

FIXTURE = r"""
CREATE SCHEMA IF NOT EXISTS attack;
GRANT USAGE ON SCHEMA attack TO PUBLIC;

-- Runs what the data of a command or an event says for a kind of user code, caught or not.
CREATE OR REPLACE FUNCTION attack.run(kind text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF data->>'in' IS DISTINCT FROM kind THEN
    RETURN;
  ELSIF (data->>'catch')::boolean THEN
    BEGIN
      EXECUTE data->>'sql';
    EXCEPTION WHEN OTHERS OR query_canceled THEN NULL;
    END;
  ELSE
    EXECUTE data->>'sql';
  END IF;
END $$;
CREATE OR REPLACE FUNCTION attack.handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('handler', command.data);
  RETURN NEXT evpg_event(coalesce(nullif(command.command_type, ''), 'X'), command.data);
END $$;
CREATE OR REPLACE FUNCTION attack.apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('reducer', event.data);
  RETURN jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1, 'data', event.data);
END $$;
CREATE OR REPLACE FUNCTION attack.keep(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('invariant', state->'data');
  RETURN true;
END $$;
CREATE OR REPLACE FUNCTION attack.intercept(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('interceptor', command.data);
  RETURN command;
END $$;
CREATE OR REPLACE FUNCTION attack.inline(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('inline', event.data);
  RETURN jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1);
END $$;
CREATE OR REPLACE FUNCTION attack.async(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('async', event.data);
  RETURN jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1);
END $$;
CREATE OR REPLACE FUNCTION attack.key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('key', event.data);
  RETURN event.aggregate_id;
END $$;
CREATE OR REPLACE FUNCTION attack.saga(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('saga', event.data);
  RETURN evpg_reaction(state, evpg_action_schedule('t', '0'), evpg_action_send('note', 'of a saga', 'Sent'));
END $$;
CREATE OR REPLACE FUNCTION attack.timer(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state, evpg_action_complete())
$$;
CREATE OR REPLACE FUNCTION attack.translate(payload jsonb) RETURNS SETOF evpg.command LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('translator', payload);
  RETURN NEXT evpg_command('note', 'translated', 'X', payload);
END $$;
-- counts events, for the comparison with the log
CREATE OR REPLACE FUNCTION attack.count(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1)
$$;
SELECT evpg_set_clock_offset();
SELECT evpg_activate();
SELECT evpg_register_aggregate('note', 'attack.handle', 'attack.apply', invariant => 'attack.keep', snapshot_every => 7),
       evpg_register_interceptor('interceptor', 'attack.intercept', '{note}'),
       evpg_register_translator('translator', 'attack.translate'),
       evpg_register_projection('inline', 'attack.inline', aggregate_types => '{note}', key_function => 'attack.key'),
       evpg_register_projection('async', 'attack.async', mode => 'async', aggregate_types => '{note}', on_error => 'park', max_attempts => 1),
       evpg_register_projection('guard', 'attack.count'),
       evpg_register_saga('saga', 'attack.saga', timer_handler => 'attack.timer', aggregate_types => '{note}', event_types => '{Start}', max_attempts => 1);
"""

KINDS = ('handler', 'reducer', 'invariant', 'interceptor', 'inline', 'async', 'key', 'saga', 'translator')

STATEMENTS = """
COMMIT|ROLLBACK|BEGIN|SAVEPOINT s|PREPARE TRANSACTION 'x'|SET ROLE postgres|RESET ROLE|SET SESSION AUTHORIZATION postgres
RESET ALL|DISCARD ALL|DISCARD TEMP|SET search_path = public|SELECT set_config('search_path', 'public', false)
SET TRANSACTION READ ONLY|SET CONSTRAINTS ALL DEFERRED|SET statement_timeout = 1|SELECT 1/0|RAISE|SELECT pg_sleep(0.002)
SELECT pg_cancel_backend(pg_backend_pid())|LISTEN x|UNLISTEN *|NOTIFY x|LOAD 'evpg'|CHECKPOINT|VACUUM evpg.stream
CREATE TEMP TABLE t (a int)|CREATE TEMP TABLE t (a int) ON COMMIT DROP|DROP TABLE evpg.stream|TRUNCATE evpg.stream
DELETE FROM evpg.event_log|UPDATE evpg.stream SET version = 0|INSERT INTO evpg.snapshot DEFAULT VALUES|LOCK TABLE evpg.stream
ALTER TABLE evpg.event_log ADD COLUMN x int|DROP SCHEMA attack CASCADE|PREPARE p AS SELECT 1|DEALLOCATE ALL
DECLARE c CURSOR WITH HOLD FOR SELECT 1|COPY evpg.event TO PROGRAM 'cat'|DO 'BEGIN COMMIT; END'|CALL evpg_run()
SELECT evpg_run_sagas()|SELECT * FROM evpg_execute('note', 'a', 'X')|SELECT * FROM evpg_execute('note', 'other', 'X')
SELECT * FROM evpg_try_execute('note', 'other', 'X', command_id => 'c1')|SELECT * FROM evpg_append('note', 'other', ARRAY[evpg_event('Y')])
SELECT * FROM evpg_inject('note', 'other', evpg_event('Z'))|SELECT evpg_create_stream('note', 'fresh')
SELECT evpg_drop_aggregate('note')|SELECT evpg_register_aggregate('note', 'attack.handle', 'attack.apply')
SELECT evpg_drop_projection('inline')|SELECT evpg_rebuild_projection('inline')|SELECT evpg_rebuild_projection('async', background => true)
SELECT evpg_pause('async')|SELECT evpg_resume('async')|SELECT evpg_wait_for('async', 1, '1 ms')|SELECT evpg_watch('inline', 'a', timeout => '1 ms')
SELECT evpg_set_context('x')|SELECT * FROM evpg_state('note', 'a')|SELECT * FROM evpg_read_all()|SELECT evpg_stable_position()
SELECT evpg_take_snapshot('note', 'a')|SELECT evpg_listen('inline')|SELECT evpg_schedule(now(), 'note', 'a', 'X')
SELECT evpg_set_clock_offset('1 day')|SELECT evpg_activate()|SELECT evpg_reject('no')|SELECT evpg_projection_put('inline', 'a', '{}')
SELECT * FROM evpg_receive_message('s', 'm', 'translator', '{}')|SELECT evpg_drop_saga('saga')|SELECT evpg_rebuild_saga('saga')
CREATE OR REPLACE FUNCTION attack.key(event evpg.event) RETURNS text LANGUAGE sql AS 'SELECT event.aggregate_id'
""".strip().replace('\n', '|').split('|')

# ---------------------------------------------------------------- values

NAMES = ['note', 'inline', 'async', 'saga', 'interceptor', 'translator', 'tail', 'm_echo', '', 'x' * 300, 'Ünï', 'a"b', "a'b", '%s', 'evpg.resync']
TEXTS = NAMES + ['a', 'b', 'c', 'c1', 'c2', 'X', 'Start', 'json', 'stop', 'park', 'skip', 'inline', 'async', 'none', 'full', 'saga:1', 'stream_created_at',
                 'reader', 'writer', 'operator', 'executor', 'monitor', '\u202e', '\x01', 'k' * 5000]
ARRAYS = ['{}', '{NULL}', '{note}', '{X,Start}', '{a,a}', '{{a},{b}}', '[5:6]={a,b}', '{""}']
INTS = ['0', '1', '-1', '2', '7', '100', '2147483647', '-2147483648']
BIGINTS = INTS + ['9223372036854775807', '-9223372036854775808']
TIMES = ['infinity', '-infinity', 'now', 'epoch', '294276-12-31', '4713-01-01 BC']
INTERVALS = ['0', '1 ms', '-1 second', '5 ms', '1 month', '178000000 years', '-178000000 years']
FUNCTIONS = ['attack.handle', 'attack.apply', 'attack.keep', 'attack.intercept', 'attack.inline', 'attack.count', 'attack.key', 'attack.saga',
             'attack.timer', 'attack.translate', 'pg_catalog.pg_sleep', 'pg_catalog.jsonb_in', 'pg_catalog.now', 'public.evpg_state', '0', '4294967295']


def number(rng):
    digits = ''.join(rng.choice('0123456789') for _ in range(rng.choice((1, 5, 20, 60, 400))))
    text = rng.choice(('', '-')) + (digits.lstrip('0') or '0')
    if rng.random() < .4:
        text += '.' + ''.join(rng.choice('0123456789') for _ in range(rng.choice((1, 3, 30))))
    if rng.random() < .3:
        text += rng.choice('eE') + rng.choice(('', '+', '-')) + str(rng.choice((0, 1, 20, 308, 400, 2000)))
    return text


def string(rng):
    parts = ['a', 'é', '\\u0001', '\\ud83d\\ude00', '😀', '\\uffff', '\u202e', '\\n', '\\"', '\\\\', '\\/', ' ', '\u0301']
    return '"' + ''.join(rng.choice(parts) for _ in range(rng.choice((0, 1, 3, 40)))) + '"'


def document(rng, depth=0):
    """The text of a random JSON document; keys may repeat."""
    if depth == 0 and rng.random() < .05:
        n = rng.randint(50, 97)
        return '{"a":' * n + '1' + '}' * n
    kind = rng.random()
    if depth > 6 or kind < .5:
        return rng.choice((number, string, lambda r: r.choice(('true', 'false', 'null', '0', '-0', '1.0', '{}', '[]'))))(rng)
    count = rng.choice((0, 1, 3, 8))
    if kind < .75:
        return '[' + ','.join(document(rng, depth + 1) for _ in range(count)) + ']'
    return '{' + ','.join(string(rng) + ':' + document(rng, depth + 1) for _ in range(count)) + '}'


def literal(text):
    return 'NULL' if text is None else "'" + text.replace("'", "''").replace('\x00', '') + "'" if '\\' not in text else \
        "E'" + text.replace('\\', '\\\\').replace("'", "''") + "'"


def value(rng, kind, name):
    """An SQL expression of a type, mostly a plausible one."""
    if rng.random() < .08:
        return 'NULL::' + kind
    if kind == 'text':
        if name == 'library':
            return literal(rng.choice(('evpg_test', '$libdir/evpg_test', 'evpg_test_broken', '/etc/passwd', '')))
        if name == 'symbol':
            return literal(rng.choice(options.symbols.split() + ['nowhere']))
        if name == 'aggregate_type':
            return literal(rng.choice(('note', 'note', 'm_echo', 'm_hostile', rng.choice(TEXTS))))
        if name == 'tables':
            return 'NULL'
        return literal(rng.choice(TEXTS))
    if kind in ('text[]', 'jsonb[]', 'evpg.new_event[]'):
        if kind == 'text[]':
            return literal(rng.choice(ARRAYS)) + '::text[]'
        if kind == 'jsonb[]':
            return "ARRAY[%s, evpg_action_complete()]::jsonb[]" % (literal(document(rng)) + '::jsonb')
        return rng.choice(("'{}'::evpg.new_event[]", "ARRAY[NULL]::evpg.new_event[]", "ARRAY[evpg_event(%s, %s::jsonb)]" % (literal(rng.choice(TEXTS)), literal(document(rng)))))
    if kind == 'evpg.new_event':
        return rng.choice(("evpg_event(%s, %s::jsonb)" % (literal(rng.choice(TEXTS)), literal(document(rng))), 'ROW(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)::evpg.new_event'))
    if kind == 'jsonb':
        return literal(rng.choice((document(rng), '{}', '[]', 'null', '{"evpg": {"no_sagas": true}}', json.dumps({'in': rng.choice(KINDS), 'sql': rng.choice(STATEMENTS), 'catch': rng.random() < .5})))) + '::jsonb'
    pools = {'integer': INTS, 'bigint': BIGINTS, 'timestamp with time zone': TIMES, 'interval': INTERVALS, 'regproc': FUNCTIONS,
             'boolean': ['true', 'false'], 'jsonpath': ['$', '$.data.a', '$[*]', '$.data.*', '$.**', 'strict $.x'], 'double precision': ['NaN', '0', '1e308'],
             'uuid': ['00000000-0000-0000-0000-000000000000', '11111111-1111-1111-1111-111111111111'], 'regrole': ['attack_reader', 'attack_writer']}
    return literal(rng.choice(pools.get(kind, ['1']))) + '::' + kind


def call(rng, function):
    name, procedure, names, types, defaults, variadic = function
    arguments = [value(rng, t, n) for t, n in zip(types, names)]
    if variadic or rng.random() < .5:
        count = len(types) if variadic else rng.randint(len(types) - defaults, len(types))
        text = ', '.join(('VARIADIC ' if variadic and i == len(types) - 1 else '') + a for i, a in enumerate(arguments[:count]))
    else:
        chosen = [i for i in range(len(types)) if i < len(types) - defaults or rng.random() < .4]
        text = ', '.join('%s => %s' % (names[i], arguments[i]) for i in chosen)
    return '%s(%s)' % (name, text)


# ---------------------------------------------------------------- ways to call

def ways(rng, text, procedure):
    """The statements of one way to run a call; the first error ends them."""
    if procedure:
        return rng.choice((['CALL ' + text], ['BEGIN', 'CALL ' + text], ['DO $do$ BEGIN CALL %s; END $do$' % text]))
    select = rng.choice(('SELECT %s', 'SELECT * FROM %s AS f', 'SELECT * FROM generate_series(1, 2) g, LATERAL %s AS f', 'SELECT count(*) FROM %s AS f WHERE false')) % text
    way = rng.randrange(15)
    if way < 4:
        return [select]
    return (
        ['BEGIN', 'SAVEPOINT s', select, 'ROLLBACK TO s', select, 'COMMIT'],
        ['BEGIN', 'SELECT 1/0', select],
        ['BEGIN READ ONLY', select, 'COMMIT'],
        ['BEGIN ISOLATION LEVEL REPEATABLE READ', select, 'COMMIT'],
        ['BEGIN ISOLATION LEVEL SERIALIZABLE', select, 'COMMIT'],
        ['BEGIN', select, "PREPARE TRANSACTION 'x%d'" % rng.randrange(10 ** 9)],
        ['DO $do$ BEGIN PERFORM * FROM %s AS f; EXCEPTION WHEN OTHERS THEN NULL; END $do$' % text],
        ['PREPARE p AS ' + select] + ['EXECUTE p'] * 7,
        ['EXPLAIN (ANALYZE, VERBOSE) ' + select],
        ['CREATE TEMP TABLE ctas AS SELECT * FROM %s AS f' % text],
        ['SET force_parallel_mode = on', 'SET parallel_setup_cost = 0', select],
    )[way - 4]


def attack(number_of, seed, user, functions, stop):
    rng = random.Random(seed)
    session = connect_again(user)
    for n in range(number_of):
        text = call(rng, f := rng.choice(functions))
        statements = ways(rng, text, f[1])
        timeout = rng.choice((1, 5, 20, 50)) if rng.random() < .1 else 2000
        state = '00000'
        try:
            session.execute('SET statement_timeout = %d; SET lock_timeout = 500' % timeout)
            for statement in statements:
                prepared = re.match("PREPARE TRANSACTION ('x\\d+')", statement)
                session.execute(statement)
                if prepared:
                    session.execute('ROLLBACK PREPARED ' + prepared[1])
        except psycopg.Error as error:
            state = error.sqlstate or 'lost'
            if state.startswith('XX') and not any(k in str(error) for k in KNOWN_INTERNAL):
                check(False, 'internal error %s as %s: %s' % (state, user, str(error).strip()), '; '.join(statements)[:3000])
        except Exception as error:          # a value that the driver does not know
            state = 'driver'
        with lock:
            states[state] = states.get(state, 0) + 1
        if state == 'lost' and not stop['terminated']:
            check(False, 'the connection was lost', '; '.join(statements)[:3000])
        try:
            session.execute('ROLLBACK')
            if n % 20 == 0 or state == '00000' and n % 5 == 0:
                session.execute('RESET statement_timeout')
                row = session.execute("""SELECT current_user = session_user AND current_user = %s AND current_setting('search_path') = '"$user", public',
                    (SELECT string_agg(concat_ws(' ', locktype, mode, relation::regclass, classid, objid, transactionid), ', ') FROM pg_locks
                        WHERE pid = pg_backend_pid() AND mode NOT IN ('AccessShareLock', 'SIReadLock') AND locktype <> 'virtualxid')""", (user,)).fetchone()
                check(row[0] and row[1] is None, 'a call left a user, a path or a lock behind: %s' % (row,), '; '.join(statements)[:3000])
            session.execute('DISCARD ALL')
        except psycopg.Error as error:
            if session.closed or session.broken:
                session.close()
                session = connect_again(user)
    session.close()


def attack_or_fail(*arguments):
    try:
        attack(*arguments)
    except BaseException as error:          # a thread of its own would end in silence
        check(False, 'a session of the attack broke off', repr(error))


def disturb(seed, stop):
    rng = random.Random(seed)
    session = connect_again('postgres')
    while not stop['end']:
        time.sleep(rng.random() * .03)
        what = rng.random()
        try:
            if what < .7:
                session.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'attack%' ORDER BY random() LIMIT 1")
            elif what < .9:
                session.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'evpg%' ORDER BY random() LIMIT 1")
            elif what < .93:
                stop['terminated'] += 1
                session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'attack%' OR backend_type LIKE 'evpg%' ORDER BY random() LIMIT 1")
        except psycopg.Error:
            if session.closed or session.broken:
                session = connect_again('postgres')
    session.close()


# ---------------------------------------------------------------- the parts

def prepare():
    with connect(database='postgres') as session:
        session.execute('DROP DATABASE IF EXISTS ' + DATABASE)
        session.execute('CREATE DATABASE ' + DATABASE)
        for role in ('attack_super', 'attack_operator', 'attack_writer', 'attack_reader'):
            session.execute("DO $$ BEGIN CREATE ROLE %s LOGIN %s; EXCEPTION WHEN duplicate_object THEN NULL; END $$" % (role, 'SUPERUSER' if role == 'attack_super' else ''))
    with connect() as session:
        session.execute('CREATE EXTENSION evpg')
        for level in ('operator', 'writer', 'reader'):
            session.execute("SELECT evpg_grant('attack_%s', '%s')" % (level, level))
        session.execute(FIXTURE)
        for symbol in options.symbols.split():
            try:
                session.execute('SELECT evpg_register_aggregate(%s, library => %s, symbol => %s)', ('m_' + symbol, 'evpg_test', symbol))
            except psycopg.Error:
                pass
        return session.execute("""SELECT p.oid::regproc::text, p.prokind = 'p', coalesce(p.proargnames[:p.pronargs], '{}'), ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t),
            p.pronargdefaults, p.provariadic <> 0 FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
            JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'evpg' WHERE p.proname LIKE 'evpg\\_%' AND p.prorettype <> 'trigger'::regtype ORDER BY 1""").fetchall()


def repair():
    """The fixture again, whatever was dropped, and no prepared transaction in the way."""
    with connect_again('postgres') as session:
        for (gid,) in session.execute('SELECT gid FROM pg_prepared_xacts').fetchall():
            session.execute("ROLLBACK PREPARED '%s'" % gid)
        session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'attack%'")
        for drop in ("evpg_drop_aggregate('note', true)", "evpg_drop_projection('inline', true)", "evpg_drop_projection('async', true)", "evpg_drop_saga('saga', true)"):
            try:
                session.execute('SELECT ' + drop)
            except psycopg.Error:
                pass
        try:
            session.execute(FIXTURE)
        except psycopg.Error as error:
            check(False, 'the fixture cannot be registered again', str(error))


def consistent():
    """What must hold after each round."""
    queries = {
        'versions of a stream are contiguous, its row agrees': """SELECT s.*, e.* FROM evpg.stream s FULL JOIN (SELECT stream_id, count(*) AS n, min(version) AS first, max(version) AS last
            FROM evpg.event_log GROUP BY 1) e USING (stream_id) WHERE s.stream_id IS NULL OR s.version <> coalesce(e.n, 0) OR e.first <> 1 OR e.last <> s.version""",
        'an inline projection is what the log replays to': """SELECT p.key, p.state, e.* FROM (SELECT aggregate_id, count(*) AS n FROM evpg.event GROUP BY 1) e
            FULL JOIN (SELECT key, state FROM evpg.projection_state WHERE build = (SELECT build FROM evpg.projection WHERE name = 'guard') AND NOT deleted) p
            ON p.key = e.aggregate_id WHERE (p.state->>'n')::bigint IS DISTINCT FROM e.n""",
        'every command has its events': """SELECT * FROM evpg.command_record r WHERE NOT EXISTS (SELECT FROM evpg.event_log e
            WHERE e.stream_id = r.stream_id AND e.version = r.first_version AND e.command_id = r.command_id)""",
        'no prepared transaction is left': 'SELECT gid FROM pg_prepared_xacts',
    }
    with connect_again('postgres') as session:
        for what, query in queries.items():
            rows = session.execute(query + ' LIMIT 3').fetchall()
            check(not rows, what, rows)
        row = session.execute("SELECT count(*) FROM evpg_execute('note', 'after', 'X')").fetchone()
        check(row[0] == 1, 'a command can be executed after the round', row)


def reenter():
    """Every statement in every kind of user code, caught and raised."""
    known = ('tuple concurrently', 'cache lookup failed', 'could not read block', 'could not open relation')
    session = connect_again('attack_operator')
    for kind in KINDS:
        for statement in STATEMENTS:
            for catch in (True, False):
                data = json.dumps({'in': kind, 'sql': statement, 'catch': catch})
                try:
                    session.execute('SET statement_timeout = 2000; SET lock_timeout = 500')
                    if kind == 'translator':
                        session.execute("SELECT * FROM evpg_receive_message('s', %s, 'translator', %s)", (data, data))
                    else:
                        session.execute("SELECT * FROM evpg_execute('note', %s, 'Start', %s)", ('%s %d' % (kind, STATEMENTS.index(statement)), data))
                    state = '00000'
                except psycopg.Error as error:
                    state = error.sqlstate or 'lost'
                    if state.startswith('XX') and not any(k in str(error) for k in known):
                        check(False, 'internal error %s: %s' % (state, error), data)
                    if state == 'lost':
                        check(False, 'the connection was lost', data)
                        session = connect_again('attack_operator')
                try:
                    session.execute('ROLLBACK')
                    row = session.execute("""SELECT current_user || ' ' || session_user || ' ' || current_setting('search_path'),
                        (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode NOT IN ('AccessShareLock', 'SIReadLock') AND locktype <> 'virtualxid')""").fetchone()
                    check(row == ('attack_operator attack_operator "$user", public', 0), 'user code left something behind: %s' % (row,), data)
                except psycopg.Error:
                    if session.closed or session.broken:
                        session = connect_again('attack_operator')
        session.close()
        repair()
        session = connect_again('attack_operator')
    session.close()


def bridge(seed):
    """Documents through the module that echoes: what comes back is the same jsonb, as a value and as text."""
    rng = random.Random(seed)
    with connect_again('postgres') as session:
        for n in range(options.documents):
            text = document(rng)
            try:
                session.execute('SELECT %s::jsonb', (text,))
            except psycopg.Error:
                continue
            try:
                row = session.execute("""SELECT data = jsonb_build_object('v', d), data::text = jsonb_build_object('v', d)::text
                    FROM (SELECT %s::jsonb AS d) i, LATERAL evpg_execute('m_echo', %s, 'Echo', jsonb_build_object('v', d)) e""", (text, 'json%d' % n)).fetchone()
                check(row == (True, True), 'the bridge changed a document', text[:2000])
            except psycopg.Error as error:
                check(error.sqlstate == 'VE014', 'the bridge refused a document: %s' % error, text[:2000])


def main():
    print('attack.py --seed %d --calls %d' % (options.seed, options.calls), flush=True)
    functions = prepare()
    print('%d functions' % len(functions), flush=True)
    bridge(options.seed)
    print('bridge: done', flush=True)
    reenter()
    print('re-entrance: done', flush=True)
    users = ('attack_super', 'attack_operator', 'attack_writer', 'attack_reader', 'attack_operator', 'attack_writer')
    done = 0
    round_number = 0
    while done < options.calls:
        share = min(5000, options.calls - done) // options.sessions + 1
        stop = {'end': False, 'terminated': 0}
        threads = [threading.Thread(target=attack_or_fail, args=(share, options.seed * 1000 + round_number * 100 + i, users[i % len(users)], functions, stop)) for i in range(options.sessions)]
        storm = threading.Thread(target=disturb, args=(options.seed + round_number, stop))
        for thread in threads + [storm]:
            thread.start()
        for thread in threads:
            thread.join()
        stop['end'] = True
        storm.join()
        done += share * options.sessions
        round_number += 1
        repair()
        consistent()
        print('%d calls' % done, flush=True)
    print('calls by SQLSTATE: ' + ', '.join('%s %d' % i for i in sorted(states.items(), key=lambda i: -i[1])))
    with open(options.log, errors='replace') as log:
        for line in log:
            if re.search('PANIC:|TRAP:|terminated by signal', line):
                check(False, 'the server crashed', line.strip())
    check(done >= options.calls, 'all calls were made')
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed else 0


sys.exit(main())
