"""Hostile modules: aggregates, projections and sagas in C that are told to return what they must not, or to leave by an error."""

import json
import random

import psycopg

import values
from common import check, check_state, connect

STRINGS = ('zero', 'surrogate', 'overlong', 'latin1', 'none')
SHAPES = ('cycle', 'deep', 'shared', 'nest', 'itself', 'none')
NUMBERS = ('nan', 'infinity', '-infinity', 'nan by text', 'infinity by text', 'nonsense by text', 'tenth', 'smallest', 'largest', 'uint64', 'int64', 'too large', 'latin1 by text', 'exact')
SAYINGS = ('emit', 'reject', 'delta', 'delete', 'complete', 'unhandled', 'no code', 'endless code', 'no tag', 'no type', 'log')
STATES = ('22023', 'VE002', 'VE009', 'VE006', 'P0001', '40001', '40P01', '57014', '55P03', '23505', '53200', '25006', '57P01')

FIXTURE = """
SELECT evpg_register_aggregate('counter', library => 'evpg_test', symbol => 'counter', snapshot_every => 3);
SELECT evpg_register_aggregate('hostile', library => 'evpg_test', symbol => 'hostile', snapshot_every => 3);
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'delta');
SELECT evpg_register_projection('totals_async', library => 'evpg_test', symbol => 'totals', mode => 'async', on_error => 'park', max_attempts => 1, broadcast => 'delta');
SELECT evpg_register_projection('groups', library => 'evpg_test', symbol => 'group_totals', mode => 'async', on_error => 'park', max_attempts => 1);
SELECT evpg_register_projection('bad_keys', library => 'evpg_test', symbol => 'bad_key_totals', mode => 'async', on_error => 'skip', max_attempts => 1, aggregate_types => '{counter}');
SELECT evpg_register_saga('script', library => 'evpg_test', symbol => 'script', max_attempts => 1);
SELECT evpg_register_saga('groups_saga', library => 'evpg_test', symbol => 'group_script', max_attempts => 1);
"""


def thrown(rng):
    return {'sqlstate': rng.choice(STATES), 'message': rng.choice(('thrown', '', '%s %n', 'x' * 3000))}


def integer(rng):
    return rng.choice((0, 1, -1, 7, 100, 101, 10000, 2 ** 31, 2 ** 63 - 1, -2 ** 63))


def command(rng):
    """A command of the aggregate that does what it must not."""
    return rng.choice((
        lambda: ('BadText', {'where': rng.choice(('type', 'data', 'key', 'scalar', 'metadata', 'tag', 'code', 'message', 'detail', 'failure')), 'how': rng.choice(STRINGS)}),
        lambda: ('Deep', {'depth': rng.choice((0, 1, 99, 100, 101, 5000, 300000))}),
        lambda: ('Large', {'size': rng.choice((0, 1, 100000, 17 << 20, -1))}),
        lambda: ('Number', {'which': rng.choice(NUMBERS)}),
        lambda: ('Envelope', {'change': {rng.choice(('type', 'data', 'metadata', 'tags', 'schema_version', 'surprise', 'event_id', 'occurred_at')): rng.choice((None, 7, 2.5, '', 'x' * 300, [], [1], {}, {'evpg': 1}, True, -1, 2 ** 40))}}),
        lambda: ('Refuse', {'code': rng.choice(('', 'c', '€' * 100)), 'message': rng.choice(('', '%s%n', 'ä' * 600)), 'detail': rng.choice((None, [], {'a': 'x' * 10000}))}),
        lambda: ('Spoil', {'how': rng.choice(STRINGS)}),
        lambda: ('Misshape', {'where': rng.choice(('state', 'events', 'event', 'detail', 'metadata', 'tags', 'data')), 'how': rng.choice(SHAPES)}),
        lambda: ('Misuse', {'say': rng.choice(SAYINGS)}),
        lambda: ('TellInvariant', {'say': rng.choice(SAYINGS)}),
        lambda: ('Throw', {'where': rng.choice(('handler', 'fold', 'invariant')), 'throw': thrown(rng)}),
        lambda: ('FoldForever', {}),
        lambda: ('Nothing', {}),
        lambda: (rng.choice(('Add', 'AddEach', 'Emit', 'Spin', 'Fail', 'AddAndRefuse')), {'n': integer(rng), 'ns': [integer(rng)] * 3, 'events': [{'type': rng.choice(('Added', '', 'x' * 300)), 'data': integer(rng)}]}),
    ))()


def event(rng):
    """An event of which projections and sagas make what they must not."""
    bad = {'where': rng.choice(('state', 'delta', 'action', 'actions', 'shape of state', 'shape of action')), 'how': rng.choice(STRINGS + SHAPES)}
    return rng.choice((
        lambda: ('Added', {'n': integer(rng), 'group': rng.choice((None, '', 'a', 7, [], {'b': 1}, 'k' * 5000, True, '\u202e'))}),
        lambda: ('Added', {'n': 1, 'throw': thrown(rng)}),
        lambda: ('Spoiled', bad), lambda: ('Misshaped', bad), lambda: ('Misused', {'say': rng.choice(SAYINGS)}), lambda: ('Cleared', {}), lambda: ('Broken', {}),
        lambda: ('Deep', {'depth': rng.choice((1, 101, 300000))}), lambda: ('Thrown', {'throw': thrown(rng)}),
        lambda: (rng.choice(('Started', 'Told')), {'group': rng.choice(('a', None, 5)), 'set': {'on_refusal': {'throw': thrown(rng)}} if rng.random() < .3 else {}, 'actions': actions(rng), 'bad': bad if rng.random() < .5 else None,
                                                   rng.choice(('fail', 'reject', 'nothing')): 'x', rng.choice(('emit', 'unhandled', 'nothing')): True, 'throw': thrown(rng) if rng.random() < .2 else None}),
    ))()


def actions(rng):
    return [rng.choice((
        {'do': 'send', 'aggregate_type': 'counter', 'aggregate_id': 'sent', 'command_type': rng.choice(('Add', 'Subtract', 'Fail', 'None')), 'data': {'n': 1}, 'label': rng.choice((None, 'l', 'x' * 300))},
        {'do': 'send', 'aggregate_type': 'hostile', 'aggregate_id': 'sent', 'command_type': 'Throw', 'data': {'where': 'handler', 'throw': thrown(rng)}},
        {'do': 'schedule', 'timer': 'script', 'delay': '0', 'payload': {'throw': thrown(rng)} if rng.random() < .5 else {}},
        {'do': 'schedule', 'timer': 'script', 'payload': []}, {'do': 'cancel', 'timer': 'script'}, {'do': 'complete'}, {'do': 'fail', 'reason': 'x'}, {'do': 'compensate'},
        {}, {'do': 5}, [], None, 'x', {'do': 'send', 'data': {'a': [1] * 1000}})) for _ in range(rng.choice((0, 1, 3)))]


def attack(seed, count=1500):
    rng = random.Random(seed)
    session = connect()
    session.execute(FIXTURE)
    for n in range(count):
        aggregate_type = rng.choice(('hostile', 'hostile', 'counter'))
        what = rng.random()
        aggregate_id = rng.choice('abcdefgh') if rng.random() < .5 else 'n%d' % n
        if what < .5:
            name, data = command(rng)
            statement = 'SELECT * FROM evpg_%s(%s, %s, %s, %s)' % (rng.choice(('execute', 'try_execute')), *map(values.literal, (aggregate_type, aggregate_id, name, json.dumps(data))))
        else:
            name, data = event(rng)
            statement = 'SELECT * FROM evpg_append(%s, %s, ARRAY[evpg_event(%s, %s)])' % tuple(map(values.literal, (aggregate_type, aggregate_id, name, json.dumps(data))))
        # what loops for ever is cancelled, at any place; nothing else may last
        forever = 'Spin' in statement or 'FoldForever' in statement
        state, message = '00000', ''
        try:
            session.execute('SET statement_timeout = %d' % (rng.choice((20, 50)) if forever else 20000))
            for line in (statement,) if rng.random() < .7 else ('BEGIN', 'SAVEPOINT s', statement, 'ROLLBACK TO s', 'COMMIT'):
                session.execute(line)
            if what > .95:
                session.execute('SET statement_timeout = 2000; SELECT evpg_run_sagas()')
        except psycopg.Error as error:
            state, message = error.sqlstate or 'lost', str(error)
            if state == 'lost':
                check(False, 'the connection was lost', statement)
                session = connect()
        except UnicodeDecodeError:
            check(False, 'text that is no UTF-8 reaches a client', statement)
        check_state(state, message, statement)
        session.execute('ROLLBACK')
        if n % 50 == 0:
            agree(session, rng.choice('abcdefgh'))
    for aggregate_id in 'abcdefgh':
        agree(session, aggregate_id)
    session.close()


def agree(session, aggregate_id):
    """What a module left in the middle of its work is not in the cache: a new session, which folds all, sees the same state."""
    found = []
    for aggregate_type in ('counter', 'hostile'):
        with connect() as other:
            for who in (session, other):
                try:
                    who.execute('SET statement_timeout = 2000')
                    found.append(who.execute('SELECT version, state FROM evpg_state(%s, %s)', (aggregate_type, aggregate_id)).fetchone())
                except psycopg.Error as error:
                    found.append(error.sqlstate)
        # a fold that loops, or a machine that is slow, says nothing
        check(found[-1] == found[-2] or '57014' in found[-2:], 'a state in the cache is what its events fold to', (aggregate_type, aggregate_id, found[-2:]))
