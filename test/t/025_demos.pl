# The demos, small: on a server as scripts/demo makes it, with workers, and the bank's on one without.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my %small = (CLIENTS => 4, VISITS => 80, ACCOUNTS => 20, TRANSFERS => 600);

# Runs a demo in a new database; its output.
sub demo
{
	my ($node, $database, @command) = @_;
	my $output = '';

	$node->safe_psql('template1', "CREATE DATABASE $database") unless $node->safe_psql('template1',
		"SELECT count(*) FROM pg_database WHERE datname = '$database'");
	$node->safe_psql($database, 'CREATE EXTENSION IF NOT EXISTS evpg');
	local @ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, $database);
	local @ENV{ keys %small } = values %small;
	IPC::Run::run(\@command, '<', \undef, '>&', \$output);
	is($? >> 8, 0, "$database: @command ends well") or diag($output);
	unlike($output, qr/^NOT OK/m, "$database: no check fails");
	return $output;
}

sub bank
{
	my ($node, $database) = @_;
	my $output = demo($node, $database, tree() . '/examples/bank/demo');
	my ($transfers_c, $transfers) = (600, 120);

	like($output, qr/^ok: \Q$_\E/m, "$database: $_") foreach (
		'the balance of alice (7500)',
		'the statement fails with VE002 (VE002)',
		'the statement fails with VE001 (VE001)',
		'versions heard of balances (1 2 3)',
		'outcomes, events and states of C and SQL (identical)',
		'visits in the book (320)',
		'visits in the book (80)',
		'accounts below zero (0)',
		'frames that are not the next version of their key (0)',
		'keys whose last frame is not their row (0)',
		'balances of ann and ben (300 700)',
		"transfers requested, and settled once each ($transfers_c $transfers_c $transfers_c)",
		"transfers requested, and settled once each ($transfers $transfers $transfers)",
		'dead letters, timers and instances that are left (0 0 0)',
		'events that it has written out of their order (0)',
		'events that it has written twice, for it was killed: at most a page (yes)');
	like($output, qr/^evpg-tail was killed when it had written \d+ events, and is started again at position \d+$/m,
		"$database: the consumer outside of the database is killed");
	like($output, qr/^ok: events that it has written, one for each of the log \(\d+\)$/m, "$database: and has all events");
	is(scalar(() = $output =~ /^a worker was terminated when \d+ of \d+ transfers had come to an end$/mg), 2,
		"$database: a worker is terminated in each form of the saga");
	is(scalar(() = $output =~ /^sum of all balances of account(?:_c)? before the transfers: (\d+); after them: \1$/mg), 2,
		"$database: and no cent is lost");
	like($output, qr/^bank demo: all checks hold$/m, "$database: the bank's demo says that all is well");
	return;
}

my $node = evpg_node('demo', bare => 1, conf => "shared_preload_libraries = 'evpg'\nevpg.workers = 2\n");

bank($node, 'demo');
my $output = demo($node, 'demo', tree() . '/examples/loan/demo', tree() . '/examples/loan/sample.csv');
like($output, qr/^ok: \Q$_\E/m, "demo: $_") foreach (
	'read models are up to date (t)',
	'work_days was rebuilt (t)',
	'events imported by the second run (0)',
	'events in the log (41)',
	'events skipped by the second run (41)',
	'events out of the order of time within their stream (0)',
	'outcomes: rows that differ from plain SQL over the log (0)',
	'work_days: rows that differ from plain SQL over the log (0)',
	'the statement fails with VE002 (VE002)');
like($output, qr/^loan demo: all checks hold$/m, 'demo: the demo of the loans says that all is well');
is(inspect($node, 'demo'), '', 'demo: all that is stored agrees');
$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');

$node = evpg_node('plain', bare => 1);
bank($node, 'plain');
is(inspect($node, 'plain'), '', 'plain: all that is stored agrees');
$node->stop;
done_testing();
