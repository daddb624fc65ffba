-- Transfers between accounts, by the sagas of the example and by hand, and a saga whose reaction is heard.
--
-- Variables of psql: streams, which is not used.
SET client_min_messages = warning;
-- A frame tells when a reaction was committed: it comes with the commit, also in workers.
ALTER DATABASE evpg_bench_saga SET evpg.broadcast = 'commit';
SET evpg.broadcast = off;
CREATE EXTENSION evpg;
\ir ../examples/bank/bank.sql
\ir ../examples/bank/transfer.sql
-- Sagas are there while they are measured; projections of the example are not what is measured.
SELECT evpg_drop_saga(name) FROM evpg.saga;
SELECT evpg_drop_projection(name) FROM evpg.projection;

CREATE SCHEMA bench;
CREATE SEQUENCE bench.transfer;
CREATE FUNCTION bench.accounts() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 200';
CREATE FUNCTION bench.suffix(language text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE language WHEN 'c' THEN '_c' ELSE '' END $$;
SELECT count(e.version)
  FROM unnest('{account,account_c}'::text[]) AS t, generate_series(1, bench.accounts()) AS i,
       evpg_append(t, i::text, ARRAY[
         evpg_event('AccountOpened', '{"owner": "bench"}'), evpg_event('MoneyDeposited', '{"amount": 1000000000}')]) AS e;

CREATE FUNCTION bench.register(language text, mode text) RETURNS boolean LANGUAGE sql AS $$
  SELECT CASE language
    WHEN 'c' THEN evpg_register_saga('transfer_c', library => 'evpg_bank', symbol => 'bank_transfer', mode => mode)
    ELSE evpg_register_saga('transfer', handler => 'bank.transfer_react', rejection_handler => 'bank.transfer_refused',
      timer_handler => 'bank.transfer_too_late', key_function => 'bank.transfer_of', aggregate_types => '{transfer,account}',
      event_types => '{TransferRequested,MoneyWithdrawn,MoneyDeposited}', start_event_types => '{TransferRequested}',
      mode => mode) END
$$;

-- Tells bench/run the rate, if every transfer was made once.
CREATE PROCEDURE bench.done(language text, after bigint, transfers int, started timestamptz) LANGUAGE plpgsql AS $$
DECLARE
  seconds float8 := extract(epoch FROM clock_timestamp() - started);
  counts bigint[] := ARRAY(SELECT count(DISTINCT coalesce(metadata->>'transfer', aggregate_id)) FROM evpg.event
    WHERE "position" > after GROUP BY type ORDER BY type COLLATE "C");
BEGIN
  IF counts IS DISTINCT FROM array_fill(transfers::bigint, '{4}') THEN
    RAISE 'not every transfer was made once: %', counts;
  END IF;
  RAISE INFO 'rate %', transfers / seconds;
END $$;

-- Transfers that one session asks for as fast as it can; from the first request to the end of the last transfer.
CREATE PROCEDURE bench.by_saga(language text, mode text, transfers int) LANGUAGE plpgsql AS $$
DECLARE
  saga text := 'transfer' || bench.suffix(language);
  before bigint;
  started timestamptz;
BEGIN
  PERFORM bench.register(language, mode);
  COMMIT;
  SELECT last_value INTO before FROM evpg.event_position;
  started := clock_timestamp();
  FOR i IN 1 .. transfers LOOP
    PERFORM evpg_execute(saga, nextval('bench.transfer')::text, 'Request', jsonb_build_object('amount', 10,
      'from', (i % bench.accounts() + 1)::text, 'to', ((i + bench.accounts() / 2) % bench.accounts() + 1)::text));
    COMMIT;
  END LOOP;
  -- four events for each; the positions are cheap to look at, but may have gaps
  WHILE (SELECT last_value < before + 4 * transfers FROM evpg.event_position)
     OR (SELECT count(*) < transfers FROM evpg.saga_instance WHERE status = 'completed') LOOP
    IF EXISTS (SELECT FROM evpg.dead_letter) THEN
      RAISE 'a transfer has failed';
    END IF;
    PERFORM pg_sleep(0.005);
    COMMIT;
  END LOOP;
  CALL bench.done(language, before, transfers, started);
  PERFORM evpg_drop_saga(saga);
END $$;

-- The baseline: the commands of a transfer by one session that knows what comes next, each in a transaction.
CREATE PROCEDURE bench.by_hand(language text, transfers int) LANGUAGE plpgsql AS $$
DECLARE
  suffix text := bench.suffix(language);
  before bigint;
  started timestamptz;
  id text;
  of_transfer jsonb;
  money jsonb := '{"amount": 10}';
  payer text;
  payee text;
BEGIN
  SELECT last_value INTO before FROM evpg.event_position;
  started := clock_timestamp();
  FOR i IN 1 .. transfers LOOP
    id := nextval('bench.transfer');
    of_transfer := jsonb_build_object('transfer', id);
    payer := i % bench.accounts() + 1;
    payee := (i + bench.accounts() / 2) % bench.accounts() + 1;
    PERFORM evpg_execute('transfer' || suffix, id, 'Request', money || jsonb_build_object('from', payer, 'to', payee));
    COMMIT;
    PERFORM evpg_execute('account' || suffix, payer, 'Withdraw', money, metadata => of_transfer);
    COMMIT;
    PERFORM evpg_execute('account' || suffix, payee, 'Deposit', money, metadata => of_transfer);
    COMMIT;
    PERFORM evpg_execute('transfer' || suffix, id, 'Complete');
    COMMIT;
  END LOOP;
  CALL bench.done(language, before, transfers, started);
END $$;

-- The saga that is listened to: every deposit on an account of bench_asking is followed by one on an account of
-- bench_answering.
SELECT evpg_register_aggregate(t, library => 'evpg_bank', symbol => 'bank_account')
  FROM unnest('{bench_asking,bench_answering}'::text[]) AS t;
SELECT count(e.version)
  FROM unnest('{bench_asking,bench_answering}'::text[]) AS t,
    evpg_append(t, '1', ARRAY[evpg_event('AccountOpened', '{"owner": "bench"}')]) AS e;
SELECT evpg_register_projection('bench_answering', library => 'evpg_bank', symbol => 'bank_balances',
  aggregate_types => '{bench_answering}', broadcast => 'delta');
CREATE FUNCTION bench.answer(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state, evpg_action_send('bench_answering', event.aggregate_id, 'Deposit', event.data))
$$;
CREATE FUNCTION bench.register_answer() RETURNS boolean LANGUAGE sql AS $$
  SELECT evpg_register_saga('bench_answer', handler => 'bench.answer', aggregate_types => '{bench_asking}',
    event_types => '{MoneyDeposited}')
$$;

-- not the tables that are empty: then they would be planned as such
VACUUM ANALYZE evpg.event_log, evpg.stream;
CHECKPOINT;
