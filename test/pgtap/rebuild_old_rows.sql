-- rebuild_old_rows.sql: when rows of old builds are deleted, and by which session (rule 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(8);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ rows of old builds

CREATE FUNCTION test.left_over() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)
$$;
SELECT evpg_register_projection(name, 'test.sum_apply', mode => mode,
  start_position => (SELECT last_value FROM evpg.event_position))
  FROM (VALUES ('many', 'inline'), ('few', 'inline'), ('seen', 'async')) x (name, mode) \g /dev/null
SELECT evpg_put_projection('many', 'k' || n, '{}') FROM generate_series(1, 6000) n \g /dev/null
SELECT evpg_put_projection(name, 'k', '{}') FROM unnest('{few,seen}'::text[]) name \g /dev/null
SELECT left_over() AS before \gset
SELECT evpg_rebuild_projection('many') \g /dev/null
SELECT is(left_over() - :before, 1000::bigint, 'a rebuild deletes the first old rows itself [rule 13]');
SELECT evpg_rebuild_projection('few') \g /dev/null
SELECT is(left_over() - :before, 1000::bigint,
  'a rebuild deletes the first old rows itself, and none of another projection, for which appenders would wait [rule 13]');
SELECT is((SELECT count(*) FROM evpg.old_build), 1::bigint, 'a pass does the rest [rule 13]');
-- who owns the consumer has the rows to himself
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT evpg_cancel_rebuild('many')$$) x (cancelled boolean) \g /dev/null
CALL evpg_run();
SELECT is(left_over() - :before, 1000::bigint, 'old rows are deleted by who owns the consumer [rule 13]');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
-- dropped and registered again, it gets none of the keys that went with the rows
SELECT evpg_drop_projection('many'), evpg_register_projection('many', 'test.sum_apply') \g /dev/null
CALL evpg_run();
SELECT is(left_over() || ' ' || (SELECT count(*) FROM evpg.old_build) || ' '
  || (SELECT count(*) FROM stored WHERE name = 'many'), '0 0 0',
  'nothing is left of a projection that was dropped [rule 13]');
-- a large one is dropped in an instant
SELECT evpg_put_projection('many', 'k' || n, '{}') FROM generate_series(1, 6000) n \g /dev/null
SELECT evpg_drop_projection('many') \g /dev/null
SELECT is(left_over(), 1000::bigint, 'most rows of a large one are not deleted by who drops it [rule 13]');
CALL evpg_run();
SELECT is(left_over() + (SELECT count(*) FROM evpg.old_build), 0::bigint,
  'a pass deletes the rest of the old rows [rule 13]');
-- each batch of a rebuild is a transaction
SELECT evpg_register_projection('many', 'test.sum_apply', event_types => '{Small}',
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT count(add('many' || n, 1, 'Small')) FROM generate_series(1, 3000) n \g /dev/null
SELECT evpg_rebuild_projection('many', background => true) \g /dev/null
SET evpg.test_mutation = small_batches;
CALL evpg_run();
RESET evpg.test_mutation;
SELECT cmp_ok((SELECT count(DISTINCT s.xmin::text) FROM evpg.projection_state s JOIN evpg.projection USING (build)
  WHERE name = 'many'), '>', 3::bigint, 'a rebuild has batches [rule 13]');
SELECT evpg_drop_projection(name) FROM evpg.projection \g /dev/null
SELECT * FROM finish();
