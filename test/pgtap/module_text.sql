-- module_text.sql: text of a module in C that PostgreSQL cannot hold: a clear error, and nothing is written.

\ir include/setup.sql
\ir include/module.sql

SELECT plan(84);
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 1', 'a stream');

-- text that PostgreSQL cannot hold
SELECT refused(hostile('BadText', jsonb_build_object('where', w, 'how', how)),
  '22021 % contains text that is not valid UTF-8', 'invalid UTF-8 (' || how || ') from a module: ' || w)
  FROM unnest('{latin1,surrogate,overlong}'::text[]) how,
  unnest('{type,data,key,scalar,metadata,tag,code,message,detail,failure}'::text[]) w;
SELECT refused(hostile('BadText', jsonb_build_object('where', w, 'how', 'zero')), E'22P05 % contains \\\\u0000',
  E'\\u0000 from a module: ' || w)
  FROM unnest('{type,data,scalar,metadata,tag,detail}'::text[]) w;
SELECT refused(replace(hostile('BadText', jsonb_build_object('where', w, 'how', 'latin1')), 'evpg_execute',
  'evpg_try_execute'), '22021 %', 'invalid UTF-8 in an outcome: ' || w)
  FROM unnest('{code,message,detail,failure}'::text[]) w;

-- a line for the log
SELECT is(try('a', 'Misuse', '{"say": "log"}'), 'noop 1', 'a line for the log that is no text');
SELECT is(try('a', 'Number', '{"which": "tenth"}'), 'ok 2', 'the session works on after a line for the log that is no text');

SELECT is(evpg_stream_version('hostile', 'a'), 2::bigint, 'the refused ones left nothing [rule 5]');
SELECT * FROM finish();
