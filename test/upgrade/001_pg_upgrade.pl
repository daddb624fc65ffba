# pg_upgrade to newer major versions, at once and by way of the versions between, with everything under way: sagas, timers,
# scheduled commands, dead letters, parked events, a rebuild.  Nothing changes; consumers are inactive until they are
# activated (rule 9); and what comes of it in the end is what comes of it on the server where it began.

use strict;
use warnings;
use FindBin;
use lib ($FindBin::RealBin, "$FindBin::RealBin/../t");
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use UpgradeTest;

# What is done after each upgrade, before the next: activate, one reaction, a command.
my @step = ('SELECT evpg_activate_consumers()', 'SELECT evpg_run_sagas(1)',
	q(SELECT count(*) FROM evpg_execute('sum', 's', 'Add', '{"by": 1000}', command_id => 'step')));

my $oldest = server('oldest', $others[0]);
fill($oldest);
is( under_way($oldest),
	'events for sagas, one waits for a dead letter, one is retried, timers, scheduled commands, dead letters, lag, parked, '
	  . 'paused, running, stopped, a rebuild in 3 parts, an old build, 3 snapshots, an inbox, a completed instance, '
	  . '2 events in flight, 1 parked',
	'all kinds of work are under way');
my $contents = contents($oldest);
my $figures = figures($oldest);
my $settings = settings($oldest);
$oldest->stop;

# ------------------------------------------------------------------ by way of every version

my $from = $oldest;
foreach my $version (@others[ 1 .. $#others ], $newest)
{
	my $to = server("way_$version", $version, initdb => [ $version >= 18 ? '--no-data-checksums' : () ]);

	forget_versions($from) if !has_column_versions($to);
	$to->stop;
	# the last one by links: the files of the old cluster are those of the new one
	upgrade($from, $to, $version, $version == $newest ? '--link' : '--copy');
	$to->start;
	check_unchanged($to, "by way of $version");
	if ($version != $newest)
	{
		$to->safe_psql('postgres', $_) foreach @step;
		is(sqlstate($to, 'BEGIN; SELECT evpg_activate_consumers(); ROLLBACK'), '00000', "$version is the home of it now");
		($contents, $figures) = (contents($to), figures($to));
		$to->stop;
	}
	$from = $to;
}
ok(finish($from), 'by way of all versions: all work comes to its end');
is(left($from), '', 'by way of all versions: each transfer is made once, nothing is left [rules 16, 18]');
is(inspect($from), '', 'by way of all versions: all that is stored agrees in the end');
my $outcome = outcome($from);

# ------------------------------------------------------------------ at once, as docs/operations.md does it

$oldest->start;
($contents, $figures) = (contents($oldest), figures($oldest));
forget_column_versions($oldest) if !has_column_versions($from);
my $direct = PostgreSQL::Test::Cluster->new('direct', port => $oldest->port);
my $file = PostgreSQL::Test::Utils::tempdir . '/settings';
append_to_file($file, slurp_file($ENV{TEMP_CONFIG}) . $conf
	  . sprintf("port = %d\nlisten_addresses = ''\nunix_socket_directories = '%s'\n", $oldest->port, $oldest->host));
{
	local %ENV = (%ENV, PGHOST => $oldest->host, PGPORT => $oldest->port, database => 'postgres', settings => $file,
		old => installation($others[0]) . '/bin', new => installation($newest) . '/bin',
		old_data => $oldest->data_dir, new_data => $direct->data_dir);
	chdir PostgreSQL::Test::Utils::tempdir_short or die;
	command_ok([ 'sh', '-eux', '-c', documented() ], 'the commands of docs/operations.md');
}
$from->stop;
$oldest->_update_pid(0);
$direct->_update_pid(1);
is($direct->safe_psql('postgres', "SELECT evpg_activate_consumers(), current_setting('server_version_num')::int / 10000"),
	"f|$newest", 'after the commands of docs/operations.md consumers are active');
$direct->safe_psql('postgres', $_) foreach @step;
ok(finish($direct), 'at once: all work comes to its end');
is(outcome($direct), $outcome, 'at once: it is what comes of it by way of the other versions');
is(left($direct), '', 'at once: each transfer is made once, nothing is left [rules 16, 18]');
is(inspect($direct), '', 'at once: all that is stored agrees in the end');
$direct->stop;

# ------------------------------------------------------------------ not at all

$oldest->start;
is(contents($oldest), $contents, 'the old cluster is as it was');
$oldest->safe_psql('postgres', $_) foreach @step;
ok(finish($oldest), 'without an upgrade: all work comes to its end');
is(outcome($oldest), $outcome, 'it is what comes of it after upgrades: nothing is lost, nothing is done twice');
$oldest->stop;

foreach my $log ($from->logfile, $direct->data_dir . '.log')
{
	is(join("\n", slurp_file($log) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
}
done_testing();

# Settings of databases and roles, privileges on settings.
sub settings
{
	my ($node) = @_;

	return $node->safe_psql('postgres', <<'SQL');
SELECT setdatabase <> 0, setrole <> 0, setconfig FROM pg_db_role_setting ORDER BY setconfig;
SELECT parname, acl.grantee::regrole, acl.privilege_type FROM pg_parameter_acl, aclexplode(paracl) acl ORDER BY 1, 2, 3;
SQL
}

# A stopped server.
sub forget_versions
{
	my ($node) = @_;

	$node->start;
	forget_column_versions($node);
	$node->stop;
	return;
}

sub upgrade
{
	my ($from, $to, $version, $mode) = @_;
	my $bin = installation($version) . '/bin';

	chdir $PostgreSQL::Test::Utils::tmp_check or die;
	return command_ok([ "$bin/pg_upgrade", '--no-sync', $mode, '-d', $from->data_dir, '-D', $to->data_dir,
			'-b', $from->config_data('--bindir'), '-B', $bin, '-s', $to->host, '-p', $from->port, '-P', $to->port ],
		"pg_upgrade to $version ($mode)");
}

# All is in a new cluster as it was in the old one, and nothing happens there.
sub check_unchanged
{
	my ($node, $what) = @_;

	is(contents($node), $contents, "$what: all rows and sequences are as they were");
	is(figures($node), $figures, "$what: so are events, states, projections, lag, the stable position, privileges");
	is(settings($node), $settings, "$what: so are settings of databases and roles");
	is(inspect($node), '', "$what: all that is stored agrees");
	$node->safe_psql('postgres', 'CREATE DATABASE fresh');
	$node->safe_psql('fresh', 'CREATE EXTENSION evpg');
	is(objects($node), objects($node, 'fresh'), "$what: tables, views and functions are those of CREATE EXTENSION");
	$node->safe_psql('postgres', 'DROP DATABASE fresh');
	is(sqlstate($node, $_), '55000', "$what: nothing is done before activation: $_ [rule 9]")
	  foreach 'CALL evpg_run()', 'SELECT evpg_run_sagas()', 'SELECT evpg_retry_dead_letters(NULL)';
	is($node->safe_psql('postgres', q(SELECT status FROM evpg_try_execute('account', 'payee', 'Open',
			'{"owner": "Ælfgifu \\\\ \"x\""}', command_id => 'open', metadata => '{"n": 12345678901234567890.12}'))),
		'duplicate', "$what: a command that was sent before is a duplicate [rule 4]");
	is(sqlstate($node, 'DELETE FROM evpg.event_log'), 'VE012', "$what: history is append-only");
	is(contents($node), $contents, "$what: and nothing has been done");
	return;
}

# The commands of docs/operations.md, "A new major version of PostgreSQL".
sub documented
{
	my ($chapter) = slurp_file(tree() . '/docs/operations.md') =~ /^### A new major version of PostgreSQL\n(.*?)(?=^##|\z)/ms
	  or die 'the chapter is missing';

	my @commands = $chapter =~ /^```sh\n(.*?)^```$/msg or die 'there are no commands';

	return join '', @commands;
}
