-- rebuild_table_refusals.sql: tables that a projection cannot declare, tables whose rows a rebuild cannot replace, and who
-- may touch the copies (rule 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(15);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ tables whose rows cannot be replaced

CREATE TABLE test.mine (id text);
ALTER TABLE test.mine REPLICA IDENTITY FULL;
CREATE FUNCTION test.mine_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO mine VALUES (event.aggregate_id);
  RETURN NULL;
END $$;
CREATE TABLE test.heir () INHERITS (test.mine);
SELECT alike(error_of($$SELECT evpg_register_projection('mine', handler => 'test.mine_write', tables => '{mine}')$$),
  '0A000 table "mine" has children%', 'a table with children is refused [rule 13]');
DROP TABLE heir;
ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
SELECT evpg_register_projection('mine', handler => 'test.mine_write', tables => '{mine}',
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('m', 1) \g /dev/null
SELECT is(evpg_rebuild_projection('mine'), 1::bigint,
  'row security that does not concern the owner is no obstacle [rule 13]');
ALTER TABLE mine FORCE ROW LEVEL SECURITY;
SELECT alike(error_of($$SELECT evpg_rebuild_projection('mine')$$), '0A000 table "test.mine" has row security%',
  'row security that concerns the owner is refused [rule 13]');
ALTER TABLE mine NO FORCE ROW LEVEL SECURITY;
SELECT evpg_rebuild_projection('mine', background => true) \g /dev/null
CREATE TABLE test.heir () INHERITS (test.mine);
INSERT INTO heir VALUES ('heir');
CALL evpg_run();
SELECT alike((SELECT last_error FROM evpg.progress_rebuild), 'table "test.mine" has children%',
  'a child that comes during the rebuild [rule 13]');
SELECT is((SELECT string_agg(id, ' ' ORDER BY id) FROM mine), 'heir m',
  'keeps its rows, and the table those that it had [rule 13]');
SELECT evpg_cancel_rebuild('mine') \g /dev/null
DROP TABLE heir;
-- triggers act on what is replaced
CREATE TABLE test.history (n serial, deed text);
CREATE FUNCTION test.note_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.history (deed) VALUES (TG_OP);
  RETURN NULL;
END $$;
CREATE TRIGGER history AFTER INSERT OR DELETE ON mine FOR EACH ROW EXECUTE FUNCTION test.note_history();
SELECT evpg_rebuild_projection('mine') \g /dev/null
SELECT is((SELECT string_agg(deed, ' ' ORDER BY n) FROM history), 'DELETE INSERT',
  'triggers of a table act when its contents are replaced [rule 13]');
SELECT evpg_drop_projection('mine') \g /dev/null

-- ------------------------------------------------------------------ tables that are none of a projection

CREATE SCHEMA other;
CREATE TABLE other.mine (id text);
SELECT alike(error_of(format($$SELECT evpg_register_projection('mine', handler => 'test.mine_write', tables => %L)$$,
  tables)), error, 'refused: ' || tables || ' [rule 13]')
  FROM (VALUES ('{pg_catalog.pg_class}', '42809 "pg_catalog.pg_class" cannot be%'),
    ('{evpg.event_log}', '42809 "evpg.event_log" cannot be%'),
    ('{mine,test.mine}', '22023 two tables of a projection have the name "mine"%'),
    ('{mine,other.mine}', '22023 two tables of a projection have the name "mine"%')) x (tables, error);

-- ------------------------------------------------------------------ copies are no place for code

CREATE ROLE rebuild_owner;
GRANT USAGE ON SCHEMA test, public TO rebuild_owner;
CREATE TABLE test.copied (key text, path text);
CREATE FUNCTION test.copied_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO copied VALUES (event.aggregate_id, current_setting('search_path'));
  RETURN NULL;
END $$;
ALTER TABLE copied OWNER TO rebuild_owner;
ALTER FUNCTION test.copied_write OWNER TO rebuild_owner;
CREATE FUNCTION test.path_key(event evpg.event) RETURNS text LANGUAGE sql AS $$
  SELECT 'path ' || current_setting('search_path')
$$;
SELECT evpg_register_projection('copied', handler => 'test.copied_write', key_function => 'test.path_key', mode => 'async',
  tables => '{copied}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('c', 1) \g /dev/null
CALL evpg_run();
SELECT evpg_rebuild_projection('copied', background => true) \g /dev/null
SELECT nspname AS schema FROM pg_namespace WHERE nspname LIKE E'evpg\\_rebuild%' \gset
SET ROLE rebuild_owner;
SELECT alike(error_of(format('CREATE FUNCTION %s.lower(text) RETURNS text LANGUAGE sql AS $x$ SELECT $1 $x$', :'schema')),
  '42501 permission denied%', 'nobody puts functions where the copies are [rule 13]');
SELECT alike(error_of(format('ALTER SCHEMA %s RENAME TO mine', :'schema')), '42501 must be owner%',
  'a role without the right cannot rename the schema of the copies [rule 13]');
RESET ROLE;
CALL evpg_run();
SELECT alike((SELECT path FROM copied), :'schema' || ',%', 'the handler finds the copies first [rule 13]');
SELECT is((SELECT string_agg(key, ' ') FROM stored WHERE name = 'copied' AND key LIKE '%evpg%'), NULL,
  'a key function, which may belong to somebody else, does not look there [rule 13]');
SELECT is((SELECT count(*) FROM pg_namespace WHERE nspname LIKE E'evpg\\_rebuild%'), 0::bigint,
  'the schema is dropped [rule 13]');
SELECT evpg_drop_projection('copied') \g /dev/null
DROP TABLE copied;
DROP FUNCTION copied_write;
DROP OWNED BY rebuild_owner;
DROP ROLE rebuild_owner;
SELECT * FROM finish();
