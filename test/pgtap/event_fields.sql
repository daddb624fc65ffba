-- event_fields.sql: fields of events that cannot be: each is refused with a clear error, and nothing is written.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(70);
SET test.kind = counter_c;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a stream');

-- events
CREATE FUNCTION test.appends(event text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT format(f, event) FROM (VALUES ($q$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Odd'), %s])$q$),
  ($q$SELECT evpg_inject('counter', 'a', %s)$q$)) x (f) $$;
SELECT refused(statement, error, statement || ' [D50, D51]') FROM (VALUES
  ($$evpg_event('')$$, '22023 event type must not be empty'),
  ($$evpg_event(repeat('x', 256))$$, 'VE014 event type is too long'),
  ($$evpg_event(E'a\nb')$$, '22023 event type contains a control character'),
  ($$evpg_event('evpg.x')$$, 'VE017 event type "evpg.x" is reserved'),
  ($$evpg_event('Evpg.X')$$, 'VE017 event type "Evpg.X" is reserved'),
  ($$(NULL, '{}', NULL, NULL, NULL, NULL, NULL, NULL)::evpg.new_event$$, '22004 event type must not be null'),
  ($$evpg_event('Odd', tags => '{""}')$$, '22023 tag must not be empty'),
  ($$evpg_event('Odd', tags => ARRAY[NULL])$$, '22004 tag 1 must not be null'),
  ($$evpg_event('Odd', tags => '{{a,b}}')$$, '2202E tags must be a one-dimensional array'),
  ($$evpg_event('Odd', tags => ARRAY[repeat('x', 256)])$$, 'VE014 tag is too long'),
  ($$evpg_event('Odd', tags => ARRAY[E'a\nb'])$$, '22023 tag contains a control character'),
  ($$evpg_event('Odd', tags => array_fill('x'::text, '{100000}'))$$, 'VE014 an event has too many tags'),
  ($$evpg_event('Odd', schema_version => 0)$$, '22023 schema_version must be at least 1'),
  ($$evpg_event('Odd', schema_version => -2147483648)$$, '22023 schema_version must be at least 1'),
  ($$evpg_event('Odd', occurred_at => 'infinity')$$, '22023 occurred_at must be finite'),
  ($$evpg_event('Odd', occurred_at => '-infinity')$$, '22023 occurred_at must be finite'))
  x (event, error), appends(event) statement;
SELECT is((SELECT occurred_at FROM evpg_inject('counter', 'times', evpg_event('Odd', occurred_at => t))), t, 'occurred_at '
  || t) FROM (VALUES
  ('4713-01-01 00:00+00 BC'::timestamptz), ('294276-12-31 23:59:59.999999+00'), ('1970-01-01 00:00+00'),
  ('2000-01-01 00:00+00')) x (t);

SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 2', 'the session works on after times that cannot be stored');
SELECT * FROM finish();
