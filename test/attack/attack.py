#!/usr/bin/python3
"""attack.py: hostile calls of every function of evpg; see README.md."""

import multiprocessing
import os
import random
import re
import sys
import time

import psycopg

import common
import modules
import reentrance
import values
from common import DATABASE, ROLES, TEMPLATE, check, check_state, connect, fresh, options, report

ROUND = 5000                # calls between two looks at what must hold
AGE = 20                    # rounds until the database is made anew, or what reads all of the log takes too long
BATCH = 25                  # calls in a round trip

# ---------------------------------------------------------------- ways to call

def ways(rng, text, procedure):
    """The statements of one way to run a call; the first error ends them."""
    if procedure:
        return rng.choice((['CALL ' + text], ['BEGIN', 'CALL ' + text], ['DO $do$ BEGIN CALL %s; END $do$' % text]))
    select = values.selects(rng, text)
    way = rng.randrange(12)
    if way == 0:
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
    )[way - 1]


def call_alone(rng, session, functions):
    """One call in one of the ways, with a round trip for each statement; returns the statements and whether it ended well."""
    function = rng.choice(functions)
    statements = ways(rng, values.call(rng, function), function[1])
    timeout = rng.choice((1, 5, 20, 50)) if rng.random() < .1 else 1000
    state, message = '00000', ''
    try:
        session.execute('SET statement_timeout = %d; SET lock_timeout = 300' % timeout)
        for statement in statements:
            prepared = re.match("PREPARE TRANSACTION ('x\\d+')", statement)
            session.execute(statement)
            if prepared:
                session.execute('ROLLBACK PREPARED ' + prepared[1])
    except psycopg.Error as error:
        state, message = error.sqlstate or 'lost', str(error)
    except Exception as error:          # a value that the driver does not know
        state = 'driver'
    check_state(state, message, '; '.join(statements)[:3000])
    return 1, state, statements


def call_many(rng, session, functions, trapped):
    """Many calls in one round trip: each in a transaction of its own, or with those before it; a cancel ends them."""
    statements = []
    while len(statements) < BATCH:
        function = rng.choice(functions)
        text = values.call(rng, function, True)
        if function[1]:
            continue
        statements.append(rng.choice((values.selects(rng, text),) * 5 + (
            'DO $do$ BEGIN PERFORM * FROM %s AS f; RAISE EXCEPTION division_by_zero; EXCEPTION WHEN division_by_zero THEN PERFORM * FROM %s AS f; END $do$' % (text, text),
            'EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM %s AS f' % text)))
    ends = [rng.choices(('commit', 'rollback', ''), (8, 1, 1))[0] for _ in statements]
    ends[-1] = 'commit'
    timeout = rng.randint(1, 100) if rng.random() < .25 else 3000
    if trapped:
        session.execute('SET search_path = traps, pg_temp, public')
    session.execute('SET statement_timeout = %d; SET lock_timeout = 300' % timeout)
    try:
        results, contexts = session.execute("CALL attack.call(%s::pg_catalog.text[], %s::pg_catalog.text[], '{}', '{}')", (statements, ends)).fetchone()
    except psycopg.Error as error:          # of a commit, or from outside
        state = error.sqlstate or 'lost'
        check_state(state, str(error), '; '.join(statements)[:3000])
        return 1, state, statements
    contexts += [None] * (len(results) - len(contexts))
    for statement, result, context in zip(statements, results, contexts):
        check_state(result[:5], result[6:], statement[:3000])
        if re.match('SELECT .*condition => ', statement) and not statement.endswith('false'):
            report['conditions'][result[:5]] = report['conditions'].get(result[:5], 0) + 1
        # code of the caller may be caught in a trap, evpg's must not
        if 'trapped' in result and not re.search(r'function attack\.(?!call\()|SQL function "(?!evpg_)', context or ''):
            check(False, 'a trap is sprung', '%s\n%s' % (statement[:3000], context))
    if trapped:
        path = session.execute("SELECT pg_catalog.current_setting('search_path')").fetchone()[0]
        check(path == 'traps, pg_temp, public', 'the path has changed', path)
    return len(results), '00000', statements


def call_hostilely(number_of, seed, user, functions, terminated):
    """A session of a round; returns what it found."""
    rng = random.Random(seed)
    session = connect(user)
    done = 0
    while done < number_of and not (options.faults and report['failed']):
        alone = rng.random() < .7           # so one call in fifteen
        trapped = not alone and rng.random() < .2
        try:
            count, state, statements = call_alone(rng, session, functions) if alone else call_many(rng, session, functions, trapped)
        except psycopg.Error as error:
            count, state, statements = 0, error.sqlstate or 'lost', ['between calls']
        done += count
        if state == 'lost' and not terminated.value:
            check(False, 'the connection was lost', '; '.join(statements)[:3000])
        try:
            session.execute('ROLLBACK')
            if not alone or rng.random() < .1:
                session.execute('RESET statement_timeout' + ('; RESET search_path' if trapped else ''))
                row = session.execute("""SELECT session_user, current_user, current_setting('search_path'),
                    (SELECT string_agg(concat_ws(' ', locktype, mode, relation::regclass, classid, objid, transactionid), ', ') FROM pg_locks
                        WHERE pid = pg_backend_pid() AND mode NOT IN ('AccessShareLock', 'SIReadLock') AND locktype <> 'virtualxid')""").fetchone()
                check(row == (user, user, '"$user", public', None), 'a call left a user, a path or a lock behind: %s' % (row,), '; '.join(statements)[:9000])
            session.execute('DISCARD ALL')
        except psycopg.Error as error:      # a cancel in here leaves the settings of the calls in the session
            session.close()
            session = connect(user)
    session.close()
    report['done'] += done


def in_process(function, *arguments):
    """Runs a part in this process, which is a child, and returns its report."""
    report.update({'passed': 0, 'failed': 0, 'failures': [], 'states': {}, 'conditions': {}, 'done': 0})
    try:
        function(*arguments)
    except BaseException as error:          # a process of its own would end in silence
        check(False, 'a session of the attack broke off', repr(error))
    return dict(report)


def disturb(seed, end, terminated):
    """Cancels and terminates sessions and workers until it is told to end."""
    rng = random.Random(seed)
    session = connect('postgres')
    while not end.is_set():
        time.sleep(rng.random() * .03)
        what = rng.random()
        try:
            if what < .7:
                session.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'attack%' ORDER BY random() LIMIT 1")
            elif what < .9:
                session.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'evpg%' ORDER BY random() LIMIT 1")
            elif what < .93:
                terminated.value += 1
                session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'attack%' OR backend_type LIKE 'evpg%' ORDER BY random() LIMIT 1")
        except psycopg.Error:
            if session.closed or session.broken:
                session = connect('postgres')
    session.close()

# ---------------------------------------------------------------- what must hold

INVARIANTS = {
    'versions of a stream are contiguous, and it has a row': """SELECT s.*, e.* FROM evpg.stream s RIGHT JOIN (SELECT stream_id, count(*) AS n, min(version) AS first, max(version) AS last
        FROM evpg.event_log GROUP BY 1) e USING (stream_id) WHERE s.stream_id IS NULL OR e.first <> 1 OR e.last <> e.n""",
    'positions go up with versions': """SELECT * FROM (SELECT stream_id, "position", lag("position") OVER (PARTITION BY stream_id ORDER BY version) AS before
        FROM evpg.event_log) e WHERE before >= "position" """,
    'every command has its events': """SELECT * FROM evpg.command_record r WHERE NOT EXISTS (SELECT FROM evpg.event_log e
        WHERE e.stream_id = r.stream_id AND e.version = r.first_version AND e.command_id = r.command_id)""",
    'an inline projection is what the log replays to': """SELECT p.*, e.* FROM attack.replayed e
        FULL JOIN (SELECT key, state FROM evpg.projected_state WHERE name = 'guard') p USING (key)
        WHERE (p.state->>'n')::bigint IS DISTINCT FROM e.n OR (p.state->>'last')::bigint <> e.last OR (p.state->>'torn')::boolean""",
    'so is an asynchronous one': """SELECT p.*, e.* FROM attack.replayed e
        FULL JOIN (SELECT key, state FROM evpg.projected_state WHERE name = 'guard_async') p USING (key)
        WHERE (p.state->>'n')::bigint IS DISTINCT FROM e.n OR (p.state->>'last')::bigint <> e.last OR (p.state->>'torn')::boolean""",
    'so are the states of a saga': """SELECT i.*, e.* FROM (SELECT * FROM attack.replayed WHERE reacted > 0) e FULL JOIN (SELECT key, state FROM evpg.saga_instance WHERE saga = 'guard_saga') i USING (key)
        WHERE (i.state->>'n')::bigint IS DISTINCT FROM e.reacted OR (i.state->>'torn')::boolean""",
    'and those of an inline saga': """SELECT i.*, e.* FROM (SELECT * FROM attack.replayed WHERE reacted > 0) e FULL JOIN (SELECT key, state FROM evpg.saga_instance WHERE saga = 'guard_inline') i USING (key)
        WHERE (i.state->>'n')::bigint IS DISTINCT FROM e.reacted OR (i.state->>'torn')::boolean""",
    'no event of a guard is parked or a dead letter': """SELECT to_jsonb(p) FROM evpg.parked_event p WHERE name LIKE 'guard%' UNION ALL SELECT to_jsonb(d) FROM evpg.dead_letter d WHERE saga LIKE 'guard%' AND resolved_at IS NULL""",
    'no two events exist of which the condition of each excludes the other': """SELECT tags, count(*) FROM evpg.event WHERE type = 'Unique' GROUP BY tags HAVING count(*) > 1""",
    'no prepared transaction is left': 'SELECT gid FROM pg_prepared_xacts',
}


def repair():
    """The fixture again, whatever was dropped, and no prepared transaction in the way."""
    with connect() as session:
        for (gid,) in session.execute('SELECT gid FROM pg_prepared_xacts WHERE database = current_database()').fetchall():
            session.execute("ROLLBACK PREPARED '%s'" % gid)
        session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'attack%'")
        try:
            reentrance.mend(session)
        except psycopg.Error as error:
            check(False, 'the fixture can be registered again', error)


def consistent():
    """What must hold after each round: all that is asynchronous has caught up, and agrees with the log."""
    with connect() as session:
        for guard in ('guard_async', 'guard_saga', 'guard_inline'):
            try:
                session.execute("SELECT evpg_resume_consumer('%s')" % guard)       # at once, also if a clock was moved while it waited
                deep = 1
                while deep:                 # sagas that call may be made to cause each other without end, up to the limit
                    row = session.execute("SELECT evpg_wait_for('%s', (SELECT coalesce(max(position), 0) FROM evpg.event_log), '120 s')" % guard).fetchone()
                    check(row[0], 'a consumer catches up', guard)
                    deep = session.execute("""SELECT count(evpg_discard_dead_letter(dead_letter_id, 'the chain is too long')) FROM evpg.dead_letter
                        WHERE saga = '%s' AND resolved_at IS NULL AND sqlstate = 'VE014' AND message LIKE '%%without end'""" % guard).fetchone()[0]
            except psycopg.Error as error:
                check(False, 'a consumer catches up', '%s: %s' % (guard, error))
        session.execute("""CREATE TEMP VIEW replayed AS SELECT aggregate_type || ' ' || aggregate_id AS key, count(*) AS n, max(version) AS last,
            count(*) FILTER (WHERE metadata->'evpg'->'no_sagas' IS DISTINCT FROM 'true' AND coalesce((metadata->'evpg'->>'depth')::int, 0) < 100) AS reacted FROM evpg.event GROUP BY 1""")
        for what, query in INVARIANTS.items():
            rows = session.execute(query.replace('attack.replayed', 'replayed') + ' LIMIT 3').fetchall()
            check(not rows, what, rows)
        try:
            row = session.execute("SELECT count(*) FROM evpg_execute('note', 'after', 'X')").fetchone()
            check(row[0] == 1, 'a command can be executed after the round', row)
        except psycopg.Error as error:
            check(False, 'a command can be executed after the round', error)


def read_log(log):
    """What the server's log has said since the last look: crashes, failed assertions and internal errors, of workers too."""
    for line in log:
        if re.search('PANIC:|TRAP:|terminated by signal', line):
            check(False, 'the server crashed', line.strip())
        found = re.search(r'\] (XX\w{3}) .*?(WARNING|ERROR|FATAL):  (.*)|WARNING:  (caught internal error: .*)', line)
        if found:
            message = found[4] or found[3]
            check(any(re.search(pattern, message) for pattern, why in common.ALLOWED), 'the log has no internal error', line.strip())

# ---------------------------------------------------------------- the parts

def prepare():
    """The template of all databases of the attack; returns the functions to call."""
    with connect(database='postgres') as session:
        session.execute("UPDATE pg_database SET datistemplate = false WHERE datname = '%s'" % TEMPLATE)
        session.execute('DROP DATABASE IF EXISTS %s WITH (FORCE)' % TEMPLATE)
        session.execute('CREATE DATABASE %s IS_TEMPLATE true' % TEMPLATE)
        for role in ROLES:
            session.execute("DO $$ BEGIN CREATE ROLE %s LOGIN %s; EXCEPTION WHEN duplicate_object THEN NULL; END $$" % (role, 'SUPERUSER' if role == 'attack_super' else ''))
    with connect(database=TEMPLATE) as session:
        session.execute('CREATE EXTENSION evpg')
        for level in ('operator', 'writer', 'reader'):
            session.execute("SELECT evpg_grant('attack_%s', '%s')" % (level, level))
        session.execute(reentrance.FIXTURE)
        for symbol in options.symbols.split():
            try:
                session.execute('SELECT evpg_register_aggregate(%s, library => %s, symbol => %s)', ('m_' + symbol, 'evpg_test', symbol))
            except psycopg.Error:
                pass
        return session.execute("""SELECT p.proname, p.prokind = 'p', coalesce(p.proargnames[:p.pronargs], '{}'), ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t),
            p.pronargdefaults, p.provariadic <> 0 FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
            JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'evpg' WHERE p.proname LIKE 'evpg\\_%' AND p.prorettype <> 'trigger'::regtype ORDER BY 1""").fetchall()


def bridge(seed):
    """Documents through the module that echoes: what comes back is the same jsonb, as a value and as text."""
    rng = random.Random(seed)
    with connect('postgres') as session:
        for n in range(options.documents):
            text = values.document(rng)
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


def set_traps():
    """The traps of the test that installs the extension among them, here in the paths of callers."""
    with connect() as session, open(os.path.dirname(os.path.realpath(__file__)) + '/../pgtap/include/traps.sql') as traps:
        session.execute('CREATE SCHEMA traps; CREATE SCHEMA test; SET check_function_bodies = off')
        session.execute(traps.read())
        check(session.execute('SELECT test.set_traps()').fetchone()[0] > 5000, 'there are traps')
        session.execute('GRANT USAGE ON SCHEMA traps TO PUBLIC')


def call_all(calls, seed, functions, log):
    """Rounds of hostile calls by several sessions, under cancels, each followed by a look at what must hold."""
    users = ('attack_super', 'attack_operator', 'attack_writer', 'attack_operator', 'attack_reader', 'attack_writer')
    begin = report['done']
    round_number = 0
    while report['done'] - begin < calls and not (options.faults and report['failed']):
        started = time.time()
        if round_number % AGE == 0:
            fresh()
            set_traps()
        share = min(500 if options.faults else ROUND, calls - (report['done'] - begin)) // options.sessions + 1
        end, terminated = multiprocessing.Event(), multiprocessing.Value('i', 0)
        storm = multiprocessing.Process(target=disturb, args=(seed + round_number, end, terminated))
        storm.start()
        for found in in_parallel([(call_hostilely, share, seed * 1000 + round_number * 100 + i, users[i % len(users)], functions, terminated) for i in range(options.sessions)]):
            common.add(found)
        end.set()
        storm.join()
        called = time.time()
        round_number += 1
        repair()
        consistent()
        read_log(log)
        if not options.faults:
            print('%d calls, %d failed (%.0f s, checks %.0f s)' % (report['done'], report['failed'], called - started, time.time() - called), flush=True)


def in_parallel(tasks):
    """Runs each task in a process of its own, and returns their reports."""
    pipes = []
    for task in tasks:
        here, there = multiprocessing.Pipe(False)
        process = multiprocessing.Process(target=lambda there=there, task=task: there.send(in_process(*task)))
        process.start()
        there.close()
        pipes.append((here, process))
    found = []
    for here, process in pipes:
        try:
            found.append(here.recv())
        except EOFError:
            found.append({'passed': 0, 'failed': 1, 'failures': ['a process of the attack died'], 'states': {}, 'conditions': {}, 'done': 0})
            print('FAILED: a process of the attack died', flush=True)
        process.join()
    return found


# What is planted (src/base/testing.h, EVPG_MUTATION), and what the attack must then say.
FAULTS = {
    'planted_crash': 'the server crashed: .*terminated by signal',
    'planted_assertion': 'the server crashed: TRAP',
    'planted_lock': 'a call left a user, a path or a lock behind',
    'planted_error': '(internal error.*|XX000.*)planted error',
    # the next command takes its version, since the newest event is what tells of it
    'event_lost': 'an inline projection is what the log replays to',
    'version_wrong': 'versions of a stream are contiguous',
    'condition_ignored': 'no two events exist of which the condition of each excludes the other',
    'event_skipped': 'so is an asynchronous one',
    'saga_kept': 'so are the states of a saga',
}


def set_fault(fault):
    """For all sessions and workers that begin from now on, and soon for the others, also while one crashes the server."""
    for _ in range(600):
        try:
            with connect(database='postgres') as session:
                session.execute("ALTER SYSTEM SET evpg.test_mutation = '%s'" % fault)
                session.execute('SELECT pg_reload_conf()')
            with connect(database='postgres') as session:
                if session.execute("SELECT current_setting('evpg.test_mutation')").fetchone()[0] == fault:
                    return
        except psycopg.OperationalError:
            pass
        time.sleep(.1)
    raise SystemExit('the server does not take evpg.test_mutation')


def find_faults(functions, log):
    """Each fault, planted, is reported by a short attack; without one nothing is."""
    for fault, expected in [(None, None)] + list(FAULTS.items()):
        set_fault(fault or '')
        report['failures'].clear()
        report['failed'] = 0
        try:
            call_all(options.calls, options.seed, functions, log)
        except (psycopg.Error, SystemExit) as error:        # of a look at a server that crashes
            report['failures'].append('the attack broke off: %s' % error)
        set_fault('')
        read_log(log)
        failures = report['failures']
        good = any(re.search(expected, failure) for failure in failures) if fault else not failures
        print('%s: %s: %d failures, such as %s' % ('found' if good else 'NOT FOUND', fault or 'no fault', len(failures), failures[:1]), flush=True)
        yield good


def by_count(counts):
    return ', '.join('%s %d' % i for i in sorted(counts.items(), key=lambda i: -i[1]))


def main():
    print('attack.py --seed %d --calls %d' % (options.seed, options.calls), flush=True)
    log = open(options.log, errors='replace')
    report['passed'], report['failed'] = options.counted
    started = time.time()
    functions = prepare()
    print('%d functions, prepared in %.0f s' % (len(functions), time.time() - started), flush=True)
    values.scripts += reentrance.scripts()
    if options.faults:
        found = list(find_faults(functions, log))
        passed, failed = options.counted[0] + found.count(True), options.counted[1] + found.count(False)
        print('%d passed, %d failed' % (passed, failed))
        return 1 if failed else 0
    parts = {'bridge': lambda: bridge(options.seed), 'modules': lambda: modules.attack(options.seed), 'reentrance': lambda: reentrance.attack(functions, options.seed, in_parallel),
             'calls': lambda: call_all(options.calls, options.seed, functions, log)}
    for name in options.parts.split(','):
        started = time.time()
        if name != 'calls':
            fresh()
        parts[name]()
        read_log(log)
        print('%s: %d passed, %d failed so far (%.0f s)' % (name, report['passed'], report['failed'], time.time() - started), flush=True)
    if report['done'] >= 4 * ROUND:         # some of these are rare
        for state in ('00000', 'VE013', 'VE014', '22023'):
            check(report['conditions'].get(state, 0) > 0, 'conditions are attacked', 'no append under one has ended with %s' % state)
    print('appends under a condition by SQLSTATE: ' + by_count(report['conditions']))
    print('calls by SQLSTATE: ' + by_count(report['states']))
    print('%d passed, %d failed' % (report['passed'], report['failed']))
    return 1 if report['failed'] else 0


if __name__ == '__main__':
    sys.exit(main())
