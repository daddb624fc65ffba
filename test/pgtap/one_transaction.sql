-- one_transaction.sql: many commands on one stream in one transaction cost what the first ones cost: nothing that a command
-- leaves for the rest of the transaction is looked through by those that follow.

\ir include/setup.sql
-- how many rows and blocks a statement needs is not that of a plan for workers
SET max_parallel_workers_per_gather = 0;
\ir include/counter.sql

SELECT plan(18);

-- so many commands on one stream, a fifth of which is refused; returns the blocks and the records of WAL that they needed
CREATE FUNCTION test.do_many(count int, OUT blocks bigint, OUT records bigint) LANGUAGE plpgsql AS $$
DECLARE
  plan jsonb;
BEGIN
  EXECUTE format($q$EXPLAIN (ANALYZE, BUFFERS, WAL, TIMING OFF, FORMAT json)
    SELECT count(*) FROM generate_series(1, %s) n, LATERAL evpg_try_execute(kind(), 'many',
      CASE WHEN n %% 5 = 0 THEN 'Subtract' ELSE 'Add' END,
      jsonb_build_object('n', CASE WHEN n %% 5 = 0 THEN 5 ELSE 0 END)) e$q$, count) INTO plan;
  plan := plan->0->'Plan';
  blocks := (plan->>'Shared Hit Blocks')::bigint + (plan->>'Shared Read Blocks')::bigint;
  records := (plan->>'WAL Records')::bigint;
END $$;
CREATE FUNCTION test.locks() RETURNS bigint LANGUAGE sql VOLATILE AS
  $$ SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode <> 'SIReadLock' $$;
-- commands that are rolled back
CREATE FUNCTION test.undo(count int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. count LOOP
    BEGIN
      PERFORM evpg_execute(kind(), 'many', 'Add', '{"n": 0}');
      RAISE EXCEPTION 'undone';
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
  END LOOP;
END $$;
-- of the cluster; it only grows
CREATE FUNCTION test.next_multixact() RETURNS bigint LANGUAGE sql VOLATILE AS
  $$ SELECT next_multixact_id::text::bigint FROM pg_control_checkpoint() $$;

CHECKPOINT;
SELECT next_multixact() AS multixact \gset

\set kind counter
\ir include/one_transaction.sql
\set kind counter_c
\ir include/one_transaction.sql

CHECKPOINT;
SELECT cmp_ok(next_multixact() - :multixact, '<', 100::bigint, 'no command makes a MultiXact');
SELECT is((SELECT count(*) FROM evpg.event_log), (2 * 4 * 6000 / 5)::bigint, 'all commands but the refused have events');
SELECT * FROM finish();
