-- traps.sql: test.set_traps() puts traps into the schema traps, where those who find them before pg_catalog's own are
-- caught, and returns how many.  Needs the schemas, and check_function_bodies off.

-- Functions and operators of the names that the script uses, for the types that pg_catalog has none for, so that they fit
-- better.
CREATE FUNCTION test.set_traps() RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
  script text := pg_read_file((SELECT setting FROM pg_config WHERE name = 'SHAREDIR') || '/extension/evpg--1.0.sql');
  types text[] :=
    E'{text,int,bigint,numeric,float8,jsonb,timestamptz,interval,text[],name,oid,boolean,xid,"\\"char\\"",regclass}';
  name text;
  arguments text;
  left_type text;
  right_type text;
BEGIN
  FOR name, arguments IN
    SELECT f.name, a.list FROM (SELECT DISTINCT m[1] AS name
      FROM regexp_matches(script, E'(?:^|[^.\\w])(?:pg_catalog\\.)?(\\w+)\\s*\\(', 'g') m) f,
      (SELECT l FROM unnest(types) l UNION ALL SELECT l || ', ' || r FROM unnest(types) l, unnest(types) r
       UNION ALL SELECT concat_ws(', ', a, b, c)
         FROM unnest('{text,jsonpath}'::text[]) a, unnest('{text,jsonpath}'::text[]) b, unnest('{text,jsonpath}'::text[]) c
       UNION ALL
         SELECT
         unnest('{VARIADIC int[],VARIADIC anyarray,"text, VARIADIC jsonb[]","anyelement, VARIADIC anyarray"}'::text[])) a
         (list)
     WHERE EXISTS (SELECT FROM pg_proc WHERE proname = f.name AND pronamespace = 'pg_catalog'::regnamespace)
       AND to_regprocedure(format('pg_catalog.%I(%s)', f.name, replace(a.list, 'VARIADIC ', ''))) IS NULL
  LOOP
    EXECUTE
      format('CREATE FUNCTION traps.%I(%s) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$',
      name, arguments);
  END LOOP;
  FOREACH name IN ARRAY '{=,<>,<,>,<=,>=,+,-,*,/,|,&,<<,>>,||,~~,->,->>,@>}'::text[] LOOP
    FOR left_type, right_type IN
      SELECT l, r FROM unnest(types) l, unnest(types) r
       WHERE NOT EXISTS (SELECT FROM pg_operator
         WHERE oprname = name AND oprleft = l::regtype AND oprright = r::regtype
         AND oprnamespace = 'pg_catalog'::regnamespace)
    LOOP
      IF to_regprocedure(format('traps.trap(%s, %s)', left_type, right_type)) IS NULL THEN
        EXECUTE format('CREATE FUNCTION traps.trap(%s, %s) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '
          '''trapped''; END $$', left_type, right_type);
      END IF;
      EXECUTE format('CREATE OPERATOR traps.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = traps.trap)', name, left_type,
        right_type);
    END LOOP;
  END LOOP;
  -- others of the names of the functions of evpg
  FOR name IN SELECT DISTINCT m[1] FROM regexp_matches(script, E'CREATE (?:FUNCTION|PROCEDURE) (evpg_\\w+)\\(', 'g') m LOOP
    EXECUTE
      format('CREATE FUNCTION traps.%I(%s) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$',
      name, repeat('box, ', 30) || 'box');
  END LOOP;
  CREATE DOMAIN traps.text AS pg_catalog.text;
  CREATE DOMAIN traps.jsonb AS pg_catalog.jsonb;
  CREATE DOMAIN traps.regclass AS pg_catalog.regclass;
  CREATE COLLATION traps."C" FROM pg_catalog."POSIX";
  CREATE VIEW traps.pg_locks AS SELECT FROM pg_catalog.pg_locks;
  CREATE VIEW traps.pg_database AS SELECT FROM pg_catalog.pg_database;
  RETURN (SELECT count(*) FROM pg_proc WHERE pronamespace = 'traps'::regnamespace) +
    (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'traps'::regnamespace);
END $body$;
