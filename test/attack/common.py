"""What the parts of the attack share: the options, the count of checks, connections."""

import argparse
import re
import time

import psycopg

parser = argparse.ArgumentParser()
parser.add_argument('--calls', type=int, default=20000)
parser.add_argument('--seed', type=int, default=int(time.time()))
parser.add_argument('--sessions', type=int, default=6)
parser.add_argument('--documents', type=int, default=500)
parser.add_argument('--parts', default='bridge,modules,reentrance,calls', help='which parts run, in this order')
parser.add_argument('--thorough', action='store_true', help='re-entrance: each statement both caught and raised, not one of them')
parser.add_argument('--faults', action='store_true', help='plant faults instead, each of which the attack must report')
parser.add_argument('--counted', type=int, nargs=2, default=(0, 0), help='passed and failed so far')
parser.add_argument('--symbols', default='')
parser.add_argument('--log', required=True)
options = parser.parse_args()

DATABASE = 'evpg_attack'
TEMPLATE = 'evpg_attack_template'
ROLES = ('attack_super', 'attack_operator', 'attack_writer', 'attack_reader')

# Internal errors that are none of evpg: what a message must match, and why it may be raised.
ALLOWED = (
    (r'missing magic block', 'PostgreSQL\'s answer to a library that is no module'),
    (r'could not load library', 'PostgreSQL\'s answer to a file that is no library: with the SQLSTATE of whatever errno happens to be'),
    (r'tuple concurrently (updated|deleted)', 'PostgreSQL\'s answer to DDL on one object at the same time: functions, grants, settings'),
    # Shown on a server without evpg (PostgreSQL 15.20): three sessions that repeat
    #   CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION IF EXISTS f();
    # get it once in 9,000 rounds, beside 450 times "tuple concurrently (updated|deleted)": RemoveObjects() looks the
    # function up by name, locks it, and then reads it again, when another session has dropped it.
    (r'cache lookup failed for function \d+ \(.*DROP FUNCTION', 'PostgreSQL\'s answer to DROP FUNCTION in two workers at once'),
)

report = {'passed': 0, 'failed': 0, 'failures': [], 'states': {}, 'conditions': {}, 'done': 0}    # of this process


def check(good, what, detail=''):
    """Counts a check; a failure is printed with what reproduces it."""
    if good:
        report['passed'] += 1
        return
    report['failed'] += 1
    report['failures'].append('%s: %s' % (what, detail))
    if not options.faults:
        print('FAILED: %s\n  %s' % (what, detail), flush=True)


def add(other):
    """Adds the report of another process to that of this one."""
    for name in ('passed', 'failed', 'done'):
        report[name] += other[name]
    report['failures'] += other['failures']
    for counts in ('states', 'conditions'):
        for state, count in other[counts].items():
            report[counts][state] = report[counts].get(state, 0) + count


def check_state(state, message, detail):
    """No error is an internal one, but for those that are allowed; and no trap is sprung, but by code of the caller."""
    report['states'][state] = report['states'].get(state, 0) + 1
    if state.startswith('XX') and not any(re.search(pattern, message) for pattern, why in ALLOWED):
        check(False, 'internal error %s %s' % (state, message), detail)


def connect(user='postgres', database=DATABASE):
    """A connection; a server that restarts after a crash, which is counted at the end, takes a moment."""
    for _ in range(600):
        try:
            return psycopg.connect('user=%s dbname=%s' % (user, database), autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError as error:
            last = error
            time.sleep(0.1)
    raise SystemExit('the server does not come back: %s' % last)


def fresh(database=DATABASE):
    """A database as it was before the attack."""
    with connect(database='postgres') as session:
        for (gid, of) in session.execute('SELECT gid, database FROM pg_prepared_xacts').fetchall():
            with connect(database=of) as other:
                other.execute("ROLLBACK PREPARED '%s'" % gid)
        session.execute('DROP DATABASE IF EXISTS %s WITH (FORCE)' % database)
        session.execute('CREATE DATABASE %s TEMPLATE %s' % (database, TEMPLATE))
    with connect(database=database) as session:
        session.execute('SELECT evpg_activate_consumers()')
