-- empty_arrays.sql: where NULL means all, an empty array is refused, in every registration and reader: it is what a program
-- passes by mistake, and must not come to mean all (A12, B30).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(62);
SET test.kind = counter;

CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE sql AS $$ SELECT command $$;
CREATE FUNCTION test.hear(event evpg.event) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state)
$$;
CREATE TABLE test.arrays (function text, argument text, call text);
INSERT INTO arrays VALUES
  ('evpg_read_all', 'aggregate_types', 'SELECT * FROM evpg_read_all('),
    ('evpg_read_all', 'event_types', 'SELECT * FROM evpg_read_all('),
    ('evpg_read_all', 'tags', 'SELECT * FROM evpg_read_all('),
  ('evpg_register_listener', 'aggregate_types', $$SELECT evpg_register_listener('i', 'test.hear', $$),
    ('evpg_register_listener', 'event_types', $$SELECT evpg_register_listener('i', 'test.hear', $$),
  ('evpg_register_interceptor', 'aggregate_types', $$SELECT evpg_register_interceptor('i', 'test.pass', $$),
    ('evpg_register_interceptor', 'command_types', $$SELECT evpg_register_interceptor('i', 'test.pass', $$),
  ('evpg_register_projection', 'aggregate_types', $$SELECT evpg_register_projection('p', 'test.sum_apply', $$),
    ('evpg_register_projection', 'event_types', $$SELECT evpg_register_projection('p', 'test.sum_apply', $$),
  ('evpg_register_projection', 'tags', $$SELECT evpg_register_projection('p', 'test.sum_apply', $$),
    ('evpg_register_projection', 'tables', $$SELECT evpg_register_projection('p', handler => 'test.statement_write', $$),
  ('evpg_register_saga', 'aggregate_types', $$SELECT evpg_register_saga('s', 'test.react', $$),
    ('evpg_register_saga', 'event_types', $$SELECT evpg_register_saga('s', 'test.react', $$),
  ('evpg_register_saga', 'start_event_types', $$SELECT evpg_register_saga('s', 'test.react', $$),
  ('evpg_create_subscription', 'aggregate_types', $$SELECT evpg_create_subscription('u1', $$),
    ('evpg_create_subscription', 'event_types', $$SELECT evpg_create_subscription('u2', $$),
    ('evpg_create_subscription', 'tags', $$SELECT evpg_create_subscription('u3', $$),
    ('evpg_create_subscription', 'aggregate_ids', $$SELECT evpg_create_subscription('u4', $$);

SELECT is((SELECT string_agg(p.proname || ' ' || a.name, ', ' ORDER BY p.proname, a.name)
  FROM pg_proc p, unnest(p.proallargtypes, p.proargmodes, p.proargnames) a (type, mode, name)
            WHERE p.proname LIKE 'evpg%' AND a.type = 'text[]'::regtype AND a.mode = 'i'
              AND NOT EXISTS (SELECT FROM arrays t WHERE t.function = p.proname AND t.argument = a.name)),
  'evpg_append_event tags',
    'every function that takes an array of filters and returns columns refuses an empty one [B30]');
SELECT is((SELECT string_agg(p.proname || ' ' || a.name, ', ' ORDER BY p.proname, a.name)
  FROM pg_proc p, unnest(p.proargtypes::oid[], p.proargnames[1:p.pronargs]) a (type, name)
            WHERE p.proname LIKE 'evpg%' AND p.proallargtypes IS NULL AND a.type = 'text[]'::regtype
              AND NOT EXISTS (SELECT FROM arrays t WHERE t.function = p.proname AND t.argument = a.name)),
  'evpg_condition aggregate_types, evpg_condition event_types, evpg_condition tags, evpg_event tags',
    'every function that takes an array of filters refuses an empty one; the tags of an event are no filter, and what a '
    || 'condition has is looked at by its append [B30]');
SELECT refused(call || argument || ' => ''{}'')', '22023 ' || argument || ' must not be an empty array',
  function || ' ' || argument || ' [B30]') FROM arrays;
SELECT is(error_of(call || argument || ' => ''{x}'')') IN ('no error', '42P01 relation "x" does not exist') , true,
  'one with elements is taken, by ' || function || ' ' || argument || ' [B30]') FROM arrays;

-- modules
SELECT refused(format('SELECT evpg_register_%s(%L, library => %L, symbol => %L)', split_part(symbol, '_', 1), 'bad',
  'evpg_test_broken', symbol), error, symbol || ' [B24, B30]') FROM (VALUES
  ('projection_no_events', 'VE009 %has no events'), ('projection_empty_events', 'VE009 %has no events'),
    ('projection_empty_types', 'VE009 %has no type in its aggregate_types')) x (symbol, error);
SELECT * FROM finish();
