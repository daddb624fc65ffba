-- shapes.sql: tables and types of evpg that somebody has changed: a clear error, and never a read or write beyond what
-- the C code knows.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

CREATE FUNCTION test.keep_last(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT event.data';
SELECT evpg_register_projection('last', reducer => 'test.keep_last') \g /dev/null
SET test.kind = counter;
SELECT try('a', 'AddEach', '{"ns": [1, 2, 3]}') \g /dev/null

-- Every way into the tables.
CREATE VIEW test.way AS SELECT unnest(ARRAY[
  $w$SELECT try('a', 'Add', '{"n": 1}')$w$, $w$SELECT try('new', 'Add', '{"n": 1}')$w$,
  $w$SELECT FROM evpg_execute('counter_c', 'a', 'Add', '{"n": 1}')$w$,
  $w$SELECT FROM evpg_append('counter', 'a', ARRAY[evpg_event('Added', '{"n": 1}')])$w$,
  $w$SELECT FROM evpg_state('counter', 'a')$w$, $w$SELECT FROM evpg_read_stream('counter', 'a')$w$,
  $w$SELECT FROM evpg_read_all()$w$, $w$SELECT evpg_put_projection('last', 'a', '{}')$w$,
  $w$SELECT evpg_rebuild_projection('last')$w$, $w$SELECT evpg_rebuild_projection('last', 'a')$w$,
  $w$SELECT evpg_events('[{"type": "x"}]')$w$,
    $w$SELECT evpg_commands('[{"aggregate_type": "x", "aggregate_id": "x", "command_type": "x"}]')$w$,
  $w$SELECT evpg_reaction('{}')$w$, $w$SELECT FROM evpg_streams()$w$]) AS statement;

\ir include/changes.sql

SELECT plan(61);
SELECT alike(test.after(change), '55000 ' || what || ' has been changed|' || detail || '|Undo the change: %',
  change || ': every way says so')
  FROM (VALUES
    ('ALTER TABLE evpg.event_log ADD COLUMN tenant text', 'table evpg.event_log', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TABLE evpg.event_log ADD COLUMN tenant text NOT NULL DEFAULT ''x''', 'table evpg.event_log',
      'Column "tenant" is not one of evpg''s.'),
    ('ALTER TABLE evpg.stream ADD COLUMN tenant int', 'table evpg.stream', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TABLE evpg.projection_state ADD COLUMN tenant int', 'table evpg.projection_state',
      'Column "tenant" is not one of evpg''s.'),
    ('ALTER TABLE evpg.consumer ADD COLUMN tenant int', 'table evpg.consumer', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TABLE evpg.saga_event ALTER COLUMN cancels TYPE bigint', 'table evpg.saga_event',
      'Column "cancels" is not of type integer.'),
    ('ALTER TABLE evpg.saga_total ADD COLUMN tenant int', 'table evpg.saga_total', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TABLE evpg.timer DROP COLUMN cancels', 'table evpg.timer', 'Column 16 is not "cancels".'),
    ('ALTER TABLE evpg.event_log RENAME COLUMN actor TO who', 'table evpg.event_log', 'Column 15 is not "actor".'),
    ('ALTER TABLE evpg.stream DROP COLUMN created_at', 'table evpg.stream', 'Column 2 is not "created_at".'),
    ('ALTER TABLE evpg.stream DROP COLUMN created_at, ADD COLUMN created_at timestamptz NOT NULL DEFAULT now()',
      'table evpg.stream', 'Column 2 is not "created_at".'),
    ('ALTER TABLE evpg.stream ALTER COLUMN created_at TYPE text', 'table evpg.stream',
      'Column "created_at" is not of type timestamp with time zone.'),
    ('UPDATE pg_attribute SET attcollation = ''"POSIX"''::regcollation '
      'WHERE attrelid = ''evpg.projection_state''::regclass AND attname = ''key''',
     'table evpg.projection_state', 'Column "key" is not of type text with collation "C".'),
    ('CREATE OR REPLACE VIEW evpg.event AS SELECT *, ''x''::text AS tenant FROM evpg.event', 'type evpg.event',
      'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.new_event ADD ATTRIBUTE tenant text', 'type evpg.new_event', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.stream_append ADD ATTRIBUTE tenant text', 'type evpg.stream_append',
      'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.stream_append ALTER ATTRIBUTE events TYPE text', 'type evpg.stream_append',
      'Column "events" is not of type evpg.new_event[].'),
    ('ALTER TYPE evpg.command ADD ATTRIBUTE tenant text', 'type evpg.command', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.outcome ADD ATTRIBUTE tenant text', 'type evpg.outcome', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.projected ADD ATTRIBUTE tenant text', 'type evpg.projected', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.reaction ADD ATTRIBUTE tenant text', 'type evpg.reaction', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.rejection ADD ATTRIBUTE tenant text', 'type evpg.rejection', 'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.fired_timer ADD ATTRIBUTE tenant text', 'type evpg.fired_timer',
      'Column "tenant" is not one of evpg''s.'),
    ('ALTER TYPE evpg.stream_info ADD ATTRIBUTE tenant text', 'type evpg.stream_info',
      'Column "tenant" is not one of evpg''s.')
  ) x (change, what, detail);
SELECT alike(test.after(format('ALTER TABLE %s DROP CONSTRAINT %I CASCADE', conrelid::regclass, conname)),
  '55000 unique index "evpg.' || conname || '" is missing or has been changed||%',
    conname || ' is dropped: every way says so')
  FROM pg_constraint WHERE conrelid = ANY ('{evpg.stream,evpg.event_log,evpg.projection_state,evpg.command_record,
      evpg.saga_instance,evpg.saga_event,evpg.saga_total,evpg.timer,evpg.consumer}'::regclass[])
    AND contype IN ('p', 'u')
   AND conname NOT IN ('event_log_event_id_key', 'timer_pkey') ORDER BY conname;
SELECT is((SELECT string_agg(DISTINCT error_of(statement), ', ') FROM test.way), 'no error',
  'all of that was rolled back: every way is free');

-- a column that was added and dropped again is harmless
SELECT is(error_of(change || ' ADD ' || part || ' tenant text' || more), 'no error', change || ': a column is added'),
       is(error_of($$SELECT evpg_events('[{"type": "x"}]')$$) LIKE '55000 %', true, change || ': noticed'),
       is(error_of(change || ' DROP ' || part || ' tenant'), 'no error', change || ': and dropped again')
  FROM (VALUES ('ALTER TABLE evpg.event_log', 'COLUMN', ''),
    ('ALTER TABLE evpg.stream', 'COLUMN', ' NOT NULL DEFAULT ''x'''),
    ('ALTER TABLE evpg.projection_state', 'COLUMN', ''), ('ALTER TYPE evpg.new_event', 'ATTRIBUTE', ''),
    ('ALTER TYPE evpg.command', 'ATTRIBUTE', ''), ('ALTER TYPE evpg.outcome', 'ATTRIBUTE', '')) x (change, part, more);
SELECT is((SELECT string_agg(DISTINCT error_of(statement), ', ') FROM test.way), 'no error', 'every way is free again');
-- a session that knows nothing of the types as they were
CREATE EXTENSION dblink;
SELECT is(errors, 'no error', 'every way is free for a new session, too')
  FROM dblink(format($$host=%s port=%s user=%s dbname=%s
      options='-csearch_path=public,test -ctest.kind=counter -cdefault_transaction_isolation=read\\ committed'$$,
      split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_user,
      current_database()),
    $$SELECT string_agg(DISTINCT error_of(statement), ', ') FROM way$$) x (errors text);
SELECT is(try('b', 'AddEach', '{"ns": [1, 2]}', 0, 'id'), 'ok 2', 'commands are right'),
       is(try('b', 'AddEach', '{"ns": [1, 2]}', 0, 'id'), 'duplicate 2', 'command ids are known after columns were added');
SELECT is(total('b'), '2 3', 'states are right after columns were added'),
       is((SELECT state->>'n' || ' ' || version FROM evpg_projection('last', 'b')), '2 2',
         'rows of projections are right after columns were added'),
       is((SELECT string_agg(data->>'n', ' ' ORDER BY version) FROM evpg_read_stream('counter', 'b')), '1 2',
         'events are right after columns were added');

SELECT * FROM finish();
