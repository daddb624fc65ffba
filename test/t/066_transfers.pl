# Rule 23 under load: 8 clients move money between random accounts, in one call each and in whatever order, while as many
# append to random pairs of streams: no money comes or goes, no version is missing, and no call is the victim of a deadlock.
# With streams that are locked in the order of the call there are deadlocks, so the test would notice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($clients, $calls, $accounts, $streams) = (8, 200, 6, 4);
my $node = evpg_node('transfers', conf => "deadlock_timeout = 10ms\nsynchronous_commit = off\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

query(<<"SQL");
CREATE FUNCTION plain_handle(state jsonb, command evpg.command) RETURNS evpg.new_event
  LANGUAGE sql RETURN evpg_event('Sent');
CREATE FUNCTION plain_apply(state jsonb, event evpg.event) RETURNS jsonb
  LANGUAGE sql IMMUTABLE RETURN to_jsonb(state::int + 1);
SELECT evpg_register_aggregate('plain', 'plain_handle', 'plain_apply', initial_state => '0');
SELECT count(*) FROM generate_series(1, $accounts) n,
  LATERAL (SELECT version FROM evpg_execute('account_c', 'a' || n, 'Open', jsonb_build_object('owner', 'A' || n))) o,
  LATERAL (SELECT version FROM evpg_execute('account_c', 'a' || n, 'Deposit', '{"amount": 100}') WHERE o.version > 0) d;
SQL

# The same account on both sides is one of the cases.
PostgreSQL::Test::Utils::append_to_file("$directory/move.sql", <<"SQL");
\\set source random(1, $accounts)
\\set target random(1, $accounts)
\\set amount random(1, 60)
SELECT status FROM evpg_execute_many(ARRAY[
  evpg_command('account_c', 'a' || :source, 'Withdraw', jsonb_build_object('amount', :amount)),
  evpg_command('account_c', 'a' || :target, 'Deposit', jsonb_build_object('amount', :amount))], caused_by => '{NULL,1}');
SQL
PostgreSQL::Test::Utils::append_to_file("$directory/append.sql", <<"SQL");
\\set one random(1, $streams)
\\set other random(1, $streams)
\\set checked random(1, $streams)
SELECT version FROM evpg_append_many(ARRAY[
  evpg_stream_append('plain', 'p' || :one, ARRAY[evpg_event('Sent', tags => ARRAY['p' || :other])]),
  evpg_stream_append('plain', 'p' || :other, ARRAY[evpg_event('Received', tags => ARRAY['p' || :one], caused_by => 1)]),
  evpg_stream_append('plain', 'p' || :checked)], evpg_condition(ARRAY['Never'], ARRAY['p' || :checked]));
SQL

# Lets all clients work at once; returns how many calls have failed.
sub run_clients
{
	my ($output, $errors) = run_command(
		[
			'pgbench', '-n', '-c', $clients, '-j', 2, '-t', $calls,
			'-f', "$directory/move.sql", '-f', "$directory/append.sql", '-d' => $node->connstr('postgres')
		]);
	my ($done) = $output =~ /^number of transactions actually processed: (\d+)\/\d+$/m;
	my ($failed) = $output =~ /^number of failed transactions: (\d+) /m;

	is(($done // 0) + ($failed // 0), $clients * $calls, 'all clients have worked') or diag($output, $errors);
	return $failed;
}

# What contradicts itself.
sub check_books
{
	my ($when) = @_;

	is(query(<<"SQL"), 100 * $accounts . '|t|t', "$when: no money has come or gone, and no account is overdrawn [rule 23]");
SELECT sum((state->>'balance')::int), bool_and((state->>'balance')::int >= 0),
  (SELECT count(*) FROM evpg.event WHERE type = 'MoneyWithdrawn')
  = (SELECT count(*) - $accounts FROM evpg.event WHERE type = 'MoneyDeposited')
  FROM generate_series(1, $accounts) n, evpg_state('account_c', 'a' || n)
SQL
	is(query(<<"SQL"), '0', "$when: each deposit names its withdrawal as the cause [rule 23]");
SELECT count(*) FROM evpg.event d LEFT JOIN evpg.event w ON w.event_id::text = d.causation_id AND w.type = 'MoneyWithdrawn'
  AND w.data->'amount' = d.data->'amount' AND w.correlation_id = d.correlation_id
 WHERE d.type = 'MoneyDeposited' AND d.version > 2 AND w.event_id IS NULL
SQL
	is(query(<<"SQL"), 't', "$when: appends have come in pairs [rule 23]");
SELECT count(*) FILTER (WHERE type = 'Sent') = count(*) FILTER (WHERE type = 'Received') FROM evpg.event
 WHERE aggregate_type = 'plain'
SQL
	is(inspect($node), '', "$when: nothing that is stored contradicts itself [rule 3, rule 23]");
}

is(run_clients(), 0, 'no call fails, none is the victim of a deadlock [rule 23]');
check_books('in one order');
cmp_ok(query("SELECT count(*) FROM evpg.event WHERE type = 'MoneyWithdrawn'"), '>', $clients, 'money has been moved');

my $victims = 0;

query("ALTER DATABASE postgres SET evpg.test_mutation = 'streams_unordered'");
for (my $round = 0; $round < 20 && $victims == 0; $round++)
{
	$victims = run_clients();
}
cmp_ok($victims, '>', 0, 'without the order there are deadlocks');
check_books('without the order');

$node->stop;
done_testing();
