-- upcasters.sql: events of old schema versions are read as those of the present one, wherever they are read (rule 24).

\ir include/setup.sql
\ir include/counter.sql
-- asynchronous projections and rebuilds are for READ COMMITTED
SET default_transaction_isolation = 'read committed';
\ir include/listener.sql
SELECT plan(119);

-- An account: Paid had an amount in euros in version 1, and cents in version 2; since then it is Payment, with a currency,
-- of version 3.  All code below knows Payment alone, and counts what else it sees as odd.
CREATE FUNCTION test.emit(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event(e->>'type', e->'data', tags => '{pay}', schema_version => (e->>'v')::int)
    FROM jsonb_array_elements(command.data) e $$;
CREATE FUNCTION test.apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.type = 'Payment' AND event.schema_version = 3 THEN
    RETURN state || jsonb_build_object('total', coalesce((state->>'total')::int, 0) + (event.data->>'cents')::int,
      'in', event.data->'currency');
  END IF;
  RETURN state || jsonb_build_object('odd', coalesce((state->>'odd')::int, 0) + 1);
END $$;
CREATE FUNCTION test.boundary(command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT evpg_condition('{Payment}', '{pay}') $$;
CREATE FUNCTION test.to_cents(data jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF (data->>'amount')::int < 0 THEN
    RAISE EXCEPTION 'amount % is negative', data->>'amount';
  END IF;
  RETURN data - 'amount' || jsonb_build_object('cents', (data->>'amount')::int * 100);
END $$;
CREATE FUNCTION test.to_payment(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT data || '{"currency": "EUR"}' $$;
CREATE FUNCTION test.to_nothing(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT NULL::jsonb $$;
CREATE FUNCTION test.strict(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT data $$;
CREATE FUNCTION test.of_text(data text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT data::jsonb $$;
CREATE FUNCTION test.row_of(event evpg.event) RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', event.version, event.type, event.schema_version, event.data) $$;
SELECT evpg_register_aggregate('account', 'test.emit', 'test.apply', snapshot_every => 2, broadcast => 'delta') \g /dev/null
SELECT evpg_register_aggregate('other', 'test.emit', 'test.apply') \g /dev/null
SELECT evpg_register_aggregate('ledger', 'test.emit', 'test.apply', boundary => 'test.boundary') \g /dev/null
CREATE FUNCTION test.state(id text, kind text DEFAULT 'account') RETURNS jsonb LANGUAGE sql VOLATILE AS $$
  SELECT state FROM evpg_state(kind, id) $$;
CREATE FUNCTION test.pay(id text, events jsonb, kind text DEFAULT 'account') RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(test.row_of(e), ', ' ORDER BY version) FROM evpg_execute(kind, id, 'Emit', events) e $$;

-- The rows of a projection.
CREATE FUNCTION test.rows(projection text, keys text[] DEFAULT NULL) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(s.key || ' ' || s.version || ' ' || s.state, ', ' ORDER BY s.key)
    FROM evpg.projection p JOIN evpg.projection_state s USING (build)
   WHERE p.name = projection AND (keys IS NULL OR s.key = ANY (keys)) $$;
-- What consumers saw.
CREATE TABLE test.seen (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, who text, what text);
CREATE FUNCTION test.hear(event evpg.event) RETURNS void LANGUAGE sql AS $$
  INSERT INTO test.seen (who, what) VALUES ('listener', test.row_of(event)) $$;
CREATE FUNCTION test.note(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.seen (who, what) VALUES ('handler', test.row_of(event));
  RETURN NULL;
END $$;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state || jsonb_build_object('seen', test.row_of(event))) $$;
CREATE FUNCTION test.seen(by text) RETURNS text LANGUAGE sql VOLATILE AS $$
  WITH d AS (DELETE FROM test.seen WHERE who = by RETURNING n, what)
  SELECT coalesce(string_agg(what, ', ' ORDER BY n), '') FROM d $$;

-- ------------------------------------------------------------------ without upcasters

SELECT is(pay('a', '[{"type": "Paid", "v": 1, "data": {"amount": 3}}, {"type": "Paid", "v": 2, "data": {"cents": 50}}]'),
  '1 Paid 1 {"amount": 3}, 2 Paid 2 {"cents": 50}', 'without upcasters every version is as it is stored [D51]');
SELECT is(pay('b', '[{"type": "Paid", "v": 1, "data": {"amount": 1}}]'), '1 Paid 1 {"amount": 1}', 'in another stream');
SELECT is(pay('o', '[{"type": "Paid", "v": 1, "data": {"amount": 1}}]', 'other'), '1 Paid 1 {"amount": 1}',
  'and of another aggregate type');
SELECT is(state('a'), '{"odd": 2}', 'the reducer does not know them');
SELECT is((SELECT count(*) FROM evpg.snapshot), 1::bigint, 'and a snapshot keeps that');
SELECT evpg_register_projection('by_async', 'test.apply', aggregate_types => '{account}', event_types => '{Payment}',
  mode => 'async', on_error => 'park', max_attempts => 1) \g /dev/null
SELECT evpg_register_projection('by_inline', 'test.apply', aggregate_types => '{account}', event_types => '{Payment}',
  key_path => '$.data.currency') \g /dev/null
SELECT evpg_register_projection('of_type', 'test.apply', aggregate_types => '{other}') \g /dev/null
SELECT evpg_register_projection('by_handler', handler => 'test.note', aggregate_types => '{account}',
  event_types => '{Payment}', mode => 'async') \g /dev/null
SELECT evpg_register_saga('saga', 'test.react', aggregate_types => '{account}', event_types => '{Payment}',
  start_position => 0, max_attempts => 1) \g /dev/null
SELECT evpg_create_subscription('payments', '{account}', '{Payment}') \g /dev/null
SELECT evpg_create_subscription('old', '{account}', '{Paid}') \g /dev/null

-- ------------------------------------------------------------------ registration

SELECT is(error_of(statement), error, error || ' [D69]') FROM (VALUES
  ($$SELECT evpg_register_upcaster(NULL, 1, 'test.to_cents')$$, '22004 event type must not be null'),
  ($$SELECT evpg_register_upcaster('', 1, 'test.to_cents')$$, '22023 event type must not be empty'),
  ($$SELECT evpg_register_upcaster('evpg.x', 1, 'test.to_cents')$$, 'VE017 event type "evpg.x" is reserved'),
  ($$SELECT evpg_register_upcaster('Paid', NULL, 'test.to_cents')$$, '22004 from_version must not be null'),
  ($$SELECT evpg_register_upcaster('Paid', 0, 'test.to_cents')$$, '22023 from_version must be at least 1'),
  ($$SELECT evpg_register_upcaster('Paid', 2147483647, 'test.to_cents')$$, '22023 from_version is out of range'),
  ($$SELECT evpg_register_upcaster('Paid', 1)$$, '22004 upcaster must not be null'),
  ($$SELECT evpg_register_upcaster('Paid', 1, new_event_type => 'Paid')$$, '22004 upcaster must not be null'),
  ($$SELECT evpg_register_upcaster('Paid', 2, 'test.to_cents', 2)$$, '22023 to_version must be higher than from_version'),
  ($$SELECT evpg_register_upcaster('Paid', 2, 'test.to_cents', 0)$$, '22023 to_version must be at least 1'),
  ($$SELECT evpg_register_upcaster('Paid', 1, 'test.to_cents', new_event_type => 'evpg.x')$$,
    'VE017 new_event_type "evpg.x" is reserved'),
  ($$SELECT evpg_register_upcaster('Paid', 1, 'test.to_cents', aggregate_type => '')$$,
    '22023 aggregate type must not be empty'),
  ($$SELECT evpg_register_upcaster('Paid', 1, 'test.strict')$$,
    '42P13 function test.strict(pg_catalog.jsonb) cannot serve as upcaster because it is STRICT'),
  ($$SELECT evpg_register_upcaster('Paid', 1, 'test.of_text')$$,
    '42P13 function test.of_text(pg_catalog.text) cannot serve as upcaster'),
  ($$SELECT evpg_drop_upcaster('Paid', 1)$$, '42704 event "Paid" has no upcaster from version 1')) x (statement, error);
SELECT is(evpg_drop_upcaster('Paid', 1, missing_ok => true), false, 'none is dropped');
SELECT is(evpg_register_upcaster('Paid', 1, 'test.to_cents', aggregate_type => 'account'), true,
  'an upcaster is registered [B37, D69]');
SELECT is(evpg_register_upcaster('Paid', 1, 'test.to_cents', aggregate_type => 'account'), false,
  'again without a change');
SELECT is(error_of($$SELECT evpg_register_upcaster('Paid', 1, 'test.to_cents')$$),
  '42710 event "Paid" has an upcaster from version 1 for one aggregate type already',
  'no version has two upcasters for one aggregate type');
SELECT is(evpg_register_upcaster('Paid', 2, 'test.to_payment', 3, 'Payment', 'account'), true,
  'another one renames the event [D69]');
SELECT is(error_of($$SELECT evpg_register_upcaster('Payment', 3, NULL, 1, 'Paid', 'account')$$),
  '22023 upcasters would lead from event "Payment" of version 3 back to it', 'but not in a circle');
SELECT is(error_of($$SELECT evpg_register_upcaster('Payment', 3, NULL, 1, 'Paid')$$),
  '22023 upcasters would lead from event "Payment" of version 3 back to it',
  'also not in one through an upcaster for all aggregate types');
SELECT same($$SELECT event_type, from_version, aggregate_type, new_event_type, to_version, upcaster, registered_by
                FROM evpg.upcaster ORDER BY event_type, from_version$$,
  $$VALUES ('Paid', 1, 'account', 'Paid', 2, 'test.to_cents(pg_catalog.jsonb)', current_user::text),
           ('Paid', 2, 'account', 'Payment', 3, 'test.to_payment(pg_catalog.jsonb)', current_user::text)$$,
  'evpg.upcaster lists them');
SET client_min_messages = notice;
CREATE FUNCTION test.same_cents(data jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT test.to_cents(data) $$;
SELECT is(evpg_register_upcaster('Paid', 1, 'test.same_cents', aggregate_type => 'account'), true, 'it is replaced');
SET client_min_messages = warning;
SELECT is((SELECT upcaster FROM evpg.upcaster WHERE from_version = 1), 'test.same_cents(pg_catalog.jsonb)',
  'by another function');
SELECT evpg_register_upcaster('Paid', 1, 'test.to_cents', aggregate_type => 'account') \g /dev/null

-- ------------------------------------------------------------------ states and read functions

SELECT is(state('a'), '{"in": "EUR", "total": 350}',
  'the state is folded of what upcasters make, not taken from cache or snapshot [rule 24, rule 6, rule 7, D69]');
SELECT is((SELECT state FROM evpg_state('account', 'a', at_version => 1)), '{"in": "EUR", "total": 300}',
  'also at a version [rule 24]');
SELECT is((SELECT state FROM evpg_state('account', 'a', at_time => clock_timestamp())), '{"in": "EUR", "total": 350}',
  'also at a time [rule 24]');
SELECT is(state('o', 'other'), '{"odd": 1}', 'upcasters for one aggregate type are for no other [rule 24]');
SELECT is((SELECT string_agg(row_of(e), ', ') FROM evpg_read_stream('account', 'a') e),
  '1 Payment 3 {"cents": 300, "currency": "EUR"}, 2 Payment 3 {"cents": 50, "currency": "EUR"}',
  'evpg_read_stream shows the present version, with version and position of what is stored [rule 24]');
SELECT is((SELECT string_agg(row_of(e), ', ') FROM evpg_read_stream('account', 'a', backwards => true) e),
  '2 Payment 3 {"cents": 50, "currency": "EUR"}, 1 Payment 3 {"cents": 300, "currency": "EUR"}',
  'backwards, too [rule 24]');
SELECT is((SELECT string_agg(aggregate_id || ' ' || row_of(e), ', ') FROM evpg_read_all() e),
  'a 1 Payment 3 {"cents": 300, "currency": "EUR"}, a 2 Payment 3 {"cents": 50, "currency": "EUR"}, '
  'b 1 Payment 3 {"cents": 100, "currency": "EUR"}, o 1 Paid 1 {"amount": 1}', 'so does evpg_read_all [rule 24]');
SELECT is((SELECT string_agg(row_of(e), ', ' ORDER BY position) FROM evpg.event e),
  '1 Paid 1 {"amount": 3}, 2 Paid 2 {"cents": 50}, 1 Paid 1 {"amount": 1}, 1 Paid 1 {"amount": 1}',
  'evpg.event shows what is stored [rule 24]');

-- filters by type, by the positions, by the index on types, and by that on tags
CREATE FUNCTION test.found(types text[], tags text[] DEFAULT NULL, kinds text[] DEFAULT NULL) RETURNS text LANGUAGE sql
  VOLATILE AS $$ SELECT coalesce(string_agg(aggregate_id || version, ' '), '')
    FROM evpg_read_all(event_types => types, tags => tags, aggregate_types => kinds) $$;
CREATE FUNCTION test.found_all() RETURNS SETOF text LANGUAGE sql VOLATILE AS $$
  SELECT test.found('{Payment}') UNION ALL SELECT test.found('{Paid}') UNION ALL SELECT test.found('{Paid,Payment}')
  UNION ALL SELECT test.found('{Payment}', '{pay}') UNION ALL SELECT test.found('{Paid}', kinds => '{account}')
  UNION ALL SELECT test.found('{Nothing}') $$;
CREATE FUNCTION test.found_in_index(index_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(f, '|') FROM test.found_all() f $$;
SELECT is((SELECT string_agg(f, '|') FROM found_all() f), 'a1 a2 b1|o1|a1 a2 b1 o1|a1 a2 b1||',
  'filters name the types that events are read as [rule 24]');
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT is(found_in_index('event_type'), 'a1 a2 b1|o1|a1 a2 b1 o1|a1 a2 b1||',
  'also those that the index on types serves [rule 24]');
SELECT evpg_enable_index('tags') \g /dev/null
SELECT is(found_in_index('tags'), 'a1 a2 b1|o1|a1 a2 b1 o1|a1 a2 b1||', 'and that on tags [rule 24]');

-- ------------------------------------------------------------------ conditions and boundaries

CREATE FUNCTION test.append_if(types text[], tags text[] DEFAULT NULL, kinds text[] DEFAULT NULL) RETURNS text LANGUAGE sql
  AS $$ SELECT error_of(format(
    'SELECT evpg_append(''other'', ''c'', ARRAY[evpg_event(''Checked'')], condition => evpg_condition(%L, %L, 0, %L))',
    types, tags, kinds)) $$;
SELECT is(append_if('{Payment}'), 'VE013 an event matches the condition of the append',
  'a condition meets a renamed event [rule 24, rule 21]');
SELECT is(error_fields($$SELECT evpg_append('other', 'c', ARRAY[evpg_event('Checked')],
    condition => evpg_condition('{Payment}', '{pay}'))$$) LIKE '|{"item": 1, "position": %, "type": "Payment", %', true,
  'and tells of it by its present type');
SELECT is(append_if('{Paid}', kinds => '{account}'), 'no error', 'not one that was renamed away [rule 24, rule 21]');
SELECT is((SELECT string_agg(concat_ws(' ', events, state), '') FROM evpg_boundary_state('ledger', 'l', 'Emit', '[]')),
  '3 {"in": "EUR", "total": 450}', 'a boundary reads what upcasters make, with the index on tags [rule 24, rule 22]');
SELECT evpg_enable_index('tags', false), evpg_enable_index('event_type', false) \g /dev/null
SELECT is((SELECT string_agg(concat_ws(' ', events, state), '') FROM evpg_boundary_state('ledger', 'l', 'Emit', '[]')),
  '3 {"in": "EUR", "total": 450}', 'and without it [rule 24, rule 22]');

-- ------------------------------------------------------------------ consumers

SET client_min_messages = error;
CALL evpg_run(20);
SELECT is(rows('by_async'), 'a 2 {"in": "EUR", "total": 350}, b 1 {"in": "EUR", "total": 100}',
  'an asynchronous projection gets the present version [rule 24]');
SELECT is(seen('handler'), '1 Payment 3 {"cents": 300, "currency": "EUR"}, 2 Payment 3 {"cents": 50, "currency": "EUR"}, '
  '1 Payment 3 {"cents": 100, "currency": "EUR"}', 'so does a handler [rule 24]');
SELECT is((SELECT string_agg(key || ' ' || (state->>'seen'), ', ' ORDER BY key) FROM evpg.saga_instance),
  'a 2 Payment 3 {"cents": 50, "currency": "EUR"}, b 1 Payment 3 {"cents": 100, "currency": "EUR"}',
  'so does a saga [rule 24]');
SELECT is((SELECT string_agg(concat_ws(' ', aggregate_id, version, type, schema_version, data), ', ' ORDER BY position)
             FROM evpg_fetch('payments', 'c')), 'a 1 Payment 3 {"cents": 300, "currency": "EUR"}, '
  'a 2 Payment 3 {"cents": 50, "currency": "EUR"}, b 1 Payment 3 {"cents": 100, "currency": "EUR"}',
  'so does a subscription [rule 24]');
SELECT evpg_ack('payments', lease, handed) FROM evpg.subscription_lease WHERE subscription = 'payments' \g /dev/null
SELECT is((SELECT count(*) FROM evpg_fetch('old', 'c')), 0::bigint, 'none by the old name [rule 24]');
SELECT is(rows('by_inline'), NULL,
  'an inline projection has rows of events from before only when it is rebuilt');
SELECT evpg_rebuild_projection('by_inline') \g /dev/null
SELECT is(rows('by_inline'), 'EUR 3 {"in": "EUR", "total": 450}',
  'rebuilds of all keys read the present version, keys too [rule 24, rule 13]');
SELECT evpg_rebuild_projection('by_inline', 'EUR') \g /dev/null
SELECT is(rows('by_inline'), 'EUR 3 {"in": "EUR", "total": 450}',
  'and so do those of a key [rule 24, rule 13]');
SELECT evpg_rebuild_saga('saga') \g /dev/null
SELECT is((SELECT string_agg(key || ' ' || (state->>'seen'), ', ' ORDER BY key) FROM evpg.saga_instance),
  'a 2 Payment 3 {"cents": 50, "currency": "EUR"}, b 1 Payment 3 {"cents": 100, "currency": "EUR"}',
  'and those of a saga [rule 24]');
SET client_min_messages = warning;

-- ------------------------------------------------------------------ events that old code appends

SELECT * FROM dblink('listener', $$SELECT evpg_listen_events('account')$$) x (channel text) \g /dev/null
SELECT evpg_register_listener('hear', 'test.hear', '{account}', '{Payment}') \g /dev/null
SELECT is(pay('a', '[{"type": "Paid", "v": 1, "data": {"amount": 1}}, {"type": "Payment", "v": 3,
  "data": {"cents": 7, "currency": "EUR"}}]'),
  '3 Payment 3 {"cents": 100, "currency": "EUR"}, 4 Payment 3 {"cents": 7, "currency": "EUR"}',
  'an old handler may go on: its caller gets the present version [rule 24]');
SELECT is((SELECT string_agg(row_of(e), ', ' ORDER BY version) FROM evpg.event e WHERE aggregate_id = 'a' AND version > 2),
  '3 Paid 1 {"amount": 1}, 4 Payment 3 {"cents": 7, "currency": "EUR"}', 'what it made is stored [rule 24]');
SELECT is(state('a'), '{"in": "EUR", "total": 457}', 'the state has them [rule 24]');
SELECT is(seen('listener'), '3 Payment 3 {"cents": 100, "currency": "EUR"}, 4 Payment 3 {"cents": 7, "currency": "EUR"}',
  'listeners hear the present version [rule 24]');
SELECT is((SELECT string_agg(concat_ws(' ', f->>'event', f->>'schema_version', f->>'data'), ', ' ORDER BY n)
             FROM (SELECT n, frame::jsonb AS f FROM frames()) x),
  'Payment 3 {"cents": 100, "currency": "EUR"}, Payment 3 {"cents": 7, "currency": "EUR"}',
  'frames of events have it [rule 24, rule 14]');
SELECT is(rows('by_inline'), 'EUR 5 {"in": "EUR", "total": 557}', 'inline projections get it [rule 24, rule 11]');
SELECT is((SELECT row_of(e) FROM evpg_append('account', 'c', ARRAY[evpg_event('Paid', '{"amount": 2}')],
  command_id => 'once') e), '1 Payment 3 {"cents": 200, "currency": "EUR"}', 'evpg_append upcasts [rule 24]');
SELECT is((SELECT row_of(e) FROM evpg_append('account', 'c', ARRAY[evpg_event('Paid', '{"amount": 2}')],
  command_id => 'once') e), '1 Payment 3 {"cents": 200, "currency": "EUR"}',
  'and returns the same for the same command id [rule 24, rule 4]');
SELECT is((SELECT string_agg(row_of(e), ', ' ORDER BY position) FROM evpg_append_many(ARRAY[
    evpg_stream_append('account', 'd', ARRAY[evpg_event('Paid', '{"amount": 2}')]),
    evpg_stream_append('other', 'd', ARRAY[evpg_event('Paid', '{"amount": 2}')])]) e),
  '1 Payment 3 {"cents": 200, "currency": "EUR"}, 1 Paid 1 {"amount": 2}',
  'so does evpg_append_many, by the aggregate type of each stream [rule 24]');
SELECT is((SELECT row_of(e) FROM evpg_inject('account', 'e', evpg_event('Paid', '{"cents": 9}', schema_version => 2)) e),
  '1 Payment 3 {"cents": 9, "currency": "EUR"}', 'and evpg_inject [rule 24]');
SELECT is((SELECT string_agg(row_of(e), ', ' ORDER BY position) FROM evpg.event e WHERE aggregate_id IN ('c', 'd', 'e')
    AND type <> 'Checked'),
  '1 Paid 1 {"amount": 2}, 1 Paid 1 {"amount": 2}, 1 Paid 1 {"amount": 2}, 1 Paid 2 {"cents": 9}',
  'all store what they were given [rule 24]');
SELECT is(error_of($$SELECT evpg_append('other', 'x', ARRAY[evpg_event('Paid', NULL)])$$), 'no error',
  'an event without data');
SELECT is(pay('l', '[{"type": "Payment", "v": 3, "data": {"cents": 1}}]', 'ledger'), '1 Payment 3 {"cents": 1}',
  'a command with a boundary is decided');

-- ------------------------------------------------------------------ versions that are not known

SELECT refused($$SELECT evpg_append('account', 'f', ARRAY[evpg_event('Payment', '{}', schema_version => 4)])$$,
  'VE019 event "Payment" of schema version 4 is newer than version 3, the newest that is known',
  'an event of a newer version is not appended [rule 24, D69]');
SELECT refused($$SELECT evpg_append('account', 'f', ARRAY[evpg_event('Paid', '{}', schema_version => 3)])$$,
  'VE019 event "Paid" of schema version 3 is newer than version 2, the newest that is known',
  'nor one of a type that was renamed away [rule 24, D69]');
SELECT refused($$SELECT evpg_append('account', 'f', ARRAY[evpg_event('Payment', '{}', schema_version => 2)])$$,
  'VE019 no upcaster leads on from event "Payment" of schema version 2', 'nor one without a step [rule 24, D69]');
SELECT is(error_fields($$SELECT evpg_append('account', 'f', ARRAY[evpg_event('Payment', '{}', schema_version => 2)])$$),
  '|{"aggregate_type": "account", "aggregate_id": "f", "type": "Payment", "schema_version": 2}|'
  'Register the missing one with evpg_register_upcaster(); evpg_check_upcasters() lists what is stored.',
  'the event is named [rule 24]');
SELECT evpg_drop_upcaster('Paid', 2, 'account') \g /dev/null
SELECT is(state('a'), '{"in": "EUR", "odd": 3, "total": 7}',
  'without the second upcaster the event stops at the version of the first [rule 24]');
SELECT is(error_of($$SELECT evpg_read_stream('account', 'e')$$), 'no error', 'version 2 is the present one then');
SELECT evpg_register_upcaster('Paid', 3, 'test.to_payment', 3, 'Payment', 'account') \g /dev/null
SELECT is(error_of($$SELECT test.state('a')$$), 'VE019 no upcaster leads on from event "Paid" of schema version 2',
  'a missing step is VE019 where a state is read [rule 24, D69]');
SELECT is(error_fields($$SELECT evpg_read_stream('account', 'c')$$) LIKE
  '|{"aggregate_type": "account", "aggregate_id": "c", "version": 1, "position": %, "type": "Paid", "schema_version": 1}|%',
  true, 'with the event as it is stored');
SELECT same($$SELECT aggregate_type, event_type, schema_version, new_event_type, new_schema_version, events, failed,
      sqlstate, error FROM evpg_check_upcasters() WHERE aggregate_type = 'account'$$,
  $$VALUES ('account', 'Paid', 1, 'Paid', 2, 5, 1, 'VE019', 'no upcaster leads on from event "Paid" of schema version 2'),
    ('account', 'Paid', 2, 'Paid', 2, 2, 1, 'VE019', 'no upcaster leads on from event "Paid" of schema version 2'),
    ('account', 'Payment', 3, 'Payment', 3, 1, 0, NULL, NULL)$$,
  'evpg_check_upcasters() finds it [D69]');
SELECT evpg_drop_upcaster('Paid', 3, 'account') \g /dev/null
SELECT evpg_register_upcaster('Paid', 2, 'test.to_payment', 3, 'Payment', 'account') \g /dev/null
SELECT is((SELECT string_agg(concat_ws(' ', aggregate_type, event_type, schema_version, new_event_type, new_schema_version,
    events, failed, sqlstate, error), E'\n') FROM evpg_check_upcasters(true)),
  E'account Paid 1 Payment 3 5 0\naccount Paid 2 Payment 3 2 0\naccount Payment 3 Payment 3 1 0\n'
  'ledger Payment 3 Payment 3 1 0\n'
  'other Checked 1 Checked 1 1 0\nother Paid 1 Paid 1 3 0', 'with all upcasters nothing fails [D69]');
SELECT is((SELECT count(*) FROM evpg_check_upcasters() WHERE position IS NULL), 0::bigint, 'each row has a position');

-- ------------------------------------------------------------------ upcasters that fail

SELECT is(error_of($$SELECT test.pay('n', '[{"type": "Paid", "v": 1, "data": {"amount": -1}}]')$$),
  'P0001 amount -1 is negative', 'an error of an upcaster is raised unchanged [rule 24, rule 8]');
SELECT is(context_of($$SELECT test.pay('n', '[{"type": "Paid", "v": 1, "data": {"amount": -1}}]')$$) LIKE
  '%upcaster of event "Paid" from version 1, event of stream "n" of aggregate "account"%', true, 'with a context');
SELECT evpg_register_upcaster('Paid', 1, 'test.to_nothing', aggregate_type => 'account') \g /dev/null
SELECT is(error_of($$SELECT test.state('a')$$), 'VE009 upcaster test.to_nothing(pg_catalog.jsonb) returned null',
  'an upcaster that returns NULL is a defect');
SELECT evpg_drop_upcaster('Paid', 1, 'account') \g /dev/null
SELECT evpg_drop_upcaster('Paid', 2, 'account') \g /dev/null
SELECT pay('n', '[{"type": "Paid", "v": 1, "data": {"amount": -1}}, {"type": "Paid", "v": 1, "data": {"amount": 4}}]')
  \g /dev/null
SELECT evpg_register_upcaster('Paid', 1, 'test.to_cents', aggregate_type => 'account'),
  evpg_register_upcaster('Paid', 2, 'test.to_payment', 3, 'Payment', 'account') \g /dev/null
SELECT is((SELECT string_agg(concat_ws(' ', event_type, schema_version, failed, error), ', ') FROM evpg_check_upcasters(true)
  WHERE failed > 0), 'Paid 1 1 amount -1 is negative', 'evpg_check_upcasters(true) tries all events [D69]');
SELECT is((SELECT count(*) FROM evpg_check_upcasters() WHERE failed > 0), 0::bigint, 'by default the first of each version');
SET client_min_messages = error;
CALL evpg_run(20);
SELECT is(rows('by_async', '{d,n}'),
  'd 1 {"in": "EUR", "total": 200}, n 1 {"in": "EUR", "total": 400}',
  'a projection that parks what fails passes an event that cannot be upcast [rule 24, rule 10]');
SELECT is((SELECT string_agg(concat_ws(' ', name, key, sqlstate, error), ', ') FROM evpg.parked_event
  WHERE name = 'by_async'),
  'by_async P0001 amount -1 is negative', 'which is parked, without a key');
SELECT is((SELECT string_agg(concat_ws(' ', status, last_error), ', ') FROM evpg.stat_consumer WHERE name = 'by_handler'),
  'running amount -1 is negative', 'one that stops waits there');
SELECT is((SELECT string_agg(concat_ws(' ', saga, key, sqlstate, message), ', ') FROM evpg.dead_letter),
  'saga P0001 amount -1 is negative', 'in a saga it is a dead letter [rule 24, rule 17]');
SELECT is(error_of($$SELECT evpg_fetch('payments', 'c')$$), 'P0001 amount -1 is negative',
  'a subscription hands out nothing beyond it [rule 24]');
SELECT is(error_of($$SELECT evpg_read_all()$$), 'P0001 amount -1 is negative', 'a reader gets the error [rule 24]');
SELECT is(error_of($$SELECT evpg_register_projection('new', 'test.apply', aggregate_types => '{account}',
  key_path => '$.data.currency', mode => 'async')$$), 'no error', 'it keeps nobody from registering');
CREATE OR REPLACE FUNCTION test.to_cents(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT data - 'amount' || jsonb_build_object('cents', (data->>'amount')::int * 1000) $$;
SELECT is(state('a'), '{"in": "EUR", "total": 4057}',
  'what is replaced by CREATE OR REPLACE takes effect, past cache and snapshots [rule 24, rule 6, rule 7]');
SELECT is(evpg_replay_parked('by_async'), 1::bigint, 'the parked event is replayed');
SELECT is(rows('by_async', '{n}'), 'n 2 {"in": "EUR", "total": -600}', 'and applied as it is read now [rule 24, rule 10]');
SELECT is(error_of($$SELECT evpg_retry_dead_letter(dead_letter_id) FROM evpg.dead_letter$$), 'no error',
  'with a better upcaster the dead letter is retried');
CALL evpg_run(20);
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE key = 'n'), 1::bigint,
  'and the instance reacts [rule 24, rule 17]');
SELECT is((SELECT string_agg(concat_ws(' ', aggregate_id, version, data), ', ' ORDER BY position)
             FROM evpg_fetch('payments', 'c') WHERE aggregate_id = 'n'),
  'n 1 {"cents": -1000, "currency": "EUR"}, n 2 {"cents": 4000, "currency": "EUR"}', 'a subscription goes on [rule 24]');
SET client_min_messages = warning;
DROP FUNCTION test.to_cents(jsonb) CASCADE;
SELECT is(error_of($$SELECT test.state('a')$$), '42883 upcaster function test.to_cents(pg_catalog.jsonb) does not exist',
  'a function that is gone fails what needs it');
SELECT is(state('e'), '{"in": "EUR", "total": 9}', 'and nothing else');

-- an event of all aggregate types; one without data; one that does nothing but rename
CREATE FUNCTION test.add_reason(data jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT CASE jsonb_typeof(data) WHEN 'null' THEN data ELSE data || '{"reason": "none"}' END $$;
SELECT evpg_append('other', 'y', ARRAY[evpg_event('Closed', NULL), evpg_event('Closed', '{}'),
  evpg_event('Shut', '{"a": 1}'), evpg_event('Closed', 'null')]) \g /dev/null
SELECT evpg_register_upcaster('Closed', 1, 'test.add_reason'), evpg_register_upcaster('Shut', 1, new_event_type => 'Closed')
  \g /dev/null
SELECT is((SELECT string_agg(concat_ws(' ', type, schema_version, coalesce(data::text, '-')), ', ') FROM
  evpg_read_stream('other', 'y')), 'Closed 2 -, Closed 2 {"reason": "none"}, Closed 2 {"a": 1, "reason": "none"}, '
  'Closed 2 null', 'a renamed event goes on with the upcasters of its new type; no data stays none [rule 24]');
SELECT is(error_of($$SELECT evpg_register_upcaster('Closed', 1, 'test.add_reason', aggregate_type => 'other')$$),
  '42710 event "Closed" has an upcaster from version 1 for all aggregate types already', 'and none for one of them besides');
SELECT is(error_of($$SELECT evpg_register_upcaster('Shut', 7, 'test.add_reason', 7)$$),
  '22023 to_version must be higher than from_version', 'a step goes on');
SELECT is(evpg_drop_upcaster('Closed', 1), true, 'an upcaster is dropped');
SELECT is((SELECT string_agg(concat_ws(' ', type, schema_version, coalesce(data::text, '-')), ', ') FROM
  evpg_read_stream('other', 'y')), 'Closed 1 -, Closed 1 {}, Closed 1 {"a": 1}, Closed 1 null',
  'and events are what they were [rule 24]');

-- an upcaster may read, but not what it makes itself
CREATE FUNCTION test.reads(data jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', count(*)) FROM evpg_read_stream('other', 'y') $$;
SELECT evpg_register_upcaster('Closed', 1, 'test.reads') \g /dev/null
SELECT is(error_of($$SELECT evpg_read_stream('other', 'y')$$), '54001 stack depth limit exceeded',
  'one that reads what it makes ends with an error');
-- ------------------------------------------------------------------ modules

CREATE FUNCTION test.plus_to_added(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('n', data->'by') $$;
CREATE FUNCTION test.twice(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('n', (data->>'n')::int * 2) $$;
SET test.kind = counter_c;
SELECT evpg_append('counter_c', 'm', ARRAY[evpg_event('Plus', '{"by": 4}')]) \g /dev/null
SELECT is(total('m'), '1 0', 'a module does not know an old event');
SELECT evpg_register_upcaster('Plus', 1, 'test.plus_to_added', 1, 'Added', 'counter_c') \g /dev/null
SELECT is(total('m'), '1 4', 'it is renamed, and its data changed [rule 24]');
SELECT is(try('m', 'Add', '{"n": 3}'), 'ok 2', 'the module decides by that state');
SELECT is(total('m'), '2 7', 'and folds what it has decided');
SELECT evpg_register_upcaster('Added', 1, 'test.twice', aggregate_type => 'counter_c') \g /dev/null
SELECT is(total('m'), '2 14', 'events that a module emits are upcast when they are read [rule 24]');
SELECT is(try('m', 'Add', '{"n": 1}'), 'ok 3', 'and when they are decided');
SELECT is(total('m'), '3 16', 'the cached state has them as they are read [rule 24, rule 6]');
SELECT is((SELECT version || ' ' || (state->>'total') FROM evpg_state('counter_c', 'm', at_version => 3)), total('m'),
  'as a replay has [rule 24, rule 6]');

-- functions that one transaction has created are others all the same
BEGIN;
DO $$
BEGIN
  FOR i IN 1 .. 64 LOOP
    EXECUTE format('CREATE FUNCTION test.make_%s(data jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS '
      '$f$ SELECT jsonb_build_object(''n'', %1$s) $f$', i);
  END LOOP;
END $$;
COMMIT;
SELECT evpg_append('counter_c', 'many', ARRAY[evpg_event('Made', '{"n": 0}')]) \g /dev/null
SELECT evpg_register_upcaster('Made', 1, 'test.make_1', 1, 'Added', 'counter_c') \g /dev/null
SELECT evpg_drop_upcaster('Added', 1, 'counter_c') \g /dev/null
CREATE FUNCTION test.made(i int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_register_upcaster('Made', 1, ('test.make_' || i)::regproc, 1, 'Added', 'counter_c');
  RETURN total('many');
END $$;
SELECT is((SELECT count(*) FROM generate_series(1, 64) i WHERE made(i) <> '1 ' || i), 0::bigint,
  'each function that takes the place of another has states of its own [rule 24, rule 6]');

-- ROLLBACK takes a registration back
SELECT evpg_drop_upcaster('Closed', 1) \g /dev/null
BEGIN;
SAVEPOINT s;
SELECT evpg_register_upcaster('Closed', 1, 'test.add_reason') \g /dev/null
SELECT is((SELECT max(schema_version) FROM evpg_read_stream('other', 'y')), 2, 'a registration counts at once');
ROLLBACK TO s;
SELECT is((SELECT max(schema_version) FROM evpg_read_stream('other', 'y')), 1, 'and no more after ROLLBACK TO');
COMMIT;
SELECT * FROM finish();
