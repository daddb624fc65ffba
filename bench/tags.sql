-- A log of events with two tags each, with the index on tags: one tag is the event's own, a thousand events have the other
-- one.  And what decides on the last event with a tag, with evpg and by hand.
--
-- Variables of psql: streams, events, how many.
SET client_min_messages = warning;
CREATE EXTENSION evpg;
CREATE SCHEMA bench;
SELECT evpg_register_aggregate('bench_tagged');
SELECT count(e.version)
  FROM generate_series(0, :events / 1000 - 1) AS i,
       evpg_append('bench_tagged', (i % :streams + 1)::text, ARRAY(
         SELECT evpg_event('Made', '{"amount": 10}', tags => ARRAY['key:' || n, 'group:' || n % (:events / 1000)])
           FROM generate_series(i * 1000 + 1, i * 1000 + 1000) AS n)) AS e;
SELECT evpg_enable_index('tags');

-- Appends an event with a tag, if no other one has come since it was decided, and decides again otherwise.
CREATE FUNCTION bench.take(tag text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  upto bigint;
BEGIN
  LOOP
    upto := evpg_condition_position(evpg_condition(tags => ARRAY[tag]));
    BEGIN
      PERFORM FROM evpg_append_event('bench_tagged', '1', 'Taken', '{"amount": 10}', tags => ARRAY[tag],
        condition => evpg_condition(tags => ARRAY[tag], after_position => upto));
      RETURN;
    EXCEPTION WHEN SQLSTATE 'VE013' THEN
    END;
  END LOOP;
END $$;

CREATE TABLE bench.by_hand (
  "position" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tag text COLLATE "C" NOT NULL,
  event_id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
  type text COLLATE "C" NOT NULL,
  data jsonb NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX ON bench.by_hand (tag, "position");
INSERT INTO bench.by_hand (tag, type, data)
SELECT 'key:' || n, 'Made', '{"amount": 10}' FROM generate_series(1, :events) AS n;

VACUUM ANALYZE evpg.event_log, evpg.stream, bench.by_hand;
CHECKPOINT;
