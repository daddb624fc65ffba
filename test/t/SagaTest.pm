# SagaTest: what the tests of sagas across crashes share: accounts, transfers between them by the sagas of examples/bank, in
# SQL and in C, and what can be wrong with them.

package SagaTest;

use strict;
use warnings;

use EvpgTest;
use Exporter 'import';
use PostgreSQL::Test::Utils;

our @EXPORT = qw($wait_key $waiters create_accounts create_transfers request transfers_script wrong);

# evpg.test_wait waits for who has this advisory lock
our $wait_key = 17700;
our $waiters = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $wait_key AND NOT granted";

# The sagas of transfers, and ten accounts of each kind with 1000 each.
sub create_accounts
{
	my ($node) = @_;

	$node->safe_psql('postgres', slurp_file(tree() . '/examples/bank/transfer.sql'));
	$node->safe_psql('postgres', <<'SQL');
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, generate_series(1, 10) n,
  evpg_execute(t, 'a' || n, 'Open', '{"owner": "Ann"}');
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, generate_series(1, 10) n,
  evpg_execute(t, 'a' || n, 'Deposit', '{"amount": 1000}');
SQL
	return;
}

# These, and views of what comes of transfers, for wrong().
sub create_transfers
{
	my ($node) = @_;

	create_accounts($node);
	$node->safe_psql('postgres', <<'SQL');
-- the id that a saga gives to a command (rule 16)
CREATE FUNCTION derived_id(saga text, key text, source text, n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT 'saga:' || encode(sha256(convert_to(saga, 'UTF8') || '\x00' || convert_to(key, 'UTF8') || '\x00' ||
                                  convert_to(source, 'UTF8') || '\x00' || convert_to(n::text, 'UTF8') || '\x00'), 'hex')
$$;
-- what belongs to a transfer, and what came of it
CREATE VIEW transfer AS
  SELECT replace(aggregate_type, 'account', 'transfer') AS kind,
         CASE WHEN aggregate_type LIKE 'account%' THEN metadata->>'transfer' ELSE aggregate_id END AS id,
         coalesce(max(lower(substr(type, 9))) FILTER (WHERE type IN ('TransferCompleted', 'TransferFailed')), 'requested')
           AS status,
         max(data->>'reason') AS reason, string_agg(type, ' ' ORDER BY position) AS events
    FROM evpg.event WHERE aggregate_type LIKE 'transfer%' OR metadata ? 'transfer' GROUP BY 1, 2;
-- how its events must be, and how often its saga has reacted
CREATE VIEW outcome AS
  SELECT *, CASE WHEN status = 'completed' THEN 'TransferRequested MoneyWithdrawn MoneyDeposited TransferCompleted'
                 WHEN events NOT LIKE '%MoneyWithdrawn%' THEN 'TransferRequested TransferFailed'
                 WHEN status = 'failed' THEN 'TransferRequested MoneyWithdrawn TransferFailed MoneyDeposited' END
                   AS right_events,
         CASE WHEN status = 'completed' THEN 3 WHEN events LIKE '%MoneyWithdrawn%' THEN 2 ELSE 1 END
           -- a deadline that came too late
           + (id = 'late')::int AS right_version
    FROM transfer;
SQL
	return;
}

# Requests a transfer of 1.
sub request
{
	my ($node, $kind, $id, $to, $database) = @_;

	return $node->safe_psql($database // 'postgres',
		"SELECT count(*) FROM evpg_execute('transfer$kind', '$id', 'Request', '{\"from\": \"a1\", \"to\": \"$to\", "
		. "\"amount\": 1}')");
}

# A script of pgbench: transfers of both kinds, some to nobody, some of money that is not there.
sub transfers_script
{
	my $script = PostgreSQL::Test::Utils::tempdir . '/transfers.sql';

	append_to_file($script, <<'SQL');
\set from random(1, 10)
\set step random(1, 9)
\set to 1 + (:from + :step - 1) % 10
\set amount random(1, 400)
\set closed random(1, 8)
SELECT count(*) FROM evpg_try_execute('transfer' || (ARRAY['', '_c'])[1 + :amount % 2], gen_random_uuid()::text, 'Request',
  jsonb_build_object('from', 'a' || :from, 'to', CASE :closed WHEN 1 THEN 'nobody' ELSE 'a' || :to END, 'amount', :amount));
SQL
	return $script;
}

# All that is wrong when everything that was requested should have come to its end, a line each: a transfer without an end,
# money that was taken or given twice or not at all, an event that an instance has reacted to twice or not at all, work that
# is left.
sub wrong
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'SQL');
SELECT 'a transfer did not end', kind, id FROM transfer WHERE status = 'requested';
SELECT 'events of a transfer', kind, id, events FROM outcome WHERE events IS DISTINCT FROM right_events;
SELECT 'the sum of the balances', t, sum((state->>'balance')::int)
  FROM unnest('{account,account_c}'::text[]) t, generate_series(1, 10) n, evpg_state(t, 'a' || n)
 GROUP BY t HAVING sum((state->>'balance')::int) <> 10000;
SELECT 'reactions of an instance', o.kind, o.id, i.status, i.version, o.right_version FROM outcome o
  LEFT JOIN evpg.saga_instance i ON i.saga = o.kind AND i.key = o.id
 WHERE (i.status, i.version) IS DISTINCT FROM ('completed', o.right_version);
SELECT 'a command id', kind, key, type FROM evpg.event e
 CROSS JOIN LATERAL (SELECT metadata#>>'{evpg,saga}' AS kind, metadata#>>'{evpg,key}' AS key) s
   LEFT JOIN transfer t USING (kind)
 WHERE metadata ? 'evpg' AND t.id = key AND reason IS DISTINCT FROM 'deadline'
   AND NOT EXISTS (SELECT FROM generate_series(1, 4) n WHERE derived_id(kind, key, causation_id, n) = command_id);
SELECT 'an event is left', saga, key, position, attempts FROM evpg.saga_event;
SELECT 'a timer is left', saga, key, name, attempts FROM evpg.timer;
SELECT 'a dead letter', saga, key, attempts, message FROM evpg.dead_letter WHERE resolved_at IS NULL;
SQL
}

1;
