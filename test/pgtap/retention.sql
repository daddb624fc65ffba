-- retention.sql: evpg_set_retention(): workers and evpg_run() prune what is older, a table at a time, some blocks in each
-- transaction.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/same_state.sql
\ir include/listener.sql

SELECT plan(42);
CREATE FUNCTION test.any_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event(command.command_type, command.data) $$;
CREATE FUNCTION test.any_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'breaks' THEN RAISE EXCEPTION 'broken'; END IF;
  RETURN state;
END $$;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'breaks' THEN RAISE EXCEPTION 'broken'; END IF;
  RETURN evpg_reaction('{"a": "name"}', evpg_action_complete());
END $$;
SELECT evpg_register_aggregate('a', 'test.any_handle', 'test.same_state') \g /dev/null
SELECT evpg_register_saga('s', handler => 'test.react', event_types => '{Told}', max_attempts => 1) \g /dev/null
SELECT evpg_register_projection('p', 'test.any_apply', mode => 'async', event_types => '{Told}', on_error => 'skip',
  max_attempts => 1) \g /dev/null
-- one of each kind that can be pruned
CREATE FUNCTION test.make(name text) RETURNS void LANGUAGE sql AS $$
  SELECT evpg_execute('a', name, 'Told', command_id => 'c');
  SELECT evpg_execute('a', name || ' bad', 'Told', '{"breaks": true}');
  SELECT evpg_receive('elsewhere', name);
$$;
-- how much of each kind is there, and not empty
CREATE FUNCTION test.kept() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT format('commands %s inbox %s sagas %s dead_letters %s parked_events %s', (SELECT count(*) FROM evpg.command_record),
    (SELECT count(*) FROM evpg.inbox),
    (SELECT count(*) FROM evpg.saga_instance WHERE saga_version <> 0),
      (SELECT count(*) FROM evpg.dead_letter WHERE message <> ''),
    (SELECT count(*) FROM evpg.parked_event WHERE skip_reason <> '')) $$;
CREATE FUNCTION test.resolve() RETURNS void LANGUAGE sql AS $$
  SELECT evpg_discard_dead_letter(dead_letter_id, 'no') FROM evpg.dead_letter WHERE resolved_at IS NULL
$$;

-- ------------------------------------------------------------------ what can be said

SELECT is(error_of($$SELECT evpg_set_retention('events', '1 day')$$), '22023 "events" has no retention', 'the log has none');
SELECT is(error_fields($$SELECT evpg_set_retention('events', '1 day')$$),
  '||Use commands, dead_letters, inbox, parked_events or sagas.', 'the hint says what has');
SELECT is(error_of($$SELECT evpg_set_retention('sagas', '-1 s')$$), '22023 retention must not be negative',
  'nothing is pruned before it is there');
SELECT is(error_of($$SELECT evpg_set_retention('sagas', '10000 years')$$), '22008 timestamp out of range',
  'a time that cannot be subtracted');
SELECT is(error_of($$SELECT evpg_set_retention('sagas', '0')$$), 'no error',
  'a retention of 0 is accepted: nothing need be kept');
SELECT evpg_set_retention('sagas', NULL) \g /dev/null
SELECT evpg_set_clock_offset('-99 years') \g /dev/null
SELECT is(error_of($$SELECT evpg_set_retention('sagas', '6700 years')$$), '22008 timestamp out of range',
  'a retention that is too long by the clock of evpg is refused');
SELECT evpg_set_clock_offset() \g /dev/null
SELECT is(error_of($$SELECT evpg_set_retention('sagas', '6700 years')$$), '22008 timestamp out of range',
  'a retention that is too long by any clock that may be set later is refused');
SELECT is(error_of($$SELECT evpg_set_retention(NULL, '1 day')$$) LIKE '22004 %', true,
  'evpg_set_retention() refuses NULL for what');
BEGIN READ ONLY;
SELECT is(error_of($$SELECT evpg_set_retention('sagas', '1 day')$$),
  '25006 cannot execute evpg_set_retention() in a read-only transaction', 'it writes');
ROLLBACK;

-- ------------------------------------------------------------------ never, unless it is said

SELECT make('old') \g /dev/null
CALL evpg_run();
SELECT resolve() \g /dev/null
SELECT is(kept(), 'commands 1 inbox 1 sagas 1 dead_letters 1 parked_events 1', 'there is one of each');
SELECT evpg_set_clock_offset('9 years') \g /dev/null
CALL evpg_run();
SELECT is(kept(), 'commands 1 inbox 1 sagas 1 dead_letters 1 parked_events 1', 'all is kept for ever');
BEGIN;
SELECT evpg_set_retention('commands', '1 day') \g /dev/null
ROLLBACK;
CALL evpg_run();
SELECT is(kept(), 'commands 1 inbox 1 sagas 1 dead_letters 1 parked_events 1',
  'a retention that was rolled back prunes nothing');

-- ------------------------------------------------------------------ rows that another session has locked

SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT count(*) FROM unnest('{command_record,inbox,saga_instance,dead_letter,parked_event}'::text[]) t,
  dblink('listener', format('SELECT 1 FROM evpg.%I FOR UPDATE', t)) x (one int) \g /dev/null
SET lock_timeout = '500ms';
SELECT is(error_of(format($$SELECT evpg_prune_%s('1 day')$$, what)), 'no error',
  what || ': pruning does not wait for rows that another session has locked')
  FROM unnest('{commands,inbox,sagas,dead_letters,parked_events}'::text[]) what;
RESET lock_timeout;
SELECT is(kept(), 'commands 1 inbox 1 sagas 1 dead_letters 1 parked_events 1', 'they stay');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null

-- ------------------------------------------------------------------ each kind by itself

SELECT evpg_set_clock_offset() \g /dev/null
SELECT evpg_set_retention(what, '30 days')
  FROM unnest('{commands,inbox,sagas,dead_letters,parked_events}'::text[]) what \g /dev/null
CALL evpg_run();
SELECT is(kept(), 'commands 1 inbox 1 sagas 1 dead_letters 1 parked_events 1', 'what is not old enough stays');
SELECT is((SELECT bool_and(looked_at > clock_timestamp() - interval '1 minute' AND next_block = 0 AND pruned_total = 0)
  FROM evpg.retention), true, 'evpg.retention shows that a table was looked through');
SELECT evpg_set_clock_offset('20 days'), make('new') \g /dev/null
CALL evpg_run();
SELECT resolve() \g /dev/null
SELECT evpg_set_clock_offset('29 days') \g /dev/null
CALL evpg_run();
SELECT is(kept(), 'commands 2 inbox 2 sagas 2 dead_letters 2 parked_events 2', 'by the clock of evpg');
SELECT evpg_set_clock_offset('31 days') \g /dev/null
CALL evpg_run();
SELECT is(kept(), 'commands 1 inbox 1 sagas 1 dead_letters 1 parked_events 1', 'what is older is pruned');
SELECT is((SELECT string_agg(message_key, ' ') FROM evpg.inbox), 'new', 'what is older is pruned, and no other');
SELECT is((SELECT array_agg(pruned_total) FROM evpg.retention), '{1,1,1,1,1}', 'evpg.retention counts what was pruned');
SELECT is((SELECT string_agg(key || ' ' || status || ' ' || state, ', ' ORDER BY key) FROM evpg.saga_instance),
  'new completed {"a": "name"}, old completed {}', 'the key of an instance stays [rule 18]');
SELECT evpg_set_retention('sagas', NULL) \g /dev/null
SELECT evpg_set_clock_offset('99 days') \g /dev/null
CALL evpg_run();
SELECT is(kept(), 'commands 0 inbox 0 sagas 1 dead_letters 0 parked_events 0', 'NULL ends it, for one kind');
SELECT is((SELECT string_agg(what, ' ' ORDER BY what) FROM evpg.retention), 'commands dead_letters inbox parked_events',
  'evpg.retention has no row for a kind whose retention ended');

-- ------------------------------------------------------------------ when

SELECT evpg_receive('elsewhere', 'later') \g /dev/null
UPDATE evpg.inbox SET received_at = '2001-01-01';
CALL evpg_run();
SELECT is(kept() LIKE '% inbox 1 %', true, 'a table is not looked through all the time');
SELECT evpg_set_clock_offset('99 days 9 min') \g /dev/null
CALL evpg_run();
SELECT is(kept() LIKE '% inbox 1 %', true, 'a table is not looked through again within ten minutes');
SELECT evpg_set_clock_offset('99 days 11 min') \g /dev/null
CALL evpg_run();
SELECT is(kept() LIKE '% inbox 0 %', true, 'a table is looked through again after ten minutes');
SELECT evpg_receive('elsewhere', 'later') \g /dev/null
UPDATE evpg.inbox SET received_at = '2001-01-01';
SELECT evpg_set_retention('inbox', '2 days') \g /dev/null
CALL evpg_run();
SELECT is(kept() LIKE '% inbox 0 %', true, 'a table is looked through at once after another retention was set');
SELECT evpg_receive('elsewhere', 'later') \g /dev/null
UPDATE evpg.inbox SET received_at = '2001-01-01';
SELECT evpg_set_clock_offset() \g /dev/null
CALL evpg_run();
SELECT is(kept() LIKE '% inbox 0 %', true, 'a table is looked through at once when the clock has gone back');

-- ------------------------------------------------------------------ large tables

INSERT INTO evpg.inbox (source, message_key, received_at)
  SELECT 'many', n::text, CASE WHEN n % 10 = 0 THEN clock_timestamp() ELSE '2001-01-01' END FROM generate_series(1, 20000) n;
SELECT is(pg_relation_size('evpg.inbox') > 3 * 32 * current_setting('block_size')::int, true, 'a table of many blocks');
SELECT evpg_set_retention('inbox', '2 days'), pruned_total AS before FROM evpg.retention WHERE what = 'inbox' \gset
SELECT more AS first_more FROM evpg.prune_batch('inbox') \gset
SELECT is(:'first_more' AND (SELECT next_block = 32 AND looked_at = '-infinity' FROM evpg.retention WHERE what = 'inbox'),
  true, 'is pruned some blocks at a time');
SELECT is((SELECT count(*) BETWEEN 12000 AND 19000 FROM evpg.inbox), true, 'in short transactions');
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.inbox), 2000::bigint, 'to its end');
SELECT is((SELECT pruned_total - :before FROM evpg.retention WHERE what = 'inbox'), 18000::bigint, 'each row once');
SELECT is((SELECT next_block = 0 AND looked_at > clock_timestamp() - interval '1 minute' FROM evpg.retention
  WHERE what = 'inbox'), true, 'workers do not look again after the last block');
UPDATE evpg.inbox SET received_at = '2001-01-01';
SELECT is(evpg_prune_inbox('1 day'), 2000::bigint, 'evpg_prune_inbox() does it in one transaction');

-- ------------------------------------------------------------------ events that are given up

SELECT evpg_register_projection('q', 'test.any_apply', mode => 'async', event_types => '{Told}', on_error => 'park',
  max_attempts => 1) \g /dev/null
CALL evpg_run();
SELECT evpg_set_clock_offset('60 days') \g /dev/null
SELECT count(evpg_skip_event('q', position, 'repaired by hand'))
  FROM (SELECT DISTINCT position FROM evpg.parked_event WHERE name = 'q' AND skip_reason IS NULL) p \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.parked_event
  WHERE name = 'q' AND skip_reason = 'repaired by hand' AND skipped_at > parked_at + interval '59 days'), 2::bigint,
  'what failed long ago and was given up now stays [rule 10]');
SELECT evpg_set_clock_offset('91 days') \g /dev/null
CALL evpg_run();
SELECT is((SELECT string_agg(concat_ws('|', skip_reason, error, skipped_by), ', ') FROM evpg.parked_event WHERE name = 'q'),
  ', ', 'until that is long ago, too [rule 10]');
SELECT is((SELECT bool_and(skipped_at IS NOT NULL) FROM evpg.parked_event WHERE skip_reason IS NOT NULL), true,
  'when it was given up stays [rule 10]');
SELECT * FROM finish();
