-- A command on an account whose state is in the backend's cache.  Every client has its own accounts and first loads all
-- their states (opening an open account changes nothing).
\if :warm = 0
\set warm 1
\set low :client_id * :streams + 1
\set high :low + :streams - 1
SELECT count(version) FROM generate_series(:low::int, :high::int) AS i, evpg_execute(:type, i::text, 'Open');
\endif
\set id random(:low, :high)
SELECT version FROM evpg_execute(:type, :id, 'Deposit', :data);
