-- A bench database: the twin of the event log, the aggregates, and their streams.
--
-- Variables of psql: streams, how many for each aggregate type; load, thousands of events of the stream that is loaded.
SET client_min_messages = warning;
CREATE EXTENSION evpg;
\ir ../examples/bank/bank.sql

-- Like the log in columns, constraints and indexes: here go the INSERTs that everything is measured against.
CREATE SCHEMA bench;
CREATE TABLE bench.twin (LIKE evpg.event_log INCLUDING ALL);
CREATE SEQUENCE bench.twin_position CACHE 1;

-- What an application without evpg would have: the events of bench/client.c.
CREATE TABLE bench.by_hand (
  "position" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  stream_type text COLLATE "C" NOT NULL,
  stream_id text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  event_id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
  type text COLLATE "C" NOT NULL,
  data jsonb NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (stream_type, stream_id, version));
INSERT INTO bench.by_hand (stream_type, stream_id, version, type, data)
SELECT 'bench_c', i::text, 1, 'AccountOpened', '{"owner": "bench"}' FROM generate_series(1, :streams) AS i;

-- The bank account of the example under a name for each contender, so that each has streams of its own.
SELECT evpg_register_aggregate('bench_append', library => 'evpg_bank', symbol => 'bank_account');
SELECT evpg_register_aggregate('bench_c', library => 'evpg_bank', symbol => 'bank_account');
SELECT evpg_register_aggregate('bench_sql', handler => 'bank.account_handle', reducer => 'bank.account_apply',
  invariant => 'bank.account_invariant', initial_state => '{"open": false, "balance": 0}');
-- The same in C, each with a projection: without frames, by a function, with frames of what changed; and one with frames of
-- its events.
SELECT evpg_register_aggregate(t, library => 'evpg_bank', symbol => 'bank_account')
  FROM unnest(ARRAY['bench_projected_c', 'bench_projected_sql', 'bench_broadcast']) AS t;
SELECT evpg_register_aggregate('bench_events', library => 'evpg_bank', symbol => 'bank_account', broadcast => 'pointer');
SELECT evpg_register_projection('bench_projected_c', library => 'evpg_bank', symbol => 'bank_balances',
         aggregate_types => '{bench_projected_c}', broadcast => 'none');
SELECT evpg_register_projection('bench_broadcast', library => 'evpg_bank', symbol => 'bank_balances',
         aggregate_types => '{bench_broadcast}', broadcast => 'delta');
SELECT evpg_register_projection('bench_projected_sql', reducer => 'bank.balances_apply',
  aggregate_types => '{bench_projected_sql}',
  event_types => '{AccountOpened,MoneyDeposited,MoneyWithdrawn,AccountClosed}', initial_state => '{"balance": 0}',
  broadcast => 'none');
-- without snapshots: its state is folded from all events
SELECT evpg_register_aggregate('bench_load', library => 'evpg_bank', symbol => 'bank_account', snapshot_every => 0);

-- Tells bench/run how many calls in a second: commands on one stream, as many in each transaction.
CREATE PROCEDURE bench.calls(of_transaction int, calls int) LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz;
BEGIN
  PERFORM FROM evpg_try_execute('bench_append', '1', 'Deposit', '{"amount": 10}');
  COMMIT;
  started := clock_timestamp();
  FOR i IN 1 .. calls LOOP
    PERFORM FROM evpg_try_execute('bench_append', '1', 'Deposit', '{"amount": 10}');
    IF i % of_transaction = 0 THEN
      COMMIT;
    END IF;
  END LOOP;
  COMMIT;
  RAISE INFO 'rate %', calls / extract(epoch FROM clock_timestamp() - started);
END $$;

SET evpg.broadcast = off;
SELECT count(e.version)
  FROM unnest(ARRAY['bench_append', 'bench_c', 'bench_sql', 'bench_projected_c', 'bench_projected_sql',
    'bench_broadcast', 'bench_events']) AS t,
       generate_series(1, :streams) AS i,
       evpg_append(t, i::text, ARRAY[evpg_event('AccountOpened', '{"owner": "bench"}')]) AS e;

-- 1,000 events, as composites and as arrays of their parts; stored uncompressed, so that reading them costs little.
CREATE TABLE bench.batch (events evpg.new_event[], types text[], datas jsonb[]);
ALTER TABLE bench.batch ALTER events SET STORAGE EXTERNAL, ALTER types SET STORAGE EXTERNAL,
  ALTER datas SET STORAGE EXTERNAL;
INSERT INTO bench.batch
SELECT array_agg(evpg_event('MoneyDeposited', d)), array_agg('MoneyDeposited'::text), array_agg(d)
  FROM generate_series(1, 1000) AS i, jsonb_build_object('amount', i) AS d;

SELECT count(e.version)
  FROM generate_series(0, :load - 1) AS i, bench.batch AS b,
    evpg_append('bench_load', '1', b.events, expected_version => i * 1000) AS e;

VACUUM ANALYZE evpg.event_log, evpg.stream, evpg.projection_state, bench.batch, bench.by_hand;
CHECKPOINT;
