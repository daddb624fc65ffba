-- privileges_schema.sql: evpg_grant and evpg_revoke find the extension's own functions in whatever schema they are, and call
-- nothing else.

\ir include/setup.sql
SELECT plan(37);

-- What somebody who may create functions in the extension's schema would like a superuser to call.
CREATE FUNCTION test.traps(schema text) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
  signature text;
BEGIN
  FOREACH signature IN ARRAY ARRAY['format(text, text, regrole)', 'format(text, text)', 'format(text, name)',
    'unnest(text[])', 'array_agg(text)',
    'aclexplode(aclitem[])', 'split_part(text, text, bigint)', 'evpg_streams(int)', 'evpg_execute(text, text, text)',
      'evpg_run()', 'evpg_version(int)'] LOOP
    EXECUTE format('CREATE FUNCTION %I.%s RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$',
      schema, signature);
  END LOOP;
  EXECUTE format('CREATE FUNCTION %I.caught(text, regrole) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '
    '''trapped''; END $$', schema);
  EXECUTE format('CREATE OPERATOR %I.|| (LEFTARG = text, RIGHTARG = regrole, FUNCTION = %I.caught)', schema, schema);
END $body$;
CREATE FUNCTION test.may(role text, function text) RETURNS boolean LANGUAGE sql AS $$
  SELECT has_function_privilege(role, function, 'EXECUTE')
$$;
CREATE FUNCTION test.entries(role text) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM pg_shdepend
    WHERE refclassid = 'pg_authid'::regclass AND refobjid = role::regrole
    AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
$$;

CREATE ROLE evpg_test_granted;
\set schema '50% x"'
\ir include/privileges_schema.sql
\set schema 'we%ird''s'
\ir include/privileges_schema.sql
\set schema '%I'
\ir include/privileges_schema.sql
DROP ROLE evpg_test_granted;
SELECT pass('the role can be dropped');
SELECT * FROM finish();
