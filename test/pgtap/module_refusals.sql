-- module_refusals.sql: how a module in C refuses a command: with any code, message and detail, and from handlers and invariants alone (rule 8).

\ir include/setup.sql
\ir include/module.sql

SELECT plan(31);
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

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

-- NULL where there should be a code or message, texts without an end
SELECT same($$SELECT status, code, message FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "no code"}')$$,
  $$VALUES ('rejected', NULL::text, 'refused without a code')$$, 'B08: a refusal whose code is NULL');
SELECT same($$SELECT code, message FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "nothing"}')$$,
  $$VALUES (NULL::text, 'command "Misuse" of hostile "a" was refused')$$, 'B08: a refusal that says nothing');
SELECT is((SELECT (status, code = repeat('c', 63), message = repeat('m', 511))::text
  FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "endless code"}')), '(rejected,t,t)',
  'B08: code and message without an end');

-- what only callbacks of other kinds can say is not dropped in silence
SELECT refused(hostile('Misuse', jsonb_build_object('say', say)), 'VE009 a handler must not call evpg_' || f || '()',
  'rule 8: a handler says what it cannot: ' || say) FROM (VALUES ('delta', 'delta'), ('delete', 'delete'),
  ('complete', 'act'), ('unhandled', 'unhandled')) x (say, f);
SELECT refused(hostile('TellInvariant', jsonb_build_object('say', say)), 'VE009 an invariant must not call evpg_' || f || '()',
  'rule 8: an invariant says what it cannot: ' || say) FROM (VALUES ('emit', 'emit'), ('delta', 'delta'),
  ('delete', 'delete'), ('complete', 'act'), ('unhandled', 'unhandled')) x (say, f);
SELECT refused(hostile('TellInvariant', '{"say": "no code"}'), 'VE006 refused without a code', 'B08: an invariant without a code');

SELECT is(evpg_stream_version('hostile', 'a'), 1::bigint, 'rule 5: the refused ones left nothing');
SELECT * FROM finish();
