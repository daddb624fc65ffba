-- cancelled_run.sql: an error that ends evpg_run() is reported whole, though the memory of the run is gone by then.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(2);

CREATE FUNCTION test.cancel_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_cancel_backend(pg_backend_pid());
  PERFORM pg_sleep(60);
  RETURN state;
END $$;
SELECT evpg_register_projection('cancelled', 'test.cancel_apply', mode => 'async') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'a', ARRAY[evpg_event('Happened')]) \g /dev/null

-- what psql prints of the error, with the place in the sources, in a session of its own
CREATE TABLE test.output (line text);
SELECT format(E'COPY test.output FROM PROGRAM %L (FORMAT csv, DELIMITER E''\\x01'', QUOTE E''\\x02'')', format(
  'psql -Xq -v VERBOSITY=verbose -d "host=%s port=%s user=%s dbname=%s" -c "SET search_path = public" '
  '-c "SET default_transaction_isolation = ''read committed''" -c "CALL evpg_run()" 2>&1; true',
  split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_user,
  current_database())) \gexec
SELECT is((SELECT count(*) FROM output WHERE line LIKE 'ERROR:  57014: canceling statement%'), 1::bigint,
  'a cancel ends evpg_run(), whatever it does [rule 10]');
SELECT matches((SELECT line FROM output WHERE line LIKE 'LOCATION:%'),
  '^LOCATION:  ProcessInterrupts, postgres[.]c:[0-9]+$',
  'its error has the place in the sources that raised it [rule 10]');
SELECT * FROM finish();
