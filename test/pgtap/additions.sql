-- additions.sql: what users add to the tables that C code writes past the executor (the log, streams, rows of projections)
-- works as with SQL, or every function of evpg refuses to work.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

CREATE FUNCTION test.keep_last(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT CASE WHEN event.type = 'Added' THEN event.data END
$$;
SELECT evpg_register_projection('last', reducer => 'test.keep_last') \g /dev/null
SET test.kind = counter;
SELECT try('a', 'AddEach', '{"ns": [1, 2, 3]}') \g /dev/null

CREATE TABLE test.fired (n bigserial PRIMARY KEY, what text);
CREATE FUNCTION test.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.fired (what) VALUES (concat_ws(' ', TG_NAME, (SELECT count(*) FROM evpg.event_log)));
  RETURN NULL;
END $$;
CREATE FUNCTION test.fired() RETURNS text LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM test.fired RETURNING n, what) SELECT coalesce(string_agg(what, ', ' ORDER BY n), 'nothing')
    FROM gone;
$$;

CREATE VIEW test.way AS SELECT unnest(ARRAY[
  $w$SELECT try('a', 'Add', '{"n": 1}')$w$, $w$SELECT try('new', 'Add', '{"n": 1}')$w$,
  $w$SELECT FROM evpg_append('counter', 'a', ARRAY[evpg_event('Added', '{"n": 1}')])$w$,
  $w$SELECT FROM evpg_inject('counter', 'a', evpg_event('Added', '{"n": 1}', event_id => gen_random_uuid()))$w$,
  $w$SELECT FROM evpg_read_stream('counter', 'a')$w$, $w$SELECT evpg_put_projection('last', 'a', '{}')$w$,
  $w$SELECT evpg_rebuild_projection('last')$w$]) AS statement;

\ir include/changes.sql

SELECT plan(59);

-- triggers of the log that come after an insert
CREATE TRIGGER each_statement AFTER INSERT ON evpg.event_log EXECUTE FUNCTION test.note();
SELECT is(try('a', 'AddEach', '{"ns": [1, 2]}'), 'ok 5', 'a trigger after each statement'),
  is(test.fired(), 'each_statement 5', 'fires once for a command, when its events are there');
SELECT is((SELECT count(*) FROM
  evpg_append('counter', 'a', evpg_events('[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 1}}]'))),
  2::bigint, 'evpg_append'),
  is(test.fired(), 'each_statement 7', 'fires it once');
SELECT is((SELECT count(*) FROM evpg_inject('counter', 'b', evpg_event('Added', '{"n": 1}', event_id => gen_random_uuid()))),
  1::bigint, 'evpg_inject'),
  is(test.fired(), 'each_statement 8', 'evpg_inject fires the trigger for each statement');
SELECT is(try('a', 'Nothing'), 'noop 7', 'a no-op'), is(test.fired(), 'nothing', 'fires nothing');
CREATE TRIGGER each_row AFTER INSERT ON evpg.event_log FOR EACH ROW WHEN (NEW.type = 'Added') EXECUTE FUNCTION test.note();
CREATE CONSTRAINT TRIGGER constrains AFTER INSERT ON evpg.event_log DEFERRABLE FOR EACH ROW EXECUTE FUNCTION test.note();
SELECT is(try('a', 'AddEach', '{"ns": [1, 2]}'), 'ok 9', 'with triggers for each row and a constraint'),
  is(test.fired(), 'constrains 10, each_row 10, constrains 10, each_row 10, each_statement 10',
    'all of them fire, in the order of SQL');
SET session_replication_role = replica;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 10', 'a replica'), is(test.fired(), 'nothing', 'fires none of them');
RESET session_replication_role;
SELECT is((SELECT string_agg(c, ', ')
  FROM (SELECT count(*) || ' ' || max(version) AS c FROM evpg_read_stream('counter', 'a')) x), '10 10',
  'the stream is whole');
CREATE FUNCTION test.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'not today' USING ERRCODE = '23514';
END $$;
CREATE TRIGGER refuses AFTER INSERT ON evpg.event_log EXECUTE FUNCTION test.refuse();
SELECT is(error_of($$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}')$$), '23514 not today',
  'one that raises an error refuses the command');
DROP TRIGGER refuses ON evpg.event_log;
CREATE FUNCTION test.append_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF pg_trigger_depth() = 1 THEN
    PERFORM public.evpg_append('counter', TG_ARGV[0], ARRAY[public.evpg_event('Added', '{"n": 1}')]);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER again AFTER INSERT ON evpg.event_log EXECUTE FUNCTION test.append_again('other');
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 11', 'one that appends to another stream'),
  is(total('other') || ' ' || total('a'), '1 1 11 16', 'does so');
DROP TRIGGER again ON evpg.event_log;
CREATE TRIGGER again AFTER INSERT ON evpg.event_log EXECUTE FUNCTION test.append_again('a');
SELECT is(left(error_of(statement), 5), 'VE020', 'a trigger that appends to the same stream is refused: ' || statement)
  FROM (VALUES ($$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}')$$),
    ($$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Added', '{"n": 1}')])$$)) x (statement);
DROP TRIGGER again ON evpg.event_log;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON evpg.event_log DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION test.note();
SELECT is(error_of($$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}')$$),
  '42501 cannot fire deferred trigger within security-restricted operation', 'a deferred one is refused');
DROP TRIGGER late ON evpg.event_log;
DELETE FROM test.fired;

-- what is refused
SELECT alike(test.after(change), '55000 table evpg.' || t || ' ' || message || '|' || detail || '|%DROP%',
  change || ': every way says so')
  FROM (VALUES
    ('event_log', 'CREATE TRIGGER x BEFORE INSERT ON evpg.event_log EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('event_log', 'CREATE TRIGGER x BEFORE INSERT OR UPDATE ON evpg.event_log FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It could change or drop an event%'),
    ('event_log',
      'CREATE TRIGGER x AFTER INSERT ON evpg.event_log REFERENCING NEW TABLE AS added EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It has a transition table%'),
    ('event_log', 'CREATE TRIGGER x AFTER INSERT ON evpg.event_log REFERENCING NEW TABLE AS added FOR EACH ROW EXECUTE '
      'FUNCTION test.note()', 'has a trigger that evpg cannot fire', 'Trigger "x": It has a transition table%'),
    ('event_log', 'CREATE RULE x AS ON INSERT TO evpg.event_log DO ALSO NOTIFY x', 'has a rule that would have no effect',
      'Rule "x": %'),
    ('stream', 'CREATE TRIGGER x AFTER UPDATE ON evpg.stream EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('stream', 'CREATE TRIGGER x AFTER UPDATE ON evpg.stream FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('stream', 'CREATE TRIGGER x BEFORE UPDATE OF created_at ON evpg.stream FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('stream', 'CREATE TRIGGER x BEFORE INSERT ON evpg.stream FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It could keep evpg from inserting a row.'),
    ('stream', 'CREATE RULE x AS ON UPDATE TO evpg.stream DO ALSO NOTIFY x', 'has a rule that would have no effect',
      'Rule "x": %'),
    ('stream', 'ALTER TABLE evpg.stream ADD UNIQUE (created_at, stream_id) DEFERRABLE',
      'has a trigger that evpg cannot fire', 'Trigger "Unique_ConstraintTrigger%'),
    ('projection_state', 'CREATE TRIGGER x AFTER INSERT ON evpg.projection_state FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('projection_state', 'CREATE TRIGGER x BEFORE UPDATE ON evpg.projection_state EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('projection_state',
      'CREATE TABLE test.keys (key text COLLATE "C" PRIMARY KEY); INSERT INTO test.keys SELECT DISTINCT key '
      'FROM evpg.projection_state; ALTER TABLE evpg.projection_state ADD FOREIGN KEY (key) REFERENCES test.keys',
      'has a trigger that evpg cannot fire', 'Trigger "RI_ConstraintTrigger%'),
    ('projection_state', 'CREATE RULE x AS ON INSERT TO evpg.projection_state DO INSTEAD NOTHING',
      'has a rule that would have no effect', 'Rule "x": %'),
    ('saga_event', 'CREATE TRIGGER x AFTER DELETE ON evpg.saga_event FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('saga_event', 'CREATE RULE x AS ON DELETE TO evpg.saga_event DO ALSO NOTIFY x', 'has a rule that would have no effect',
      'Rule "x": %'),
    ('saga_total', 'CREATE TRIGGER x BEFORE UPDATE ON evpg.saga_total FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('timer', 'CREATE TRIGGER x AFTER INSERT ON evpg.timer EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.'),
    ('timer', 'CREATE TRIGGER x BEFORE DELETE ON evpg.timer FOR EACH ROW EXECUTE FUNCTION test.note()',
      'has a trigger that evpg cannot fire', 'Trigger "x": It would not be fired.')
  ) x (t, change, message, detail);
SELECT alike(test.after(change), '55000 table evpg.' || t || ' is a partition, or other tables inherit from it|%',
  change || ': every way says so')
  FROM (VALUES ('event_log', 'CREATE TABLE test.child () INHERITS (evpg.event_log)'),
    ('stream', 'CREATE TABLE test.child () INHERITS (evpg.stream)'),
    ('projection_state', 'CREATE TABLE test.child () INHERITS (evpg.projection_state)'),
    ('timer', 'CREATE TABLE test.child () INHERITS (evpg.timer)'),
    ('projection_state', 'CREATE TABLE test.all_states (LIKE evpg.projection_state) PARTITION BY HASH (key); ALTER TABLE '
      'test.all_states ATTACH PARTITION evpg.projection_state FOR VALUES WITH (MODULUS 1, REMAINDER 0)')) x (t, change);

-- what works as with SQL, or does no harm
SELECT is(test.after(change), 'no errorno error', change)
  FROM (VALUES
    ('CREATE TRIGGER x BEFORE INSERT ON evpg.event_log EXECUTE FUNCTION test.note(); ALTER TABLE evpg.event_log '
      'DISABLE TRIGGER x'),
    ('CREATE TRIGGER x AFTER INSERT ON evpg.stream FOR EACH ROW EXECUTE FUNCTION test.note()'),
    ('CREATE TRIGGER x AFTER DELETE ON evpg.projection_state FOR EACH ROW EXECUTE FUNCTION test.note()'),
    ('CREATE RULE x AS ON DELETE TO evpg.event_log DO INSTEAD NOTHING'),
    ('CREATE TABLE test.refers (a bigint REFERENCES evpg.stream, b uuid REFERENCES evpg.event_log (event_id), c '
      'bigint, d text COLLATE "C", FOREIGN KEY (c, d) REFERENCES evpg.projection_state)')
  ) x (change);
CREATE TRIGGER new_stream AFTER INSERT ON evpg.stream FOR EACH ROW EXECUTE FUNCTION test.note();
ALTER TABLE evpg.event_log DISABLE TRIGGER USER;
SELECT is(try('c', 'Add', '{"n": 1}'), 'ok 1', 'a new stream'),
  is(test.fired(), 'new_stream 13', 'fires a trigger of evpg.stream');
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;

-- constraints
ALTER TABLE evpg.event_log ADD CHECK (data->>'n' <> '13') NOT VALID;
ALTER TABLE evpg.stream ADD CHECK (aggregate_id <> 'unlucky') NOT VALID;
ALTER TABLE evpg.projection_state ADD CHECK (state->>'n' <> '14') NOT VALID;
SELECT is(error_of(format($$SELECT evpg_execute('counter', 'c', 'Add', '{"n": %s}')$$, n)), answer, 'a CHECK of ' || t)
  FROM (VALUES (13, '23514 new row for relation "event_log" violates check constraint "event_log_data_check"', 'event_log'),
    (14, '23514 new row for relation "projection_state" violates check constraint "projection_state_state_check"',
      'projection_state'), (1, 'no error', 'none')) x (n, answer, t);
SELECT is(error_of($$SELECT evpg_execute('counter', 'unlucky', 'Add', '{"n": 1}')$$),
  '23514 new row for relation "stream" violates check constraint "stream_aggregate_id_check"', 'a CHECK of stream');
SELECT is(error_of($$SELECT evpg_put_projection('last', 'd', '{"n": 14}')$$),
  '23514 new row for relation "projection_state" violates check constraint "projection_state_state_check"',
  'evpg_put_projection');
ALTER TABLE evpg.projection_state ALTER COLUMN state SET NOT NULL;
SELECT is(try('c', 'Subtract', '{"n": 1}'), 'rejected 2', 'NOT NULL, if the row is deleted'),
  is(try('c', 'Add', '{"n": 1}'), 'ok 3', 'NOT NULL allows a row that is not deleted');
SELECT is((SELECT count(*) FROM evpg.event_log), (SELECT sum(version) FROM evpg.stream_head)::bigint,
  'streams count their events');
SELECT * FROM finish();
