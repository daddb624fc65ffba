-- A log to be read: events of one type, spread over its streams, and what the consumers of it are measured by.
--
-- Variables of psql: streams, events, how many deposits.
SET client_min_messages = warning;
CREATE EXTENSION evpg;
\ir ../examples/bank/bank.sql
CREATE SCHEMA bench;
SELECT evpg_register_aggregate('bench_log', library => 'evpg_bank', symbol => 'bank_account', snapshot_every => 0);
SELECT count(e.version)
  FROM generate_series(1, :streams) AS i, evpg_append(
    'bench_log', i::text, ARRAY[evpg_event('AccountOpened', '{"owner": "bench"}')]) AS e;
SELECT count(e.version)
  FROM generate_series(1, :events) AS i,
       evpg_append('bench_log', (1 + i * 7919::bigint % :streams)::text,
         ARRAY[evpg_event('MoneyDeposited', jsonb_build_object('amount', i))]) AS e;

-- The baseline: the rows of the projection by plain SQL.
CREATE TABLE bench.balance (key text COLLATE "C" PRIMARY KEY, state jsonb NOT NULL, version bigint NOT NULL,
  "position" bigint NOT NULL);
CREATE PROCEDURE bench.group_by() LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz;
BEGIN
  TRUNCATE bench.balance;
  COMMIT;
  started := clock_timestamp();
  INSERT INTO bench.balance
  SELECT aggregate_id, jsonb_build_object('owner', max(data->>'owner'), 'balance', sum((data->>'amount')::bigint)),
         count(*), max("position")
    FROM evpg.event WHERE aggregate_type = 'bench_log' AND type IN
         ('AccountOpened', 'MoneyDeposited', 'MoneyWithdrawn', 'AccountClosed')
   GROUP BY aggregate_id;
  COMMIT;
  PERFORM bench.done(1, started);
END $$;

-- Tells bench/run how many events were read in a second.
CREATE FUNCTION bench.done(times int, started timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  rate float8 := times * (SELECT count(*) FROM evpg.event_log) / extract(epoch FROM clock_timestamp() - started);
BEGIN
  IF (SELECT (count(*), sum((state->>'balance')::bigint)) IS DISTINCT FROM
             (SELECT (count(DISTINCT stream_id), sum((data->>'amount')::bigint)) FROM evpg.event_log)
        FROM bench.result) THEN
    RAISE 'the rows are not what the log says';
  END IF;
  RAISE INFO 'rate %', rate;
END $$;

-- The projection in C or by a function, under some name.
CREATE FUNCTION bench.register(name text, language text) RETURNS boolean LANGUAGE sql AS $$
  SELECT CASE language
    WHEN 'c' THEN evpg_register_projection(name, library => 'evpg_bank', symbol => 'bank_balances', mode => 'async',
      aggregate_types => '{bench_log}', broadcast => 'none')
    ELSE evpg_register_projection(name, reducer => 'bank.balances_apply', mode => 'async', aggregate_types => '{bench_log}',
      event_types => '{AccountOpened,MoneyDeposited,MoneyWithdrawn,AccountClosed}', initial_state => '{"balance": 0}',
      broadcast => 'none') END
$$;
CREATE VIEW bench.result AS
  SELECT key, state FROM bench.balance
  UNION ALL
  SELECT key, state FROM evpg.projected_state WHERE name = 'bench_1';

-- Looks again and again, for evpg_wait_for would hold a snapshot, and with it all versions of the rows.  COMMIT gives it
-- back.
CREATE PROCEDURE bench.wait_until_followed() LANGUAGE plpgsql AS $$
BEGIN
  WHILE EXISTS (SELECT FROM evpg.consumer WHERE checkpoint < (SELECT last_value FROM evpg.event_position)) LOOP
    IF EXISTS (SELECT FROM evpg.consumer WHERE status <> 'running' OR last_error IS NOT NULL) THEN
      RAISE 'a projection does not follow';
    END IF;
    PERFORM pg_sleep(0.005);
    COMMIT;
  END LOOP;
END $$;

-- As many projections as there are workers, each from the first event on.
CREATE PROCEDURE bench.follow(language text, workers int) LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz;
BEGIN
  TRUNCATE bench.balance;
  COMMIT;
  started := clock_timestamp();
  FOR i IN 1 .. workers LOOP
    PERFORM bench.register('bench_' || i, language);
  END LOOP;
  COMMIT;
  CALL bench.wait_until_followed();
  PERFORM bench.done(workers, started);
  PERFORM evpg_drop_projection('bench_' || i) FROM generate_series(1, workers) AS i;
END $$;

-- One projection, which has followed, is rebuilt by all workers.
CREATE PROCEDURE bench.rebuild(language text) LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz;
  how text;
BEGIN
  TRUNCATE bench.balance;
  PERFORM bench.register('bench_1', language);
  COMMIT;
  CALL bench.wait_until_followed();
  started := clock_timestamp();
  PERFORM evpg_rebuild_projection('bench_1', background => true);
  COMMIT;
  LOOP
    SELECT status INTO how FROM evpg.rebuild WHERE name = 'bench_1';
    EXIT WHEN NOT FOUND;
    IF how = 'failed' THEN
      RAISE 'the rebuild has failed';
    END IF;
    PERFORM pg_sleep(0.005);
    COMMIT;
  END LOOP;
  PERFORM bench.done(1, started);
  PERFORM evpg_drop_projection('bench_1');
  COMMIT;
  WHILE EXISTS (SELECT FROM evpg.old_build) LOOP
    PERFORM pg_sleep(0.05);
    COMMIT;
  END LOOP;
END $$;

-- A queue as applications build it: a row for each event, deleted when it was taken.
CREATE TABLE bench.queue AS SELECT * FROM evpg.event WITH NO DATA;
ALTER TABLE bench.queue ADD PRIMARY KEY ("position");

-- Nothing of the subscription "bench" has been read then; of the queue neither, which has so many events.  Without a kind
-- both are left as they are.
CREATE PROCEDURE bench.begin_consumers(kind text, events int, partitions int) LANGUAGE plpgsql AS $$
BEGIN
  IF kind = 'queue' THEN
    TRUNCATE bench.queue;
    INSERT INTO bench.queue SELECT * FROM evpg.event ORDER BY "position" LIMIT events;
  ELSIF kind IN ('fetch', 'next') THEN
    PERFORM evpg_drop_subscription('bench', missing_ok => true);
  END IF;
  IF kind IS DISTINCT FROM 'queue' THEN
    PERFORM evpg_create_subscription('bench', partitions => begin_consumers.partitions);
  END IF;
END $$;

VACUUM ANALYZE;
CHECKPOINT;
