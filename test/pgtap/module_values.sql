-- module_values.sql: values of a module in C that are too deep, too large, without an end, or of another kind than they
-- should be.

\ir include/setup.sql
\ir include/module.sql

SELECT plan(56);
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

-- depth and size
SELECT is(try('deep', 'Deep', '{"depth": 100}'), 'ok 1', 'a hundred levels from a module');
SELECT refused(hostile('Deep', jsonb_build_object('depth', depth)), 'VE014 event data is nested too deeply', depth
  || ' levels from a module') FROM unnest('{101,10000}'::int[]) depth;
SELECT is(try('large', 'Large', '{"size": 16000000}'), 'ok 1', '16 MB from a module');
SELECT refused(hostile('Large', '{"size": 20000000}'), 'VE014 event data is too large', '20 MB from a module');

-- values that contain themselves, 300,000 levels, 2^60 values that share their parts; where an array or an object should be
SELECT refused(hostile('Misshape', jsonb_build_object('where', w, 'how', how)), 'VE014 event % nested too deeply',
  'a module''s value of no end: ' || how || ' as ' || w)
  FROM unnest('{data,metadata}'::text[]) w, unnest('{cycle,deep}'::text[]) how;
SELECT refused(hostile('Misshape', jsonb_build_object('where', 'data', 'how', 'shared')), 'VE014 event data is too large',
  'a module''s value of 2^60 values');
SELECT refused(hostile('Misshape', jsonb_build_object('where', 'detail', 'how', how)), 'VE014 rejection detail %',
  'a module''s value of no end: ' || how || ' as the detail of a refusal') FROM unnest('{cycle,deep,shared}'::text[]) how;
SELECT refused(hostile('Misshape', jsonb_build_object('where', 'state', 'how', how)), 'VE014 state is %',
  'a module''s state of no end: ' || how) FROM unnest('{cycle,itself,deep,shared}'::text[]) how;
SELECT refused(hostile('Misshape', jsonb_build_object('where', w, 'how', how)), error,
  'a module''s value of another kind: ' || how || ' as ' || w) FROM unnest('{cycle,deep,none}'::text[]) how, (VALUES
  ('events', 'VE009 events of a handler are not a JSON array'), ('event', 'VE009 an emitted event has an unknown member'),
  ('tags', 'VE009 member "tags" of an emitted event is not an array of strings')) x (w, error)
  WHERE how <> 'none' OR w <> 'event';
SELECT count(*) FROM evpg_append('hostile', 'loaded', evpg_events('{"type": "Misshaped", "data": {"how": "itself"}}'))
  \g /dev/null
SELECT refused($$SELECT evpg_state('hostile', 'loaded')$$, 'VE014 state is nested too deeply',
  'a state of no end, in a replay');
SELECT refused($$SELECT evpg_execute('hostile', 'loaded', 'Nothing')$$, 'VE014 state is nested too deeply',
  'a state of no end, in a replay of a command');

-- an event replaces the part of 300,000 levels that the event before it has put into the row
SELECT evpg_register_aggregate('counter', library => 'evpg_test', symbol => 'counter') \g /dev/null
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'replaced', ARRAY[evpg_event('Deep', '{"depth": 300000}'),
  evpg_event('Deep', '{"depth": 300000}'), evpg_event('Deep', '{"depth": 1}')]) \g /dev/null
SELECT is((SELECT state -> 'deep' FROM evpg_projection('totals', 'replaced')), '[null]', 'a deep part of a row is replaced');

-- one level deeper with each event: refused before it is too deep to be kept
CREATE FUNCTION test.nest_on() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  FOR n IN 1..1000 LOOP
    PERFORM evpg_execute('hostile', 'nested', 'Misshape', '{"where": "state", "how": "nest"}');
  END LOOP;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLERRM;
END $$;
SET client_min_messages = error;
SELECT is(nest_on(), 'state is nested too deeply', 'a state that each event makes deeper');
RESET client_min_messages;

SELECT is(evpg_stream_version('hostile', 'a'), 1::bigint, 'the refused ones left nothing [rule 5]');
SELECT * FROM finish();
