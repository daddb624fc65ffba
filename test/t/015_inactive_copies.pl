# A database that was restored, or copied from another, keeps its consumers paused until evpg_activate_consumers(): a copy
# must not send what the original sends.  The original, and one restored over itself, go on.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('home');
my $far = evpg_node('far', bare => 1);
my $directory = PostgreSQL::Test::Utils::tempdir;
my $own = <<'SQL';
SELECT count(*), count(*) FILTER (WHERE m.system_identifier = s.system_identifier AND m.database = d.oid)
  FROM evpg.activation m, pg_control_system() s, pg_database d
 WHERE d.datname = current_database() AND m.system_identifier <> 0
SQL

# Whether consumers are paused: what evpg_activate_consumers() would change.
sub paused
{
	my ($where, $database) = @_;

	return $where->safe_psql($database, 'BEGIN; SELECT evpg_activate_consumers(); ROLLBACK');
}

sub is_copy
{
	my ($where, $database, $what) = @_;

	is(paused($where, $database), 't', "$what: paused [rule 9]");
	is( $where->safe_psql($database, "SELECT version FROM evpg_execute('account', 'a', 'Deposit', '{\"amount\": 1}')"),
		'2', "$what: commands work");
	is($where->safe_psql($database, 'SELECT evpg_activate_consumers(), evpg_activate_consumers()'), 't|f',
		"$what: activated, once [rule 9]");
	is(paused($where, $database), 'f', "$what: not paused any more [rule 9]");
	is($where->safe_psql($database, $own), '1|1', "$what: it is the only home of its contents");
	return;
}

$node->safe_psql('postgres', 'CREATE DATABASE original');
create_evpg($node, 'original');
$node->safe_psql('original', "SELECT FROM evpg_execute('account', 'a', 'Open', '{\"owner\": \"Alice\"}')");
is(paused($node, 'original'), 'f', 'where it was created: not paused [rule 9]');
is($node->safe_psql('original', $own), '1|1', 'the database knows itself');
$node->restart;
is(paused($node, 'original'), 'f', 'consumers are not paused after a restart');
$node->safe_psql('postgres', 'ALTER DATABASE original RENAME TO renamed');
is(paused($node, 'renamed'), 'f', 'consumers are not paused under another name of the database');

# ------------------------------------------------------------------ copies

$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE renamed');
$node->safe_psql('copy',
	'CREATE FUNCTION kept(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$');
foreach my $call ("evpg_register_projection('kept', 'kept', mode => 'async')", "evpg_resume_consumer('kept')",
	"evpg_rebuild_projection('kept', background => true)", "evpg_pause_consumer('kept')")
{
	my ($status, undef, $notice) = $node->psql('copy', "SELECT $call");
	my $tells = $notice =~ /NOTICE:  consumers of this database are inactive\n.*HINT:  Run evpg_activate_consumers/s
		? 'tells' : 'silent';

	is("$status $tells", $call =~ /pause/ ? '0 silent' : '0 tells',
		"$call in a copy is done, and says when it has no effect [rule 9]");
}
$node->safe_psql('copy', "SELECT evpg_resume_consumer('kept')");
is($node->safe_psql('copy', "SELECT status, reason FROM evpg.stat_consumer WHERE name = 'kept'"),
	'inactive|this database was restored or copied: evpg_activate_consumers() lets its consumers run',
		'the status of its consumers says so [rule 9]');
my (undef, undef, $message) = $node->psql('copy', "SELECT evpg_wait_for('kept', 1)");
like($message, qr/ERROR:  consumers of this database are inactive\n.*HINT:  Run evpg_activate_consumers/s,
	'a wait for one ends at once, and says so [rule 9]');
ok($node->poll_query_until('copy', "SELECT status = 'not served' FROM evpg.stat_database WHERE datname = 'copy'"),
	'as does the row of the database [rule 9]');
$node->safe_psql('copy', "SELECT evpg_drop_projection('kept')");
is_copy($node, 'copy', 'a copy of a template');
is(paused($node, 'renamed'), 'f', 'the original is not touched');

$node->safe_psql('renamed', "SELECT evpg_schedule_command('2100-01-01', 'account', 'a', 'Close')");
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/dump", '-d', $node->connstr('renamed') ], 'pg_dump');
foreach my $to ([ $node, 'here', 'restored on the same server' ], [ $far, 'there', 'restored on another server' ])
{
	my ($where, $database, $what) = @$to;

	$where->safe_psql('postgres', "CREATE DATABASE $database");
	$where->command_ok([ 'pg_restore', '--exit-on-error', '-d', $where->connstr($database), "$directory/dump" ], $what);
	is($where->safe_psql($database, $own), '2|1', "$what: there are the rows of both");
	is_copy($where, $database, $what);
}

$node->safe_psql('postgres', 'CREATE DATABASE data');
$node->safe_psql('data', 'CREATE EXTENSION evpg');
is(paused($node, 'data'), 'f', 'another one of its own');
$node->command_ok([ 'pg_restore', '--exit-on-error', '--data-only', '-n', 'evpg', '-d', $node->connstr('data'),
	"$directory/dump" ], 'data alone');
is(paused($node, 'data'), 't', 'data alone: paused');

# A dump of what was activated, and of what was not: the row of the one who made it, or of all, comes along.
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/again", '-d', $node->connstr('data') ], 'a dump of a paused copy');
$node->safe_psql('postgres', 'CREATE DATABASE again');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('again'), "$directory/again" ], 'restored');
is($node->safe_psql('again', $own), '3|1', 'a copy of a copy knows all');
is(paused($node, 'again'), 't', 'consumers of a copy of a copy are paused');

# pg_restore -j restores the largest tables first, and evpg.activation nearly last: here, each table that has work
# for workers alone, and everything but evpg.activation.
my ($list) = run_command([ 'pg_restore', '-l', "$directory/dump" ]);
my @lines = split /\n/, $list;
my @tables = qw(consumer timer rebuild old_build retention);

foreach my $table (@tables, 'all')
{
	my @first = grep {
		/ TABLE DATA / ? / evpg $table / || $table eq 'all' && !/ evpg activation / : !/ SEQUENCE SET /
	} @lines;

	$node->safe_psql('postgres', 'CREATE DATABASE part');
	append_to_file("$directory/$table.list", join "\n", @first);
	$node->command_ok([ 'pg_restore', '--exit-on-error', '-L', "$directory/$table.list", '-d', $node->connstr('part'),
		"$directory/dump" ], "a restore that has come to the rows of: $table");
	is($node->safe_psql('part', $own), '1|1', "$table: evpg.activation is not restored yet");
	is(paused($node, 'part'), 't', "$table: consumers are inactive all the same [rule 9]");
	is(sqlstate($node, 'CALL evpg_run()', 'part'), '55000', "$table: nothing runs [rule 9]");
	is($node->safe_psql('part', 'SELECT evpg_activate_consumers(), evpg_activate_consumers()'), 't|f', "$table: activated");
	$node->safe_psql('postgres', 'DROP DATABASE part');
}
$node->safe_psql('postgres', 'CREATE DATABASE part');
$node->safe_psql('part', 'CREATE EXTENSION evpg');
my $insert = "INSERT INTO evpg.retention (what, retention) VALUES ('inbox', '1 day')";
$node->safe_psql('part',
	"BEGIN; SAVEPOINT s; $insert; ROLLBACK TO s; UPDATE evpg.retention SET retention = '1 day'; COMMIT");
is(paused($node, 'part'), 'f', 'what is rolled back, and changes of rows, make nothing inactive');
$node->safe_psql('part', "BEGIN; SAVEPOINT s; $insert; ROLLBACK TO s; $insert; COMMIT");
is(paused($node, 'part'), 't', 'what a superuser inserts after such a rollback does');
$node->safe_psql('part', "SELECT evpg_activate_consumers(), evpg_set_retention('sagas', '1 day')");
is(paused($node, 'part'), 'f', 'what evpg inserts does not');

# ------------------------------------------------------------------ what is no copy

$node->safe_psql('renamed', 'DROP EXTENSION evpg CASCADE; DROP SCHEMA bank CASCADE');
$node->command_ok([ 'pg_restore', '--exit-on-error', '--clean', '--if-exists', '-d', $node->connstr('renamed'),
	"$directory/dump" ],
	'restored over itself');
is($node->safe_psql('renamed', $own), '2|2', 'there are two rows that say the same');
is(paused($node, 'renamed'), 'f', 'a restored row beside an equal one does not pause consumers');

# ------------------------------------------------------------------ who must not, what if nothing is known

$node->safe_psql('renamed', 'DELETE FROM evpg.activation');
is(paused($node, 'renamed'), 't', 'no row: paused');
$node->safe_psql('postgres', 'CREATE ROLE writer');
$node->safe_psql('copy', "SELECT evpg_grant('writer', 'writer')");
is(sqlstate($node, 'SET ROLE writer; SELECT evpg_activate_consumers()', 'copy'), '42501', 'a writer must not activate');
is(sqlstate($node, 'BEGIN READ ONLY; SELECT evpg_activate_consumers()', 'copy'), '25006',
	'a read-only transaction cannot activate consumers');

# ------------------------------------------------------------------ what a copy has drawn

my $deposits = "SELECT count(*) FROM generate_series(1, 10), evpg_execute('account', 'a', 'Deposit', '{\"amount\": 1}')";

$node->safe_psql('postgres', 'CREATE DATABASE drawn TEMPLATE copy');
$node->safe_psql('drawn', 'SELECT evpg_activate_consumers()');
is($node->safe_psql('drawn', $deposits), '10', 'events of a copy');
$node->stop('immediate');
$node->start;
is($node->safe_psql('drawn', $deposits), '10', 'a crash gives no position of theirs to others [rule 9]');

$_->stop foreach $node, $far;
done_testing();
