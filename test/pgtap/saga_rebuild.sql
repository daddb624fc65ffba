-- saga_rebuild.sql: the states of instances are folded once more, and nothing else happens (A35, rule 18).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(24);
SET test.kind = counter;
-- of a key that had events before there was a saga
SELECT start('old', '{"set": {"before": 1}}'), tell('old', '{"set": {"before": 2}}') \g /dev/null
SET test.kind_of_saga = functions;
SELECT register_script('script') \g /dev/null

SELECT start('old', '{"set": {"a": 1}}'), start('many', '{"set": {"x": [1, 2]}}'),
  tell('many', '{"set": {"y": 2}}'
  || script(send('sent', 'Add', 1, undo => send('sent', 'Subtract', 1)),
  evpg_action_schedule('script', '1 hour', payload => '{"set": {"rang": 1}}'))),
       start('done', '{"set": {"z": 3}}' || script(send('sent', 'Add', 2), evpg_action_complete())),
         tell('never', '{"set": {"n": 1}}') \g /dev/null
SELECT run() \g /dev/null
SELECT tell('done', '{"set": {"late": 1}}') \g /dev/null
SELECT run() \g /dev/null
CREATE TABLE test.before AS SELECT * FROM evpg.saga_instance;
CREATE FUNCTION test.differs() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(format('%s: %s | %s', key, b.*, i.*), ', '), '') FROM before b
    FULL JOIN evpg.saga_instance i USING (saga, key)
   WHERE (b.version, b.position, b.started_at, b.saga_version, b.status, b.state, b.undo) IS DISTINCT FROM
     (i.version, i.position, i.started_at, i.saga_version, i.status, i.state, i.undo) $$;
CREATE FUNCTION test.all_else() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', trace(), (SELECT string_agg(t::text, ',' ORDER BY timer_id) FROM evpg.timer t),
    (SELECT count(*) FROM evpg.dead_letter), (SELECT c::text FROM evpg.consumer c WHERE name = saga()))
$$;
SELECT all_else() AS all_else \gset
SELECT is(evpg_rebuild_saga('script'), 4::bigint, 'the events that instances have reacted to [A35]');
SELECT
  is(differs(), '',
  'fold to the states that there are, also of a completed instance, and of a key that is older than the saga '
  '[A35]');
-- 1.2 test 9: there, a rebuild sends all commands once more; here it must not, for they were executed
SELECT is(all_else(), :'all_else', 'nothing is sent, no timer set, nothing else changes [rule 18, 1.2 test 9]');
-- a state that was damaged, one key
UPDATE evpg.saga_instance SET state = '{"damaged": true}';
SELECT is(evpg_rebuild_saga('script', 'many'), 2::bigint, 'one instance [A35]');
SELECT is((SELECT string_agg(key, ' ' ORDER BY key) FROM evpg.saga_instance WHERE state ? 'damaged'), 'done old',
  'no other [A35]');
SELECT is(evpg_rebuild_saga('script', 'nobody'), 0::bigint, 'one that is not there [A35]');
SELECT evpg_rebuild_saga('script') \g /dev/null
SELECT is(differs(), '', 'all [A35]');
SELECT is(all_else(), :'all_else', 'a rebuild of all instances changes nothing else [rule 18]');
-- events that it has before it, and those that were given up
SELECT tell('many', script(evpg_action_fail('no')) || '{"set": {"failed": 1}}'), tell('many', '{"set": {"after": 1}}')
  \g /dev/null
SELECT run() \g /dev/null
SELECT evpg_rebuild_saga('script') \g /dev/null
SELECT is(differs(), '', 'what an instance has before it is not in its state [A35]');
SELECT evpg_discard_dead_letter(dead_letter_id, 'never mind') FROM evpg.dead_letter WHERE resolved_at IS NULL \g /dev/null
SELECT run() \g /dev/null
SELECT instance('many') AS many \gset
SELECT is(:'many' ~ 'after' AND :'many' !~ 'failed', true, 'an event is given up, the next one is not [rule 17]');
SELECT evpg_rebuild_saga('script') \g /dev/null
SELECT is(instance('many'), :'many', 'an event that was given up is not folded by a rebuild [A35]');
-- another handler
CREATE OR REPLACE FUNCTION test.script_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || jsonb_build_object('new', coalesce((state->>'new')::int, 0) + 1),
    evpg_action_send('counter', 'sent', 'Add', '{"n": 100}')) $$;
SELECT evpg_rebuild_saga('script') \g /dev/null
SELECT is((SELECT string_agg(key || (state - 'seen')::text, ' ' ORDER BY key) FROM evpg.saga_instance),
  'done{"new": 1} many{"new": 3} old{"new": 1}', 'by the handler of now [A35]');
SELECT is(total('sent'), '2 3', 'a rebuild by the present handler sends no commands [rule 18]');
-- it fails: nothing changes
CREATE OR REPLACE FUNCTION test.script_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql STABLE
  AS $$
BEGIN
  RAISE EXCEPTION 'broken';
END $$;
SELECT is(error_of($$SELECT evpg_rebuild_saga('script')$$), 'P0001 broken', 'a handler that fails [A35]');
SELECT is((SELECT string_agg(key || (state - 'seen')::text, ' ' ORDER BY key) FROM evpg.saga_instance),
  'done{"new": 1} many{"new": 3} old{"new": 1}', 'changes nothing [A35]');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(left(error_of($$SELECT evpg_rebuild_saga('script')$$), 5), '25000', 'under REPEATABLE READ [A35]');
ROLLBACK;
SELECT is(error_of($$SELECT evpg_rebuild_saga('nobody')$$), 'VE010 saga "nobody" is not registered',
  'a saga that is not there [A35]');
-- events that no instance has seen, because they had no key
CREATE FUNCTION test.numbers(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF event.data->>'n' = '4' THEN
    RAISE EXCEPTION 'four';
  END IF;
  RETURN evpg_reaction(state || (event.data->'n'));
END $$;
CREATE FUNCTION test.number(key jsonb, n int) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT position FROM evpg_append('counter', 'number', ARRAY[evpg_event('Number', jsonb_build_object('key', key, 'n', n))])
$$;
CREATE FUNCTION test.register_numbers(path jsonpath DEFAULT '$.data.key', start bigint DEFAULT NULL) RETURNS boolean
  LANGUAGE sql VOLATILE AS $$
  SELECT evpg_register_saga('numbers', 'test.numbers', event_types => '{Number}', initial_state => '[]', key_path => path,
    start_position => start, max_attempts => 1) $$;
CREATE FUNCTION test.rebuilt() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  count bigint := evpg_rebuild_saga('numbers');
BEGIN
  RETURN count || ' ' || (SELECT state FROM evpg_saga('numbers', 'a'));
END $$;
SELECT register_numbers() \g /dev/null
SELECT number('"a"', 1) AS first, number('[]', 2), number('"a"', 3), number('"a"', 4), number('"a"', 5) \gset
SELECT run() \g /dev/null
SELECT is(rebuilt(), '2 [1, 3]', 'an event without a key, which waits, is left out [A35]');
SELECT evpg_discard_dead_letter(dead_letter_id, 'no') FROM evpg.dead_letter
  WHERE saga = 'numbers' AND resolved_at IS NULL \g /dev/null
SELECT run() \g /dev/null
SELECT is(rebuilt(), '3 [1, 3, 5]', 'an event that was given up is left out [A35]');
SELECT number('["a"]', 6), number('"a"', 7) \g /dev/null
SELECT run() \g /dev/null
SELECT register_numbers('$.data.key[*]') \g /dev/null
SELECT is((SELECT retried FROM evpg_retry_dead_letters('numbers')), 1::bigint, 'one whose key is found later [rule 17]');
SELECT is(rebuilt(), '4 [1, 3, 5, 7]', 'is left out until its instance has reacted to it [A35]');
SELECT run() \g /dev/null
SELECT is(rebuilt(), '5 [1, 3, 5, 6, 7]',
  'after the instance has reacted to it, the event is in its place in a rebuild [A35]');
-- a saga of the same name that was dropped has given up other events
SELECT evpg_drop_saga('numbers'), register_numbers('$.data.key[*]', :first - 1) \g /dev/null
CREATE OR REPLACE FUNCTION test.numbers(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || (event.data->'n'))
$$;
SELECT run() \g /dev/null
SELECT is(rebuilt(), '6 [1, 3, 4, 5, 6, 7]', 'what an earlier saga of the name has given up is not left out [A35]');
SELECT is(error_of($$SELECT evpg_rebuild_saga(NULL)$$), '22004 saga name must not be null', 'no saga [A35]');
SELECT * FROM finish();
