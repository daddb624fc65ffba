-- append_event.sql: evpg_append_event, one event without arrays and row types, obeys the rules of evpg_append.

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql

SELECT plan(73);
SET test.kind = counter_c;

-- what an append of one event has stored in a stream, without what differs between any two appends
CREATE FUNCTION stored(id text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT (to_jsonb(e) - '{position,aggregate_id,event_id,recorded_at}'::text[]
      || jsonb_build_object('correlation_id', CASE WHEN e.correlation_id <> e.event_id::text THEN e.correlation_id END,
                            'occurred_at', CASE WHEN e.occurred_at <> e.recorded_at THEN e.occurred_at END))::text
    FROM evpg_read_stream('counter', id) e ORDER BY version
$$;

-- every argument has the same effect as in evpg_append
SELECT evpg_append_event('counter', 'one', 'Odd') AS first \gset
SELECT is(:'first', (SELECT format('(%s,%s)', version, position) FROM evpg_read_stream('counter', 'one')),
  'an append of one event returns its version and position, and makes the stream [rule 2]');
SELECT same($$SELECT version, position > $$ || (SELECT position FROM evpg_read_stream('counter', 'one')) ||
  $$ FROM evpg_append_event('counter', 'one', 'Odd')$$, 'VALUES (2::bigint, true)',
  'versions and positions grow [rule 3]');
CREATE TEMP TABLE calls (n int GENERATED ALWAYS AS IDENTITY, one text, several text);
INSERT INTO calls (one, several) VALUES
  ($$'Odd'$$, $$evpg_event('Odd')$$),
  ($$'Odd', '{"n": [1, null]}'$$, $$evpg_event('Odd', '{"n": [1, null]}')$$),
  ($$'Odd', NULL$$, $$evpg_event('Odd', NULL)$$),
  ($$'Odd', tags => '{a,b}'$$, $$evpg_event('Odd', tags => '{a,b}')$$),
  ($$'Odd', tags => '{}'$$, $$evpg_event('Odd', tags => '{}')$$),
  ($$'Odd', schema_version => 7$$, $$evpg_event('Odd', schema_version => 7)$$),
  ($$'Odd', schema_version => NULL$$, $$evpg_event('Odd', schema_version => NULL)$$),
  ($$'Odd', occurred_at => '1999-12-31 23:59:59.999999+00'$$,
   $$evpg_event('Odd', occurred_at => '1999-12-31 23:59:59.999999+00')$$),
  ($$'Odd', metadata => '{"m": 1}'$$, $$evpg_event('Odd')], metadata => '{"m": 1}'--$$),
  ($$'Odd', actor => 'me'$$, $$evpg_event('Odd')], actor => 'me'--$$),
  ($$'Odd', correlation_id => 'c'$$, $$evpg_event('Odd')], correlation_id => 'c'--$$),
  ($$'Odd', causation_id => 'e'$$, $$evpg_event('Odd')], causation_id => 'e'--$$),
  ($$'Odd', command_id => 'i'$$, $$evpg_event('Odd')], command_id => 'i'--$$),
  ($$'Odd', expected_version => 0$$, $$evpg_event('Odd')], expected_version => 0--$$);
CREATE FUNCTION append_both(one text, several text, n int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('SELECT evpg_append_event(''counter'', ''one %s'', %s)', n, one);
  EXECUTE CASE WHEN several ~ '--$' THEN format(E'SELECT evpg_append(''counter'', ''several %s'', ARRAY[%s\n)', n, several)
          ELSE format('SELECT evpg_append(''counter'', ''several %s'', ARRAY[%s])', n, several) END;
  RETURN true;
END $$;
SELECT is((SELECT stored('one ' || n)), (SELECT stored('several ' || n)), 'evpg_append_event with ' || one || ' [A17]')
  FROM calls, append_both(one, several, n);
BEGIN;
SELECT evpg_set_context('somebody', 'of this transaction', '{"c": 1}') \g /dev/null
SELECT append_both($$'Odd', metadata => '{"m": 1}'$$, $$evpg_event('Odd')], metadata => '{"m": 1}'--$$, 100) \g /dev/null
COMMIT;
SELECT is((SELECT stored('one 100')), (SELECT stored('several 100')), 'the context of the transaction is that of the event');
SELECT is((SELECT actor || ' ' || correlation_id || ' ' || metadata FROM evpg_read_stream('counter', 'one 100')),
  'somebody of this transaction {"c": 1, "m": 1}', 'an event has actor, correlation id and metadata of the context');
SELECT is((SELECT session_role FROM evpg_read_stream('counter', 'one') LIMIT 1), session_user::text,
  'an event has the role of its session');
SELECT gen_random_uuid() AS known \gset
SELECT is((SELECT version FROM evpg_append_event('counter', 'ids', 'Odd', event_id => :'known')), 1::bigint,
  'an event with an id of its own is appended [D43]');
SELECT is((SELECT event_id FROM evpg_read_stream('counter', 'ids')), :'known'::uuid,
  'an event keeps the id that it is given [D43]');
SELECT alike(error_of(format($$SELECT evpg_append_event('counter', 'ids', 'Odd', event_id => %L)$$, :'known')), '23505 %',
  'an event id that exists is refused [D43]');

-- what is refused, and leaves nothing
SELECT refused(format($$SELECT evpg_append_event(%s)$$, arguments), error, 'evpg_append_event(' || arguments || ')')
  FROM (VALUES
  ($$'nope', 'a', 'Odd'$$, 'VE003 %'),
  ($$NULL, 'a', 'Odd'$$, '22004 aggregate type must not be null'),
  ($$'counter', NULL, 'Odd'$$, '22004 aggregate id must not be null'),
  ($$'counter', 'a', NULL$$, '22004 event type must not be null'),
  ($$'counter', 'a', ''$$, '22023 event type %'),
  ($$'counter', 'a', 'evpg.erased'$$, 'VE017 event type "evpg.erased" is reserved'),
  ($$'counter', 'a', 'Odd', schema_version => 0$$, '22023 schema_version must be at least 1'),
  ($$'counter', 'a', 'Odd', occurred_at => 'infinity'$$, '22023 occurred_at must be finite'),
  ($$'counter', 'a', 'Odd', tags => ARRAY[NULL]$$, '22004 tag 1 must not be null'),
  ($$'counter', 'a', 'Odd', metadata => '"x"'$$, '22023 %'),
  ($$'counter', 'a', 'Odd', metadata => '{"evpg": 1}'$$, 'VE017 metadata key "evpg" is reserved'),
  ($$'counter', 'a', 'Odd', command_id => 'saga:1'$$, 'VE017 command id "saga:1" is reserved'),
  ($$'counter', 'a', 'Odd', to_jsonb(repeat('x', 20000000))$$, 'VE%'),
  ($$'counter', 'a', 'Odd', expected_version => -2$$, '22023 %'),
  ($$'counter', 'one', 'Odd', expected_version => 0$$, 'VE001 %expected 0, actual 2'),
  ($$'counter', 'one', 'Odd', expected_version => 1$$, 'VE001 %expected 1, actual 2'),
  ($$'counter', 'never', 'Odd', expected_version => -1$$, 'VE001 %')) x (arguments, error);
SELECT is((SELECT version FROM evpg_append_event('counter', 'one', 'Odd', expected_version => 2)), 3::bigint,
  'the expected version is the one that the stream has [rule 2]');
SELECT is((SELECT version FROM evpg_append_event('counter', 'one', 'Odd', expected_version => -1)), 4::bigint,
  'a stream that exists is expected to exist [rule 2]');

-- command ids
SELECT evpg_append_event('counter', 'resent', 'Odd', '{"n": 1}', command_id => 'same') AS sent \gset
SELECT evpg_append_event('counter', 'resent', 'Odd') \g /dev/null
SELECT trace() AS before \gset
SELECT is(evpg_append_event('counter', 'resent', 'Odd', '{"n": 1.0}', 77, 'same')::text, :'sent',
  'an append under a known command id returns the place of its event, whatever the expected version [rule 4]');
SELECT is((SELECT format('(%s,%s)', version, position) FROM evpg_append('counter', 'resent',
  ARRAY[evpg_event('Odd', '{"n": 1}')], command_id => 'same')), :'sent',
  'the same append by evpg_append is the same command [rule 4]');
SELECT is(trace(), :'before', 'a command that is sent again writes nothing [rule 4]');
SELECT refused($$SELECT evpg_append_event('counter', 'resent', 'Odd', '{"n": 2}', command_id => 'same')$$, 'VE005 %',
  'another event under a known command id [rule 4]');

-- projections, transactions, interceptors
SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}', event_types => '{Added}',
  broadcast => 'delta') \g /dev/null
SELECT listen('sums') \g /dev/null
SELECT evpg_append_event('counter', 'summed', 'Added', '{"n": 5}') \g /dev/null
SELECT is(heard(), 'delta summed 1.1 {"sum": 5, "count": 1}', 'listeners hear of the event [rule 14]');
SELECT is((SELECT state FROM evpg.projected_state WHERE name = 'sums' AND key = 'summed'), '{"sum": 5, "count": 1}'::jsonb,
  'an inline projection applies the event in the transaction that appends it [rule 11]');
SELECT is((SELECT version || ' ' || (state->>'total') FROM evpg_state('counter', 'summed')), '1 5',
  'the next read of the state sees the event [rule 6]');
BEGIN;
SAVEPOINT before;
SELECT evpg_append_event('counter', 'summed', 'Added', '{"n": 6}') \g /dev/null
ROLLBACK TO before;
SELECT is((SELECT version FROM evpg_append_event('counter', 'summed', 'Added', '{"n": 1}')), 2::bigint,
  'ROLLBACK TO takes the event and its version back [rule 3]');
COMMIT;
SELECT is((SELECT state FROM evpg.projected_state WHERE name = 'sums' AND key = 'summed'), '{"sum": 6, "count": 2}'::jsonb,
  'what was rolled back was applied to no projection [rule 11]');
CREATE FUNCTION refuse_all(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'no' USING ERRCODE = 'VE011';
END $$;
SELECT evpg_register_interceptor('refusing', 'refuse_all') \g /dev/null
SELECT is((SELECT version FROM evpg_append_event('counter', 'summed', 'Added', '{"n": 1}')), 3::bigint,
  'interceptors, which decide on commands, are not called for an append [rule 1]');
SELECT evpg_drop_interceptor('refusing') \g /dev/null
SET default_transaction_read_only = on;
SELECT is(error_of($$SELECT evpg_append_event('counter', 'a', 'Odd')$$),
  '25006 cannot execute evpg_append_event() in a read-only transaction', 'nothing is appended in a read-only transaction');
RESET default_transaction_read_only;
CREATE FUNCTION appends_again(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_append_event('counter', 'other', 'Odd');
  RETURN state;
END $$;
SELECT evpg_register_projection('again', reducer => 'appends_again', aggregate_types => '{counter}', event_types => '{Odd}')
  \g /dev/null
SELECT alike(error_of($$SELECT evpg_append_event('counter', 'a', 'Odd')$$), 'VE020 %',
  'a projection cannot append an event');
SELECT evpg_drop_projection('again') \g /dev/null
SELECT is((SELECT array_agg((e.p).version) FROM (SELECT evpg_append_event('counter', 'many', 'Odd') AS p
  FROM generate_series(1, 3)) e), '{1,2,3}', 'the function serves many rows of a statement');
CREATE TEMP TABLE placed AS SELECT p.* FROM generate_series(1, 2) n,
  evpg_append_event('counter', 'placed', 'Odd', to_jsonb(n)) p;
SELECT is((SELECT string_agg(e.version::text, ',' ORDER BY e.version) FROM evpg_read_stream('counter', 'placed') e
  JOIN placed USING (version, position)), '1,2',
  'called in FROM, the function appends one event for each row and returns both columns');

SELECT * FROM finish();
