-- log_holes.sql: a log that has lost events, or whose sequences lag behind it, and a clock that goes back.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

SELECT plan(33);
SET test.kind = counter;

-- what is returned is all that there is, or an error
SELECT try('a', 'AddMany', '{"count": 10}') \g /dev/null
SELECT try('end', 'AddMany', '{"count": 3}') \g /dev/null
ALTER TABLE evpg.event_log DISABLE TRIGGER USER;
DELETE FROM evpg.event_log e USING evpg.stream s WHERE s.stream_id = e.stream_id
   AND ((s.aggregate_id, e.version) = ('a', 5) OR (s.aggregate_id, e.version) IN (('end', 2)));
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
SELECT alike(error_of(format('SELECT count(*) FROM evpg_read_stream(''counter'', %s)', args)),
  'XX001 event log of stream "' || substring(args FROM '[a-z]+') || '" of aggregate "counter" is damaged',
    'a hole: read_stream(' || args || ')')
  FROM unnest(ARRAY['''a''', '''a'', 3', '''a'', 5', '''a'', 1, 5', '''a'', backwards => true',
    '''a'', 4, backwards => true',
    '''a'', 5, backwards => true', '''a'', 1, 6, true', '''end''', '''end'', 2', '''end'', backwards => true',
      '''end'', 2, 2, true']) args;
SELECT same('SELECT version FROM evpg_read_stream(''counter'', ' || args || ')',
  'SELECT v FROM unnest(''{' || wanted || '}''::bigint[]) v',
  'not in the way: ' || args)
  FROM (VALUES ('''a'', 1, 4', '1,2,3,4'), ('''a'', 6', '6,7,8,9,10'), ('''a'', 6, NULL, true', '10,9,8,7,6'),
    ('''a'', 1, 5, true', '10,9,8,7,6'),
    ('''a'', 11', ''), ('''end'', 1, 1', '1'), ('''end'', 1, 1, true', '3'),
    ('''a'', -3, 2', '1,2'), ('''a'', 1, 0', '')) x (args, wanted);

-- the clock
SELECT evpg_set_clock_offset('1 hour') \g /dev/null
SELECT try('t', 'Add', '{"n": 1}') \g /dev/null
SELECT evpg_set_clock_offset() \g /dev/null
SELECT try('t', 'Add', '{"n": 1}') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 't', ARRAY[evpg_event('Added', '{"n": 1}')]) \g /dev/null
SELECT try('u', 'Add', '{"n": 1}') \g /dev/null
SELECT is((SELECT bool_and(recorded_at >= before)
  FROM (SELECT recorded_at, lag(recorded_at) OVER (ORDER BY version) AS before
  FROM evpg_read_stream('counter', 't')) x), true, 'the clock goes back: recorded_at of a stream does not'),
       is((SELECT min(recorded_at) > now() + interval '50 min' FROM evpg_read_stream('counter', 't')), true,
         'it waits for the clock'),
       is((SELECT max(recorded_at) < now() + interval '5 min' FROM evpg_read_stream('counter', 'u')), true,
         'other streams follow the clock');

-- rows that came by logical replication: their numbers were not drawn here
SELECT evpg_register_projection('count', handler => NULL, reducer => 'test.counter_apply', mode => 'async') \g /dev/null
SELECT evpg_schedule_command(now() + interval '1 day', 'counter', 'a', 'Add', '{"n": 1}') \g /dev/null
SELECT is(evpg_activate_consumers(), false, 'nothing to be done');
SELECT setval(s, 1, false) FROM
  unnest('{evpg.event_position,evpg.stream_stream_id_seq,evpg.projection_build,evpg.timer_timer_id_seq}'::regclass[]) s
  \g /dev/null
SELECT is((SELECT count(*) FROM evpg_read_all()), 0::bigint, 'sequences lag behind the rows: readers find nothing');
SELECT alike(error_of($$SELECT try('t', 'Add', '{"n": 1}')$$), '23505 %', 'sequences lag behind the rows: appends fail');
SELECT is(evpg_activate_consumers(), true, 'evpg_activate_consumers sets them past the rows');
SELECT is(try('t', 'Add', '{"n": 1}') || ', ' || try('new', 'Add', '{"n": 1}'), 'ok 4, ok 1',
  'appends go on, new streams too'),
       is(error_of($$SELECT evpg_schedule_command(now() + interval '1 day', 'counter', 'a', 'Add', '{"n": 1}')$$),
         'no error', 'timers get new ids after evpg_activate_consumers()');
SELECT is((SELECT count(*) FROM evpg_read_all()), (SELECT count(*) FROM evpg.event_log),
  'readers find all after evpg_activate_consumers()'),
       is(evpg_activate_consumers(), false, 'once');


-- a stream that is gone, among others that are read ahead
SELECT count(*) FROM generate_series(1, 9) i, evpg_append('counter', 'lost' || i, ARRAY[evpg_event('Noted')]) \g /dev/null
BEGIN;
ALTER TABLE evpg.stream DISABLE TRIGGER USER;
DELETE FROM evpg.stream WHERE aggregate_id = 'lost7';
COMMIT;
SELECT alike(error_of('SELECT count(*) FROM evpg_read_all(max_count => 100000)'), 'XX001 stream with id % is missing',
  'a stream that is missing');
SELECT * FROM finish();
