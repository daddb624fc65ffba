-- One event that the client decided, into an existing stream, without an array.
\set id random(1, :streams)
SELECT version FROM evpg_append_event('bench_append', :id, 'MoneyDeposited', :data);
