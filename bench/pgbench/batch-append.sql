-- 1,000 events in one call.
\set id random(1, :streams)
SELECT count(version) FROM bench.batch AS b, evpg_append('bench_append', :id, b.events);
