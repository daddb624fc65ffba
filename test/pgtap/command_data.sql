-- command_data.sql: data that a command cannot have, for a handler in C and for one in SQL.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(24);
SET test.kind = counter_c;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a stream');

-- data that a module in C cannot take
SELECT refused(format($$SELECT evpg_execute('counter_c', 'a', 'Add', %L)$$, data),
  '22023 data of command "Add" must be a JSON object', 'command data ' || data || ' for a module in C')
  FROM unnest(E'{[],[1],7,1.5,"\\"text\\"",true,false}'::text[]) data;
SELECT is((SELECT data FROM evpg_execute('counter_c', 'a', 'Add', data)), '{"n": 0}', 'command data '
  || coalesce(data::text, 'NULL') || ' is none') FROM unnest(ARRAY['null', NULL]::jsonb[]) data;
SELECT is((SELECT count(*) FROM evpg_execute('counter', 'j', 'Nothing', data)), 0::bigint, 'a function takes command data '
  || coalesce(data::text, 'NULL'))
  FROM unnest(ARRAY['[]', '7', '"text"', 'true', 'null', NULL]::jsonb[]) data;

SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 4', 'the session works on after data that was refused');
SELECT * FROM finish();
