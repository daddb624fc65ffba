# The inbox across crashes (B60): a message is received when the transaction of its effect is committed, not before.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('inbox', conf => "synchronous_commit = on\n");

$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION shop(payload jsonb) RETURNS evpg.command LANGUAGE sql AS $$
  SELECT evpg_command('account', 'a', 'Deposit', payload) $$;
SELECT evpg_register_translator('shop', 'shop');
SELECT count(*) FROM evpg_execute('account', 'a', 'Open', '{"owner": "Alice"}');
SQL

# "t" or "f" of evpg_receive; the statuses of the commands of a message
sub receive
{
	my ($key) = @_;

	return $node->safe_psql('postgres', "SELECT evpg_receive('shop', '$key')");
}

my $deposit = q(SELECT string_agg(status, ' ') FROM evpg_receive_message('shop', '%s', 'shop', '{"amount": 10}'));

sub deposit
{
	my ($key) = @_;

	return $node->safe_psql('postgres', sprintf($deposit, $key));
}

# committed, and open when the server is killed; the checkpoint brings the rows of both to disk
is(receive('committed'), 't', 'a message is received and committed');
is(deposit('committed too'), 'ok', 'another one, with a command');
my $session = $node->background_psql('postgres');
is($session->query_safe("BEGIN; SELECT evpg_receive('shop', 'open')"), 't', 'a third is received');
is($session->query_safe(sprintf($deposit, 'open too')), 'ok', 'a fourth message is received, but not committed');
$node->safe_psql('postgres', 'CHECKPOINT');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evpg.inbox'), 2, 'others do not see them');
$node->kill9;
$session->{run}->finish;
start_again($node);

is(receive('committed'), 'f', 'after a crash: what was committed was received');
is(deposit('committed too'), '', 'so it has no second effect');
is(receive('open'), 't', 'what was open was not received, and is now');
is(deposit('open too'), 'ok', 'with its effect');
is(receive('open') . deposit('open too'), 'f', 'once');
is($node->safe_psql('postgres', q(SELECT version, state->>'balance' FROM evpg_state('account', 'a'))), '3|20',
	'each had its effect once');
is(inspect($node), '', 'all that is stored agrees');

# A prepared transaction is still receiving, also over a restart.
$node->safe_psql('postgres', "BEGIN; SELECT evpg_receive('shop', '$_'); PREPARE TRANSACTION '$_'") foreach 'kept', 'lost';
$node->restart;
is(sqlstate($node, "SET lock_timeout = '10ms'; SELECT evpg_receive('shop', '$_')"), '55P03',
	"who receives it waits for a prepared transaction: $_")
  foreach 'kept', 'lost';
$node->safe_psql('postgres', "COMMIT PREPARED 'kept'");
$node->safe_psql('postgres', "ROLLBACK PREPARED 'lost'");
is(receive('kept') . receive('lost'), 'ft', 'a receiver knows after a crash which messages were committed');

$node->stop;
done_testing();
