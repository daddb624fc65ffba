-- module_states.sql: folds of a module in C that loop, or make a state that cannot be kept: the events are safe, and the
-- session goes on (rule 7).

\ir include/setup.sql
\ir include/module.sql

SELECT plan(19);
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

-- loops: statement_timeout ends them
SET statement_timeout = '500ms';
SELECT refused(hostile('FoldForever', '{}'), '57014 canceling statement due to statement timeout',
  'a fold that loops for ever');
RESET statement_timeout;
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 2', 'the session works on after a fold that loops');
SELECT count(*) FROM evpg_append('hostile', 'spun', evpg_events('[{"type": "Tried"}, {"type": "Spun"}]')) \g /dev/null
SET statement_timeout = '500ms';
SELECT refused($$SELECT evpg_state('hostile', 'spun')$$, '57014 %', 'a fold that loops for ever, in a state');
SELECT refused($$SELECT evpg_execute('hostile', 'spun', 'Nothing')$$, '57014 %',
  'a fold that loops for ever, in a replay of a command');
RESET statement_timeout;
SELECT is((SELECT state FROM evpg_state('hostile', 'spun', at_version => 1)), '{"tries": 1}',
  'the version before can be read');
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 3', 'the session works on after a stream that cannot be folded');

-- a fold that spoils the state: the events are safe, the state says what is wrong, no snapshot is kept
SET client_min_messages = error;
SELECT is(try('spoiled', 'Spoil', jsonb_build_object('how', how)), 'ok ' || n, 'a state with ' || how
  || ' cannot be a snapshot, but the command succeeds [rule 7]')
  FROM unnest('{latin1,zero,surrogate}'::text[]) WITH ORDINALITY x (how, n);
RESET client_min_messages;
SELECT is((SELECT count(*) FROM evpg.snapshot p JOIN evpg.stream s USING (stream_id) WHERE aggregate_id = 'spoiled'),
  0::bigint, 'there is none [rule 7]');
SELECT refused($$SELECT evpg_state('hostile', 'spoiled')$$, '22021 state contains text that is not valid UTF-8',
  'the state cannot be shown [A07]');
SELECT is((SELECT count(*) FROM evpg_read_stream('hostile', 'spoiled')), 3::bigint, 'its events can [A16]');
SELECT is(try('spoiled', 'Number', '{"which": "tenth"}'), 'ok 4', 'the stream goes on whose state cannot be shown')
  FROM set_config('client_min_messages', 'error', false);
RESET client_min_messages;
SELECT is(evpg_stream_version('hostile', 'a'), 3::bigint, 'the refused ones left nothing [rule 5]');
SELECT * FROM finish();
