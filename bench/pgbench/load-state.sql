-- The state of one stream of 10,000 events, folded in C; run with the state cache off.
SELECT version FROM evpg_state('bench_load', '1');
