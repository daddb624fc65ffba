-- cache.sql: rule 6 on a counter, of functions or in C (test.kind).  See ../cache.sql.

-- a warm command looks for the newest event, and reads no others
SELECT try('warm', 'AddMany', '{"count": 5}') \g /dev/null
SELECT total('warm') \g /dev/null
BEGIN;
SELECT reads() AS reads, cache_hits, folds FROM evpg_session_stats() WHERE aggregate_type = kind() \gset
SELECT is((SELECT count(*) FROM generate_series(1, 10) n, try('warm', 'Add', jsonb_build_object('n', n)) t WHERE t = 'ok '
  || 5 + n), 10::bigint, 'ten commands [rule 6, ' || kind() || ']');
SELECT is(total('warm'), '15 60', 'and the state [rule 6, ' || kind() || ']');
SELECT is(reads() - :reads, 11::bigint, 'warm, each looks once, for the newest event [rule 6, ' || kind() || ']');
SELECT is((SELECT (cache_hits - :cache_hits, folds - :folds)::text FROM evpg_session_stats() WHERE aggregate_type = kind()),
  '(11,10)',
  'and fold each event once [rule 6, ' || kind() || ']');
SELECT is(try('warm', 'Subtract', '{"n": 1000}'), 'rejected 15 underflow', 'a refusal [rule 6, ' || kind() || ']');
SELECT is(try('warm', 'Nothing'), 'noop 15', 'and a no-op [rule 6, ' || kind() || ']');
SELECT is(try('warm', 'Add', '{"n": 1}', 15), 'ok 16', 'and an expectation [rule 6, ' || kind() || ']');
SELECT is(reads() - :reads, 14::bigint, 'leave it warm [rule 6, ' || kind() || ']');
COMMIT;

-- ROLLBACK TO
BEGIN;
SELECT try('r', 'Add', '{"n": 1}') \g /dev/null
SAVEPOINT s1;
SELECT try('r', 'Add', '{"n": 10}') \g /dev/null
SELECT is(total('r'), '2 11', 'before ROLLBACK TO [rule 6, ' || kind() || ']');
ROLLBACK TO s1;
SELECT is(total('r'), '1 1', 'after it [rule 6, ' || kind() || ']');
SELECT try('r', 'Add', '{"n": 100}') \g /dev/null
SELECT is(total('r'), '2 101', 'the same version, another event [rule 6, ' || kind() || ']');
ROLLBACK TO s1;
SELECT is(try('r', 'Add', '{"n": 1000}'), 'invariant 1 limit', 'refused after the fold [rule 6, ' || kind() || ']');
SELECT is(total('r'), '1 1', 'which leaves no trace in the state [rule 6, ' || kind() || ']');
SELECT is(try('r', 'Add', '{"n": 20}'), 'ok 2', 'executed right after a ROLLBACK TO [rule 6, ' || kind() || ']');
SAVEPOINT s2;
SELECT try('r', 'Add', '{"n": 5}') \g /dev/null
SAVEPOINT s3;
SELECT try('r', 'Add', '{"n": 6}') \g /dev/null
SELECT is(total('r'), '4 32', 'nested [rule 6, ' || kind() || ']');
ROLLBACK TO s3;
SELECT try('r', 'Add', '{"n": 7}') \g /dev/null
SELECT is(total('r'), '4 33', 'inner one back [rule 6, ' || kind() || ']');
RELEASE s2;
SELECT is(total('r'), '4 33', 'released [rule 6, ' || kind() || ']');
ROLLBACK TO s1;
SELECT is(total('r'), '1 1', 'outer one back [rule 6, ' || kind() || ']');
COMMIT;
SELECT is(total('r'), '1 1', 'and committed [rule 6, ' || kind() || ']');
SELECT is(try('r', 'Add', '{"n": 2}'), 'ok 2', 'and goes on [rule 6, ' || kind() || ']');
SELECT is(total('r'), '2 3', 'right [rule 6, ' || kind() || ']');

-- a stream made by what rolls back
BEGIN;
SAVEPOINT s1;
SELECT try('born', 'Add', '{"n": 1}') \g /dev/null
ROLLBACK TO s1;
SELECT is(total('born'), NULL, 'the stream is gone [rule 6, ' || kind() || ']');
SELECT is(try('born', 'Add', '{"n": 2}'), 'ok 1', 'and made again [rule 6, ' || kind() || ']');
SELECT is(total('born'), '1 2', 'right [rule 6, ' || kind() || ']');
ROLLBACK;
SELECT is(total('born'), NULL, 'gone with the transaction [rule 6, ' || kind() || ']');
SELECT is(try('born', 'Add', '{"n": 3}'), 'ok 1', 'made once more [rule 6, ' || kind() || ']');
SELECT is(total('born'), '1 3', 'right again [rule 6, ' || kind() || ']');

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
SELECT is(pg_temp.attempts('x'), '4 601', 'after exceptions in PL/pgSQL [rule 6, ' || kind() || ']');
SELECT is(total('x'), '4 601', 'and afterwards [rule 6, ' || kind() || ']');
SELECT is((SELECT count(*) FROM evpg.event WHERE aggregate_type = kind() AND aggregate_id = 'x'), 4::bigint,
  'with the events that stayed [rule 6, ' || kind() || ']');

-- an error in the middle of a command, after the fold
SELECT try('e', 'Add', '{"n": 1}') \g /dev/null
SELECT refused(format($$SELECT evpg_execute(kind(), 'e', 'Fail')$$), 'VE009 %', 'a defect [rule 6, ' || kind() || ']');
SELECT is(total('e'), '1 1', 'leaves the state [rule 6, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'e', 'Add', '{"n": 665}')$$, 'VE009 %cannot say',
  'a defect of the invariant, after the fold [rule 6, ' || kind() || ']');
SELECT is(total('e'), '1 1', 'leaves the state, too [rule 6, ' || kind() || ']');
SELECT is(try('e', 'Add', '{"n": 1}'), 'ok 2', 'which goes on [rule 6, ' || kind() || ']');
SELECT is(total('e'), '2 2', 'right [rule 6, ' || kind() || ']');

-- prepared and rolled back (no temporary objects in there)
BEGIN;
SELECT count(*) FROM evpg_execute(current_setting('test.kind'), 'r', 'Add', '{"n": 50}') \g /dev/null
PREPARE TRANSACTION 'cache';
ROLLBACK PREPARED 'cache';
SELECT is(total('r'), '2 3', 'after ROLLBACK PREPARED [rule 6, ' || kind() || ']');
SELECT is(try('r', 'Add', '{"n": 4}'), 'ok 3', 'and on [rule 6, ' || kind() || ']');
BEGIN;
SELECT count(*) FROM evpg_execute(current_setting('test.kind'), 'r', 'Add', '{"n": 60}') \g /dev/null
PREPARE TRANSACTION 'cache';
COMMIT PREPARED 'cache';
SELECT is(total('r'), '4 67', 'after COMMIT PREPARED [rule 6, ' || kind() || ']');

-- no cache, and one that is too small for all
SET evpg.state_cache_size = 0;
SELECT is((SELECT count(*) FROM generate_series(1, 5) n, try('cold', 'Add', jsonb_build_object('n', n)) t WHERE t = 'ok '
  || n), 5::bigint, 'without a cache [A08, ' || kind() || ']');
SELECT is(total('cold'), '5 15', 'the state is the same [A08, ' || kind() || ']');
SET evpg.state_cache_size = '4kB';
SELECT is((SELECT count(*) FROM generate_series(1, 3) n, generate_series(1, 50) i,
  try('small' || i, 'Add', jsonb_build_object('n', i + 0 * n)) t WHERE t = 'ok ' || n), 150::bigint,
  'fifty streams by turns in a small cache [A08, ' || kind() || ']');
SELECT is((SELECT count(*) FROM generate_series(1, 50) i WHERE total('small' || i) = '3 ' || 3 * i), 50::bigint,
  'every state is right [A08, ' || kind() || ']');
RESET evpg.state_cache_size;

-- a read between commands, of another version
SELECT is((SELECT state->>'total' FROM evpg_state(kind(), 'cold', at_version => 2)), '3',
  'the past [rule 6, ' || kind() || ']');
SELECT is(try('cold', 'Add', '{"n": 1}'), 'ok 6', 'does not get into the cache [rule 6, ' || kind() || ']');
SELECT is(total('cold'), '6 16', 'as the state says [rule 6, ' || kind() || ']');

-- events from elsewhere in the transaction: append and inject do not fold
SELECT total('cold') \g /dev/null
SELECT count(*) FROM evpg_append(kind(), 'cold', evpg_events('{"type": "Added", "data": {"n": 100}}')) \g /dev/null
SELECT is(total('cold'), '7 116', 'the cache catches up on append [rule 6, ' || kind() || ']');
SELECT count(*) FROM evpg_inject(kind(), 'cold', evpg_event('Added', '{"n": 200}')) \g /dev/null
SELECT is(try('cold', 'Subtract', '{"n": 316}'), 'ok 9', 'and on inject, in the next command [rule 6, ' || kind() || ']');
BEGIN;
SAVEPOINT s1;
SELECT count(*) FROM evpg_append(kind(), 'cold', evpg_events('{"type": "Added", "data": {"n": 100}}')) \g /dev/null
SELECT is(total('cold'), '10 100', 'catching up on what will be undone [rule 6, ' || kind() || ']');
ROLLBACK TO s1;
SELECT count(*) FROM evpg_append(kind(), 'cold',
  evpg_events('[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 2}}]')) \g /dev/null
SELECT is(total('cold'), '11 3', 'the entry of another history is not caught up from [rule 6, ' || kind() || ']');
ROLLBACK TO s1;
SELECT try('cold', 'Add', '{"n": 7}') \g /dev/null
ROLLBACK TO s1;
SELECT count(*) FROM evpg_append(kind(), 'cold', evpg_events('{"type": "Added", "data": {"n": 8}}')) \g /dev/null
SELECT is(total('cold'), '10 8', 'nor is one of the same version, but another event [rule 6, ' || kind() || ']');
SELECT is(try('cold', 'Subtract', '{"n": 8}'), 'ok 11', 'in a command, too [rule 6, ' || kind() || ']');
COMMIT;
