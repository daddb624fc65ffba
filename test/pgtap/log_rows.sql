-- log_rows.sql: the columns of events as readers of the log return them are those that a query of the table returns:
-- with each combination of NULLs, and values of all lengths, stored in line, compressed and out of line.

\ir include/setup.sql

SELECT plan(13);
SELECT evpg_register_aggregate('row') \g /dev/null

-- Appends an event, with values of a length in the optional columns that are chosen by the bits of a number.
CREATE FUNCTION test.append(chosen int, length int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  value text := substr(repeat(md5(chosen::text), 1 + length / 32), 1, length);
BEGIN
  PERFORM evpg_append('row', 'a', ARRAY[evpg_event(substr('Said' || value, 1, 60),
      CASE WHEN chosen & 1 > 0 THEN to_jsonb(value) END, CASE WHEN chosen & 2 > 0 THEN jsonb_build_object('v', value) END,
      CASE WHEN chosen & 4 > 0 THEN ARRAY[left(value, 200) || 'x', 'y'] END)],
    command_id => CASE WHEN chosen & 8 > 0 THEN format('c%s of %s', chosen, length) END,
    correlation_id => CASE WHEN chosen & 16 > 0 THEN left(value, 200) || 'r' END,
    causation_id => CASE WHEN chosen & 32 > 0 THEN left(value, 100) || 's' END,
    actor => CASE WHEN chosen & 64 > 0 THEN left(value, 70) || 't' END);
END $$;

-- Events in which a reader differs from the table, or that it has not returned.
CREATE FUNCTION test.differing(reader text) RETURNS bigint LANGUAGE sql AS $$
  WITH read AS (
    SELECT * FROM evpg_read_all(stable_only => false, max_count => 10000) WHERE reader = 'position'
    UNION ALL SELECT * FROM evpg_read_all(stable_only => false, max_count => 10000, tags => '{y}') WHERE reader = 'tag'
    UNION ALL SELECT * FROM evpg_read_stream('row', 'a', max_count => 10000) WHERE reader = 'stream'),
  stored AS (SELECT * FROM evpg.event WHERE reader <> 'tag' OR 'y' = ANY (tags))
  SELECT count(*) FROM ((TABLE read EXCEPT ALL TABLE stored) UNION ALL (TABLE stored EXCEPT ALL TABLE read)) x
$$;

SELECT append(chosen, length) FROM generate_series(0, 127) chosen, unnest('{0,1,2,3,40}'::int[]) length \g /dev/null
SELECT append(chosen, length)
  FROM unnest('{3,7,127}'::int[]) chosen, unnest('{120,123,124,1000,1990,5000,20000}'::int[]) length \g /dev/null
SELECT is((SELECT count(*) FROM evpg.event_log
  WHERE num_nulls(data, metadata, tags, command_id, correlation_id, causation_id, actor) = 0), 12::bigint,
  'events without any NULL');
SELECT is((SELECT count(*) FROM evpg.event_log WHERE pg_column_size(data) < length(data #>> '{}') / 2) > 0, true,
  'data that is compressed');
SELECT is(differing(reader), 0::bigint, 'all columns of all events are read by ' || reader)
  FROM unnest('{position,stream,tag}'::text[]) reader;

-- out of line
ALTER TABLE evpg.event_log ALTER data SET STORAGE EXTERNAL, ALTER metadata SET STORAGE EXTERNAL;
SELECT append(chosen, length) FROM unnest('{1,2,7,127}'::int[]) chosen, unnest('{4000,8001}'::int[]) length \g /dev/null
SELECT is(differing(reader), 0::bigint, 'values that are stored out of line are read by ' || reader)
  FROM unnest('{position,stream,tag}'::text[]) reader;

-- a column that comes and goes, with a value in what was there
ALTER TABLE evpg.event_log ADD COLUMN passing text DEFAULT 'gone';
ALTER TABLE evpg.event_log DROP COLUMN passing;
SELECT append(chosen, 5) FROM generate_series(0, 127, 9) chosen \g /dev/null
SELECT is(differing(reader), 0::bigint, 'rows that have a dropped column are read by ' || reader)
  FROM unnest('{position,stream,tag}'::text[]) reader;

-- behind so many others that the index on tags is asked for it
SELECT evpg_enable_index('tags') \g /dev/null
SELECT append(0, 1) FROM generate_series(1, 600) \g /dev/null
SELECT append(127, 30) \g /dev/null
SELECT is(differing('tag'), 0::bigint, 'all columns of events that an index finds are read');
SELECT is((SELECT count(*) FROM evpg.event_log), 1285::bigint, 'there were so many events');

SELECT * FROM finish();
