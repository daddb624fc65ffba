-- append.sql: evpg_append and evpg_inject, and the constructors of events and commands.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

SELECT plan(131);
SET test.kind = counter_c;

-- append
SELECT same($$SELECT version, type, data FROM evpg_append('counter', 'a',
  ARRAY[evpg_event('Added', '{"n": 5000}'), evpg_event('Added', '{"n": 1}')])$$,
  $$VALUES (1::bigint, 'Added', '{"n": 5000}'::jsonb), (2, 'Added', '{"n": 1}')$$,
  'append needs no handler, and makes the stream [A17]');
SELECT is((SELECT version || ' ' || state FROM evpg_state('counter', 'a')), '2 {"total": 5001, "applied": 2}',
  'an append meets no invariant [A17]');
SELECT refused($$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}')$$, 'VE006 total 5002 is above 1000',
  'the next command meets the invariant that an append has passed by [B13]');
SELECT trace() AS before \gset
SELECT is((SELECT count(*) FROM evpg_append('counter', 'none', '{}')), 0::bigint, 'append of nothing [D46]');
SELECT is((SELECT count(*) FROM evpg_append('counter', 'none',
  ARRAY[NULL, (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)]::evpg.new_event[])), 0::bigint,
  'rows of NULL are no events [D46]');
SELECT is(trace(), :'before', 'writes nothing [rule 5]');
SELECT is((SELECT version FROM evpg_append('counter', 'a', ARRAY[NULL, evpg_event('Odd'), NULL])), 3::bigint,
  'rows of NULL do not count beside an event [D46]');

SELECT refused($$SELECT evpg_append('counter', 'a', NULL)$$, '22004 events must not be null', 'NULL for the events [A17]');
SELECT refused($$SELECT evpg_append('nope', 'a', evpg_events('{"type": "Odd"}'))$$, 'VE003 %',
  'append to an unknown type [A17]');
SELECT refused($$SELECT evpg_append('nope', 'a', '{}')$$, 'VE003 %', 'append of nothing to an unknown type [A17]');

-- all or nothing
SELECT gen_random_uuid() AS known \gset
SELECT is((SELECT event_id FROM evpg_append('counter', 'ids', ARRAY[evpg_event('Odd', event_id => :'known')])),
  :'known'::uuid, 'an event keeps the id that it is given [D43]');
SELECT alike(error_of(format($$SELECT evpg_append('counter', 'a',
  ARRAY[evpg_event('Odd'), evpg_event('Odd', event_id => %L), evpg_event('Odd')])$$, :'known')),
  '23505 %', 'a known event id [D43]');
SELECT is((SELECT version FROM evpg_state('counter', 'a')), 3::bigint, 'all or nothing [rule 3, D46, D58]');
SELECT is((SELECT count(*) FROM evpg_execute('counter', 'a2', 'Emit', '{"events": [{"type": "Odd"}, {"type": "Odd"}]}')),
  2::bigint, 'events of a handler [rule 3]');
SELECT alike(error_of($$SELECT evpg_execute('counter', 'a2', 'Emit',
  '{"events": [{"type": "Added", "data": {"n": 1}, "event_id": "01890a5d-ac96-774b-bcce-b302099a8057"},
    {"type": "Odd", "event_id": "01890a5d-ac96-774b-bcce-b302099a8057"}]}')$$), '23505 %',
  'one id twice in a command [D43]');
SELECT is((SELECT version || ' ' || (state->>'total') FROM evpg_state('counter', 'a2')), '2 0',
  'none of them is there [rule 3, rule 6]');

-- what an event can say
SELECT same($$SELECT type, data, metadata, tags, schema_version, occurred_at, event_id FROM evpg_append('counter', 'full',
    ARRAY[evpg_event('Full', '[1, {"x": null}]', '{"m": [1]}', '{a,b}', 7, '1999-12-31 23:59:59.999999+00',
    '01890a5d-ac96-774b-bcce-b302099a8001'),
          evpg_event('Bare', NULL), evpg_event('Default')])$$,
  $$VALUES ('Full', '[1, {"x": null}]'::jsonb, '{"m": [1]}'::jsonb, '{a,b}'::text[], 7,
  '1999-12-31 23:59:59.999999+00'::timestamptz, '01890a5d-ac96-774b-bcce-b302099a8001'::uuid),
           ('Bare', NULL, NULL, NULL, 1, (SELECT recorded_at FROM evpg.event WHERE type = 'Bare'),
           (SELECT event_id FROM evpg.event WHERE type = 'Bare')),
           ('Default', '{}', NULL, NULL, 1, (SELECT recorded_at FROM evpg.event WHERE type = 'Default'),
           (SELECT event_id FROM evpg.event WHERE type = 'Default'))$$,
  'everything that an event can say is kept [A22, B10]');

-- causation within a call
CREATE TEMP TABLE caused AS SELECT * FROM evpg_append('counter', 'caused',
  ARRAY[evpg_event('One'), evpg_event('Two', caused_by => 1), evpg_event('Three', caused_by => 1),
  evpg_event('Four', caused_by => 3)], causation_id => 'outer');
SELECT is((SELECT array_agg(c.causation_id || ' ' || coalesce(p.type, '-') ORDER BY c.version) FROM caused c LEFT
  JOIN caused p ON p.event_id::text = c.causation_id),
  (SELECT ARRAY['outer -', one.event_id || ' One', one.event_id || ' One', three.event_id || ' Three'] FROM caused one,
  caused three
    WHERE one.type = 'One' AND three.type = 'Three'),
    'caused_by is the id of an earlier event, else the argument counts [D47]');
SELECT refused(format($$SELECT evpg_append('counter', 'caused',
  ARRAY[evpg_event('One'), evpg_event('Two', caused_by => %s), evpg_event('Three')])$$, n),
  '22023 caused_by must be the number of an earlier event of the call', 'caused_by ' || n || ' [D47]')
  FROM unnest('{2,3,4,0,-1,2147483647,-2147483648}'::int[]) n;

-- inject
SELECT is((SELECT version FROM evpg_inject('counter', 'i',
  evpg_event('Added', '{"n": 3}', occurred_at => '2001-01-01 00:00+00'))), 1::bigint,
  'inject makes a stream [A17, 1.2 test 5]');
SELECT is((SELECT version || ' ' || (state->>'total') FROM evpg_state('counter', 'i')), '1 3',
  'the next read of the state sees it [1.2 test 5]');
SELECT is((SELECT occurred_at FROM evpg_read_stream('counter', 'i')), '2001-01-01 00:00+00'::timestamptz, 'as it is [A17]');
SELECT is((SELECT version FROM evpg_execute('counter', 'i', 'Subtract', '{"n": 3}')), 2::bigint,
  'the next command decides on the state with the injected event [1.2 test 5]');
SELECT same($$SELECT version FROM (VALUES (1), (2)) x (n),
  evpg_inject('counter', 'i', evpg_event('Added', jsonb_build_object('n', n)))$$, 'VALUES (3), (4)',
  'without an id, twice is twice [A18, 1.2 test 5]');
SELECT is((SELECT version FROM evpg_inject('counter', 'i',
  evpg_event('Added', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a8100'))), 5::bigint,
  'with an id [A18]');
SELECT trace() AS before \gset
SELECT is((SELECT count(*) FROM evpg_inject('counter', 'i',
  evpg_event('Added', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a8100'))), 0::bigint,
  'twice is once [A18, A52, 1.2 test 5]');
SELECT is((SELECT count(*) FROM evpg_inject('counter', 'other',
  evpg_event('Odd', event_id => '01890a5d-ac96-774b-bcce-b302099a8100'))), 0::bigint,
  'in any stream [A18]');
SELECT is((SELECT count(*) FROM evpg_inject('counter_c', 'other',
  evpg_event('Odd', event_id => '01890a5d-ac96-774b-bcce-b302099a8100'))), 0::bigint,
  'of any type [A18]');
SELECT is(trace(), :'before', 'an event id that exists in any stream leaves nothing [A18]');
BEGIN;
SAVEPOINT before;
SELECT count(*) FROM evpg_inject('counter', 'i', evpg_event('Odd', event_id => '01890a5d-ac96-774b-bcce-b302099a8101'))
  \g /dev/null
ROLLBACK TO before;
SELECT is((SELECT version FROM evpg_inject('counter', 'i',
  evpg_event('Odd', event_id => '01890a5d-ac96-774b-bcce-b302099a8101'))), 6::bigint,
  'an id is known only if its event is there [A18]');
COMMIT;
SELECT refused($$SELECT evpg_inject('counter', 'i', NULL)$$, '22004 event must not be null', 'inject of NULL [A17]');
SELECT refused($$SELECT evpg_inject('counter', 'i', (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::evpg.new_event)$$,
  '22004 event must not be null',
  'inject of a row of NULL [A17]');
SELECT refused($$SELECT evpg_inject('nope', 'i', evpg_event('Odd'))$$, 'VE003 %', 'inject to an unknown type [A17]');
SELECT refused($$SELECT evpg_inject('counter', 'i', evpg_event('Odd', caused_by => 1))$$, '22023 caused_by %',
  'inject has no earlier event [A17]');

-- create_stream
SELECT is(ARRAY[evpg_create_stream('counter', 'made'), evpg_create_stream('counter', 'made'),
  evpg_create_stream('counter_c', 'made'), evpg_create_stream('counter', 'a')],
  '{t,f,t,f}', 'a stream is created once [A13]');
SELECT same($$SELECT version, state, last_position FROM evpg_state('counter', 'made')$$,
  $$VALUES (0::bigint, '{"total": 0, "applied": 0}'::jsonb, NULL::bigint)$$,
  'a stream that is created has no events [A13]');
SELECT refused($$SELECT evpg_create_stream('nope', 'made')$$, 'VE003 %', 'of an unknown type [A13]');

-- the JSON form of events
SELECT same($$SELECT *
  FROM unnest(evpg_events('[{"type": "A"}, {"type": "B", "data": [1], "metadata": {}, "tags": ["x"], "schema_version": 2,
    "occurred_at": "2020-02-02T00:00:00Z", "event_id": "01890a5d-ac96-774b-bcce-b302099a8057", "caused_by": 1}]'))$$,
  $$VALUES ('A', NULL::jsonb, NULL::jsonb, NULL::text[], NULL::int, NULL::timestamptz, NULL::uuid, NULL::int),
           ('B', '[1]', '{}', '{x}', 2, '2020-02-02 00:00:00+00', '01890a5d-ac96-774b-bcce-b302099a8057',
           1)$$, 'evpg_events: every key');
SELECT same($$SELECT type FROM unnest(evpg_events('{"type": "one"}'))$$, $$VALUES ('one')$$,
  'evpg_events: an object is one event');
SELECT is((SELECT cardinality(evpg_events('[]'))), 0, 'evpg_events: an empty array is none');
SELECT is(evpg_events(NULL), NULL, 'evpg_events: NULL is NULL');
SELECT same($$SELECT data, occurred_at FROM unnest(evpg_events('{"type": "A", "data": null, "occurred_at": null}'))$$,
  'VALUES (NULL, NULL)',
  'evpg_events: null is NULL');
SELECT refused(format('SELECT evpg_events(%L)', events), error, 'evpg_events: ' || events) FROM (VALUES
  ('{"type": "A", "payload": 1}', '22023 unknown key "payload" in event'), ('[{"type": "A"}, 1]', '22023 event must be %'),
  ('"A"', '22023 event must be %'),
  ('null', '22023 event must be %'), ('[[]]', '22023 event must be %'),
  ('{"type": 1}', '22023 "type" of event must be a string'),
  ('{"type": "A", "schema_version": "1"}', '22023 %must be an integer'), ('{"type": "A", "schema_version": 1.5}', '22P02 %'),
  ('{"type": "A", "schema_version": 3000000000}', '22003 %'),
  ('{"type": "A", "tags": "x"}', '22023 %must be an array of strings'),
  ('{"type": "A", "tags": {"x": 1}}', '22023 %must be an array of strings'),
  ('{"type": "A", "tags": [1]}', '22023 %must be an array of strings'),
  ('{"type": "A", "tags": [["x"]]}', '22023 %must be an array of strings'),
  ('{"type": "A", "tags": [null]}', '22023 %must be an array of strings'),
  ('{"type": "A", "occurred_at": "soon"}', '22007 %'), ('{"type": "A", "event_id": "x"}', '22P02 %')) x (events, error);
SELECT refused($$SELECT evpg_append('counter', 'a', evpg_events('{}'))$$, '22004 %',
  'evpg_events: an event needs a type when it is appended');
SELECT refused($$SELECT evpg_event(NULL)$$, '22004 event type must not be null', 'evpg_event: a type is needed');

-- commands as rows, which the functions of later features take
SELECT same($$SELECT * FROM evpg_command('counter', 'a', 'Add')$$,
  $$VALUES ('counter', 'a', 'Add', '{}'::jsonb, NULL::bigint, NULL::text, NULL::jsonb, NULL::text, NULL::text, NULL::text,
  NULL::bigint, NULL::timestamptz, NULL::text)$$,
  'a command [B01]');
SELECT same($$SELECT * FROM evpg_command('counter', 'a', 'Add', '{"n": 1}', 3, 'c', '{"m": 1}', 'me', 'corr', 'cause')$$,
  $$VALUES ('counter', 'a', 'Add', '{"n": 1}'::jsonb, 3::bigint, 'c', '{"m": 1}'::jsonb, 'me', 'corr', 'cause', NULL::bigint,
  NULL::timestamptz, NULL::text)$$,
  'with everything [B01]');
SELECT same($$SELECT *
  FROM unnest(evpg_commands('[{"aggregate_type": "counter", "aggregate_id": "a", "command_type": "Add",
    "data": {"n": 1}, "expected_version": 3,
    "command_id": "c", "metadata": {"m": 1}, "actor": "me", "correlation_id": "corr", "causation_id": "cause"}]'))$$,
  $$SELECT * FROM evpg_command('counter', 'a', 'Add', '{"n": 1}', 3, 'c', '{"m": 1}', 'me', 'corr', 'cause')$$,
  'evpg_commands() has the same fields as JSON [B01]');
SELECT refused(format('SELECT evpg_commands(%L)', commands), error, 'evpg_commands: ' || commands) FROM (VALUES
  ('{}', '22004 aggregate type must not be null'), ('{"aggregate_type": "c"}', '22004 aggregate id must not be null'),
  ('{"aggregate_type": "c", "aggregate_id": "a"}', '22004 command type must not be null'),
  ('{"aggregate_type": "c", "aggregate_id": "a", "command_type": "x", "version": 1}',
  '22023 unknown key "version" in command'),
  ('{"aggregate_type": "c", "aggregate_id": "a", "command_type": "x", "received_at": "2020-01-01"}',
  '22023 unknown key "received_at" in command'),
  ('{"aggregate_type": "c", "aggregate_id": "a", "command_type": "x", "expected_version": -2}',
  '22023 expected_version -2 is out of range'),
  ('{"aggregate_type": "c", "aggregate_id": "a", "command_type": "x", "metadata": []}',
  '22023 metadata must be a JSON object'),
  ('7', '22023 command must be %')) x (commands, error);
SELECT refused($$SELECT evpg_command('counter', 'a', NULL)$$, '22004 command type must not be null', 'evpg_command: NULL');

-- an append of nothing checks and locks
SELECT count(*) FROM evpg_append('counter', 'nothing', evpg_events('{"type": "Odd"}')) \g /dev/null
SELECT is((SELECT count(*) FROM evpg_append('counter', 'nothing', '{}', expected_version => 1)), 0::bigint,
  'an append of nothing expects a version [rule 2]');
SELECT alike(error_of($$SELECT evpg_append('counter', 'nothing', '{}', expected_version => 2)$$), 'VE001 %',
  'an append of nothing expects a version, and conflicts [rule 2]');
SELECT is(evpg_stream_version('counter', 'no stream'), NULL, 'it makes no stream [rule 5]');

-- a trigger of the log that writes to the stream to which events are being appended
CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
  IF EXISTS (SELECT FROM evpg.event WHERE aggregate_id = 'echo' AND version = 1) THEN
    PERFORM evpg_append('counter', 'echo', ARRAY[evpg_event('Echoed')]);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER echo AFTER INSERT ON evpg.event_log FOR EACH ROW EXECUTE FUNCTION echo();
SELECT is(error_of(statement), 'VE020 a command on aggregate "counter", stream "echo" is being executed already',
  statement || ': a trigger cannot write to the same stream') FROM unnest(ARRAY[
  $$SELECT evpg_append('counter', 'echo', ARRAY[evpg_event('Added', '{"n": 1}')])$$,
  $$SELECT evpg_inject('counter', 'echo', evpg_event('Added', '{"n": 1}'))$$,
  $$SELECT evpg_execute('counter', 'echo', 'Add', '{"n": 1}')$$]) statement;
DROP TRIGGER echo ON evpg.event_log;
SELECT FROM evpg_append('counter', 'echo', ARRAY[evpg_event('Added', '{"n": 1}')]);
SELECT is(evpg_stream_version('counter', 'echo'), 1::bigint, 'and after a refusal the stream can be written');
-- event ids: at random places their index would have half-full pages
SELECT FROM evpg_append('counter', 'ascending', array_fill(evpg_event('Added', '{"n": 1}'), ARRAY[1000]));
SELECT FROM generate_series(1, 10) n, evpg_append('counter', 'ascending',
  ARRAY[evpg_event('Added', jsonb_build_object('n', n))]);
SELECT is((SELECT count(*) FROM (SELECT event_id > lag(event_id) OVER (ORDER BY position) AS above FROM evpg.event
                                  WHERE aggregate_id = 'ascending') e WHERE above), 1009::bigint,
  'the ids of the events of a session ascend, those of one call, too');
SELECT ok(bool_and(event_id::text ~ '^.{14}7.{4}[89ab]'), 'they are UUIDs of version 7')
  FROM evpg.event WHERE aggregate_id = 'ascending';
SELECT ok(bool_and(abs(('x' || left(replace(event_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0
                       - extract(epoch FROM recorded_at)) < 3600), 'and begin with the time in ms since 1970')
  FROM evpg.event WHERE aggregate_id = 'ascending';
SELECT * FROM finish();
