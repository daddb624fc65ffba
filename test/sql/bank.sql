--
-- bank.sql: a walk through the bank account of examples/bank: the same in SQL functions (account) and in C (account_c).
--
\getenv directory PG_ABS_SRCDIR
\set file :directory '/../examples/bank/bank.sql'
\set ECHO none
\i :file
\set ECHO all

-- a first account: commands go in, events come out
SELECT version, type, data FROM evpg_execute('account', 'alice', 'Open', '{"owner": "Alice"}');
SELECT version, type, data FROM evpg_execute('account', 'alice', 'Deposit', '{"amount": 1000}');
SELECT version, type, data FROM evpg_execute('account', 'alice', 'Withdraw', '{"amount": 250}');
SELECT version, state FROM evpg_state('account', 'alice');

-- what the account refuses is an error, which a driver sees with its code, or a row
SELECT evpg_execute('account', 'alice', 'Withdraw', '{"amount": 100000}');
\echo :LAST_ERROR_SQLSTATE
SELECT status, version, sqlstate, code, message, detail
  FROM evpg_try_execute('account', 'alice', 'Withdraw', '{"amount": 100000}');

-- opening it again is nothing to do
SELECT status, version, events FROM evpg_try_execute('account', 'alice', 'Open', '{"owner": "Alice"}');

-- who has read version 3 may ask for it
SELECT status, version FROM evpg_try_execute('account', 'alice', 'Deposit', '{"amount": 5}', expected_version => 3);
SELECT status, version, message FROM evpg_try_execute('account', 'alice', 'Deposit', '{"amount": 5}', expected_version => 3);

-- who is not sure whether a command was done sends it again
SELECT status, version FROM evpg_try_execute('account', 'alice', 'Deposit', '{"amount": 7}', command_id => 'transfer 17');
SELECT status, version FROM evpg_try_execute('account', 'alice', 'Deposit', '{"amount": 7}', command_id => 'transfer 17');

-- history
SELECT version, type, data, command_id FROM evpg_read_stream('account', 'alice');
SELECT at, s.state FROM generate_series(0, 5) at, evpg_state('account', 'alice', at_version => at) s;

-- the same commands for both kinds
CREATE TEMP TABLE script (n int GENERATED ALWAYS AS IDENTITY, id text, command_type text, data jsonb,
  expected_version bigint, command_id text);
INSERT INTO script (id, command_type, data, expected_version, command_id) VALUES
  ('bob', 'Deposit', '{"amount": 1}', NULL, NULL), ('bob', 'Open', '{}', NULL, NULL),
  ('bob', 'Open', '{"owner": ""}', NULL, NULL), ('bob', 'Open', '{"owner": 7}', NULL, NULL),
  ('bob', 'Open', '{"owner": "Bob"}', 0, 'open'), ('bob', 'Open', '{"owner": "Bob"}', 0, 'open'),
  ('bob', 'Open', '{"owner": "Robert"}', NULL, NULL),
  ('bob', 'Deposit', '{"amount": 0}', NULL, NULL), ('bob', 'Deposit', '{"amount": -5}', NULL, NULL),
  ('bob', 'Deposit', '{"amount": 1.5}', NULL, NULL), ('bob', 'Deposit', '{"amount": "12"}', NULL, NULL),
  ('bob', 'Deposit', '{"amount": 1e3}', NULL, NULL), ('bob', 'Deposit', '{"amount": 12345678901234567890}', NULL, NULL),
  ('bob', 'Deposit', '{"amount": null}', NULL, NULL), ('bob', 'Deposit', '{}', NULL, NULL),
  ('bob', 'Deposit', 'null', NULL, NULL), ('bob', 'Deposit', NULL, NULL, NULL),
  ('bob', 'Deposit', '{"amount": 1000000000000}', 2, NULL), ('bob', 'Deposit', '{"amount": 1000000000001}', NULL, NULL),
  ('bob', 'Deposit', '{"amount": 10}', 2, NULL), ('bob', 'Withdraw', '{"amount": 1000000000000}', NULL, NULL),
  ('bob', 'Withdraw', '{"amount": 1000000000000}', NULL, NULL), ('bob', 'Close', '{}', NULL, NULL),
  ('bob', 'Withdraw', '{"amount": 1000}', NULL, 'last'), ('bob', 'Close', '{}', NULL, 'close'),
  ('bob', 'Withdraw', '{"amount": 1000}', NULL, 'last'), ('bob', 'Close', '{}', NULL, 'close'),
  ('bob', 'Close', '{}', NULL, NULL), ('bob', 'Deposit', '{"amount": 1}', NULL, NULL),
  ('bob', 'Open', '{"owner": "Bob"}', NULL, NULL), ('bob', 'Open', '{"owner": "Bob"}', -1, NULL);
CREATE TEMP TABLE result (n int, kind text, status text, version bigint, code text, message text, detail jsonb, event text);
DO $$
DECLARE
  step script;
BEGIN
  FOR step IN SELECT * FROM script ORDER BY n LOOP
    INSERT INTO result
      SELECT step.n, kind, o.status, o.version, o.code, o.message, o.detail,
      (SELECT string_agg((e->>'type') || ' ' || (e->>'data'), ', ') FROM jsonb_array_elements(o.events) e)
        FROM unnest('{account,account_c}'::text[]) kind,
        evpg_try_execute(kind, step.id, step.command_type, step.data, step.expected_version, step.command_id) o;
  END LOOP;
END $$;
SELECT s.command_type, s.data, s.expected_version AS expected, s.command_id, r.status, r.version, r.code, r.message,
  r.detail, r.event
  FROM script s JOIN result r USING (n) WHERE r.kind = 'account_c' ORDER BY n;

-- where functions and C differ: nowhere (messages of conflicts name the type)
SELECT s.n, s.command_type, s.data, f.status, c.status, f.code, c.code, f.message, c.message
  FROM result f JOIN result c USING (n) JOIN script s USING (n)
 WHERE f.kind = 'account' AND c.kind = 'account_c'
   AND (f.status, f.version, f.code, replace(f.message, '"account"', '"account_c"'), f.event)
       IS DISTINCT FROM (c.status, c.version, c.code, c.message, c.event);
SELECT version, state FROM evpg_state('account', 'bob');
SELECT version, state FROM evpg_state('account_c', 'bob');

-- read models: who has closed the account has no row, in SQL and in C; the statement adds up
SELECT name, key, state, generation, version FROM evpg.projected_state ORDER BY name, key;
SELECT name, generation, s.version, deleted FROM evpg.projection_state s JOIN evpg.projection USING (build) WHERE key = 'bob'
  ORDER BY name;
SELECT kind, status FROM unnest('{account,account_c}'::text[]) kind,
  evpg_try_execute(kind, 'carol', 'Open', '{"owner": "Carol"}');
SELECT kind, status FROM unnest('{account,account_c}'::text[]) kind,
  evpg_try_execute(kind, 'carol', 'Deposit', '{"amount": 20}');
SELECT kind, status FROM unnest('{account,account_c}'::text[]) kind,
  evpg_try_execute(kind, 'carol', 'Withdraw', '{"amount": 5}');
SELECT name, state, version FROM evpg.projected_state WHERE key = 'carol' AND name <> 'statement' ORDER BY name;
SELECT account, version, text, amount, balance FROM bank.statement ORDER BY account, version;
-- a rebuild comes to the same
SELECT name, evpg_rebuild_projection(name, 'carol') FROM unnest('{balances,balances_c}'::text[]) name;
SELECT name, state, generation, version FROM evpg.projected_state WHERE key = 'carol' AND name <> 'statement' ORDER BY name;
