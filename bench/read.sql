-- A reader that follows the log until it is ended, and tells in application_name where it is: also on a standby.
CREATE PROCEDURE bench.read_on(after bigint) LANGUAGE plpgsql AS $$
DECLARE
  last bigint;
BEGIN
  LOOP
    SELECT max(position) INTO last FROM evpg_read_all(after, 1000);
    IF last IS NULL THEN
      PERFORM pg_sleep(0.01);
    ELSE
      after := last;
      PERFORM set_config('application_name', 'reader at ' || after, false);
    END IF;
    COMMIT;
  END LOOP;
END $$;
