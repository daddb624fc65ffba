-- What bench/instructions measures: the aggregates of setup.sql, and consumers that have something to do.
--
-- Variables of psql: streams, how many for each aggregate type; events, how many consumers have to read; load, 0: the
-- stream that is loaded gets its events after the consumers are done.
\ir setup.sql
\ir ../examples/bank/transfer.sql
-- Sagas and projections of the examples are not what is measured: each consumer is registered when its turn comes.
SELECT evpg_drop_saga(name) FROM evpg.saga;
SELECT evpg_drop_projection(name) FROM evpg.projection WHERE name NOT LIKE 'bench%';

-- The accounts once more, each with a projection that sends frames without data.
SELECT evpg_register_aggregate(t, library => 'evpg_bank', symbol => 'bank_account')
  FROM unnest('{bench_frames_c,bench_frames_sql,bench_log,bench_asking,bench_answering}'::text[]) AS t;
SELECT evpg_register_projection('bench_frames_c', library => 'evpg_bank', symbol => 'bank_balances',
  aggregate_types => '{bench_frames_c}', broadcast => 'pointer');
SELECT evpg_register_projection('bench_frames_sql', reducer => 'bank.balances_apply',
  aggregate_types => '{bench_frames_sql}', event_types => '{AccountOpened,MoneyDeposited,MoneyWithdrawn,AccountClosed}',
  initial_state => '{"balance": 0}', broadcast => 'pointer');

SELECT count(e.version)
  FROM unnest('{bench_frames_c,bench_frames_sql,bench_log,bench_asking,bench_answering}'::text[]) AS t,
       generate_series(1, :streams) AS i,
       evpg_append(t, i::text, ARRAY[evpg_event('AccountOpened', '{"owner": "bench"}')]) AS e;
SELECT count(e.version)
  FROM generate_series(1, :events - :streams) AS i,
       evpg_append('bench_log', (1 + i % :streams)::text,
         ARRAY[evpg_event('MoneyDeposited', jsonb_build_object('amount', i))]) AS e;
SELECT count(e.version)
  FROM generate_series(1, :streams) AS i,
       evpg_append('account_c', i::text, ARRAY[evpg_event('AccountOpened', '{"owner": "bench"}'),
         evpg_event('MoneyDeposited', '{"amount": 1000000000}')]) AS e;

-- The baseline of both: one statement that writes the same rows (bench/follow.sql has it as well).
CREATE TABLE bench.balance (key text COLLATE "C" PRIMARY KEY, state jsonb NOT NULL, version bigint NOT NULL,
  "position" bigint NOT NULL);
CREATE PROCEDURE bench.check_group_by() LANGUAGE plpgsql AS $$
BEGIN
  IF (SELECT (count(*), sum((state->>'balance')::bigint)) FROM bench.balance)
     IS DISTINCT FROM (SELECT (count(DISTINCT aggregate_id), sum((data->>'amount')::bigint))
                         FROM evpg.event WHERE aggregate_type = 'bench_log') THEN
    RAISE 'the rows are not what the log says';
  END IF;
END $$;

-- The asynchronous projection that is followed, and rebuilt.
CREATE FUNCTION bench.follow(language text) RETURNS boolean LANGUAGE sql AS $$
  SELECT CASE language
    WHEN 'c' THEN evpg_register_projection('followed', library => 'evpg_bank', symbol => 'bank_balances', mode => 'async',
      aggregate_types => '{bench_log}', broadcast => 'none')
    ELSE evpg_register_projection('followed', reducer => 'bank.balances_apply', mode => 'async',
      aggregate_types => '{bench_log}', event_types => '{AccountOpened,MoneyDeposited,MoneyWithdrawn,AccountClosed}',
      initial_state => '{"balance": 0}', broadcast => 'none') END
$$;

-- A saga of one step, in SQL: every deposit on an account of bench_asking is followed by one on that of bench_answering.
CREATE FUNCTION bench.answer(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state, evpg_action_send('bench_answering', event.aggregate_id, 'Deposit', event.data))
$$;
CREATE FUNCTION bench.start_saga(language text, mode text DEFAULT 'async') RETURNS boolean LANGUAGE sql AS $$
  SELECT CASE language
    WHEN 'c' THEN evpg_register_saga('started', library => 'evpg_bank', symbol => 'bank_transfer', mode => mode)
    ELSE evpg_register_saga('started', handler => 'bench.answer', aggregate_types => '{bench_asking}',
      event_types => '{MoneyDeposited}', mode => mode) END
$$;

-- What the consumers had to do is done; else what was measured means nothing.
CREATE PROCEDURE bench.check_consumers() LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM evpg.stat_consumer WHERE status <> 'running' OR last_error IS NOT NULL OR checkpoint <
       (SELECT max("position") FROM evpg.event WHERE aggregate_type IN ('bench_log', 'bench_asking', 'transfer_c'))) OR
     EXISTS (SELECT FROM evpg.saga_event) OR EXISTS (SELECT FROM evpg.dead_letter WHERE resolved_at IS NULL) THEN
    RAISE 'something is left to do';
  END IF;
  IF EXISTS (SELECT FROM evpg.consumer WHERE kind = 'projection') AND
     (SELECT (count(*), sum((state->>'balance')::bigint)) FROM evpg.projected_state WHERE name = 'followed')
     IS DISTINCT FROM (SELECT (count(DISTINCT aggregate_id), sum((data->>'amount')::bigint))
                         FROM evpg.event WHERE aggregate_type = 'bench_log') THEN
    RAISE 'the rows are not what the log says';
  END IF;
  IF EXISTS (SELECT FROM evpg.saga_instance WHERE saga_version = 1 AND status = 'running' AND state ? 'state') THEN
    RAISE 'a transfer is not completed';
  END IF;
END $$;

VACUUM ANALYZE;
CHECKPOINT;
