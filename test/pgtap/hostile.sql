-- hostile.sql: a module in C that does what it must not do.  Clear errors, nothing lost, and the session works on.

\ir include/setup.sql
SELECT evpg_register_aggregate('hostile', library => 'evpg_test', symbol => 'hostile', snapshot_every => 2) \g /dev/null

SELECT plan(224);
SET test.kind = hostile;
CREATE FUNCTION test.hostile(command_type text, data jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT format('SELECT evpg_execute(%L, %L, %L, %L)', 'hostile', 'a', command_type, data) $$;
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

-- text that PostgreSQL cannot hold
SELECT refused(hostile('BadText', jsonb_build_object('where', w, 'how', how)),
  '22021 % contains text that is not valid UTF-8', 'invalid UTF-8 (' || how || ') from a module: ' || w)
  FROM unnest('{latin1,surrogate,overlong}'::text[]) how,
  unnest('{type,data,key,scalar,metadata,tag,code,message,detail,failure}'::text[]) w;
SELECT refused(hostile('BadText', jsonb_build_object('where', w, 'how', 'zero')), '22P05 % contains \\u0000',
  '\u0000 from a module: ' || w)
  FROM unnest('{type,data,scalar,metadata,tag,detail}'::text[]) w;
SELECT refused(replace(hostile('BadText', jsonb_build_object('where', w, 'how', 'latin1')), 'evpg_execute',
  'evpg_try_execute'), '22021 %', 'invalid UTF-8 in an outcome: ' || w)
  FROM unnest('{code,message,detail,failure}'::text[]) w;

-- refusals: cut where they are too long, not in the middle of a character
SELECT is((SELECT (status, length(code), length(message), code = left(repeat('€', 100), 21), message
  = left(repeat('ä', 600), 255))::text
             FROM evpg_try_execute('hostile', 'a', 'Refuse',
             jsonb_build_object('code', repeat('€', 100), 'message', repeat('ä', 600)))), '(rejected,21,255,t,t)',
  'B08: code and message are cut between characters');
SELECT same($$SELECT status, code, message, detail FROM evpg_try_execute('hostile', 'a', 'Refuse', '{"code": "only"}')$$,
  $$VALUES ('rejected', 'only', 'command "Refuse" of hostile "a" was refused: only', NULL::jsonb)$$,
  'B08: without a message it says which command was refused');
SELECT same($$SELECT code, message, detail FROM evpg_try_execute('hostile', 'a', 'Refuse',
  '{"code": "c", "message": "100 % %s %n", "detail": [1.50, null]}')$$,
  $$VALUES ('c', '100 % %s %n', '[1.50, null]'::jsonb)$$, 'B08: percent signs are text, detail is exact');
SELECT refused(hostile('Refuse', '{"code": "c", "message": "100 % %s %n"}'), 'VE002 100 \% \%s \%n', 'B08: as an error too');
SELECT is((SELECT (status, coalesce(code, ''), message <> '')::text FROM evpg_try_execute('hostile', 'a', 'Refuse', '{}')),
  '(rejected,"",t)', 'B08: a refusal without code and message still has a message');

-- envelopes
SELECT refused(hostile('Envelope', jsonb_build_object('change', change)), error, 'an event of a module: '
  || left(change::text, 60)) FROM (VALUES
  ('{"type": null}'::jsonb, '22004 event type must not be null'), ('{"type": ""}', '22023 event type must not be empty'),
  ('{"type": 7}', 'VE009 member "type" of an emitted event is not a string'),
  ('{"type": "a\nb"}', '22023 event type contains a control character'),
  ('{"type": "evpg.x"}', 'VE017 event type "evpg.x" is reserved'),
  ('{"type": "EVPG.x"}', 'VE017 event type "EVPG.x" is reserved'),
  (jsonb_build_object('type', repeat('x', 256)), 'VE014 event type is too long'),
  ('{"metadata": []}', '22023 metadata must be a JSON object'),
  ('{"metadata": {"evpg.x": 1}}', 'VE017 metadata key "evpg.x" is reserved'),
  ('{"tags": [1]}', 'VE009 member "tags" of an emitted event is not an array of strings'),
  ('{"tags": ["a", null]}', 'VE009 %not an array of strings'), ('{"tags": "red"}', 'VE009 %not an array of strings'),
  ('{"tags": [""]}', '22023 tag must not be empty'),
  ('{"schema_version": 0}', 'VE009 member "schema_version" of an emitted event is not a positive integer'),
  ('{"schema_version": -1}', 'VE009 %'),
  ('{"schema_version": "2"}', 'VE009 %'), ('{"schema_version": 2.5}', 'VE009 %'),
  ('{"schema_version": 5000000000}', 'VE009 %'), ('{"surprise": 1}', 'VE009 %')) x (change, error);

-- depth and size
SELECT is(try('deep', 'Deep', '{"depth": 100}'), 'ok 1', 'a hundred levels from a module');
SELECT refused(hostile('Deep', jsonb_build_object('depth', depth)), 'VE014 event data is nested too deeply', depth
  || ' levels from a module') FROM unnest('{101,10000}'::int[]) depth;
SELECT is(try('large', 'Large', '{"size": 16000000}'), 'ok 1', '16 MB from a module');
SELECT refused(hostile('Large', '{"size": 20000000}'), 'VE014 event data is too large', '20 MB from a module');

-- loops: statement_timeout ends them
SET statement_timeout = '500ms';
SELECT refused(hostile('FoldForever', '{}'), '57014 canceling statement due to statement timeout',
  'a fold that loops for ever');
RESET statement_timeout;
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 2', 'and the session works on');
SELECT count(*) FROM evpg_append('hostile', 'spun', evpg_events('[{"type": "Tried"}, {"type": "Spun"}]')) \g /dev/null
SET statement_timeout = '500ms';
SELECT refused($$SELECT evpg_state('hostile', 'spun')$$, '57014 %', 'a fold that loops for ever, in a state');
SELECT refused($$SELECT evpg_execute('hostile', 'spun', 'Nothing')$$, '57014 %',
  'a fold that loops for ever, in a replay of a command');
RESET statement_timeout;
SELECT is((SELECT state FROM evpg_state('hostile', 'spun', at_version => 1)), '{"tries": 1}',
  'the version before can be read');
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 3', 'and the session works on');

-- a fold that spoils the state: the events are safe, the state says what is wrong, no snapshot is kept
SET client_min_messages = error;
SELECT is(try('spoiled', 'Spoil', jsonb_build_object('how', how)), 'ok ' || n, 'rule 7: a state with ' || how
  || ' cannot be a snapshot, but the command succeeds')
  FROM unnest('{latin1,zero,surrogate}'::text[]) WITH ORDINALITY x (how, n);
RESET client_min_messages;
SELECT is((SELECT count(*) FROM evpg.snapshot p JOIN evpg.stream s USING (stream_id) WHERE aggregate_id = 'spoiled'),
  0::bigint, 'rule 7: there is none');
SELECT refused($$SELECT evpg_state('hostile', 'spoiled')$$, '22021 state contains text that is not valid UTF-8',
  'A07: the state cannot be shown');
SELECT is((SELECT count(*) FROM evpg_read_stream('hostile', 'spoiled')), 3::bigint, 'A16: its events can');
SELECT is(try('spoiled', 'Number', '{"which": "tenth"}'), 'ok 4', 'and the stream goes on')
  FROM set_config('client_min_messages', 'error', false);
RESET client_min_messages;
SELECT is(evpg_stream_version('hostile', 'a'), 3::bigint, 'rule 5: the refused ones left nothing');

-- values that contain themselves, 300,000 levels, 2^60 values that share their parts; where an array or an object should be
SELECT refused(hostile('Misshape', jsonb_build_object('where', w, 'how', how)), 'VE014 event % nested too deeply',
  'a module''s value of no end: ' || how || ' as ' || w)
  FROM unnest('{data,metadata}'::text[]) w, unnest('{cycle,deep}'::text[]) how;
SELECT refused(hostile('Misshape', jsonb_build_object('where', 'data', 'how', 'shared')), 'VE014 event data is too large',
  'a module''s value of 2^60 values');
SELECT refused(hostile('Misshape', jsonb_build_object('where', 'detail', 'how', how)), 'VE014 rejection detail %',
  'a module''s value of no end: ' || how || ' as the detail of a refusal') FROM unnest('{cycle,deep,shared}'::text[]) how;
SELECT refused(hostile('Misshape', jsonb_build_object('where', 'state', 'how', how)), 'VE014 state is %',
  'a module''s state of no end: ' || how) FROM unnest('{cycle,itself,deep,shared}'::text[]) how;
SELECT refused(hostile('Misshape', jsonb_build_object('where', w, 'how', how)), error,
  'a module''s value of another kind: ' || how || ' as ' || w) FROM unnest('{cycle,deep,none}'::text[]) how, (VALUES
  ('events', 'VE009 events of a handler are not a JSON array'), ('event', 'VE009 an emitted event has an unknown member'),
  ('tags', 'VE009 member "tags" of an emitted event is not an array of strings')) x (w, error)
  WHERE how <> 'none' OR w <> 'event';
SELECT count(*) FROM evpg_append('hostile', 'loaded', evpg_events('{"type": "Misshaped", "data": {"how": "itself"}}'))
  \g /dev/null
SELECT refused($$SELECT evpg_state('hostile', 'loaded')$$, 'VE014 state is nested too deeply',
  'a state of no end, in a replay');
SELECT refused($$SELECT evpg_execute('hostile', 'loaded', 'Nothing')$$, 'VE014 state is nested too deeply',
  'a state of no end, in a replay of a command');

-- one level deeper with each event: refused before it is too deep to be kept
CREATE FUNCTION test.nest_on() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  FOR n IN 1..1000 LOOP
    PERFORM evpg_execute('hostile', 'nested', 'Misshape', '{"where": "state", "how": "nest"}');
  END LOOP;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLERRM;
END $$;
SET client_min_messages = error;
SELECT is(nest_on(), 'state is nested too deeply', 'a state that each event makes deeper');
RESET client_min_messages;

-- what only callbacks of other kinds can say is not dropped in silence
SELECT refused(hostile('Misuse', jsonb_build_object('say', say)), 'VE009 a handler must not call evpg_' || f || '()',
  'rule 8: a handler says what it cannot: ' || say) FROM (VALUES ('delta', 'delta'), ('delete', 'delete'),
  ('complete', 'act'), ('unhandled', 'unhandled')) x (say, f);
SELECT refused(hostile('TellInvariant', jsonb_build_object('say', say)), 'VE009 an invariant must not call evpg_' || f || '()',
  'rule 8: an invariant says what it cannot: ' || say) FROM (VALUES ('emit', 'emit'), ('delta', 'delta'),
  ('delete', 'delete'), ('complete', 'act'), ('unhandled', 'unhandled')) x (say, f);
SELECT refused(hostile('TellInvariant', '{"say": "no code"}'), 'VE006 refused without a code', 'B08: an invariant without a code');

-- NULL where there should be something, texts without an end
SELECT same($$SELECT status, code, message FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "no code"}')$$,
  $$VALUES ('rejected', NULL::text, 'refused without a code')$$, 'B08: a refusal whose code is NULL');
SELECT same($$SELECT code, message FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "nothing"}')$$,
  $$VALUES (NULL::text, 'command "Misuse" of hostile "a" was refused')$$, 'B08: a refusal that says nothing');
SELECT is((SELECT (status, code = repeat('c', 63), message = repeat('m', 511))::text
  FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "endless code"}')), '(rejected,t,t)',
  'B08: code and message without an end');
SELECT is((SELECT tags FROM evpg_execute('hostile', 'tags', 'Misuse', '{"say": "no tag"}')), '{tag}', 'a tag that is NULL is none');
SELECT refused(hostile('Misuse', '{"say": "no type"}'), '22004 event type must not be null', 'an event type that is NULL');
SELECT is(try('a', 'Misuse', '{"say": "log"}'), 'noop 3', 'a line for the log that is no text');
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 4', 'and the session works on');
SELECT * FROM finish();
