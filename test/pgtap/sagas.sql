-- sagas.sql: instances of sagas, what they send, compensate and complete, and how they are registered (rules 16 and 18).

\ir include/setup.sql
-- some of the text has characters of more than one byte
SET client_encoding = 'UTF8';
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(330);
SET test.kind = counter;
SET test.kind_of_saga = functions;
\ir include/saga_script.sql

-- ------------------------------------------------------------------ keys

CREATE FUNCTION test.group_of(event evpg.event) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT event.data->>'group' $$;
CREATE FUNCTION test.groups_of(event evpg.event) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(SELECT jsonb_array_elements_text(event.data->'groups'))
$$;
CREATE FUNCTION test.broken_key(event evpg.event) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF event.data->>'group' = current_setting('test.broken_group', true) THEN
    RAISE EXCEPTION 'no key';
  END IF;
  RETURN event.data->>'group';
END $$;
-- the keys that have instances, and how many events each has seen
CREATE FUNCTION test.keys_of(of_saga text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(key || ':' || (state->>'seen'), ' ' ORDER BY key), '') FROM evpg.saga_instance
    WHERE saga = of_saga
$$;
CREATE FUNCTION test.register_key(name text, path jsonpath DEFAULT NULL, function regproc DEFAULT NULL,
  types text[] DEFAULT '{counter}') RETURNS boolean LANGUAGE sql VOLATILE AS $$
  SELECT evpg_register_saga(name, 'test.script_event', 'test.script_refused', aggregate_types => types,
    event_types => '{Noted}', key_path => path, key_function => function, max_attempts => 1)
$$;
CREATE FUNCTION test.note(id text, data jsonb, metadata jsonb DEFAULT NULL, kind text DEFAULT 'counter') RETURNS bigint
  LANGUAGE sql VOLATILE AS $$
  SELECT position FROM evpg_append(kind, id, ARRAY[evpg_event('Noted', data, metadata)], correlation_id => 'corr ' || id)
$$;
SELECT register_key('by_id'), register_key('by_path', '$.data.group'), register_key('by_paths', '$.data.groups[*]'),
  register_key('by_function', function => 'test.group_of'),
       register_key('by_functions', function => 'test.groups_of'), register_key('by_metadata', '$.metadata.order'),
         register_key('by_correlation', '$.correlation_id'),
       register_key('all', types => NULL), register_key('broken', function => 'test.broken_key'),
       evpg_register_saga('by_symbol', library => 'evpg_test', symbol => 'group_script') \g /dev/null
SELECT note('a', '{"group": "g", "groups": ["x", "y"]}'),
  note('b', '{"group": "g", "groups": ["y", "z", "y"]}', '{"order": 7}'), note('c', '{"group": null}', '{"order": "o"}'),
  note('d', '{"groups": []}', '{"order": 7}'),
       note('e', '{"group": "h"}', kind => 'counter_c'), tell('f', '{"group": "g"}') \g /dev/null
SELECT run() \g /dev/null
SELECT is(keys_of(name), found, name || ' [B50]')
  FROM (VALUES ('by_id', 'a:1 b:1 c:1 d:1'), ('by_path', 'g:2'), ('by_paths', 'x:1 y:2 z:1'), ('by_function', 'g:2'),
  ('by_functions', 'x:1 y:2 z:1'),
  ('by_metadata', '7:2 o:1'), ('by_correlation', 'corr a:1 corr b:1 corr c:1 corr d:1'), ('all', 'a:1 b:1 c:1 d:1 e:1')) x
    (name, found);
-- a library says itself which events it takes; without EVPG_START each makes an instance
SELECT start('s', '{"group": "g"}'), start('t', '{"group": "k"}'), tell('u', '{"group": "g"}'), tell('v', '{}') \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT string_agg(key || ':' || (state->>'seen'), ' ' ORDER BY key) FROM evpg.saga_instance
  WHERE saga = 'by_symbol'), 'g:3 k:1', 'the key of a library, of the events that it takes [B50, D28]');
SELECT evpg_drop_saga(name) FROM
  unnest('{by_id,by_path,by_paths,by_function,by_functions,by_metadata,by_correlation,all,by_symbol}'::text[]) name
  \g /dev/null
-- a key that cannot be found
SET test.broken_group = 'bad';
SELECT note('k1', '{"group": "good"}'), note('k2', '{"group": "bad", "set": {"late": 1}}') AS bad,
  note('k3', '{"group": "good"}') \gset
SELECT is(run(), '0 1', 'the key function fails [rule 17]');
SELECT is(keys_of('broken'), 'g:2 good:2', 'other events have their keys [rule 17]');
SELECT is(letters('-', 'broken'), 'tried 1 P0001 no key', 'the event is a dead letter without a key [rule 17]');
SELECT is((SELECT source_position = :bad AND command IS NULL FROM evpg.dead_letter WHERE saga = 'broken'), true,
  'with its position [rule 17]');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters('broken')), '0 1',
  'retried, it fails again [rule 17]');
SET test.broken_group = '';
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters('broken')), '1 0',
  'until the key is found [rule 17]');
SELECT run() \g /dev/null
SELECT is(keys_of('broken'), 'bad:1 g:2 good:2', 'an instance reacts when the key is found [rule 17]');
SET test.broken_group = 'good';
SELECT note('k4', '{"group": "good", "set": {"first": 1}}') \g /dev/null
SELECT run() \g /dev/null
SET test.broken_group = '';
SELECT note('k5', '{"group": "good", "set": {"second": 2}}') \g /dev/null
SELECT run() \g /dev/null
SELECT retried FROM evpg_retry_dead_letters('broken') \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT state - 'position' FROM evpg_saga('broken', 'good')), '{"seen": 4, "first": 1, "second": 2}',
  'an instance reacts to an event whose key was found late, after later events [rule 17]');
SELECT is((SELECT s.position = e.position FROM evpg_saga('broken', 'good') s, evpg.event e WHERE e.aggregate_id = 'k5'),
  true, 'the position of an instance does not go back [B50]');
SELECT note('k6', '{"group": "g"}') \g /dev/null
SET test.broken_group = 'g';
SELECT run() \g /dev/null
SELECT is(evpg_discard_dead_letter(max(dead_letter_id), 'no key'), true, 'it can be given up [rule 17]')
  FROM evpg.dead_letter;
SELECT is(run() || ' ' || letters('-', 'broken'), NULL, 'a dead letter without a key can be discarded [rule 17]');
SELECT evpg_drop_saga('broken') \g /dev/null
-- keys that are none
SELECT register_key('odd', '$.data.key') \g /dev/null
SELECT note('o1', '{"key": ""}'), note('o2', E'{"key": "a.b \\"c\\" \\\\ %"}'),
  note('o3', jsonb_build_object('key', repeat('ä', 512))), note('o4', '{"key": true}'), note('o5', '{"key": 1.50}')
  \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT string_agg(left(key, 20), '|' ORDER BY key) FROM evpg.saga_instance WHERE saga = 'odd'),
  E'|1.50|a.b "c" \\ %|true|' || repeat('ä', 20), 'odd keys [B50]');
SELECT note('o6', '{"key": {"a": 1}}'), note('o7', jsonb_build_object('key', repeat('k', 1025))),
  note('o8', '{"key": "fine"}') \g /dev/null
SELECT is(run(), '0 2', 'what cannot be a key is a dead letter [rule 17]');
SELECT is(letters('-', 'odd'),
  'tried 1 22023 key path of saga "odd" finds an object or array, tried 1 VE014 saga key is too long',
  'a dead letter without a key names the reason [rule 17]');
SELECT is((SELECT count(*) FROM evpg_saga('odd', 'fine')), 1::bigint,
  'a dead letter without a key keeps no instance waiting [rule 17]');
SELECT evpg_drop_saga('odd') \g /dev/null

-- ------------------------------------------------------------------ the end of a compensation

-- each undo is refused, and what is sent in its place could be undone, too
SELECT start('endless', '{"set": {"on_refusal": {"actions": []}}}'
  || script(send('e1', 'Add', 1, undo => send('e1', 'Subtract', 9)),
  send('e1', 'Add', 1, undo => send('e1', 'Subtract', 8)))) \g /dev/null
SELECT is(run(), '2 0', 'two sends that can be undone [B52]');
SELECT tell('endless', jsonb_build_object('set',
  jsonb_build_object('on_refusal', script(send('e2', 'Add', 1, undo => send('e1', 'Subtract', 7)))), 'actions',
  jsonb_build_array(evpg_action_compensate()))) \g /dev/null
SELECT is(run() || ' ' || total('e2'), '2 0 2 2', 'what is sent in the place of an undo is not undone [B52]');
SELECT is(instance('endless'), 'completed 2 {"seen": 2}', 'a compensation whose undo is refused ends [B52]');

-- ------------------------------------------------------------------ functions

-- a reaction without a state makes no instance, and changes none
CREATE FUNCTION test.stateless(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(CASE WHEN event.data ? 'n' THEN event.data END) $$;
SELECT evpg_register_saga('stateless', 'test.stateless', event_types => '{Stated}', initial_state => '{"n": 0}') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'st',
  evpg_events('[{"type": "Stated"}, {"type": "Stated", "data": {"n": 1}}, {"type": "Stated"}]')) \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT state || jsonb_build_object('version', version) FROM evpg_saga('stateless', 'st')),
  '{"n": 1, "version": 2}', 'no state is no instance, later the same state [rule 18]');
SELECT evpg_drop_saga('stateless') \g /dev/null
-- a list of actions that is none
SELECT start('code3', '{"actions": {"do": "complete"}}') \g /dev/null
DO $$ BEGIN FOR i IN 1 .. 3 LOOP PERFORM run(), later(2000); END LOOP; END $$;
SELECT evpg_set_clock_offset() \g /dev/null
SELECT is(letters('code3'), 'tried 3 VE009 actions of saga "script" are not a JSON array',
  'actions that are not an array [B54]');
-- they see what the command before them has done, and may read tables
CREATE TABLE test.seen (n int);
INSERT INTO test.seen VALUES (42);
CREATE FUNCTION test.reader(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql STABLE AS $$
BEGIN RETURN evpg_reaction(jsonb_build_object('read', (SELECT n FROM seen), 'as', current_user, 'path',
  current_setting('search_path'))); END $$;
SELECT evpg_register_saga('reader', 'test.reader', event_types => '{Read}') \g /dev/null
CREATE ROLE evpg_saga_owner;
GRANT USAGE ON SCHEMA test TO evpg_saga_owner;
SELECT evpg_grant('evpg_saga_owner', 'writer') \g /dev/null
GRANT SELECT ON test.seen TO evpg_saga_owner;
ALTER FUNCTION test.reader OWNER TO evpg_saga_owner;
SELECT count(*) FROM evpg_append('counter', 'read', ARRAY[evpg_event('Read')]) \g /dev/null
SET search_path = public;
SELECT evpg_run_sagas() \g /dev/null
SET search_path = public, test;
SELECT is((SELECT state FROM evpg_saga('reader', 'read')),
  '{"as": "evpg_saga_owner", "path": "public, test, pg_temp", "read": 42}',
  'a function runs as its owner, with the search_path of its registration [B50]');
SELECT evpg_drop_saga('reader') \g /dev/null

-- ------------------------------------------------------------------ transitions (B57)

CREATE FUNCTION test.states_of(event evpg.event) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT event.aggregate_id $$;
SELECT evpg_register_saga('fsm', 'test.script_event', event_types => '{Moved}', max_attempts => 3,
  transitions => '{"": ["requested"], "requested": ["done", "failed", "requested"], "failed": []}') \g /dev/null
CREATE FUNCTION test.move(id text, state text, actions jsonb DEFAULT '[]') RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT (SELECT NULL::text FROM
    evpg_append('counter', id, ARRAY[evpg_event('Moved',
    jsonb_build_object('set', CASE WHEN state IS NULL THEN '{}' ELSE jsonb_build_object('state', state) END, 'actions',
    actions))])) $$;
SELECT move('m1', 'requested'), move('m1', 'done', jsonb_build_array(send('mm', 'Add', 1))), move('m2', NULL),
  move('m2', 'requested'), move('m2', 'requested'), move('m2', NULL), move('m2', 'failed') \g /dev/null
SELECT is(run(), '1 0', 'declared transitions [B57, D54]');
SELECT is((SELECT string_agg(state->>'state' || version, ' ' ORDER BY k)
  FROM unnest('{m1,m2}'::text[]) k, evpg_saga('fsm', k)), 'done2 failed5', 'are made; to stay is none [B57]');
SELECT move('m1', 'requested', jsonb_build_array(send('mm', 'Add', 2))), move('m2', 'done'),
  move('m3', 'done', jsonb_build_array(evpg_action_complete())),
  move('m4', 'requested', jsonb_build_array(evpg_action_complete())) \g /dev/null
SELECT is(run(), '0 3', 'others are dead letters, at once [B57]');
SELECT is(letters('m1', 'fsm'), 'tried 1 VE021 saga "fsm" has no transition from "done" to "requested"', 'with VE021 [B57]');
SELECT is(letters('m2', 'fsm') || letters('m3', 'fsm'),
  'tried 1 VE021 saga "fsm" has no transition from "failed" to "done"tried 1 VE021 saga "fsm" has no '
  'transition from "" to "done"', 'of a final state, of a new instance [B57]');
SELECT is(total('mm'), '1 1', 'nothing of them is done [B57]');
SELECT is((SELECT state || jsonb_build_object('s', status) FROM evpg_saga('fsm', 'm4')) - '{seen,position}'::text[],
  '{"state": "requested", "s": "completed"}', 'a declared one that completes [B57]');
SELECT is(evpg_register_saga('fsm', 'test.script_event', event_types => '{Moved}', max_attempts => 3,
  transitions => '{"": ["requested"], "done": ["requested"], "failed": ["done"]}'), true, 'they are declared [B57]');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters('fsm')), '2 1',
  'dead letters can be retried when their transitions are declared [B57]');
SELECT is(total('mm'), '2 3', 'with their commands [B57]');
SELECT evpg_drop_saga('fsm') \g /dev/null
-- 2.4 test 8: the expected commands.  There, the same events after the end start over, so that four commands are sent in
-- all;
-- here an instance that is completed stays so, on purpose: an event that is delivered twice, or late, must not ship twice.
CREATE FUNCTION test.ship(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT CASE event.type WHEN 'Placed' THEN
    evpg_reaction('{"state": "reserved"}', evpg_action_send('counter', 'shop', 'Emit', '{"events": [{"type": "Reserved"}]}'))
                         ELSE evpg_reaction('{"state": "shipped"}',
                           evpg_action_send('counter', 'shop', 'Emit', '{"events": [{"type": "Shipped"}]}'),
                           evpg_action_complete()) END $$;
SELECT evpg_register_saga('ship', 'test.ship', event_types => '{Placed,Paid}', start_event_types => '{Placed}',
  transitions => '{"": ["reserved"], "reserved": ["shipped"]}') \g /dev/null
CREATE FUNCTION test.order() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(type, ' ') FROM evpg_append('counter', 'o1', ARRAY[evpg_event('Placed'), evpg_event('Paid')])
$$;
SELECT "order"() \g /dev/null
SELECT is(run(), '2 0', 'an order: two commands [B57, 2.4 test 8]');
SELECT is((SELECT string_agg(type, ' ' ORDER BY position) FROM evpg.event WHERE aggregate_id = 'shop'), 'Reserved Shipped',
  'the expected ones [B57, 2.4 test 8]');
SELECT "order"() \g /dev/null
SELECT is(run() || ' ' || (SELECT count(*) FROM evpg.event WHERE aggregate_id = 'shop'), '0 0 2',
  'the same events again: no more [rule 18, 2.4 test 8]');
SELECT is((SELECT status || ' ' || (state->>'state') || ' ' || version FROM evpg_saga('ship', 'o1')), 'completed shipped 2',
  'it stays completed [rule 18, 2.4 test 8]');
SELECT evpg_drop_saga('ship') \g /dev/null
-- 2.4 test 14: a reactor, which does something for each event
CREATE FUNCTION test.sum_up(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{}', evpg_action_send('counter', 'reactor', 'Add', event.data)) $$;
SELECT evpg_register_saga('reactor', 'test.sum_up', event_types => '{Seen}') \g /dev/null
SELECT count(*) FROM generate_series(1, 5) n,
  evpg_append('counter', 'seen ' || n % 2, ARRAY[evpg_event('Seen', jsonb_build_object('n', n))]) \g /dev/null
SELECT is(run() || ', ' || total('reactor'), '5 0, 5 15', 'of five events it sums up to 15 [B58, 2.4 test 14]');
SELECT is(run() || ', ' || total('reactor'), '0 0, 5 15', 'once [B58, 2.4 test 14]');
SELECT evpg_drop_saga('reactor') \g /dev/null
SELECT refused(format('SELECT evpg_register_saga(%L, %L, transitions => %L)', 'bad', 'test.script_event', t),
  '22023 transitions must be an object of arrays of names', 'transitions ' || t || ' [B57]')
  FROM unnest(ARRAY['7', '[]', '{"a": 7}', '{"a": [7]}', '{"a": [[]]}', '{"a": {"b": []}}', '{"a": "b"}', '"a"']) t;

-- ------------------------------------------------------------------ versions

CREATE FUNCTION test.v1(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT CASE event.type WHEN 'End' THEN evpg_reaction(state || '{"ended": 1}', evpg_action_complete())
    ELSE evpg_reaction(jsonb_set(state, '{v1}', to_jsonb(coalesce((state->>'v1')::int, 0) + 1))) END $$;
CREATE FUNCTION test.v2(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT CASE event.type WHEN 'End' THEN evpg_reaction(state || '{"ended": 2}', evpg_action_complete())
    ELSE evpg_reaction(jsonb_set(state, '{v2}', to_jsonb(coalesce((state->>'v2')::int, 0) + 1))) END $$;
CREATE FUNCTION test.signal(id text, type text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT position FROM evpg_append('counter', id, ARRAY[evpg_event(type, jsonb_build_object('other', 'other ' || id))])
$$;
CREATE FUNCTION test.versions() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(version::text, ' ' ORDER BY version) FROM evpg.saga WHERE name = 'v'
$$;
CREATE FUNCTION test.in_state(key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', status, state) FROM evpg_saga('v', key)
$$;
SELECT evpg_register_saga('v', 'test.v1', event_types => '{Begin,Step,End}', start_event_types => '{Begin}') \g /dev/null
SELECT signal('v1', 'Begin'), signal('v1', 'Step') \g /dev/null
SELECT run() \g /dev/null
SELECT is(evpg_register_saga('v', 'test.v2', event_types => '{Begin,Step,End}', start_event_types => '{Begin}',
  version => 2), true, 'another version [rule 18]');
SELECT signal('v1', 'Step'), signal('v2', 'Begin'), signal('v2', 'Step') \g /dev/null
SELECT run() \g /dev/null
SELECT is(in_state('v1') || ', ' || in_state('v2'), 'running {"v1": 3}, running {"v2": 2}',
  'instances keep the version they began with [rule 18]');
SELECT is(versions() || ' ' || (SELECT version FROM evpg.stat_consumer WHERE name = 'v'), '1 2 2',
  'both are registered [rule 18]');
-- the versions take different events and have different keys
SELECT is(evpg_register_saga('v', 'test.v2', event_types => '{Begin,Walk,End}', start_event_types => '{Begin}',
  key_path => '$.data.other', version => 3), true, 'a version with another key [rule 18]');
SELECT signal('v1', 'Step'), signal('v2', 'Walk'), signal('v3', 'Begin'), signal('v3', 'Walk'), signal('v3', 'Step')
  \g /dev/null
SELECT run() \g /dev/null
SELECT is(in_state('v1') || ', ' || in_state('v2'), 'running {"v1": 4}, running {"v2": 2}',
  'each version takes its own events [rule 18]');
SELECT is(in_state('other v3'), 'running {"v2": 2}', 'each version takes its own events, and has its own keys [rule 18]');
SELECT is(in_state('v3'), NULL, 'a key that only an older version finds begins no instance [rule 18]');
SELECT is(evpg_register_saga('v', 'test.v2', event_types => '{Begin,Step,End}', start_event_types => '{Begin}'), true,
  'the handler of a running version can be changed [rule 18]');
SELECT signal('v1', 'Step') \g /dev/null
SELECT run() \g /dev/null
SELECT is(in_state('v1'), 'running {"v1": 4, "v2": 1}',
  'the handler of a running version can be changed, which its instances notice [rule 18]');
SELECT is(versions(), '1 2 3', 'versions with instances are kept [rule 18]');
-- an instance ends with an event before it; its version goes
SELECT signal('v1', 'End'), signal('v1', 'Step') \g /dev/null
SELECT run(2) \g /dev/null
SELECT is(in_state('v1') || ' ' || (SELECT count(*) FROM evpg.saga_event WHERE saga = 'v' AND key = 'v1'),
  'completed {"v1": 4, "v2": 1, "ended": 2} 1', 'an instance ends, with an event before it [rule 18]');
SELECT is(evpg_register_saga('v', 'test.v1', event_types => '{Begin,Step,End}', start_event_types => '{Begin}',
  version => 4), true, 'a new version [rule 18]');
SELECT is(versions(), '2 3 4', 'versions without running instances go [rule 18]');
SELECT is(run() || ' ' || in_state('v1'), '0 0 completed {"v1": 4, "v2": 1, "ended": 2}',
  'the late event is ignored [rule 18]');
SELECT is(letters('v1', 'v'), NULL, 'an event that is late for a completed instance makes no dead letter [rule 18]');
SELECT is((SELECT count(*) FROM evpg.dead_letter WHERE saga = 'v'), 0::bigint,
  'an event that is late for a completed instance makes no dead letter of the saga [rule 18]');
SELECT is(evpg_register_saga('v', 'test.v1', event_types => '{Begin,Step,End}', start_event_types => '{Begin}',
  version => 4), false, 'the same version again changes nothing [rule 18]');
SELECT evpg_drop_saga('v') \g /dev/null

-- ------------------------------------------------------------------ from now, or from the beginning

CREATE FUNCTION test.count_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(jsonb_build_object('seen', coalesce((state->>'seen')::int, 0) + 1)) $$;
SELECT evpg_register_saga(name, 'test.count_event', event_types => '{Started}', start_position => start)
  FROM (VALUES ('now', NULL::bigint), ('history', 0), ('middle', :bad)) x (name, start) \g /dev/null
SELECT run() \g /dev/null
SELECT is(keys_of('now'), '', 'a new saga starts from now [rule 18]');
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'history'),
  (SELECT count(DISTINCT aggregate_id) FROM evpg.event WHERE type = 'Started'),
  'unless told to start with history [rule 18]');
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'middle'),
  (SELECT count(DISTINCT aggregate_id) FROM evpg.event WHERE type = 'Started' AND position > :bad),
  'a saga starts after the position that it is told [rule 18]');
SELECT start('new') \g /dev/null
SELECT run() \g /dev/null
SELECT is(keys_of('now'), 'new:1', 'new events are taken by all [rule 18]');
SELECT is(evpg_register_saga('now', 'test.count_event', event_types => '{Started,Told}', start_position => 0), true,
  'a saga that is changed [rule 18]');
SELECT run() \g /dev/null
SELECT is(keys_of('now'), 'new:1', 'goes on from where it was: nothing is sent again (A35) [rule 18]');

-- ------------------------------------------------------------------ pause, max_events, transactions

SELECT is(evpg_pause_consumer('now')::text || evpg_pause_consumer('now'), 'truefalse', 'a saga is paused [A46]');
SELECT start('paused', script(send('p1', 'Add', 1))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(keys_of('now') || ' ' || (SELECT status FROM evpg.stat_consumer WHERE name = 'now'), 'new:1 paused',
  'it does nothing [A46]');
SELECT is(evpg_resume_consumer('now')::text || evpg_resume_consumer('now'), 'truefalse', 'a resumed saga reacts [A46]');
SELECT is((SELECT lag_events > 0 FROM evpg.stat_consumer WHERE name = 'now'), true, 'its lag is shown [A46]');
SELECT run() \g /dev/null
SELECT is(keys_of('now'), 'new:1 paused:1', 'it goes on [A46]');
SELECT is((SELECT lag_events FROM evpg.stat_consumer WHERE name = 'now'), 0::bigint, 'to the end [A46]');
-- paused with events that are routed already
SELECT evpg_drop_saga(name) FROM unnest('{now,history,middle}'::text[]) name \g /dev/null
SELECT start('w' || n, script(send('w', 'Add', n))) FROM generate_series(1, 5) n \g /dev/null
SELECT is(run(2), '2 0', 'at most so many events [A31]');
SELECT is(total('w'), '2 3', 'the oldest first [A31]');
SELECT is(run(0), '0 0', 'none [A31]');
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE saga = saga() AND key LIKE 'w_'), 3::bigint,
  'the rest is before it [A31]');
SELECT evpg_pause_consumer(saga()) \g /dev/null
SELECT is(run(), '0 0', 'a paused saga does not do what is before it either [A46]');
SELECT evpg_resume_consumer(saga()) \g /dev/null
BEGIN;
SELECT is(run(1) || ' ' || total('w'), '1 0 3 6', 'in a transaction [A31]');
ROLLBACK;
SELECT is(total('w'), '2 3', 'rolled back, nothing is done [A31]');
SELECT is((SELECT max(attempts) FROM evpg.saga_event WHERE key LIKE 'w_'), 0, 'what was rolled back is not counted [A31]');
BEGIN;
SELECT start('own', script(send('w', 'Add', 100))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(total('w'), '5 15', 'an event of the transaction itself is not passed on before it is committed [rule 9]');
COMMIT;
SELECT is(run() || ' ' || total('w'), '1 0 6 115',
  'a saga reacts to an event of its own transaction after the commit [rule 9, A29]');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM evpg.stream \g /dev/null
SELECT is(error_of('SELECT run()'), '25000 the stable position needs isolation level READ COMMITTED',
  'under REPEATABLE READ [A31]');
-- who does not see what instances there are cannot say what they still need
SELECT is(error_of($$SELECT register_script('script', 4)$$),
  '25000 evpg_register_saga() needs isolation level READ COMMITTED',
    'under REPEATABLE READ no saga is registered [rule 18]');
SELECT is(error_of($$SELECT evpg_drop_saga('script')$$),
  '25000 evpg_drop_saga() needs isolation level READ COMMITTED',
    'under REPEATABLE READ no saga is dropped [rule 18]');
ROLLBACK;
-- waiting for a saga
SELECT start('waited') \g /dev/null
SELECT max("position") AS waited FROM evpg.event \gset
SELECT is(evpg_wait_for(saga(), :waited, '0'), false, 'a saga has not reacted yet [A48]');
SELECT run() \g /dev/null
SELECT is(evpg_wait_for(saga(), :waited, '0'), true, 'now it has [A48]');
SELECT count(*) FROM evpg_append('counter', 'waited', ARRAY[evpg_event('Ignored')]) \g /dev/null
SELECT is(evpg_wait_for(saga(), (SELECT max("position") FROM evpg.event), '0'), true,
  'what it does not take is not waited for [A48]');
SELECT evpg_pause_consumer(saga()) \g /dev/null
SELECT start('waited2') \g /dev/null
SELECT run() \g /dev/null
SELECT is(evpg_wait_for(saga(), (SELECT max("position") FROM evpg.event), '0'), false,
  'while it is paused there is nothing to come [A48]');
SELECT evpg_resume_consumer(saga()) \g /dev/null
SELECT start('waited3', script(evpg_action_fail('on purpose'))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(evpg_wait_for(saga(), (SELECT max("position") FROM evpg.event), '0'), true,
  'a dead letter is not waited for [A48]');
SELECT matches((SELECT context FROM evpg.dead_letter WHERE key = 'waited3'), 'action 1 of saga "[^"]*", key "waited3"',
  'a dead letter says where it failed [A34]');
SELECT evpg_discard_dead_letter(dead_letter_id, 'a test') FROM evpg.dead_letter WHERE key = 'waited3' \g /dev/null
SELECT is(evpg_wait_for(saga(), (SELECT max("position") FROM evpg.event), '0'), true,
  'an event that was given up is not waited for [A48]');
-- an event that is injected, a chain of two sagas
SELECT count(*) FROM evpg_inject('counter', 'quiet',
  evpg_event('Started', script(send('w', 'Add', 10)), metadata => '{"from": "elsewhere"}')) \g /dev/null
SELECT is(run() || ' ' || total('w'), '0 0 6 115', 'sagas do not react to an injected event [A19]');
SELECT is((SELECT metadata FROM evpg.event WHERE aggregate_id = 'quiet'),
  '{"evpg": {"no_sagas": true}, "from": "elsewhere"}', 'its metadata say so, beside those of its own [A19]');
SELECT evpg_rebuild_saga(saga(), 'quiet') \g /dev/null
SELECT is((SELECT count(*) FROM evpg_saga(saga(), 'quiet')), 0::bigint,
  'a rebuild makes no instance of an injected event [A19]');
SELECT count(*) FROM evpg_inject('counter', 'injected',
  evpg_event('Started', script(send('w', 'Add', 10)), event_id => 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), run_sagas => true)
  \g /dev/null
SELECT is(run() || ' ' || total('w'), '1 0 7 125', 'unless they are asked to [A19]');
SELECT is((SELECT command_id FROM evpg.event WHERE aggregate_id = 'w' AND version = 7),
  command_id(saga(), 'injected', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1), 'its id makes the command''s [A19]');

-- ------------------------------------------------------------------ two sagas on one event, and drop

SELECT evpg_register_saga('second', 'test.script_event', timer_handler => 'test.script_timer',
  event_types => '{Started,Told}', start_event_types => '{Started}')
  \g /dev/null
SELECT start('both', script(send('bb', 'Add', 1), evpg_action_schedule('t', '1 hour'))) \g /dev/null
SELECT is(run() || ' ' || total('bb'), '2 0 2 2', 'each saga reacts to an event [B50, B58]');
SELECT is((SELECT count(DISTINCT command_id) FROM evpg.event WHERE aggregate_id = 'bb'), 2::bigint,
  'with other ids [rule 16]');
SELECT start('ff', script(evpg_action_fail('no'))), tell('both', script(send('bb', 'Add', 1))) \g /dev/null
SELECT run(1) \g /dev/null
SELECT is(evpg_drop_saga('second'), true, 'a saga is dropped [B50]');
SELECT is((SELECT count(*) FROM
  (SELECT saga FROM evpg.saga_instance UNION ALL SELECT saga FROM evpg.saga_event UNION ALL SELECT saga FROM evpg.timer
  UNION ALL SELECT name FROM evpg.saga UNION ALL SELECT name FROM evpg.consumer) x WHERE saga = 'second'), 0::bigint,
  'with all that it had [B50]');
SELECT run() \g /dev/null
SELECT is(total('bb'), '3 3', 'the other goes on [B50]');
SELECT is(evpg_drop_saga('second', true), false, 'it is not there any more [B50]');
SELECT is(error_of($$SELECT evpg_drop_saga('second')$$), 'VE010 saga "second" is not registered',
  'a saga that is gone is not known [B50]');
SELECT is(error_of($$SELECT evpg_saga('second', 'both')$$), 'VE010 saga "second" is not registered',
  'for who reads it, too [B50]');
SELECT is(error_of($$SELECT evpg_pause_consumer('second')$$), 'VE010 there is no consumer "second"',
  'evpg_pause_consumer() of an unknown saga is an error [B50]');

-- ------------------------------------------------------------------ registration

SELECT evpg_register_projection('p', 'test.counter_apply') \g /dev/null
SELECT is(error_of($$SELECT evpg_register_saga('p', 'test.script_event')$$), '42710 projection "p" already exists',
  'a name is of a projection or of a saga [B50]');
SELECT is(error_of($$SELECT evpg_register_projection('script', 'test.counter_apply')$$) LIKE
  '42710 saga "script" already exists%', true, 'a projection cannot have the name of a saga [B50]');
SELECT is(error_of($$SELECT evpg_skip_event('script', 1, 'no')$$) LIKE '0A000 "script" is a saga', true,
  'events of sagas are discarded as dead letters [A34]');
CREATE FUNCTION test.wrong(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT refused(format('SELECT evpg_register_saga(%s)', args), error, 'evpg_register_saga(' || left(args, 60) || ') [B24]')
  FROM (VALUES
  ($$NULL, 'test.script_event'$$, '22004 saga name must not be null'),
    ($$'', 'test.script_event'$$, '22023 saga name must not be empty'), ($$'evpg.x', 'test.script_event'$$, 'VE017 %'),
  ($$'x'$$, '22023 a saga is registered with either a handler or a library'),
    ($$'x', 'test.script_event', library => 'evpg_test', symbol => 'script'$$, '22023 a saga is registered with either%'),
  ($$'x', library => 'evpg_test'$$, '22004 symbol must not be null'),
    ($$'x', symbol => 'script'$$, '22004 library must not be null'),
  ($$'x', 'test.nope'$$, '42883 %'), ($$'x', 'test.wrong'$$, '42P13 %saga handler%'),
    ($$'x', 'test.script_timer'$$, '42P13 %saga handler%'),
  ($$'x', 'test.script_event', 'test.script_event'$$, '42P13 %rejection handler%'),
    ($$'x', 'test.script_event', timer_handler => 'test.script_event'$$, '42P13 %timer handler%'),
  ($$'x', 'test.script_event', key_function => 'test.script_event'$$, '42P13 %key function%'),
  ($$'x', 'test.script_event', key_path => '$.a', key_function => 'test.group_of'$$, '22023 a saga has one kind of key'),
  ($$'x', 'test.script_event', max_attempts => 0$$, '22023 max_attempts must be at least 1'),
    ($$'x', 'test.script_event', max_attempts => NULL$$, '22004 max_attempts must not be null'),
  ($$'x', 'test.script_event', backoff => '-1 s'$$, '22023 backoff must be between 0 and 100 years'),
    ($$'x', 'test.script_event', max_backoff => '101 years'$$, '22023 max_backoff must be between%'),
  ($$'x', 'test.script_event', backoff => NULL$$, '22004 backoff must not be null'),
    ($$'x', 'test.script_event', version => 0$$, '22023 version must be at least 1'),
  ($$'x', 'test.script_event', initial_state => NULL$$, '22004 initial state must not be null'),
  ($$'x', 'test.script_event', event_types => ARRAY[NULL]$$,
    '22023 event_types must be a one-dimensional array without nulls'),
    ($$'x', 'test.script_event', start_event_types => '{{A}}'$$, '22023 start_event_types%'),
  ($$'x', library => 'evpg_test', symbol => 'script', event_types => '{A}'$$,
    '22023 handlers, event types and keys of a library come from its symbol'),
  ($$'x', library => 'evpg_test', symbol => 'script', timer_handler => 'test.script_timer'$$, '22023 handlers,%'),
    ($$'x', library => 'evpg_test', symbol => 'script', initial_state => '{"a": 1}'$$, '22023 initial_state of a library%'),
  ($$'x', library => 'evpg_nowhere', symbol => 'script'$$, '58P01 %'),
    ($$'x', library => 'evpg_test', symbol => 'counter'$$, 'VE009 %'),
    ($$'x', library => 'evpg_test_broken', symbol => 'saga_no_events'$$, 'VE009 %'),
  ($$'x', library => 'evpg_test_broken', symbol => 'saga_empty_events'$$, 'VE009 %has no events'),
    ($$'x', library => 'evpg_test_broken', symbol => 'saga_empty_types'$$, 'VE009 %has no type in its aggregate_types'),
  ($$'x', library => 'evpg_test_broken', symbol => 'saga_no_reaction'$$, 'VE009 %'),
    ($$'x', library => 'evpg_test_broken', symbol => 'saga_no_timer'$$, 'VE009 %'),
    ($$'x', library => 'evpg_test_broken', symbol => 'saga_array_state'$$, 'VE009 %')) x (args, error);
SELECT is((SELECT count(*) FROM evpg.saga WHERE name = 'x') + (SELECT count(*) FROM evpg.consumer WHERE name = 'x'),
  0::bigint, 'nothing of them is registered [B24]');
SELECT is(error_of($$SELECT evpg_run_sagas(-1)$$), '22023 max_events must not be negative', 'evpg_run_sagas(-1) [A31]');
BEGIN READ ONLY;
SELECT is(error_of($$SELECT evpg_run_sagas()$$), '25006 cannot execute evpg_run_sagas() in a read-only transaction',
  'it writes [A31]');
SELECT is(error_of($$SELECT evpg_register_saga('x', 'test.script_event')$$),
  '25006 cannot execute evpg_register_saga() in a read-only transaction', 'a registration writes the row [B24]');
ROLLBACK;
BEGIN;
SELECT evpg_register_saga('gone', 'test.script_event', event_types => '{Started}') \g /dev/null
ROLLBACK;
SELECT start('after') \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'gone'), 0::bigint,
  'a registration that is rolled back [B24]');
-- the functions of a saga go
CREATE FUNCTION test.short(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{}')
$$;
SELECT evpg_register_saga('short', 'test.short', event_types => '{Started}', max_attempts => 1) \g /dev/null
DROP FUNCTION test.short;
SELECT start('orphan') \g /dev/null
SELECT is(run(), '0 0', 'a handler that is gone [B24]');
CREATE FUNCTION test.state_of(saga text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', status, attempts, last_sqlstate, parked, errors_total) FROM evpg.consumer
    JOIN evpg.stat_consumer USING (name, status, last_sqlstate, errors_total) WHERE name = saga
$$;
SELECT is(state_of('short'), 'stopped 1 42883 0 1', 'stops its saga, and no event is blamed [B24]');
SELECT is(run() || ' ' || state_of('short'), '0 0 stopped 1 42883 0 1', 'it stays so [B24]');
CREATE FUNCTION test.short(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{"short": true}')
$$;
SELECT evpg_resume_consumer('short') \g /dev/null
SELECT is(run() || ' ' || state_of('short'), '0 0 running 0 42883 0 1', 'until it is there again [B24]');
SELECT is((SELECT state FROM evpg_saga('short', 'orphan')), '{"short": true}',
  'a saga whose code has come back reacts to what came meanwhile [B24]');
-- with more attempts it is looked for again, after pauses; key functions too
CREATE FUNCTION test.short_key(event evpg.event) RETURNS text LANGUAGE sql STABLE AS $$ SELECT event.aggregate_id $$;
SELECT evpg_register_saga('short', 'test.short', event_types => '{Started}', key_function => 'test.short_key',
  max_attempts => 3) \g /dev/null
DROP FUNCTION test.short_key;
SELECT start('keyless') \g /dev/null
SELECT is(run() || ' ' || state_of('short'), '0 0 running 1 42883 0 2', 'a key function that is gone [B24]');
-- a pause that no slow server outlasts
UPDATE evpg.consumer SET retry_at = retry_at + interval '10 minutes' WHERE name = 'short';
SELECT is(run() || ' ' || state_of('short'), '0 0 running 1 42883 0 2', 'is not looked for at once [B24]');
SELECT evpg_set_clock_offset('1000 s') \g /dev/null
SELECT is(run() || ' ' || state_of('short'), '0 0 running 2 42883 0 2', 'code that was missing is looked for later [B24]');
CREATE FUNCTION test.short_key(event evpg.event) RETURNS text LANGUAGE sql STABLE AS $$ SELECT event.aggregate_id $$;
SELECT evpg_set_clock_offset('2000 s') \g /dev/null
SELECT is(run() || ' ' || state_of('short'), '0 0 running 0 42883 0 2', 'code that was missing is found later [B24]');
SELECT evpg_set_clock_offset() \g /dev/null
SELECT is((SELECT state FROM evpg_saga('short', 'keyless')), '{"short": true}', 'with no event lost [B24]');
SELECT is(error_of($$SELECT evpg_register_saga('never', 'test.short', event_types => '{B}', start_event_types => '{A}')$$),
  '22023 start event type "A" is not one of the event types of the saga', 'a saga that would never start [B24]');

-- the code of a version that no instance has any more is not needed
CREATE FUNCTION test.aged(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT CASE event.type WHEN 'End' THEN evpg_reaction(state, evpg_action_complete()) ELSE evpg_reaction('{"aged": 1}') END
    $$;
SELECT evpg_register_saga('v', 'test.aged', event_types => '{Begin,End}', start_event_types => '{Begin}'),
  signal('aged1', 'Begin') \g /dev/null
SELECT run(), evpg_register_saga('v', 'test.v2', event_types => '{Begin,End}', start_event_types => '{Begin}', version => 2),
  signal('aged1', 'End') \g /dev/null
SELECT run() \g /dev/null
DROP FUNCTION test.aged;
SELECT signal('aged2', 'Begin') \g /dev/null
SELECT is(run() || ' ' || in_state('aged1') || ' ' || in_state('aged2'), '0 0 completed {"aged": 1} running {"v2": 1}',
  'the code of a version without running instances is not needed [B24, rule 18]');
SELECT is(versions(), '2',
  'the code of a version without running instances is not needed, and such a version goes [rule 18]');
SELECT evpg_drop_saga('v') \g /dev/null

-- ------------------------------------------------------------------ who may

CREATE ROLE evpg_saga_reader;
CREATE ROLE evpg_saga_writer;
CREATE ROLE evpg_saga_operator;
SELECT evpg_grant('evpg_saga_reader', 'reader'), evpg_grant('evpg_saga_writer', 'writer'),
  evpg_grant('evpg_saga_operator', 'operator') \g /dev/null
GRANT USAGE, CREATE ON SCHEMA test TO evpg_saga_operator;
SELECT alike(as_role('evpg_saga_' || role, statement), CASE WHEN level <= least THEN 'done' ELSE '42501 %' END,
  role || ': ' || statement)
  FROM (VALUES (3, 'reader'), (2, 'writer'), (1, 'operator')) r (level, role), (VALUES
  (3, $$SELECT evpg_saga('script', 'x')$$), (2, $$SELECT evpg_action_complete()$$), (2, $$SELECT evpg_reaction('{}')$$),
    (1, $$SELECT evpg_cancel_timer(evpg_schedule_command('2001-01-01', 'counter', 'sch', 'Add'))$$),
    (1, $$SELECT evpg_reschedule_timer(0, '2001-01-01')$$),
  (1, $$SELECT evpg_run_sagas()$$), (1, $$SELECT evpg_retry_dead_letter(0)$$), (1, $$SELECT evpg_retry_dead_letters(NULL)$$),
    (1, $$SELECT evpg_discard_dead_letter(0, 'no')$$), (1, $$SELECT evpg_drop_saga('nobody', true)$$),
  (1, 'SELECT * FROM evpg.saga'), (1, 'SELECT * FROM evpg.saga_instance'), (1, 'SELECT * FROM evpg.saga_event'),
    (1, 'SELECT * FROM evpg.timer'), (1, 'SELECT * FROM evpg.dead_letter'),
  (0, 'DELETE FROM evpg.dead_letter'), (0, 'UPDATE evpg.saga_instance SET version = 0'), (0, 'DELETE FROM evpg.timer'),
    (0, $$SELECT evpg_register_saga('o', 'test.script_event')$$),
  (0, $$SELECT evpg_register_saga('o', library => 'evpg_test', symbol => 'script')$$)) x (least, statement);
SET ROLE evpg_saga_operator;
CREATE FUNCTION test.own_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql STABLE AS $$
BEGIN RETURN evpg_reaction(jsonb_build_object('as', current_user), evpg_action_send('counter', 'sent', 'Add', '{"n": 1}'));
  END $$;
SELECT public.evpg_register_saga('own', 'test.own_event', event_types => '{Owned}') \g /dev/null
RESET ROLE;
SELECT count(*) FROM evpg_append('counter', 'owned', ARRAY[evpg_event('Owned')]) \g /dev/null
SELECT is(run() || total('sent'), '1 01 1', 'an operator registers functions of its own');
SELECT is((SELECT state FROM evpg_saga('own', 'owned')), '{"as": "evpg_saga_operator"}',
  'an operator registers functions of its own, which run as it');
DROP OWNED BY evpg_saga_reader, evpg_saga_writer, evpg_saga_operator, evpg_saga_owner CASCADE;
DROP ROLE evpg_saga_reader, evpg_saga_writer, evpg_saga_operator, evpg_saga_owner;
SELECT * FROM finish();
