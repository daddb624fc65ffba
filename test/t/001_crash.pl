# Rules 3, 4 and 7 across crashes: under a load of commands, the postmaster is killed, the server stopped at once, and every
# process of it killed.  After each restart, what was reported committed is there, transactions are whole, and all that is
# stored agrees; at the end every command that was sent again is known as a duplicate.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 6;
my $accounts = 5;
my $node = evpg_node('crash', conf => "synchronous_commit = on\n");
my $directory = PostgreSQL::Test::Utils::tempdir;
my %done;

# snapshots that are written often
$node->safe_psql('postgres', <<'SQL');
SELECT evpg_register_aggregate('account_c', library => 'evpg_bank', symbol => 'bank_account', snapshot_every => 5,
  snapshot_keep => 2);
SELECT count(*)
  FROM unnest(ARRAY['account', 'account_c']) t, generate_series(1, 5) n,
       LATERAL evpg_execute(t, 'a' || n, 'Open', '{"owner": "Alice"}') o,
       LATERAL evpg_execute(t, 'a' || n, 'Deposit', '{"amount": 1000000}') d;
SQL

sub command
{
	my ($type, $account, $command, $id) = @_;

	return "SELECT FROM evpg_execute('$type', 'a$account', '$command', '{\"amount\": 1}', command_id => '$id');\n";
}

# What a client does; it says "done" only after a commit, and stops at the first error.
sub script
{
	my ($round, $client) = @_;
	my $script = "\\set ON_ERROR_STOP on\n\\o /dev/null\n";

	foreach my $n (1 .. 5000)
	{
		my $id = "$round-$client-$n";
		my $type = ($n + $client) % 4 == 0 ? 'account' : 'account_c';
		my $account = 1 + ($n * 7 + $client) % $accounts;

		if ($n % 5 == 0 && $account < $accounts)
		{
			# one after the other, so that there are no deadlocks
			$script .= "BEGIN;\n" . command($type, $account, 'Withdraw', "t-$id")
				. command($type, $account + 1, 'Deposit', "t-$id")
				. "COMMIT;\n\\echo done t-$id $type a$account\n";
		}
		elsif ($n % 7 == 0)
		{
			$script .= "BEGIN;\n" . command($type, $account, 'Deposit', "never-$id") . "ROLLBACK;\n";
		}
		elsif ($n % 11 == 0)
		{
			$script .= "BEGIN;\nSAVEPOINT s;\n" . command($type, $account, 'Deposit', "never-$id") . "ROLLBACK TO s;\n"
				. command($type, $account, 'Deposit', "d-$id") . "COMMIT;\n\\echo done d-$id $type a$account\n";
		}
		else
		{
			$script .= command($type, $account, 'Deposit', "d-$id") . "\\echo done d-$id $type a$account\n";
		}
	}
	return $script;
}

sub round
{
	my ($round, $what, $crash) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM evpg.event_log');
	my @processes;
	my $reported = 0;

	foreach my $client (1 .. $clients)
	{
		my $name = "$directory/$round-$client";

		PostgreSQL::Test::Utils::append_to_file("$name.sql", script($round, $client));
		push @processes,
		  IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$name.sql" ], '>', "$name.out", '2>',
		  	"$name.err");
	}
	ok($node->poll_query_until('postgres', "SELECT count(*) >= $before + 400 FROM evpg.event_log"), "$what: there is load");
	$crash->();
	foreach my $client (1 .. $clients)
	{
		my $process = $processes[ $client - 1 ];
		my $name = "$directory/$round-$client";

		$process->finish;
		my $error = slurp_file("$name.err");
		is($process->result(0), 2, "$what: client $client was at work and lost its connection")
		  or diag($error);
		unlike($error, qr/ERROR/, "$what: client $client met no other error");
		foreach my $line (split /\n/, slurp_file("$name.out"))
		{
			my ($word, $id, $type, $account) = split / /, $line;

			$done{$id} = [ $type, $account ];
			$reported++;
		}
	}
	cmp_ok($reported, '>', 0, "$what: commands were reported committed");
	note "$reported reported in this round";
	start_again($node);
	verify($what);
	return;
}

sub verify
{
	my ($what) = @_;
	my $copy = join '', map { "$_\t$done{$_}[0]\t$done{$_}[1]\n" } sort keys %done;

	$node->safe_psql('postgres',
		"DROP TABLE IF EXISTS done; CREATE TABLE done (id text, type text, account text);\nCOPY done "
		. "FROM STDIN;\n$copy\\.\n");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM done'), scalar(keys %done),
		"$what: the list of what was reported is complete");
	is( $node->safe_psql('postgres', <<'SQL'), '', "$what: every command reported committed is there");
SELECT * FROM done d
 WHERE NOT EXISTS (SELECT FROM evpg.event e
   WHERE e.command_id = d.id AND (e.aggregate_type, e.aggregate_id) = (d.type, d.account))
SQL
	is($node->safe_psql('postgres',
		"SELECT command_id, count(*) FROM evpg.event_log WHERE command_id LIKE 't-%' GROUP BY 1 HAVING count(*) <> 2"),
		'', "$what: both commands of a transaction, or none");
	is($node->safe_psql('postgres', "SELECT command_id FROM evpg.event_log WHERE command_id LIKE 'never-%'"), '',
		"$what: nothing that was rolled back");
	is(inspect($node), '', "$what: all that is stored agrees (rules 3, 4, 7, 9)");
	is( $node->safe_psql('postgres', <<'SQL'), '', "$what: the indexes agree with the tables");
CREATE EXTENSION IF NOT EXISTS amcheck;
SELECT string_agg(bt_index_check(indexrelid, true)::text, '') FROM pg_index
 WHERE indrelid = ANY ('{evpg.stream,evpg.event_log,evpg.command_record,evpg.snapshot}'::regclass[]);
SQL
	# positions go on above those that are there; the log goes on where it was
	is( $node->safe_psql('postgres', <<'SQL'), "t|t\nt|t", "$what: commands go on");
SELECT e.position > m.position, e.version = s.version + 1
  FROM (SELECT max(position) AS position FROM evpg.event_log) m,
       LATERAL (SELECT aggregate_type, version FROM evpg.stream_head WHERE aggregate_id = 'a1') s,
       LATERAL evpg_execute(s.aggregate_type, 'a1', 'Deposit', '{"amount": 1}', expected_version => s.version) e
SQL
	is($node->safe_psql('postgres', 'SELECT evpg_stable_position() = max(position) FROM evpg.event_log'), 't',
		"$what: no appender is left behind");
	return;
}

sub server_processes
{
	return split /\n/, $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()");
}

round(1, 'postmaster killed', sub { $node->kill9 });
round(2, 'server stopped at once', sub { $node->stop('immediate') });
round(3, 'all processes killed', sub {
	my @others = server_processes();

	$node->kill9;
	kill(9, @others);
});

# rule 4: to send a command again is harmless, also after three crashes
is( $node->safe_psql('postgres', <<'SQL'), 'duplicate|' . grep({ /^d-/ } keys %done), 'what is sent again is a duplicate');
SELECT o.status, count(*)
  FROM done d CROSS JOIN LATERAL evpg_try_execute(d.type, d.account, 'Deposit', '{"amount": 1}', command_id => d.id) o
 WHERE d.id LIKE 'd-%' GROUP BY o.status
SQL
is(inspect($node), '', 'what was sent again has changed nothing');

# what the inspection says is not empty whatever happens: damage of each kind is found
foreach my $damage (
	[ 'a stream row', "DELETE FROM evpg.stream WHERE aggregate_id = 'a1'", 'it has a row' ],
	[ 'a lost event', "DELETE FROM evpg.event_log WHERE version = 2 AND stream_id = 1", 'versions of a stream' ],
	[ 'a lost record', "DELETE FROM evpg.command_record WHERE ctid IN (SELECT ctid FROM evpg.command_record LIMIT 1)",
		'has its record' ],
	[ 'a wrong snapshot', "UPDATE evpg.snapshot SET state = '{}'", 'snapshot is what' ],
	[ 'a sequence set back', "SELECT setval('evpg.event_position', 1)", 'above the sequence' ])
{
	my ($what, $statement, $found) = @$damage;

	$node->safe_psql('postgres', 'CREATE DATABASE damaged TEMPLATE postgres');
	$node->safe_psql('damaged',
		"ALTER TABLE evpg.event_log DISABLE TRIGGER evpg_append_only; ALTER TABLE evpg.stream DISABLE TRIGGER "
		. "evpg_append_only; $statement");
	my ($code, $stdout, $stderr);
	eval { $stdout = inspect($node, 'damaged'); 1 } or $stdout = $@;
	like($stdout, qr/$found|is damaged/, "the inspection finds $what [B12]");
	$node->safe_psql('postgres', 'DROP DATABASE damaged');
}

$node->stop;
done_testing();
