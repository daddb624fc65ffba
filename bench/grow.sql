-- Makes the log of a bench database long: batches of 1,000 events, to one stream after the other, of two contenders in turn.
--
-- Variables of psql: streams, growth, the number of events the log shall have.
SELECT count(e.version)
  FROM generate_series(1, (:growth - (SELECT count(*) FROM evpg.event_log)) / 1000) AS i, bench.batch AS b,
       evpg_append(CASE i % 2 WHEN 0 THEN 'bench_append' ELSE 'bench_c' END, (i / 2 % :streams + 1)::text, b.events) AS e;
VACUUM ANALYZE evpg.event_log, evpg.stream;
CHECKPOINT;
