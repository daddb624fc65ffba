--
-- transfer.sql: transfers of examples/bank by a saga: the same in SQL functions (transfer) and in C (transfer_c).
-- Rules 16 to 18.
--
\getenv directory PG_ABS_SRCDIR
\set bank :directory '/../examples/bank/bank.sql'
\set transfer :directory '/../examples/bank/transfer.sql'
\set ECHO none
SET client_min_messages = warning;
SET default_transaction_isolation = 'read committed'; -- sagas need it
\o /dev/null
SET client_min_messages = warning;
\i :bank
\i :transfer
RESET client_min_messages;
\o
\set ECHO all

-- ann has 1000, ben nothing, the account of cid is closed; one transfer after the other, for both kinds
CREATE TEMP TABLE kind (account text, transfer text);
INSERT INTO kind VALUES ('account', 'transfer'), ('account_c', 'transfer_c');
SELECT account, (evpg_execute(account, id, 'Open', '{"owner": "Owner"}')).type FROM kind, unnest('{ann,ben,cid}'::text[]) id;
SELECT account, (evpg_execute(account, 'ann', 'Deposit', '{"amount": 1000}')).type FROM kind;
SELECT account, (evpg_execute(account, 'cid', 'Close')).type FROM kind;
CREATE TEMP TABLE request (id text, data jsonb);
INSERT INTO request VALUES
  ('good', '{"from": "ann", "to": "ben", "amount": 600}'), ('poor', '{"from": "ann", "to": "ben", "amount": 600}'),
  ('closed payee', '{"from": "ann", "to": "cid", "amount": 100}'),
    ('closed payer', '{"from": "cid", "to": "ann", "amount": 1}'),
  ('no payee', '{"from": "ann", "to": "nobody", "amount": 100}'), ('back', '{"from": "ben", "to": "ann", "amount": 600}'),
  ('good', '{"from": "ann", "to": "ben", "amount": 600}'), ('same', '{"from": "ann", "to": "ann", "amount": 600}'),
  ('nothing', '{"from": "ann", "to": "ben", "amount": 0}'),
    ('too much', '{"from": "ann", "to": "ben", "amount": 1000000000001}'),
  ('fraction', '{"from": "ann", "to": "ben", "amount": 1.5}'), ('text', '{"from": "ann", "to": "ben", "amount": "5"}'),
  ('no amount', '{"from": "ann", "to": "ben"}'), ('numbers', '{"from": 1, "to": 2, "amount": 5}'),
  ('empty', '{"from": "", "to": "ben", "amount": 5}'), ('nobody', '{"amount": 5}'), ('null', 'null'), ('no data', NULL);
CREATE TEMP TABLE result (transfer text, n int GENERATED ALWAYS AS IDENTITY, id text, status text, code text, message text);
DO $$
DECLARE
  kind kind;
  request request;
BEGIN
  FOR kind IN SELECT * FROM pg_temp.kind LOOP
    FOR request IN SELECT * FROM pg_temp.request LOOP
      INSERT INTO result (transfer, id, status, code, message) SELECT kind.transfer, request.id, status, code, message
        FROM evpg_try_execute(kind.transfer, request.id, 'Request', request.data);
      COMMIT;
      CALL evpg_run();
    END LOOP;
  END LOOP;
END $$;
SELECT id, status, code, message FROM result WHERE transfer = 'transfer' ORDER BY n;
SELECT a.transfer, count(*),
  count(*) FILTER (WHERE (a.status, a.code, a.message) IS DISTINCT FROM (b.status, b.code, b.message)) AS different
  FROM result a JOIN result b ON b.transfer = 'transfer_c' AND b.n = a.n + (SELECT count(*) FROM request) GROUP BY 1;

-- what was written, in its order
CREATE TEMP TABLE written AS
  SELECT *, min(n) OVER (PARTITION BY transfer, correlation_id) AS first_of_correlation
    FROM (SELECT kind.transfer, row_number() OVER (PARTITION BY kind.transfer ORDER BY position) AS n,
                 replace(aggregate_type, '_c', '') AS aggregate_type, aggregate_id, version, type, data,
                 metadata->>'transfer' AS of_transfer, metadata #>> '{evpg,key}' AS by_saga_of, correlation_id
            FROM evpg.event, kind
           WHERE aggregate_type = kind.transfer OR aggregate_type = kind.account AND aggregate_id IN ('ann', 'ben', 'cid'))
             e;
SELECT n, aggregate_type, aggregate_id, version, type, data, of_transfer, by_saga_of, first_of_correlation
  FROM written WHERE transfer = 'transfer' ORDER BY n;
SELECT count(*), count(*) FILTER
  (WHERE to_jsonb(a) - '{transfer,correlation_id}'::text[] IS DISTINCT FROM to_jsonb(b) -
  '{transfer,correlation_id}'::text[]) AS different
  FROM (SELECT * FROM written WHERE transfer = 'transfer') a
    FULL JOIN (SELECT * FROM written WHERE transfer = 'transfer_c') b USING (n);

-- what it came to
SELECT s.aggregate_id, f.state AS in_sql, f.state = (SELECT state FROM evpg_state('transfer_c', s.aggregate_id)) AS same_in_c
  FROM evpg_streams('transfer') s, evpg_state('transfer', s.aggregate_id) f ORDER BY 1;
SELECT key, i.status, i.state, i.version, i.undo,
  (i.status, i.state, i.version, i.undo) = (c.status, c.state, c.version, c.undo) AS same_in_c
  FROM evpg.saga_instance i LEFT JOIN (SELECT * FROM evpg.saga_instance WHERE saga = 'transfer_c') c USING (key)
    WHERE i.saga = 'transfer' ORDER BY 1;
SELECT account, id, (evpg_state(account, id)).state->>'balance' AS balance FROM kind, unnest('{ann,ben,cid}'::text[]) id;
SELECT (SELECT count(*) FROM evpg.timer) AS timers, (SELECT count(*) FROM evpg.dead_letter) AS dead_letters;
