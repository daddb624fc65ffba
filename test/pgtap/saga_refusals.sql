-- saga_refusals.sql: what a reaction and a key function of a saga cannot do (rules 16 and 17).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
\ir include/saga_follow.sql

SELECT plan(7);

-- ------------------------------------------------------------------ actions

SELECT tell('undo', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "u",
  "command_type": "Add", "data": {"n": 1},
  "undo": {"aggregate_type": "counter", "aggregate_id": "u", "command_type": "Add", "data": {"n": 2}, "undo": {}}}]}'),
  tell('half', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "u", "command_type": "Add", '
    '"data": {"n": 1}, "undo": {}}]}') \g /dev/null
SELECT is((SELECT r::text FROM evpg_run_sagas() r), '(0,2)',
  'an undo that could not be done is found before the send [rule 17]');
SELECT is(letter('undo'), '22023 an undo cannot be undone', 'an undo of an undo is refused before the send [rule 17]');
SELECT is(evpg_stream_version('counter', 'u'), NULL, 'nothing was sent [rule 16]');

-- ------------------------------------------------------------------ a reaction that works on sagas

SELECT tell('m' || n, jsonb_build_object('do', d), 'Meddled')
  FROM unnest('{SELECT evpg_run_sagas(),SELECT evpg_drop_saga(''meddle''),SELECT evpg_rebuild_saga(''meddle''),SELECT '
    'evpg_retry_dead_letters(''meddle'')}'::text[]) WITH ORDINALITY m (d, n) \g /dev/null
SELECT is((SELECT r::text FROM evpg_run_sagas() r), '(0,4)', 'a reaction cannot run, drop or rebuild sagas [rule 16]');
SELECT is((SELECT array_agg(DISTINCT letter('m' || n)) FROM generate_series(1, 4) n),
  '{"VE020 a reaction of a saga cannot drop sagas","VE020 a reaction of a saga cannot rebuild sagas","VE020 a '
    'reaction of a saga cannot retry dead letters","VE020 a reaction of a saga cannot run sagas"}',
    'each is told so [rule 16]');

-- ------------------------------------------------------------------ errors that look like those of operators

SELECT tell('57', '{"stop": "57000"}'), tell('fine', '{"actions": []}') \g /dev/null
CALL evpg_run();
SELECT is(letter(NULL), '57000 stop', 'a key function that pretends to be the server is a dead letter [rule 17]');
SELECT is((SELECT status FROM evpg_saga('follow', 'fine')), 'running',
  'a key function that raises an error of the server keeps no other instance waiting [rule 17]');
SELECT * FROM finish();
