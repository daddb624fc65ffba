-- One event without tags, beside events that have some, and an index of these.
\set id random(1, :streams)
SELECT version FROM evpg_append_event('bench_tagged', :id, 'Made', :data);
