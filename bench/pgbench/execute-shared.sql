-- A command on any account, by any client: the cached state mostly lacks events that other clients have appended since.
\set id random(1, :streams)
SELECT version FROM evpg_execute(:type, :id, 'Deposit', :data);
