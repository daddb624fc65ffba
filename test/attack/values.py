"""Hostile arguments: a random SQL expression for each type, and calls made of them."""

import json

from common import options

NAMES = ['note', 'inline', 'async', 'inline_table', 'async_table', 'reset', 'saga', 'interceptor', 'listener', 'translator', 'tail', 'm_echo', '', 'x' * 300,
         'Ünï', 'a"b', "a'b", '%s', 'evpg.resync']
TEXTS = NAMES + ['a', 'b', 'c', 'c1', 'c2', 'X', 'Start', 'json', 'stop', 'park', 'skip', 'inline', 'async', 'none', 'full', 'saga:1', 'stream_created_at',
                 'reader', 'writer', 'operator', 'executor', 'monitor', 'relay', 'event_type', 'tags', '\u202e', '\x01', 'k' * 5000]
ARRAYS = ['{}', '{NULL}', '{note}', '{X,Start}', '{a,a}', '{{a},{b}}', '[5:6]={a,b}', '{""}']
INTS = ['0', '1', '-1', '2', '7', '100', '2147483647', '-2147483648']
BIGINTS = INTS + ['9223372036854775807', '-9223372036854775808']
TIMES = ['infinity', '-infinity', 'now', 'epoch', '294276-12-31', '4713-01-01 BC']
INTERVALS = ['0', '1 ms', '-1 second', '5 ms', '1 month', '178000000 years', '-178000000 years']
FUNCTIONS = ['attack.handle', 'attack.apply', 'attack.keep', 'attack.intercept', 'attack.inline', 'attack.count', 'attack.key', 'attack.async_key',
             'attack.write_inline', 'attack.write_async', 'attack.reset', 'attack.saga', 'attack.reject', 'attack.timer', 'attack.translate', 'attack.upcast',
             'pg_catalog.pg_sleep', 'pg_catalog.jsonb_in', 'pg_catalog.now', 'public.evpg_state', '0', '4294967295']
TAGS = ['t1', 't2', 't3', 'é', 'a"b', "a'b", '', 'x' * 10000]
POOLS = {'integer': INTS, 'integer[]': ['{}', '{NULL}', '{NULL,1}', '{1}', '{NULL,-1}', '{NULL,1,2}', '{{NULL,1}}', '[0:1]={NULL,1}'], 'bigint': BIGINTS, 'timestamp with time zone': TIMES, 'interval': INTERVALS, 'regproc': FUNCTIONS,
         'boolean': ['true', 'false'], 'jsonpath': ['$', '$.data.a', '$[*]', '$.data.*', '$.**', 'strict $.x'], 'double precision': ['NaN', '0', '1e308'],
         'uuid': ['00000000-0000-0000-0000-000000000000', '11111111-1111-1111-1111-111111111111'], 'regrole': ['attack_reader', 'attack_writer']}
OLD_TYPES = ["'Old'", "'Older'", "''", "'evpg.x'", 'NULL', "pg_catalog.repeat('x', 300)"]
QUALIFIED = ('text', 'text[]', 'jsonb', 'jsonb[]', 'regproc', 'jsonpath', 'uuid', 'regrole')
scripts = ['{}']            # what the data of a command may make user code do: set by the re-entrance


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


def cast(text, kind):
    """A literal of a type that no path makes another one."""
    return '%s::%s%s' % (text, 'pg_catalog.' if kind in QUALIFIED else '', kind)


def tags(rng):
    """An array of few tags, so that events share them."""
    chosen = rng.choices(TAGS[:3], k=rng.choice((1, 1, 1, 2, 3))) if rng.random() < .9 else [rng.choice(TAGS)]
    return 'ARRAY[%s]::pg_catalog.text[]' % ', '.join(map(literal, chosen))


def after(rng):
    """A position to check after: mostly about the last one, of which all roles but the writer may know."""
    if rng.random() < .4:
        return cast(rng.choice(('0', '0', '1', '1000', '-1', '9223372036854775807', 'NULL')), 'bigint')
    return '(SELECT pg_catalog.max(e."position") OPERATOR(pg_catalog.+) %d FROM evpg.event e)' % rng.choice((-100, -2, -1, 0, 0, 0, 1, 100))


def item(rng):
    arguments = [('tags', tags(rng))] if rng.random() < .8 else []
    if not arguments or rng.random() < .3:
        arguments.append(rng.choice((('event_types', "'{X,Start}'"), ('event_types', "'{Never}'"), ('aggregate_types', "'{note}'"))))
    if rng.random() < .7:
        arguments.append(('after_position', after(rng)))
    return 'public.evpg_condition(%s)' % ', '.join('%s => %s' % a for a in arguments)


def condition(rng):
    """A condition: of one item or several, of very many, or of none."""
    kind = rng.random()
    if kind < .75:
        return '(%s)' % ' OPERATOR(pg_catalog.||) '.join(item(rng) for _ in range(rng.choice((1, 1, 1, 2, 5))))
    if kind < .85:
        return "(SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('tags', ARRAY['many ' OPERATOR(pg_catalog.||) n::pg_catalog.text])) " \
            'FROM pg_catalog.generate_series(1, %d) n)' % rng.choice((70, 1000, 10000, 10000))
    return rng.choice(('public.evpg_condition()',) + tuple(cast(literal(text), 'jsonb') for text in (
        document(rng), '[]', '{}', '[null]', '[{"tags": []}]', '[{"tags": [1]}]', '[{"tags": ["t1"], "after_position": 1e30}]', '{"tags": ["t1"], "x": 1}')))


def append(rng):
    """An append under a condition in which the rest is as it should be; those of type Unique exist once for each tag."""
    if rng.random() < .4:
        tag = literal('unique %d' % rng.randrange(50))
        return "public.evpg_append_event('note', %s, 'Unique', tags => ARRAY[%s], condition => public.evpg_condition('{Unique}', ARRAY[%s]))" % (
            literal(rng.choice('abc')), tag, tag)
    return "public.evpg_append('note', %s, ARRAY[public.evpg_event('X', tags => %s)], condition => %s)" % (
        literal(rng.choice('abc')), tags(rng), condition(rng))


def value(rng, kind, name, brief):
    """An SQL expression of a type, mostly a plausible one; brief: none that waits for long."""
    if name == 'timeout' and brief:
        return cast(literal(rng.choice(('0', '1 ms', '-1 second', '5 ms'))), kind)
    if rng.random() < .08:
        return cast('NULL', kind)
    if kind == 'text':
        if name == 'library':
            return literal(rng.choice(('evpg_test', '$libdir/evpg_test', 'evpg_test_broken', '/etc/passwd', '')))
        if name == 'symbol':
            return literal(rng.choice(options.symbols.split() + ['nowhere']))
        if name == 'aggregate_type':
            return literal(rng.choice(('note', 'note', 'm_echo', 'm_hostile', rng.choice(TEXTS))))
        return literal(rng.choice(TEXTS))
    if kind == 'text[]':
        if name == 'tables':
            return cast(rng.choice(('NULL', "'{inline_row}'", "'{attack.async_row}'", "'{pg_class}'", "'{evpg.stream}'")), kind)
        if name == 'tags' and rng.random() < .7:
            return tags(rng)
        return cast(literal(rng.choice(ARRAYS)), kind)
    if kind == 'jsonb[]':
        return cast('ARRAY[%s, evpg_action_complete()]' % cast(literal(document(rng)), 'jsonb'), kind)
    if kind in ('evpg.new_event[]', 'evpg.new_event'):
        event = 'evpg_event(%s, %s)' % (literal(rng.choice(TEXTS)), cast(literal(document(rng)), 'jsonb'))
        if kind == 'evpg.new_event':
            return rng.choice((event, event, 'ROW(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)::evpg.new_event'))
        return rng.choice(("'{}'::evpg.new_event[]", 'ARRAY[NULL]::evpg.new_event[]', 'ARRAY[%s]' % event, 'ARRAY[%s, %s]' % (event, event)))
    if kind == 'jsonb' and name == 'condition':
        return condition(rng)
    if kind == 'evpg.stream_append[]':
        streams = ['evpg_stream_append(%s, %s, %s, %s)' % (
            value(rng, 'text', 'aggregate_type', brief), literal(rng.choice(('a', 'b', 'c', rng.choice(TEXTS)))),
            value(rng, 'evpg.new_event[]', 'events', brief), rng.choice(('NULL', 'NULL', cast(literal(rng.choice(BIGINTS)), 'bigint'))))
            for _ in range(rng.choice((1, 2, 3, 70)))]
        return rng.choice(("'{}'::evpg.stream_append[]", 'ARRAY[ROW(NULL,NULL,NULL,NULL)]::evpg.stream_append[]',
                           'ARRAY[NULL, %s]' % streams[0], 'ARRAY[%s]' % ', '.join(streams), 'ARRAY[%s]' % ', '.join(streams)))
    if kind == 'evpg.command[]':
        commands = ['evpg_command(%s, %s, %s, %s, %s)' % (
            value(rng, 'text', 'aggregate_type', brief), literal(rng.choice(('a', 'b', 'c', rng.choice(TEXTS)))),
            literal(rng.choice(('X', 'X', rng.choice(TEXTS)))), value(rng, 'jsonb', 'data', brief),
            rng.choice(('NULL', 'NULL', cast(literal(rng.choice(BIGINTS)), 'bigint')))) for _ in range(rng.choice((1, 2, 3, 70)))]
        return rng.choice(("'{}'::evpg.command[]", 'ARRAY[NULL]::evpg.command[]', 'ARRAY[NULL, %s]' % commands[0],
                           'ARRAY[%s]' % ', '.join(commands), 'ARRAY[%s]' % ', '.join(commands)))
    if kind == 'jsonb':
        return cast(literal(rng.choice((document(rng), '{}', '[]', 'null', '{"evpg": {"no_sagas": true}}', rng.choice(scripts)))), kind)
    return cast(literal(rng.choice(POOLS.get(kind, ['1']))), kind)


def call(rng, function, brief=False):
    """A call of one of the functions that the catalog lists."""
    name, procedure, names, types, defaults, variadic = function
    if rng.random() < .05 and not procedure:
        return append(rng)
    arguments = [value(rng, t, n, brief) for t, n in zip(types, names)]
    # other events would be read as the guards of the fixture do not expect, or not at all
    if name.endswith('_upcaster'):
        arguments = [rng.choice(OLD_TYPES) if n.endswith('event_type') else a for n, a in zip(names, arguments)]
    if variadic or rng.random() < .5:
        count = len(types) if variadic else rng.randint(len(types) - defaults, len(types))
        if brief and 'timeout' in names:
            count = max(count, names.index('timeout') + 1)
        text = ', '.join(('VARIADIC ' if variadic and i == len(types) - 1 else '') + a for i, a in enumerate(arguments[:count]))
    else:
        chosen = [i for i in range(len(types)) if i < len(types) - defaults or brief and names[i] == 'timeout' or rng.random() < .4]
        text = ', '.join('%s => %s' % (names[i], arguments[i]) for i in chosen)
    return 'public.%s(%s)' % (name, text)


def selects(rng, text):
    """A statement that calls a function."""
    return rng.choice(('SELECT %s', 'SELECT * FROM %s AS f', 'SELECT * FROM pg_catalog.generate_series(1, 2) g, LATERAL %s AS f', 'SELECT pg_catalog.count(*) FROM %s AS f WHERE false')) % text


def script(kind, statement, catch):
    return json.dumps({'in': kind, 'sql': statement, 'catch': catch})
