-- A transfer that a saga will make.
\set from random(1, :streams / 2)
\set to random(:streams / 2 + 1, :streams)
SELECT version FROM evpg_execute('transfer_c', nextval('bench.transfer')::text, 'Request',
  jsonb_build_object('from', (:from)::text, 'to', (:to)::text, 'amount', 10));
