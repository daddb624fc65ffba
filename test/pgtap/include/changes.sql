-- changes.sql: what statements answer after a change of evpg's tables.  Run after setup.sql and the view test.way, whose
-- column statement has them.

-- What they answer after a change that is rolled back: each answer once, and the code, detail and hint of one.
CREATE FUNCTION test.after(change text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  answers text;
BEGIN
  EXECUTE change;
  SELECT string_agg(DISTINCT error_of(statement), ', ') || error_fields($f$SELECT try('a', 'Add')$f$) INTO answers
    FROM test.way;
  RAISE EXCEPTION USING MESSAGE = answers, ERRCODE = 'UNDO1';
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
  RETURN SQLERRM;
END $$;
