-- append_many.sql: evpg_append_many, and its arguments: several streams, all or nothing, under one condition (rule 23).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

SELECT plan(128);
SET test.kind = counter;

CREATE FUNCTION test.added(n int, tag text DEFAULT NULL) RETURNS evpg.new_event[] LANGUAGE sql AS $$
  SELECT ARRAY[evpg_event('Added', jsonb_build_object('n', n), tags => string_to_array(tag, ','))] $$;
CREATE FUNCTION test.held(id text) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM pg_locks l, hashtextextended('counter' COLLATE "C", 0) t, hashtextextended(id COLLATE "C", t) h
                  WHERE l.locktype = 'advisory' AND l.objsubid = 17759 AND l.pid = pg_backend_pid()
                    AND (l.classid::bigint << 32 | l.objid::bigint) = h) $$;

-- ------------------------------------------------------------------ what it appends

CREATE TEMP TABLE first AS SELECT * FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'b', added(1) || added(2)), evpg_stream_append('counter_c', 'b', added(10)),
  evpg_stream_append('counter', 'a', added(20), 0)], command_id => 'first', metadata => '{"m": 1}', actor => 'me',
  causation_id => 'why');
SELECT same('SELECT aggregate_type, aggregate_id, version, data FROM first',
  $$VALUES ('counter', 'b', 1::bigint, '{"n": 1}'::jsonb), ('counter', 'b', 2, '{"n": 2}'),
  ('counter_c', 'b', 1, '{"n": 10}'), ('counter', 'a', 1, '{"n": 20}')$$,
  'events of several streams and types come back as they were named [rule 23, D46]');
SELECT ok(bool_and(position > before), 'in the order of positions [rule 23]')
  FROM (SELECT position, lag(position, 1, 0) OVER () AS before FROM first) f;
SELECT same('SELECT * FROM evpg.event ORDER BY position', 'SELECT * FROM first',
  'what comes back is what is stored [rule 23]');
SELECT is((SELECT count(DISTINCT recorded_at)::int FROM first), 1, 'they have one time [rule 23]');
SELECT is((SELECT array_agg(DISTINCT correlation_id) FROM first), (SELECT ARRAY[event_id::text] FROM first LIMIT 1),
  'and one correlation id [rule 23]');
SELECT is((SELECT DISTINCT concat_ws(' ', command_id, actor, causation_id, metadata) FROM first), 'first me why {"m": 1}',
  'the arguments of the call are those of all events [rule 23]');
SELECT is((SELECT array_agg(version || ' ' || (state->>'total') ORDER BY n) FROM (VALUES
  (1, 'counter', 'b'), (2, 'counter_c', 'b'), (3, 'counter', 'a')) s (n, type, id), evpg_state(s.type, s.id)),
  '{2 3,1 10,1 20}', 'states follow [rule 23]');

BEGIN;
SELECT evpg_set_context('she', 'process', '{"m": 2, "k": 3}') \g /dev/null
SELECT is((SELECT DISTINCT concat_ws(' ', actor, correlation_id, metadata) FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'context', added(1)), evpg_stream_append('counter', 'context 2', added(1))],
  metadata => '{"k": 4}')), 'she process {"k": 4, "m": 2}', 'the context of the transaction counts [rule 23]');
ROLLBACK;

CREATE TEMP TABLE caused AS SELECT * FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'caused', ARRAY[evpg_event('One')]),
  evpg_stream_append('counter', 'caused 2', ARRAY[evpg_event('Two', caused_by => 1), evpg_event('Three', caused_by => 2)])]);
SELECT is((SELECT string_agg(c.type || ' by ' || coalesce(p.type, 'none'), ', ' ORDER BY c.position)
  FROM caused c LEFT JOIN caused p ON p.event_id::text = c.causation_id), 'One by none, Two by One, Three by Two',
  'caused_by counts the events of all appends [rule 23]');

-- ------------------------------------------------------------------ nothing

SELECT trace() AS before \gset
SELECT is((SELECT count(*)::int FROM evpg_append_many('{}')), 0, 'no appends [rule 23]');
SELECT is((SELECT count(*)::int FROM evpg_append_many(ARRAY[NULL, (NULL, NULL, NULL, NULL)]::evpg.stream_append[])), 0,
  'rows of NULL are no appends [rule 23]');
SELECT is((SELECT count(*)::int FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'none', '{}'),
  evpg_stream_append('counter', 'none 2'), evpg_stream_append('counter', 'none 3', ARRAY[NULL]::evpg.new_event[])],
  command_id => 'nothing')), 0, 'appends without events [rule 23]');
SELECT is(trace(), :'before', 'no streams and no records come of calls without events [rule 5, rule 23]');

-- ------------------------------------------------------------------ one stream several times

SELECT same($$SELECT aggregate_id, version, data->>'n' FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'twice', added(1), 0), evpg_stream_append('counter', 'a', added(2)),
  evpg_stream_append('counter', 'twice', added(3), 1), evpg_stream_append('counter', 'twice', NULL, 2),
  evpg_stream_append('counter', 'twice', NULL, -1)], command_id => 'twice')$$,
  $$VALUES ('twice', 1::bigint, '1'), ('a', 2, '2'), ('twice', 2, '3')$$,
  'a stream may come several times: each append meets those before it [rule 23]');
SELECT same($$SELECT aggregate_id, version, data->>'n' FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'twice', added(1), 0), evpg_stream_append('counter', 'a', added(2)),
  evpg_stream_append('counter', 'twice', added(3), 1)], command_id => 'twice')$$,
  $$VALUES ('twice', 1::bigint, '1'), ('a', 2, '2'), ('twice', 2, '3')$$, 'a duplicate of it [rule 4, rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'twice', added(1), 2),
  evpg_stream_append('counter', 'twice', added(1), 2)])$$,
  'VE001 version conflict on aggregate "counter", stream "twice": expected 2, actual 3',
  'the second append to a stream expects the version before the first [rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'new', NULL, -1),
  evpg_stream_append('counter', 'new', added(1))])$$, 'VE001 %expected it to exist',
  'a stream does not exist before the append that makes it [rule 23]');

-- ------------------------------------------------------------------ expected versions, streams that are only checked

SELECT refused(format($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'never', added(1), 0),
  evpg_stream_append('counter', 'a', %s, %s), evpg_stream_append('counter', 'b', added(1))])$$, events, expected),
  format('VE001 version conflict on aggregate "counter", stream "a": expected %s, actual 2', expected),
  format('expected %s, events %s: nothing of the call remains [rule 3, rule 23]', expected, events))
  FROM (VALUES (0), (1), (3)) v (expected), (VALUES ('added(1)'), ('NULL'), ('''{}''')) e (events);
SELECT is((SELECT (detail::jsonb)::text FROM (SELECT split_part(error_fields($$SELECT evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'never', NULL, -1)])$$), '|', 2) AS detail) x),
  '{"actual": 0, "expected": -1, "aggregate_id": "never", "aggregate_type": "counter"}',
  'a conflict has its facts [rule 23]');
BEGIN;
SELECT is((SELECT string_agg(aggregate_id || ' ' || version, ', ' ORDER BY position) FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'a', NULL, 2), evpg_stream_append('counter', 'c', added(1)),
  evpg_stream_append('counter', 'never', NULL, 0), evpg_stream_append('counter', 'b', NULL, -1),
  evpg_stream_append('counter_c', 'b', NULL)])), 'c 1', 'checks alone append nothing [rule 23]');
SELECT is((SELECT array_agg(held(id)) FROM unnest('{a,c,never,b,twice}'::text[]) id), '{t,t,t,t,f}',
  'what is checked is locked to the end of the transaction, whether it exists or not [rule 23]');
ROLLBACK;
SELECT is((SELECT count(*)::int FROM evpg.event WHERE aggregate_id = 'c'), 0, 'ROLLBACK takes it back [rule 3]');
BEGIN;
SAVEPOINT here;
SELECT count(*) FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'a', added(5), 2),
  evpg_stream_append('counter', 'd', added(5), 0), evpg_stream_append('counter', 'b', NULL, 2)], command_id => 'back')
  \g /dev/null
ROLLBACK TO here;
SELECT is((SELECT array_agg(held(id)) FROM unnest('{a,b,d}'::text[]) id), '{f,f,f}',
  'ROLLBACK TO gives the locks back [rule 2]');
SELECT is((SELECT string_agg(aggregate_id || ' ' || version, ', ' ORDER BY position) FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'a', added(5), 2), evpg_stream_append('counter', 'd', added(5), 0),
  evpg_stream_append('counter', 'b', NULL, 2)], command_id => 'back')), 'a 3, d 1',
  'after ROLLBACK TO the same call appends [rule 3, rule 23]');
COMMIT;

-- ------------------------------------------------------------------ command ids

SELECT trace() AS before \gset
SELECT same($$SELECT * FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'b', added(1) || added(2)), evpg_stream_append('counter', 'a', NULL, 99),
  evpg_stream_append('counter_c', 'b', added(10), 17),
  evpg_stream_append('counter', 'a', added(20))], evpg_condition('{Added}'), 'first')$$, 'SELECT * FROM first',
  'a resend returns the same events, whatever it expects and checks [rule 4, rule 23]');
SELECT is(trace(), :'before', 'a resend writes nothing [rule 4]');
SELECT refused(format($$SELECT evpg_append_many(ARRAY[%s], command_id => 'first')$$, appends),
  'VE005 command id "first" was used for another command', label || ' [rule 4, rule 23]') FROM (VALUES
  ($$evpg_stream_append('counter', 'a', added(20))$$, 'some of the streams'),
  ($$evpg_stream_append('counter_c', 'b', added(10)), evpg_stream_append('counter', 'b', added(1) || added(2)),
     evpg_stream_append('counter', 'a', added(20))$$, 'the streams in another order'),
  ($$evpg_stream_append('counter', 'b', added(1)), evpg_stream_append('counter_c', 'b', added(2) || added(10)),
     evpg_stream_append('counter', 'a', added(20))$$, 'the events divided otherwise'),
  ($$evpg_stream_append('counter', 'b', added(1) || added(2)), evpg_stream_append('counter_c', 'b', added(10)),
     evpg_stream_append('counter', 'a', added(21))$$, 'another event')) x (appends, label);
SELECT refused($$SELECT evpg_append('counter', 'a', added(20), command_id => 'first')$$, 'VE005 %',
  'the id is that of each stream which was written [rule 4, rule 23]');
SELECT is((SELECT version FROM evpg_append('counter', 'other', added(20), command_id => 'first')), 1::bigint,
  'and of no other stream [rule 4, rule 23]');
DELETE FROM evpg.command_record WHERE command_id = 'first' AND stream_id = (SELECT stream_id FROM evpg.stream
  WHERE aggregate_type = 'counter' AND aggregate_id = 'b');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'b', added(1) || added(2)),
  evpg_stream_append('counter_c', 'b', added(10)), evpg_stream_append('counter', 'a', added(20))], command_id => 'first')$$,
  'VE005 command id "first" is being pruned', 'an id of which some records are pruned [rule 4, rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'a', added(1))],
  command_id => 'saga:1')$$, 'VE017 %',
  'ids of sagas are not for callers [rule 23]');

-- ------------------------------------------------------------------ conditions

SELECT count(*) FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'x', added(1, 'x')),
  evpg_stream_append('counter', 'y', added(1, 'y,z'))], evpg_condition(tags => '{x}') || evpg_condition(tags => '{z}'))
  \g /dev/null
SELECT is((SELECT count(*)::int FROM evpg.event WHERE tags && '{x,z}'), 2,
  'the events of a call are not in the way of its condition [rule 21, rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'x2', added(1)),
  evpg_stream_append('counter', 'y', added(1))], evpg_condition(tags => '{none}') || evpg_condition(tags => '{z}'))$$,
  'VE013 an event matches the condition of the append', 'one condition is for all streams [rule 21, rule 23]');
SELECT refused($$SELECT evpg_append_many('{}', evpg_condition(tags => '{x}'))$$, 'VE013 %',
  'a condition without appends is checked [rule 21, rule 23]');
SELECT is((SELECT count(*)::int FROM evpg_append_many('{}', evpg_condition(tags => '{none}'))), 0,
  'or met [rule 21, rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'a', NULL, 0)],
  evpg_condition(tags => '{x}'))$$,
  'VE001 %', 'versions are compared before the condition [rule 23]');

-- ------------------------------------------------------------------ bad arguments

SELECT refused(format('SELECT evpg_append_many(%s)', arguments), error, arguments || ' [rule 23]') FROM (VALUES
  ('NULL', '22004 appends must not be null'),
  ($$ARRAY[('counter', NULL, NULL, NULL)]::evpg.stream_append[]$$, '22004 aggregate id must not be null'),
  ($$ARRAY[(NULL, 'a', NULL, NULL)]::evpg.stream_append[]$$, '22004 aggregate type must not be null'),
  ($$ARRAY[('counter', '', NULL, NULL)]::evpg.stream_append[]$$, '22023 aggregate id must not be empty'),
  ($$ARRAY[('counter', 'a', NULL, -2)]::evpg.stream_append[]$$, '22023 expected_version -2 is out of range'),
  ($$ARRAY[('counter', 'a', ARRAY[(NULL, '1', NULL, NULL, NULL, NULL, NULL, NULL)::evpg.new_event],
    NULL)]::evpg.stream_append[]$$, '22004 event type must not be null'),
  ($$ARRAY[evpg_stream_append('nope', 'a')]$$, 'VE003 %'),
  ($$ARRAY[evpg_stream_append('counter', 'a', ARRAY[evpg_event('A')]),
    evpg_stream_append('counter', 'b', ARRAY[evpg_event('B', caused_by => 2)])]$$, '22023 caused_by must be %'),
  ($$'{}', '[]'$$, '22023 condition must not be empty'),
  ($$'{}', NULL, ''$$, '22023 command id must not be empty'),
  ($$'{}', metadata => '1'$$, '22023 metadata must be a JSON object'),
  ($$'{}', metadata => '{"evpg": 1}'$$, 'VE017 %')) x (arguments, error);
SELECT is(context_of($$SELECT evpg_append_many(ARRAY[NULL, evpg_stream_append('counter', 'a'),
  ('counter', NULL, NULL, NULL)]::evpg.stream_append[])$$),
  E'append 3 of the call\nSQL statement "SELECT evpg_append_many(ARRAY[NULL, '
  || E'evpg_stream_append(''counter'', ''a''),\n  (''counter'', NULL, NULL, NULL)]::evpg.stream_append[])"\n'
  || 'PL/pgSQL function context_of(text) line 5 at EXECUTE', 'the context names the append that is wrong [rule 23]');

-- ------------------------------------------------------------------ limits

SET evpg.max_events = 3;
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'a', added(1) || added(1)),
  evpg_stream_append('counter', 'b', added(1) || added(1))])$$, 'VE014 too many events in one call',
  'evpg.max_events counts all appends [rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'a'), evpg_stream_append('counter', 'a'),
  evpg_stream_append('counter', 'a'), evpg_stream_append('counter', 'a')])$$, 'VE014 too many appends in one call',
  'and is the limit of appends, too [rule 23]');
RESET evpg.max_events;
SET evpg.max_stream_locks = 3;
SELECT refused($$SELECT evpg_append_many((SELECT array_agg(evpg_stream_append('counter', 'l' || n))
  FROM generate_series(1, 4) n))$$,
  'VE014 too many streams in one call', 'evpg.max_stream_locks is the limit of streams [rule 23]');
BEGIN;
SELECT is((SELECT count(*)::int FROM evpg_append_many((SELECT array_agg(evpg_stream_append('counter', 'l' || n % 3, added(n))
  ORDER BY n) FROM generate_series(1, 9) n))), 9, 'many appends to as many streams as may be locked [rule 23]');
SELECT is((SELECT array_agg(held('l' || n)) FROM generate_series(0, 2) n), '{t,t,t}', 'they are kept [rule 2]');
SELECT is((SELECT count(*)::int FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'm1', added(1)),
  evpg_stream_append('counter', 'l1', NULL, 3), evpg_stream_append('counter', 'm2', added(1))])), 2,
  'more streams in a later call, and one that is locked is checked [rule 23]');
SELECT is((SELECT array_agg(held(id)) FROM unnest('{m1,m2,l1}'::text[]) id), '{f,f,t}',
  'those beyond are given back at the end of the call [rule 2, rule 23]');
SELECT refused($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'm3', NULL, 0)])$$,
  'VE014 too many streams in one transaction', 'a check that cannot be kept is refused [rule 23]');
ROLLBACK;
RESET evpg.max_stream_locks;

-- ------------------------------------------------------------------ what follows

CREATE FUNCTION test.last_of(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT state || jsonb_build_array(event.aggregate_id) $$;
CREATE FUNCTION test.hear(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'echo' THEN
    PERFORM evpg_append_event('counter', event.data->>'echo', 'Odd');
  END IF;
END $$;
SELECT evpg_register_projection('seen', reducer => 'test.last_of', constant_key => 'one', initial_state => '[]'),
  evpg_register_listener('hear', 'test.hear') \g /dev/null
SELECT count(*) FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'p', added(1)),
  evpg_stream_append('counter_c', 'q', added(2)), evpg_stream_append('counter', 'p', added(3))]) \g /dev/null
SELECT is((SELECT state::text FROM evpg.projected_state WHERE name = 'seen'), '["p", "q", "p"]',
  'inline projections get the events in the order of positions [rule 11, rule 23]');
SELECT is(error_of(format($$SELECT evpg_append_many(ARRAY[evpg_stream_append('counter', 'p', ARRAY[evpg_event('Odd',
  '{"echo": "%s"}')]), evpg_stream_append('counter', 'r'), evpg_stream_append('counter', 'q', added(1))])$$, id)),
  'VE020 a command on aggregate "counter", stream "' || id || '" is being executed already',
  'a listener cannot write to a stream of the call: ' || id || ' [rule 23]') FROM unnest('{p,q,r}'::text[]) id;
SELECT is((SELECT count(*)::int FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'p', ARRAY[evpg_event('Odd',
  '{"echo": "s"}')]), evpg_stream_append('counter', 'q', added(1))])), 2, 'but to another one [rule 23]');

-- a handler that appends to streams, while its command is decided on what its boundary names
CREATE FUNCTION test.bounded(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_append_many(ARRAY[evpg_stream_append('counter', 'other', ARRAY[evpg_event('Odd')]),
    evpg_stream_append('counter', 'bounded', ARRAY[evpg_event(command.command_type, tags => '{bounded}')])]);
  RETURN evpg_event('Done', tags => '{bounded}');
END $$;
CREATE FUNCTION test.boundary(command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT evpg_condition('{In}', '{bounded}') $$;
SELECT evpg_register_aggregate('bounded', 'test.bounded', 'test.last_of', initial_state => '[]', boundary => 'test.boundary')
  \g /dev/null
SELECT refused($$SELECT evpg_execute('bounded', 'b', 'In')$$,
  'VE020 event "In" is within the boundary of a command that is being decided',
  'a handler cannot append what its command is decided on [rule 22, rule 23]');
SELECT is((SELECT type FROM evpg_execute('bounded', 'b', 'Out')), 'Done', 'but anything else [rule 23]');

-- ------------------------------------------------------------------ JSON

SELECT same($$SELECT * FROM unnest(evpg_stream_appends('[{"aggregate_type": "counter", "aggregate_id": "j",
  "events": [{"type": "A", "data": 1}, {"type": "B"}], "expected_version": 0},
  {"aggregate_type": "counter", "aggregate_id": "k", "events": {"type": "C"}},
  {"aggregate_type": "counter", "aggregate_id": "l", "events": null, "expected_version": -1}]'))$$,
  $$VALUES ('counter', 'j', evpg_events('[{"type": "A", "data": 1}, {"type": "B"}]'), 0::bigint),
  ('counter', 'k', evpg_events('{"type": "C"}'), NULL), ('counter', 'l', NULL, -1)$$, 'appends as JSON [rule 23]');
SELECT is((SELECT array_agg(type ORDER BY position) FROM evpg_append_many(evpg_stream_appends(
  '{"aggregate_type": "counter", "aggregate_id": "j", "events": [{"type": "A", "data": 1}, {"type": "B"}]}'))), '{A,B}',
  'are appended [rule 23]');
SELECT is(error_of(format('SELECT evpg_stream_appends(%L)', json)), error, json || ' [rule 23]') FROM (VALUES
  ('1', '22023 append must be a JSON object or an array of objects'),
  ('[1]', '22023 append must be a JSON object or an array of objects'),
  ('{}', '22004 aggregate type and aggregate id must not be null'),
  ('{"aggregate_type": "counter"}', '22004 aggregate type and aggregate id must not be null'),
  ('{"aggregate_type": "counter", "aggregate_id": "a", "event": []}', '22023 unknown key "event" in append'),
  ('{"aggregate_type": "counter", "aggregate_id": "a", "events": [{"typ": "x"}]}', '22023 unknown key "typ" in event'),
  ('{"aggregate_type": "counter", "aggregate_id": "a", "events": [{}]}', '22004 event type must not be null'),
  ('{"aggregate_type": "counter", "aggregate_id": "a", "events": [1]}',
    '22023 event must be a JSON object or an array of objects'),
  ('{"aggregate_type": "counter", "aggregate_id": "a", "events": "x"}',
    '22023 "events" of append must be an object or an array of objects'),
  ('{"aggregate_type": ["x"], "aggregate_id": "a"}', '22023 "aggregate_type" of append must be a string')) x (json, error);
SELECT is(error_of(format('SELECT evpg_stream_append(%s)', arguments)), error, arguments || ' [rule 23]') FROM (VALUES
  ($$NULL, 'a'$$, '22004 aggregate type must not be null'), ($$'counter', NULL$$, '22004 aggregate id must not be null'),
  ($$'counter', ''$$, '22023 aggregate id must not be empty')) x (arguments, error);

SELECT * FROM finish();
