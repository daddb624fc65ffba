-- pinned_settings.sql: what the session has set does not change what user code computes: keys, states and rows are the same
-- inline, asynchronous and rebuilt (rules 11 and 13).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';

SELECT plan(34);

-- the settings that make text of values, or values of text
CREATE FUNCTION test.settings() RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT jsonb_object_agg(name, current_setting(name)) FROM unnest('{TimeZone,DateStyle,IntervalStyle,
    timezone_abbreviations,extra_float_digits,bytea_output,
    xmlbinary,xmloption,default_text_search_config,array_nulls,transform_null_equals,quote_all_identifiers,
    standard_conforming_strings,backslash_quote}'::text[]) name $$;
CREATE FUNCTION test.become(odd boolean) RETURNS void LANGUAGE sql AS $$
  SELECT set_config(name, CASE WHEN odd THEN value ELSE usual END, false)
    FROM (VALUES ('TimeZone', 'Asia/Tokyo', 'America/New_York'), ('DateStyle', 'German, DMY', 'SQL, MDY'),
    ('IntervalStyle', 'iso_8601', 'sql_standard'),
    ('timezone_abbreviations', 'India', 'Default'), ('extra_float_digits', '-5', '1'), ('bytea_output', 'escape', 'hex'),
      ('xmlbinary', 'hex', 'base64'), ('xmloption', 'document', 'content'),
      ('default_text_search_config', 'pg_catalog.german', 'pg_catalog.english'),
    ('array_nulls', 'off', 'on'), ('transform_null_equals', 'on', 'off'), ('quote_all_identifiers', 'on', 'off'),
      ('standard_conforming_strings', 'off', 'on'), ('backslash_quote', 'on', 'safe_encoding')) x (name, value, usual) $$;
-- all that a function may make of an instant, and of other values
CREATE FUNCTION test.texts(event evpg.event) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN test.settings() || jsonb_build_object('time', event.occurred_at::text, 'day', event.occurred_at::date::text, 'json',
    to_jsonb(event.occurred_at), 'event', to_jsonb(event) - '{position,recorded_at}'::text[],
    'interval', (interval '1 day 2 hours')::text, 'float', (1.0::float8 / 3)::text, 'bytea', E'\\x0041ff'::bytea::text,
    'date', '01/02/2003'::date::text, 'zone', '2003-02-01 12:00'::timestamptz = '2003-02-01 12:00+00'::timestamptz,
    'words', to_tsvector('running')::text, 'quoted', quote_ident('a'), 'format',
      to_char(event.occurred_at, 'TMMonth HH24 TZ'));
END $$;
CREATE FUNCTION test.decide(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Noted', jsonb_build_object('settings', test.settings()), occurred_at => '2026-01-15 23:30:00+00') $$;
CREATE FUNCTION test.decide_json(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('type', 'Said', 'occurred_at', '2026-01-15 23:30:00') $$;
CREATE FUNCTION test.fold(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS 'SELECT test.texts(event)';
CREATE FUNCTION test.sound(state jsonb) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT current_setting('TimeZone') = 'UTC'
$$;
CREATE FUNCTION test.key(event evpg.event) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT event.occurred_at::text || ' ' || (event.occurred_at::date)::text || ' ' || (1.0::float8 / 3)::text
$$;
CREATE FUNCTION test.reduce(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT test.texts(event) || jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1)
$$;
CREATE TABLE test.day (day text PRIMARY KEY, n int);
CREATE FUNCTION test.write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO test.day VALUES (event.occurred_at::text, 1) ON CONFLICT (day) DO UPDATE SET n = day.n + 1;
    SELECT NULL::jsonb $$;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(test.texts(event), evpg_action_schedule('later', due_at => '2099-01-15 23:30:00'),
    '{"do": "schedule", "timer": "raw", "due_at": "2099-01-15 23:30:00"}') $$;
CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN command.metadata := test.settings(); RETURN command; END $$;
CREATE FUNCTION test.ring(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state) $$;
CREATE FUNCTION test.translate(payload jsonb) RETURNS evpg.command LANGUAGE sql STABLE AS $$
  SELECT evpg_command('said', 's', 'Say', test.settings())
$$;
CREATE FUNCTION test.register() RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', evpg_register_aggregate('noted', 'test.decide', 'test.fold', invariant => 'test.sound',
      snapshot_every => 0),
    evpg_register_aggregate('said', 'test.decide_json', 'test.fold'),
    evpg_register_interceptor('pass', 'test.pass', command_types => '{Intercepted}'),
    evpg_register_translator('translate', 'test.translate'),
    evpg_register_projection('inline', reducer => 'test.reduce', aggregate_types => '{noted}', event_types => '{Noted}',
      key_function => 'test.key'),
    evpg_register_projection('path', reducer => 'test.reduce', aggregate_types => '{noted}', key_path => '$.occurred_at'),
    evpg_register_projection('async', mode => 'async', reducer => 'test.reduce', aggregate_types => '{noted}',
      key_function => 'test.key'),
    evpg_register_projection('async path', mode => 'async', reducer => 'test.reduce', aggregate_types => '{noted}',
      key_path => '$.occurred_at'),
    evpg_register_projection('tables', handler => 'test.write', aggregate_types => '{noted}', tables => '{test.day}'),
    evpg_register_saga('saga', 'test.react', timer_handler => 'test.ring', event_types => '{Noted}',
      key_function => 'test.key'),
    evpg_register_saga('by path', 'test.react', timer_handler => 'test.ring', event_types => '{Noted}',
      key_path => '$.occurred_at')) $$;
SELECT is(register(), 't t t t t t t t t t t', 'all is registered');
SELECT evpg_register_aggregate('by_module', library => 'evpg_test', symbol => 'counter') \g /dev/null
CREATE FUNCTION test.rows(of_name text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT string_agg(key || '=' || (state->>'n') || md5((state - 'event')::text), ' ' ORDER BY key) FROM evpg.projected_state
    WHERE name = of_name $$;

-- one instant, in sessions of two kinds
SELECT become(true) \g /dev/null
SELECT current_setting('TimeZone') || current_setting('DateStyle') || current_setting('bytea_output') AS before \gset
SELECT data->'settings' AS odd FROM evpg_execute('noted', '1', 'Do') \gset
SELECT is(current_setting('TimeZone') || current_setting('DateStyle') || current_setting('bytea_output'), :'before',
  'the session keeps its settings');
SELECT state AS odd_state FROM evpg_state('noted', '1') \gset
SELECT is((SELECT events->0->>'occurred_at' FROM evpg_try_execute('noted', '1', 'Do')), '2026-01-15T23:30:00+00:00',
  'times in events print in UTC');
CALL evpg_run(10);
SELECT rows('async') AS odd_rows \gset
SELECT become(false) \g /dev/null
SELECT data->'settings' AS usual FROM evpg_execute('noted', '2', 'Do') \gset
SET evpg.state_cache_size = 0;
SELECT is(:'usual'::jsonb, :'odd'::jsonb, 'a handler finds the same settings');
SELECT is((SELECT (state->>'time') || ' ' || (state->>'day') || ' ' || (state->>'json') || ' ' || (state->>'interval') || ' '
  || (state->>'bytea') || ' ' || (state->>'date') || ' ' || (state->>'words') || ' ' || (state->>'quoted')
  || ' ' || (state->>'format') || ' ' || (state->>'zone') || ' ' || (state->>'float') || ' '
    || (state#>>'{event,occurred_at}') FROM evpg_state('noted', x.id)),
  E'2026-01-15 23:30:00+00 2026-01-15 2026-01-15T23:30:00+00:00 1 day 02:00:00 \\x0041ff 2003-01-02 '
    '''running'':1 a January 23 UTC true 0.3333333333333333 2026-01-15T23:30:00+00:00', 'a reducer, stream ' || id)
  FROM (VALUES ('1'), ('2')) x (id);
SELECT is((SELECT occurred_at FROM evpg_execute('said', '1', 'Say')), '2026-01-15 23:30:00+00'::timestamptz,
  'a time without zone in a handler''s JSON is UTC');
SELECT become(true) \g /dev/null
SELECT is((SELECT occurred_at FROM evpg_execute('said', '1', 'Say')), '2026-01-15 23:30:00+00'::timestamptz,
  'in any session');
CALL evpg_run(10);
SELECT is((SELECT string_agg(key || '=' || (state->>'n'), ' ') FROM evpg.projected_state WHERE name = x.name),
  '2026-01-15 23:30:00+00 2026-01-15 0.3333333333333333=3', 'one instant is one key, ' || name || ' [rule 11]')
  FROM (VALUES ('inline'), ('async')) x (name);
SELECT is((SELECT string_agg(key || '=' || (state->>'n'), ' ') FROM evpg.projected_state WHERE name = x.name),
  '2026-01-15T23:30:00+00:00=3', 'also by a path, ' || name || ' [rule 11]')
  FROM (VALUES ('path'), ('async path')) x (name);
SELECT is((SELECT string_agg(day || '=' || n, ' ') FROM test.day), '2026-01-15 23:30:00+00=3',
  'a table has the same keys in any session [rule 11]');
SELECT is(rows('inline'), rows('async'), 'inline and asynchronous are the same [rule 13]');
SELECT is(rows('path'), rows('async path'), 'inline and asynchronous projections find the same keys by a path [rule 13]');
CREATE TABLE test.before AS SELECT name, rows(name) FROM unnest('{inline,path,async,"async path"}'::text[]) name;
SELECT become(false) \g /dev/null
SELECT evpg_rebuild_projection(name) FROM unnest('{inline,path}'::text[]) name \g /dev/null
SELECT evpg_rebuild_projection(name, background => true) FROM unnest('{async,"async path",tables}'::text[]) name \g /dev/null
CALL evpg_run(20);
SELECT is(rows(name), rows, 'rebuilt in another session they are the same, ' || name || ' [rule 13]') FROM test.before
  ORDER BY name;
SELECT is((SELECT string_agg(day || '=' || n, ' ') FROM test.day), '2026-01-15 23:30:00+00=3',
  'a table is the same after a rebuild under other settings [rule 13]');
SELECT evpg_rebuild_projection('inline', '2026-01-15 23:30:00+00 2026-01-15 0.3333333333333333') \g /dev/null
SELECT is(rows('inline'), (SELECT rows FROM test.before WHERE name = 'inline'),
  'one key is the same after a rebuild under other settings [rule 13]');
SELECT is((SELECT string_agg(key || ' ' || version || ' ' || (state->>'time'), ', ') FROM evpg.saga_instance
  WHERE saga = x.saga), x.want, 'a saga, ' || saga)
  FROM (VALUES ('saga', '2026-01-15 23:30:00+00 2026-01-15 0.3333333333333333 3 2026-01-15 23:30:00+00'),
    ('by path', '2026-01-15T23:30:00+00:00 3 2026-01-15 23:30:00+00')) x (saga, want);
SELECT is((SELECT array_agg(DISTINCT due_at) FROM evpg.timer), ARRAY['2099-01-15 23:30:00+00'::timestamptz],
  'a time without zone in an action is UTC');
-- interceptors and translators
SELECT become(true) \g /dev/null
SELECT is((SELECT metadata FROM evpg_execute('said', '3', 'Intercepted')), :'odd'::jsonb, 'an interceptor finds them');
SELECT is((SELECT data FROM evpg_translate('translate', '{}')), :'odd'::jsonb, 'a translator finds the pinned settings');

-- what a function sets itself wins, and goes with it
ALTER FUNCTION test.decide SET TimeZone = 'Asia/Kolkata';
SELECT is((SELECT data#>>'{settings,TimeZone}' FROM evpg_execute('noted', '4', 'Do')), 'Asia/Kolkata',
  'a SET clause of a function wins');
SELECT is((SELECT data#>>'{settings,DateStyle}' FROM evpg_execute('noted', '4', 'Do')), 'ISO, MDY', 'for what it sets');
ALTER FUNCTION test.decide RESET ALL;
CREATE FUNCTION test.nested(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('TimeZone', 'Asia/Kolkata', false);
  RETURN evpg_event('Nested', (SELECT
    jsonb_build_object('inner', data#>>'{settings,TimeZone}', 'outer', current_setting('TimeZone'))
    FROM evpg_execute('noted', '5', 'Do')));
END $$;
SELECT evpg_register_aggregate('nested', 'test.nested', 'test.fold') \g /dev/null
SELECT is((SELECT data FROM evpg_execute('nested', '1', 'Do')), '{"inner": "UTC", "outer": "Asia/Kolkata"}',
  'a command within finds them anew');
SELECT is(current_setting('TimeZone'), 'Asia/Tokyo', 'after a command within a command the session has its own settings');
SELECT is(error_of($$SELECT evpg_execute('nested', '1', '')$$), '22023 command type must not be empty', 'an error');
SELECT is(current_setting('TimeZone') || current_setting('DateStyle') || current_setting('bytea_output'), :'before',
  'brings the settings back');
SELECT is((SELECT string_agg(current_setting(name), ' ' ORDER BY name)
  FROM unnest('{extra_float_digits,xmloption,array_nulls,transform_null_equals}'::text[]) name), 'off -5 on document',
  'all of them');
SELECT is(register(), 'f f f f f f f f f f f', 'registered anew by a session that quotes all names, nothing has changed');
SELECT * FROM finish();
