-- module_events.sql: events that a module in C emits with members that cannot be: a clear error, and nothing is written.

\ir include/setup.sql
\ir include/module.sql

SELECT plan(43);
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

-- envelopes
SELECT refused(hostile('Envelope', jsonb_build_object('change', change)), error, 'an event of a module: '
  || left(change::text, 60)) FROM (VALUES
  ('{"type": null}'::jsonb, '22004 event type must not be null'), ('{"type": ""}', '22023 event type must not be empty'),
  ('{"type": 7}', 'VE009 member "type" of an emitted event is not a string'),
  (E'{"type": "a\\nb"}', '22023 event type contains a control character'),
  ('{"type": "evpg.x"}', 'VE017 event type "evpg.x" is reserved'),
  ('{"type": "EVPG.x"}', 'VE017 event type "EVPG.x" is reserved'),
  (jsonb_build_object('type', repeat('x', 256)), 'VE014 event type is too long'),
  ('{"metadata": []}', '22023 metadata must be a JSON object'),
  ('{"metadata": {"evpg.x": 1}}', 'VE017 metadata key "evpg.x" is reserved'),
  ('{"tags": [1]}', 'VE009 member "tags" of an emitted event is not an array of strings'),
  ('{"tags": ["a", null]}', 'VE009 %not an array of strings'), ('{"tags": "red"}', 'VE009 %not an array of strings'),
  ('{"tags": [""]}', '22023 tag must not be empty'),
  ('{"schema_version": 0}', 'VE009 member "schema_version" of an emitted event is not a positive integer'),
  ('{"schema_version": -1}', 'VE009 %'),
  ('{"schema_version": "2"}', 'VE009 %'), ('{"schema_version": 2.5}', 'VE009 %'),
  ('{"schema_version": 5000000000}', 'VE009 %'), ('{"surprise": 1}', 'VE009 %')) x (change, error);

-- NULL
SELECT is((SELECT tags FROM evpg_execute('hostile', 'tags', 'Misuse', '{"say": "no tag"}')), '{tag}',
  'a tag that is NULL is none');
SELECT refused(hostile('Misuse', '{"say": "no type"}'), '22004 event type must not be null', 'an event type that is NULL');

SELECT is(evpg_stream_version('hostile', 'a'), 1::bigint, 'the refused ones left nothing [rule 5]');
SELECT * FROM finish();
