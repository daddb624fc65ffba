-- One event that the client decided, into an existing stream.
\set id random(1, :streams)
SELECT version FROM evpg_append('bench_append', :id, ARRAY[evpg_event('MoneyDeposited', :data)]);
