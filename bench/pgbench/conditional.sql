-- The same, if no event has the first tag yet.
\set id random(1, :streams)
\set key random(1000000001, 1000000000000)
SELECT version FROM evpg_append_event('bench_tagged', :id, 'Made', :data,
  tags => ARRAY['key:' || :key::bigint, 'group:' || :id::bigint],
  condition => evpg_condition(tags => ARRAY['key:' || :key::bigint]));
