# Rules 2, 3 and 5 under real concurrency: 8 connections with 200 commands each over 5 accounts, in C and in SQL: each answer
# is counted, versions are contiguous, and the balances are exactly what was accepted.  Then transfers at SERIALIZABLE, tried
# again on 40001: no money comes or goes.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($clients, $commands, $accounts) = (8, 200, 5);
# transfers run into deadlocks, which are noticed after this time
my $node = evpg_node('bank', conf => "deadlock_timeout = 10ms\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

foreach my $type ('account', 'account_c')
{
	my @processes;

	foreach my $client (1 .. $clients)
	{
		my $script = '';

		foreach my $n (1 .. $commands)
		{
			my $account = 1 + ($n * 3 + $client) % $accounts;
			my $amount = 1 + ($n * 7 + $client * 13) % 50;
			# opening is part of it: the first one wins, for the others it is a no-op
			my ($command, $data) =
				$n <= $accounts ? ('Open', '{"owner": "Alice"}')
			  : ($n + $client) % 3 == 0 ? ('Deposit', "{\"amount\": $amount}")
			  : ('Withdraw', "{\"amount\": $amount}");
			# now and then with an expectation that may have become wrong meanwhile
			my $expected = $n % 10 == 9 ? "evpg_stream_version('$type', 'a$account')" : 'NULL';

			$script .= "SELECT 'a$account', '$command', $amount, status, coalesce(code, '') "
				. "FROM evpg_try_execute('$type', 'a$account', '$command', '$data', $expected);\n";
		}
		my $file = "$directory/$type-$client";

		PostgreSQL::Test::Utils::append_to_file("$file.sql", $script);
		push @processes, IPC::Run::start(
			[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', "$file.sql" ],
			'>', "$file.out", '2>', "$file.err");
	}

	my %balance = map { ("a$_" => 0) } 1 .. $accounts;
	my %version = %balance;
	my %status;
	my $answers = 0;

	foreach my $client (1 .. $clients)
	{
		my $file = "$directory/$type-$client";

		$processes[ $client - 1 ]->finish;
		is($processes[ $client - 1 ]->result(0), 0, "$type: client $client met no error") or diag(slurp_file("$file.err"));
		foreach my $line (split /\n/, slurp_file("$file.out"))
		{
			my ($account, $command, $amount, $status, $code) = split /\|/, $line, -1;

			$answers++;
			$status{ $status eq 'rejected' ? "$status $code" : $status }++;
			next if $status ne 'ok';
			$version{$account}++;
			$balance{$account} += $amount if $command eq 'Deposit';
			$balance{$account} -= $amount if $command eq 'Withdraw';
		}
	}
	note join(', ', map { "$_: $status{$_}" } sort keys %status);
	is($answers, $clients * $commands, "$type: each command was answered");
	is(join(' ', grep { !/^(ok|noop|conflict|rejected insufficient_funds|rejected account_not_open)$/ } keys %status), '',
		"$type: with nothing unforeseen");
	cmp_ok($status{'rejected insufficient_funds'}, '>', 0, "$type: withdrawals were rejected");
	is($status{noop}, $clients * $accounts - $accounts, "$type: each account was opened once");
	is( $node->safe_psql('postgres',
		"SELECT s.aggregate_id, s.version, f.state->'balance' "
		. "FROM evpg_streams('$type') s, LATERAL evpg_state('$type', s.aggregate_id) f ORDER BY 1"),
		join("\n", map { "$_|$version{$_}|$balance{$_}" } sort keys %balance),
			"$type: versions and balances are what was accepted, to the cent [rule 3]");
	is($node->safe_psql('postgres', "SELECT count(*) FROM evpg.event WHERE aggregate_type = '$type'"), $status{ok},
		"$type: what was refused left no event [rule 5]");
	is( $node->safe_psql('postgres', <<"SQL"), '', "$type: no balance was ever negative [rule 5]");
SELECT aggregate_id, version FROM (
  SELECT aggregate_id, version, sum((data->>'amount')::bigint * CASE type WHEN 'MoneyWithdrawn' THEN -1 ELSE 1 END)
           OVER (PARTITION BY aggregate_id ORDER BY version) AS balance
    FROM evpg.event WHERE aggregate_type = '$type') e WHERE balance < 0
SQL
	is(inspect($node), '', "$type: all that is stored agrees: the commands of a stream in order [2.4 test 13]");
}

# ------------------------------------------------------------------ SERIALIZABLE

# The rule of this bank needs two streams: an account may be overdrawn by another one that it reads.  The sum of the pair
# must never fall below 0, which neither account knows of itself.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION pair_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT evpg_event('Changed', command.data)
$$;
CREATE FUNCTION pair_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT to_jsonb(state::bigint + (event.data->>'by')::bigint)
$$;
SELECT evpg_register_aggregate('half', 'pair_handle', 'pair_apply', initial_state => '0', snapshot_every => 0);
SELECT count(*) FROM generate_series(1, 3) n, LATERAL evpg_execute('half', 'left' || n, 'Change', '{"by": 600}') l,
                                              LATERAL evpg_execute('half', 'right' || n, 'Change', '{"by": 625}') r;
SELECT count(*) FROM generate_series(1, 5) n, LATERAL evpg_execute('account_c', 's' || n, 'Open', '{"owner": "Alice"}') o,
                                              LATERAL evpg_execute('account_c', 's' || n, 'Deposit', '{"amount": 1000}') d;
CREATE TABLE tally (side text, accepted boolean);
SQL

# takes 50 from one half if both together have it
PostgreSQL::Test::Utils::append_to_file("$directory/pair.pgbench", <<'SQL');
\set n random(1, 3)
\set side random(0, 1)
\set pause random(0, 4)
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(state::bigint) >= 50 AS enough FROM unnest(ARRAY['left', 'right']) s, LATERAL evpg_state('half', s || :n) \gset
\sleep :pause ms
\if :enough
SELECT FROM evpg_execute('half', CASE :side WHEN 0 THEN 'left' ELSE 'right' END || :n, 'Change', '{"by": -50}');
\endif
COMMIT;
SQL
# a transfer in one transaction; who has not enough transfers nothing
PostgreSQL::Test::Utils::append_to_file("$directory/transfer.pgbench", <<'SQL');
\set from random(1, 5)
\set to (:from + random(0, 3)) % 5 + 1
\set amount random(1, 400)
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT status = 'ok' AS taken
  FROM evpg_try_execute('account_c', 's' || :from, 'Withdraw', jsonb_build_object('amount', :amount)) \gset
\if :taken
SELECT FROM evpg_execute('account_c', 's' || :to, 'Deposit', jsonb_build_object('amount', :amount));
\endif
COMMIT;
SQL

sub pgbench
{
	my ($script, $level) = @_;
	my $file = "$directory/$script.$level";

	slurp_file("$directory/$script.pgbench") =~ /SERIALIZABLE/ or die;
	PostgreSQL::Test::Utils::append_to_file($file, slurp_file("$directory/$script.pgbench") =~ s/SERIALIZABLE/$level/r);
	my ($stdout, $stderr) = ('', '');
	IPC::Run::run([ 'pgbench', '-n', '-c', $clients, '-j', 2, '-t', 40, '--max-tries', 10000, '-f', $file, '-d',
		$node->connstr('postgres') ],
		'>', \$stdout, '2>', \$stderr);
	is($?, 0, "$level, $script: pgbench") or diag($stderr);
	like($stdout, qr/number of failed transactions: 0 /, "$level, $script: each transaction has succeeded in the end");
	return $stdout =~ /number of transactions retried: (\d+)/ ? $1 : 0;
}

my $retried = pgbench('pair', 'SERIALIZABLE');
cmp_ok($retried, '>', 0, 'SERIALIZABLE: transactions had to be tried again');
is( $node->safe_psql('postgres', <<'SQL'),
SELECT n, sum(state::bigint)
  FROM generate_series(1, 3) n, unnest(ARRAY['left', 'right']) s, LATERAL evpg_state('half', s || n) GROUP BY n ORDER BY n
SQL
	"1|25\n2|25\n3|25", 'SERIALIZABLE: no pair has spent more than it had, each all that it could');
foreach my $level ('SERIALIZABLE', 'REPEATABLE READ', 'READ COMMITTED')
{
	pgbench('transfer', $level);
	is( $node->safe_psql('postgres', "SELECT sum((f.state->>'balance')::bigint),
				count(*) FILTER (WHERE (f.state->>'balance')::bigint < 0)
			FROM generate_series(1, 5) n, LATERAL evpg_state('account_c', 's' || n) f"), '5000|0',
		"$level: the sum of all accounts is what it was");
}
is(inspect($node), '', 'all that is stored agrees');

$node->stop;
done_testing();
