-- append_only.sql: history is not changed by accident.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(100);
SET test.kind = counter;
SELECT try('a', 'AddEach', '{"ns": [1, 2, 3]}') \g /dev/null
CREATE TABLE test.before AS SELECT * FROM evpg.event_log;
CREATE TABLE test.before_streams AS SELECT * FROM evpg.stream;

SELECT refused(statement, error, role || ': ' || statement) FROM unnest('{origin,replica,local}'::text[]) role,
  LATERAL (SELECT set_config('session_replication_role', role, false)) s, (VALUES
  ('UPDATE evpg.event_log SET data = NULL', 'VE012 %'), ('UPDATE evpg.event_log SET data = NULL WHERE false', 'VE012 %'),
  ('DELETE FROM evpg.event_log', 'VE012 %'),
  ('DELETE FROM evpg.event_log WHERE version = 3', 'VE012 %'), ('TRUNCATE evpg.event_log', 'VE012 %'),
  ('UPDATE evpg.event SET data = NULL', '55000 cannot update view "event"'),
  ('DELETE FROM evpg.event', '55000 cannot delete from view "event"'),
  ('INSERT INTO evpg.event_log SELECT * FROM test.before ON CONFLICT (position) DO UPDATE SET data = NULL',
  'VE012 %'),
  ('UPDATE evpg.stream SET aggregate_id = NULL', 'VE012 rows of evpg.stream are never changed'),
    ('UPDATE evpg.stream SET aggregate_id = NULL WHERE false', 'VE012 %'),
  ('DELETE FROM evpg.stream', 'VE012 rows of evpg.stream %'), ('TRUNCATE evpg.stream', 'VE012 %'),
    ('TRUNCATE evpg.stream, evpg.event_log', 'VE012 %'),
  ('MERGE INTO evpg.stream s USING test.before b ON s.stream_id = b.stream_id WHEN MATCHED THEN DELETE', 'VE012 %'),
  ('INSERT INTO evpg.stream OVERRIDING SYSTEM VALUE SELECT * '
    'FROM test.before_streams ON CONFLICT (stream_id) DO UPDATE SET aggregate_id = NULL', 'VE012 %'))
  x (statement, error);
RESET session_replication_role;
SELECT is((SELECT count(*) FROM (SELECT * FROM test.before EXCEPT SELECT * FROM evpg.event_log) x), 0::bigint,
  'history is what it was');
SELECT is((SELECT count(*) FROM (SELECT * FROM test.before_streams EXCEPT SELECT * FROM evpg.stream) x), 0::bigint,
  'history is what it was; so are the streams');
SELECT is((SELECT string_agg(concat_ws(' ', tgrelid::regclass, tgenabled), ', ' ORDER BY tgrelid::regclass::text)
  FROM pg_trigger WHERE tgname = 'evpg_append_only'),
  'evpg.event_log A, evpg.stream A', 'the triggers are enabled always');
SELECT is((SELECT string_agg(c.relname, ', ') FROM pg_class c WHERE c.relnamespace = 'evpg'::regnamespace AND c.relkind = 'r'
   AND coalesce((SELECT bit_or(tgtype & 60) FROM pg_trigger t
     WHERE t.tgrelid = c.oid AND t.tgenabled = 'A' AND tgtype & 2 = 2), 0) <> 60), NULL,
  'every table of evpg has triggers that refuse INSERT, UPDATE, DELETE and TRUNCATE, always');
SELECT is(error_fields('DELETE FROM evpg.' || t) <> '', true, 'the error has a detail or a hint: ' || t)
  FROM unnest('{event_log,stream}'::text[]) t;

-- unique: positions, versions of a stream, event ids
SELECT alike(error_of(format(
  'INSERT INTO evpg.event_log (position, stream_id, version, occurred_at, recorded_at, event_id, schema_version,
    type, session_role)
   SELECT %s, session_role FROM evpg.event_log LIMIT 1',
  columns)), '23505 %', 'unique: ' || what)
  FROM (VALUES ('position, 77, 77, now(), now(), gen_random_uuid(), 1, ''x''', 'position'),
  ('77, stream_id, version, now(), now(), gen_random_uuid(), 1, ''x''', 'version'),
               ('77, 77, 77, now(), now(), event_id, 1, ''x''', 'event id')) x (columns, what);
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 4', 'appending goes on after rows were refused');
SELECT * FROM finish();
