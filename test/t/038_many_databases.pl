# More databases than places for processes: workers of as many as there is room for, no broadcaster instead of one, a row for
# each database that says whether it is served and why not, and a place that becomes free goes to one that has none (rules 9
# and 15).

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# the launcher has the fourth
my $places = 3;
my $node = evpg_node('many', bare => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 4
max_logical_replication_workers = 0
evpg.workers = 1
evpg.naptime = 100ms
EOC
my %there = map { $_ => 1 } map { "db$_" } 1 .. 6;

sub query
{
	my ($database, $statement) = @_;

	return $node->safe_psql($database, $statement);
}

# The databases that are served, by what one of them says; undef unless it says the same as the server's list of processes.
sub served
{
	my ($any) = sort keys %there;
	my %said = map { split /\|/ } split /\n/,
		query($any, q(SELECT datname, status FROM evpg.stat_database WHERE datname LIKE 'db%'));
	my @workers = split /\n/, query('postgres',
		q(SELECT datname FROM pg_stat_activity WHERE backend_type = 'evpg worker' ORDER BY datname));
	my @served = grep { $said{$_} eq 'served' } sort keys %said;

	return "@served" eq "@workers" ? @served : ();
}

# As many as there is room for, in the end.
sub soon_served
{
	my ($count, $name) = @_;

	foreach (1 .. 600)
	{
		my @served = served();

		if (@served == $count)
		{
			pass($name);
			return @served;
		}
		select(undef, undef, undef, 0.1);
	}
	fail($name);
	return served();
}

query('postgres', 'CREATE DATABASE original');
query('original', $_) foreach (
	'CREATE EXTENSION evpg',
	q(CREATE FUNCTION same(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE
		AS 'SELECT state || event.data'),
	q(SELECT evpg_register_aggregate('plain')),
	q(SELECT evpg_register_projection('inl', 'same', initial_state => '{}')),
	q(SELECT evpg_register_projection('asy', 'same', initial_state => '{}', mode => 'async')));
query('postgres', 'ALTER DATABASE original IS_TEMPLATE true');
foreach my $database (sort keys %there)
{
	query('postgres', "CREATE DATABASE $database TEMPLATE original");
	query($database, 'SELECT evpg_activate_consumers()');
}
query('postgres', $_) foreach 'ALTER DATABASE original IS_TEMPLATE false', 'DROP DATABASE original WITH (FORCE)';
my @served = soon_served($places, 'as many databases are served as there are places');
my %is_served = map { $_ => 1 } @served;

# each database says the same of itself
foreach my $database (sort keys %there)
{
	my $row = query($database, 'SELECT status, workers, workers_wanted, broadcaster_pid, reason FROM evpg.stat_database '
		. 'WHERE datname = current_database()');

	if ($is_served{$database})
	{
		is($row, 'served|1|1||', "$database is served");
	}
	else
	{
		like($row, qr/^not served\|0\|1\|\|.*max_worker_processes/, "$database is not served, and says why");
	}
}
is(query($served[0],
	q(SELECT count(*) FROM evpg.stat_database WHERE status = 'not served' AND reason LIKE '%max_worker_processes%')), '3',
	'a database that is served shows that three others lack a process');

# frames go by NOTIFY: no broadcaster has the place of a worker
foreach my $database (sort keys %there)
{
	my $heard = query($database,
		q(LISTEN "inl"; SELECT FROM evpg_listen('inl'); SELECT
		FROM evpg_append('plain', 'a', ARRAY[evpg_event('Said', '{"n": 1}')]);));

	like($heard, qr/Asynchronous notification .*"version":\s*1\b/, "$database: a frame is heard with the commit [rule 15]");
}
is(query('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster')), '0',
	'there is no broadcaster [rule 15]');

# who is served is done; who is not is done by evpg_run, or later
my $behind = q(SELECT count(*) FROM evpg.projection_state s JOIN evpg.projection p USING (build) WHERE p.name = 'asy');
foreach my $database (sort keys %there)
{
	if ($is_served{$database})
	{
		ok($node->poll_query_until($database, "$behind HAVING count(*) = 1", '1'),
			"$database: a worker applies the event [rule 9]");
	}
	else
	{
		is(query($database, $behind), '0', "$database: nobody does [rule 9]");
	}
}

# a place that becomes free
my ($unserved) = grep { !$is_served{$_} } sort keys %there;
foreach my $database (@served)
{
	query('postgres', "DROP DATABASE $database WITH (FORCE)");
	delete $there{$database};
	my @now = soon_served($places, "$database is dropped: another one is served");
	is(scalar(grep { $_ eq $database } @now), 0, 'the database that was dropped is not served');
}
ok($node->poll_query_until($_, "$behind HAVING count(*) = 1", '1'),
	"$_: a worker applies what was left [rule 9]") foreach sort keys %there;
is(query($unserved, q(SELECT count(*) FROM evpg.stat_database WHERE datname LIKE 'db%' AND status = 'not served')), '0',
	'all are served');

# no place is needed for a worker any more: a broadcaster takes it, where there is something to send
query('postgres', "DROP DATABASE $unserved WITH (FORCE)");
delete $there{$unserved};
my ($left) = sort keys %there;
ok($node->poll_query_until('postgres', q(SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker')),
	'two databases, two workers');
query($left, q(SELECT FROM evpg_append('plain', 'a', ARRAY[evpg_event('Said', '{"n": 2}')])));
ok($node->poll_query_until($left,
	'SELECT broadcaster_pid IS NOT NULL FROM evpg.stat_database WHERE datname = current_database()'),
	'the third place goes to a broadcaster [rule 15]');
query('postgres', 'CREATE DATABASE late');
query('late', 'CREATE EXTENSION evpg');
ok($node->poll_query_until('late', q(SELECT status = 'served' FROM evpg.stat_database WHERE datname = current_database())),
	'the broadcaster leaves when a worker needs its place [rule 15]');
is(query($left, 'SELECT broadcaster_pid IS NULL FROM evpg.stat_database WHERE datname = current_database()'), 't',
	'the database has no broadcaster any more [rule 15]');
$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
