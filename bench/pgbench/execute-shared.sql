-- A command on any of some accounts, by any client: a cached state mostly lacks the events that the others appended since.
\set id random(1, :streams)
SELECT version FROM evpg_execute(:type, :id, 'Deposit', :data);
