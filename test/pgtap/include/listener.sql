-- listener.sql: a second connection, of dblink, which gives the frames that came.  Run after setup.sql.

CREATE EXTENSION dblink;
-- Opens another connection to this database, as this user, under READ COMMITTED.
CREATE FUNCTION test.connect(name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT dblink_connect(name, format('host=%s port=%s user=%s dbname=%s',
    split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_user,
      current_database()));
  SELECT dblink_exec(name, $x$SET default_transaction_isolation = 'read committed'; SET search_path = public, test$x$)
$$;
SELECT connect('listener') \g /dev/null
CREATE FUNCTION test.listen(name text, key text DEFAULT NULL) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT * FROM dblink('listener', format('SELECT evpg_listen(%L, %L)', name, key)) x (channel text) $$;
-- What has come since the last call.  Frames that were sent before a query are there before its answer.
CREATE FUNCTION test.frames() RETURNS TABLE (n bigint, channel text, frame text) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM * FROM dblink('listener', 'SELECT 1') x (one int);
  RETURN QUERY SELECT row_number() OVER (), notify_name, extra FROM dblink_get_notify('listener');
END $$;
-- "event key generation.version data" of what has come on a channel
CREATE FUNCTION test.heard(of_channel text DEFAULT 'projection.sums') RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(concat_ws(' ', f->>'event', f->>'key', (f->>'generation') || '.' || (f->>'version'), f->>'data',
    CASE WHEN f ? 'deleted' THEN 'deleted' END, CASE WHEN f ? 'truncated' THEN 'truncated' END), ', ' ORDER BY n), '')
    FROM (SELECT n, frame::jsonb AS f FROM frames() WHERE channel = of_channel) x $$;
-- Waits until a query returns true, up to two minutes; whether it did.
CREATE FUNCTION test.wait_until(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  holds boolean := false;
BEGIN
  FOR look IN 1 .. 12000 LOOP
    EXECUTE condition INTO holds;
    EXIT WHEN holds;
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN holds;
END $$;
