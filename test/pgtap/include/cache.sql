-- cache.sql: rule 6 on a counter, of functions or in C (test.kind).  See ../cache.sql.

-- a warm command reads no events
SELECT try('warm', 'AddMany', '{"count": 5}') \g /dev/null
SELECT total('warm') \g /dev/null
BEGIN;
SELECT reads() AS reads, cache_hits, folds FROM evpg_session_stats() WHERE aggregate_type = kind() \gset
SELECT is((SELECT count(*) FROM generate_series(1, 10) n, try('warm', 'Add', jsonb_build_object('n', n)) t WHERE t = 'ok '
  || 5 + n), 10::bigint, kind() || ', rule 6: ten commands');
SELECT is(total('warm'), '15 60', kind() || ', rule 6: and the state');
SELECT is(reads() - :reads, 0::bigint, kind() || ', rule 6: warm, they read no events');
SELECT is((SELECT (cache_hits - :cache_hits, folds - :folds)::text FROM evpg_session_stats() WHERE aggregate_type = kind()),
  '(11,10)',
  kind() || ', rule 6: and fold each event once');
SELECT is(try('warm', 'Subtract', '{"n": 1000}'), 'rejected 15 underflow', kind() || ', rule 6: a refusal');
SELECT is(try('warm', 'Nothing'), 'noop 15', kind() || ', rule 6: and a no-op');
SELECT is(try('warm', 'Add', '{"n": 1}', 15), 'ok 16', kind() || ', rule 6: and an expectation');
SELECT is(reads() - :reads, 0::bigint, kind() || ', rule 6: leave it warm');
COMMIT;

-- ROLLBACK TO
BEGIN;
SELECT try('r', 'Add', '{"n": 1}') \g /dev/null
SAVEPOINT s1;
SELECT try('r', 'Add', '{"n": 10}') \g /dev/null
SELECT is(total('r'), '2 11', kind() || ', rule 6: before ROLLBACK TO');
ROLLBACK TO s1;
SELECT is(total('r'), '1 1', kind() || ', rule 6: after it');
SELECT try('r', 'Add', '{"n": 100}') \g /dev/null
SELECT is(total('r'), '2 101', kind() || ', rule 6: the same version, another event');
ROLLBACK TO s1;
SELECT is(try('r', 'Add', '{"n": 1000}'), 'invariant 1 limit', kind() || ', rule 6: refused after the fold');
SELECT is(total('r'), '1 1', kind() || ', rule 6: which leaves no trace in the state');
SELECT is(try('r', 'Add', '{"n": 20}'), 'ok 2', kind() || ', rule 6: executed right after a ROLLBACK TO');
SAVEPOINT s2;
SELECT try('r', 'Add', '{"n": 5}') \g /dev/null
SAVEPOINT s3;
SELECT try('r', 'Add', '{"n": 6}') \g /dev/null
SELECT is(total('r'), '4 32', kind() || ', rule 6: nested');
ROLLBACK TO s3;
SELECT try('r', 'Add', '{"n": 7}') \g /dev/null
SELECT is(total('r'), '4 33', kind() || ', rule 6: inner one back');
RELEASE s2;
SELECT is(total('r'), '4 33', kind() || ', rule 6: released');
ROLLBACK TO s1;
SELECT is(total('r'), '1 1', kind() || ', rule 6: outer one back');
COMMIT;
SELECT is(total('r'), '1 1', kind() || ', rule 6: and committed');
SELECT is(try('r', 'Add', '{"n": 2}'), 'ok 2', kind() || ', rule 6: and goes on');
SELECT is(total('r'), '2 3', kind() || ', rule 6: right');

-- a stream made by what rolls back
BEGIN;
SAVEPOINT s1;
SELECT try('born', 'Add', '{"n": 1}') \g /dev/null
ROLLBACK TO s1;
SELECT is(total('born'), NULL, kind() || ', rule 6: the stream is gone');
SELECT is(try('born', 'Add', '{"n": 2}'), 'ok 1', kind() || ', rule 6: and made again');
SELECT is(total('born'), '1 2', kind() || ', rule 6: right');
ROLLBACK;
SELECT is(total('born'), NULL, kind() || ', rule 6: gone with the transaction');
SELECT is(try('born', 'Add', '{"n": 3}'), 'ok 1', kind() || ', rule 6: made once more');
SELECT is(total('born'), '1 3', kind() || ', rule 6: right again');

-- exceptions in PL/pgSQL
CREATE OR REPLACE FUNCTION pg_temp.attempts(id text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM test.try(id, 'Add', '{"n": 1}');
  FOR i IN 1..3 LOOP
    BEGIN
      PERFORM test.try(id, 'Add', '{"n": 10}');
      PERFORM test.try(id, 'Add', jsonb_build_object('n', i));
      PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
      PERFORM test.try(id, 'Add', jsonb_build_object('n', 100 * i));
    END;
  END LOOP;
  RETURN test.total(id);
END $$;
SELECT is(pg_temp.attempts('x'), '4 601', kind() || ', rule 6: after exceptions in PL/pgSQL');
SELECT is(total('x'), '4 601', kind() || ', rule 6: and afterwards');
SELECT is((SELECT count(*) FROM evpg.event WHERE aggregate_type = kind() AND aggregate_id = 'x'), 4::bigint, kind()
  || ', rule 6: with the events that stayed');

-- an error in the middle of a command, after the fold
SELECT try('e', 'Add', '{"n": 1}') \g /dev/null
SELECT refused(format($$SELECT evpg_execute(kind(), 'e', 'Fail')$$), 'VE009 %', kind() || ', rule 6: a defect');
SELECT is(total('e'), '1 1', kind() || ', rule 6: leaves the state');
SELECT refused($$SELECT evpg_execute(kind(), 'e', 'Add', '{"n": 665}')$$, 'VE009 %cannot say', kind()
  || ', rule 6: a defect of the invariant, after the fold');
SELECT is(total('e'), '1 1', kind() || ', rule 6: leaves the state, too');
SELECT is(try('e', 'Add', '{"n": 1}'), 'ok 2', kind() || ', rule 6: which goes on');
SELECT is(total('e'), '2 2', kind() || ', rule 6: right');

-- prepared and rolled back (no temporary objects in there)
BEGIN;
SELECT count(*) FROM evpg_execute(current_setting('test.kind'), 'r', 'Add', '{"n": 50}') \g /dev/null
PREPARE TRANSACTION 'cache';
ROLLBACK PREPARED 'cache';
SELECT is(total('r'), '2 3', kind() || ', rule 6: after ROLLBACK PREPARED');
SELECT is(try('r', 'Add', '{"n": 4}'), 'ok 3', kind() || ', rule 6: and on');
BEGIN;
SELECT count(*) FROM evpg_execute(current_setting('test.kind'), 'r', 'Add', '{"n": 60}') \g /dev/null
PREPARE TRANSACTION 'cache';
COMMIT PREPARED 'cache';
SELECT is(total('r'), '4 67', kind() || ', rule 6: after COMMIT PREPARED');

-- no cache, and one that is too small for all
SET evpg.state_cache_size = 0;
SELECT is((SELECT count(*) FROM generate_series(1, 5) n, try('cold', 'Add', jsonb_build_object('n', n)) t WHERE t = 'ok '
  || n), 5::bigint, kind() || ', A08: without a cache');
SELECT is(total('cold'), '5 15', kind() || ', A08: the state is the same');
SET evpg.state_cache_size = '4kB';
SELECT is((SELECT count(*) FROM generate_series(1, 3) n, generate_series(1, 50) i,
  try('small' || i, 'Add', jsonb_build_object('n', i + 0 * n)) t WHERE t = 'ok ' || n), 150::bigint,
  kind() || ', A08: fifty streams by turns in a small cache');
SELECT is((SELECT count(*) FROM generate_series(1, 50) i WHERE total('small' || i) = '3 ' || 3 * i), 50::bigint, kind()
  || ', A08: every state is right');
RESET evpg.state_cache_size;

-- a read between commands, of another version
SELECT is((SELECT state->>'total' FROM evpg_state(kind(), 'cold', at_version => 2)), '3', kind() || ', rule 6: the past');
SELECT is(try('cold', 'Add', '{"n": 1}'), 'ok 6', kind() || ', rule 6: does not get into the cache');
SELECT is(total('cold'), '6 16', kind() || ', rule 6: as the state says');

-- events from elsewhere in the transaction: append and inject do not fold
SELECT total('cold') \g /dev/null
SELECT count(*) FROM evpg_append(kind(), 'cold', evpg_events('{"type": "Added", "data": {"n": 100}}')) \g /dev/null
SELECT is(total('cold'), '7 116', kind() || ', rule 6: the cache catches up on append');
SELECT count(*) FROM evpg_inject(kind(), 'cold', evpg_event('Added', '{"n": 200}')) \g /dev/null
SELECT is(try('cold', 'Subtract', '{"n": 316}'), 'ok 9', kind() || ', rule 6: and on inject, in the next command');
BEGIN;
SAVEPOINT s1;
SELECT count(*) FROM evpg_append(kind(), 'cold', evpg_events('{"type": "Added", "data": {"n": 100}}')) \g /dev/null
SELECT is(total('cold'), '10 100', kind() || ', rule 6: catching up on what will be undone');
ROLLBACK TO s1;
SELECT count(*) FROM evpg_append(kind(), 'cold',
  evpg_events('[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 2}}]')) \g /dev/null
SELECT is(total('cold'), '11 3', kind() || ', rule 6: the entry of another history is not caught up from');
ROLLBACK TO s1;
SELECT try('cold', 'Add', '{"n": 7}') \g /dev/null
ROLLBACK TO s1;
SELECT count(*) FROM evpg_append(kind(), 'cold', evpg_events('{"type": "Added", "data": {"n": 8}}')) \g /dev/null
SELECT is(total('cold'), '10 8', kind() || ', rule 6: nor is one of the same version, but another event');
SELECT is(try('cold', 'Subtract', '{"n": 8}'), 'ok 11', kind() || ', rule 6: in a command, too');
COMMIT;
