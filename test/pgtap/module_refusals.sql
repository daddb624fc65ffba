-- module_refusals.sql: how a module in C refuses a command: with any code, message and detail, and from handlers and
-- invariants alone (rule 8).

\ir include/setup.sql
-- some of the text has characters of more than one byte
SET client_encoding = 'UTF8';
\ir include/module.sql

SELECT plan(33);
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

-- refusals: cut where they are too long, not in the middle of a character
SELECT is((SELECT (status, length(code), length(message), code = left(repeat('€', 100), 21), message
  = left(repeat('ä', 600), 255))::text
             FROM evpg_try_execute('hostile', 'a', 'Refuse',
             jsonb_build_object('code', repeat('€', 100), 'message', repeat('ä', 600)))), '(rejected,21,255,t,t)',
  'code and message are cut between characters [B08]');
SELECT same($$SELECT status, code, message, detail FROM evpg_try_execute('hostile', 'a', 'Refuse', '{"code": "only"}')$$,
  $$VALUES ('rejected', 'only', 'command "Refuse" of hostile "a" was refused: only', NULL::jsonb)$$,
  'without a message it says which command was refused [B08]');
SELECT same($$SELECT code, message, detail FROM evpg_try_execute('hostile', 'a', 'Refuse',
  '{"code": "c", "message": "100 % %s %n", "detail": [1.50, null]}')$$,
  $$VALUES ('c', '100 % %s %n', '[1.50, null]'::jsonb)$$, 'percent signs are text, detail is exact [B08]');
SELECT refused(hostile('Refuse', '{"code": "c", "message": "100 % %s %n"}'), E'VE002 100 \\% \\%s \\%n',
  'as an error too [B08]');
SELECT is((SELECT (status, coalesce(code, ''), message <> '')::text FROM evpg_try_execute('hostile', 'a', 'Refuse', '{}')),
  '(rejected,"",t)', 'a refusal without code and message still has a message [B08]');

-- NULL where there should be a code or message, texts without an end
SELECT same($$SELECT status, code, message FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "no code"}')$$,
  $$VALUES ('rejected', NULL::text, 'refused without a code')$$, 'a refusal whose code is NULL [B08]');
SELECT same($$SELECT code, message FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "nothing"}')$$,
  $$VALUES (NULL::text, 'command "Misuse" of hostile "a" was refused')$$, 'a refusal that says nothing [B08]');
SELECT is((SELECT (status, code = repeat('c', 63), message = repeat('m', 511))::text
  FROM evpg_try_execute('hostile', 'a', 'Misuse', '{"say": "endless code"}')), '(rejected,t,t)',
  'code and message without an end [B08]');

-- what only callbacks of other kinds can say is not dropped in silence
SELECT refused(hostile('Misuse', jsonb_build_object('say', say)), 'VE009 a handler must not call evpg_' || f || '()',
  'a handler says what it cannot: ' || say || ' [rule 8]') FROM (VALUES ('delta', 'delta'), ('delete', 'delete'),
  ('complete', 'act'), ('unhandled', 'unhandled'), ('reads', 'reads')) x (say, f);
SELECT refused(hostile('TellInvariant', jsonb_build_object('say', say)),
  'VE009 an invariant must not call evpg_' || f || '()',
  'an invariant says what it cannot: ' || say || ' [rule 8]') FROM (VALUES ('emit', 'emit'), ('delta', 'delta'),
  ('delete', 'delete'), ('complete', 'act'), ('unhandled', 'unhandled')) x (say, f);
SELECT refused(hostile('TellInvariant', '{"say": "no code"}'), 'VE006 refused without a code',
  'an invariant without a code [B08]');

SELECT is(evpg_stream_version('hostile', 'a'), 1::bigint, 'the refused ones left nothing [rule 5]');
SELECT * FROM finish();
