# Rule 22 under load: by aggregates with a boundary, in SQL as docs/boundaries.md has it and in C, each last place is taken
# once, by 8 clients, without an error and without a retry; also if backends are killed on the way, and after a dump.  A
# standby tells on what a command would be decided.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon crash);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 8;
my $courses = 60;
my $node = evpg_node(
	'boundaries',
	bare => 1,
	allows_streaming => 1,
	conf => "synchronous_commit = on\ndeadlock_timeout = 10ms\nrestart_after_crash = on\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

# The functions, as they are documented.
my $functions = join "\n", slurp_file(tree() . '/docs/boundaries.md') =~ /^(CREATE FUNCTION enrolment_.*?\$\$;)$/msg;
is(() = $functions =~ /^CREATE/mg, 3, 'the page has three functions of an aggregate');
query(<<"SQL");
CREATE EXTENSION evpg;
$functions
SELECT evpg_register_aggregate('enrolment', 'enrolment_decide', 'enrolment_fold', initial_state => '{"enrolled": []}',
  boundary => 'enrolment_boundary');
SELECT evpg_register_aggregate('course_c', library => 'evpg_test', symbol => 'course');
SELECT evpg_register_aggregate('course');
SQL

# What each is called in the two aggregates.
my %names = (
	enrolment => { opened => 'CourseOpened', enrolled => 'StudentEnrolled', command => 'Enrol', full => 'course_is_full',
		enough => 'enough_courses' },
	course_c => { opened => 'Defined', enrolled => 'Subscribed', command => 'Subscribe', full => 'full', enough => 'busy' });

sub open_courses
{
	my ($type, $round, $capacity, $count) = @_;

	query(<<"SQL");
SELECT count(*) FROM generate_series(1, $count) n, LATERAL evpg_append_event('course', '$round-' || n,
  '$names{$type}{opened}', jsonb_build_object('course', '$round-' || n, 'capacity', $capacity),
  tags => ARRAY['course:$round-' || n]);
SQL
	return;
}

sub enrol
{
	my ($type, $student, $course) = @_;

	return "SELECT '$course', status, code FROM evpg_try_execute('$type', '$student', '$names{$type}{command}', "
	  . "'{\"course\": \"$course\"}');";
}

# Starts a client that executes statements one after the other, whatever becomes of each.
sub start_client
{
	my ($name, @statements) = @_;

	PostgreSQL::Test::Utils::append_to_file("$directory/$name.sql",
		join("\n", '\set VERBOSITY sqlstate', @statements) . "\n");
	return {
		name => $name,
		run => IPC::Run::start(
			[ 'psql', '-XAtq', '-F', ' ', '-d', $node->connstr('postgres'), '-f', "$directory/$name.sql" ],
			'>', "$directory/$name.out", '2>', "$directory/$name.err") };
}

# Waits for clients; returns their answers, and the SQLSTATEs of their errors.
sub finish_clients
{
	my @clients = @_;
	my (@answers, @errors);

	foreach my $client (@clients)
	{
		$client->{run}->finish;
		push @answers, split /\n/, slurp_file("$directory/$client->{name}.out");
		push @errors, slurp_file("$directory/$client->{name}.err") =~ /ERROR:\s+(\w+)/g;
	}
	return (\@answers, \@errors);
}

# How many answers are of each kind, without the course.
sub count_answers
{
	my ($answers) = @_;
	my %counts;

	$counts{ s/^\S+ //r =~ s/\s+$//r }++ foreach @$answers;
	return join ', ', map { "$counts{$_} $_" } sort keys %counts;
}

# Courses with more students than places, students with more than two courses or one twice; nothing if all is well.
sub find_overbooked
{
	my ($type) = @_;

	return query(<<"SQL");
SELECT 'course ' || e.tags[1] FROM evpg.event e JOIN evpg.event o ON o.tags = e.tags[:1] AND o.type = '$names{$type}{opened}'
 WHERE e.type = '$names{$type}{enrolled}' GROUP BY e.tags[1], o.data HAVING count(*) > (o.data->>'capacity')::int
UNION ALL
SELECT 'student ' || tags[2] FROM evpg.event WHERE type = '$names{$type}{enrolled}'
 GROUP BY tags[2] HAVING count(*) > 2 OR count(*) > count(DISTINCT tags[1])
SQL
}

# ------------------------------------------------------------------ the last place, the second course

foreach my $index ('false', 'true')
{
	query("SELECT evpg_enable_index('tags', $index)");
	foreach my $type ('enrolment', 'course_c')
	{
		my $what = "$type, " . ($index eq 'true' ? 'by the index on tags' : 'without an index');
		my $round = "last-$type-$index";

		open_courses($type, $round, 1, $courses);
		my ($answers, $errors) = finish_clients(
			map {
				my $client = $_;
				start_client("$round-$client", map { enrol($type, "$round-$client-$_", "$round-$_") } 1 .. $courses)
			} 1 .. $clients);
		is(join(' ', @$errors), '', "$what: no command fails [rule 22]");
		is(count_answers($answers),
			sprintf('%d ok, %d rejected %s', $courses, $courses * ($clients - 1), $names{$type}{full}),
			"$what: of each last place there is one winner [rule 22]");

		# all clients want the same students in courses of their own
		$round = "second-$type-$index";
		open_courses($type, $round, 1000, $clients);
		($answers, $errors) = finish_clients(
			map {
				my $client = $_;
				start_client("$round-$client", map { enrol($type, "$round-$_", "$round-$client") } 1 .. 40)
			} 1 .. $clients);
		is(join(' ', @$errors), '', "$what: no command fails, whatever the order of tags [rule 22]");
		is(count_answers($answers), sprintf('80 ok, %d rejected %s', 40 * ($clients - 2), $names{$type}{enough}),
			"$what: each student has two courses [rule 22]");
		is(find_overbooked($type), '', "$what: no course and no student has more than it may [rule 22]");
	}
}

# ------------------------------------------------------------------ a backend is killed on the way

foreach my $type ('enrolment', 'course_c')
{
	my $round = "killed-$type";

	open_courses($type, $round, 2, 300);
	my @working = map {
		my $client = $_;
		start_client("$round-$client", map { enrol($type, "$round-$client-$_", "$round-$_") } 1 .. 300)
	} 1 .. $clients;
	soon("SELECT count(*) > 20 FROM evpg.event WHERE type = '$names{$type}{enrolled}' AND aggregate_id LIKE '$round-%'",
		"$type: clients are at work");
	my $victim = query(<<'SQL');
SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND query LIKE '%evpg_try_execute%'
   AND pid <> pg_backend_pid() LIMIT 1
SQL
	crash('backend', $victim);
	my ($answers) = finish_clients(@working);
	is(find_overbooked($type), '', "$type: no place is taken twice when a backend is killed [rule 22]");
	my @taken = map { (split)[0] } grep { / ok/ } @$answers;
	my %stored = map { (split)[0] => (split)[1] } split /\n/, query(<<"SQL");
SELECT replace(substr(tags[1], 8), ' ', '') || ' ' || count(*) FROM evpg.event
 WHERE type = '$names{$type}{enrolled}' AND aggregate_id LIKE '$round-%' GROUP BY tags[1]
SQL
	my %answered;
	$answered{$_}++ foreach @taken;
	is(join(' ', grep { $answered{$_} > ($stored{$_} // 0) } keys %answered), '', "$type: what was answered is stored");
	cmp_ok(scalar @$answers, '<', 300 * $clients, "$type: it was killed on the way");

	# then the rest goes on
	($answers) = finish_clients(
		map {
			my $client = $_;
			start_client("$round-again-$client", map { enrol($type, "$round-again-$client-$_", "$round-$_") } 1 .. 300)
		} 1 .. 2);
	is(query(<<"SQL"), '600', "$type: afterwards every place is taken, once [rule 22]");
SELECT count(*) FROM evpg.event WHERE type = '$names{$type}{enrolled}' AND tags[1] LIKE 'course:$round-%'
SQL
	is(find_overbooked($type), '', "$type: and none twice [rule 22]");
}

# ------------------------------------------------------------------ a dump, and a standby

my $look = <<'SQL';
SELECT t, b.events, b.state FROM (VALUES ('enrolment', 'Enrol'), ('course_c', 'Subscribe')) x (t, c),
  LATERAL evpg_boundary_state(t, 'last-' || t || '-true-1-1', c,
    jsonb_build_object('course', 'last-' || t || '-true-1')) b ORDER BY t DESC
SQL
my $seen = query($look);
like($seen, qr/^enrolment\|2\|.*\ncourse_c\|2\|/, 'a boundary state has the events of the course and the student');
query('CREATE DATABASE copy');
$node->command_ok([ 'pg_dump', '-f', "$directory/dump.sql", '-d', $node->connstr('postgres') ], 'pg_dump');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy'), '-f', "$directory/dump.sql" ],
	'the dump is restored');
is($node->safe_psql('copy', $look), $seen, 'boundaries come back with a dump [rule 22]');
foreach my $type ('enrolment', 'course_c')
{
	is($node->safe_psql('copy', enrol($type, 'late', "last-$type-true-1")), "last-$type-true-1|rejected|$names{$type}{full}",
		"$type: commands are decided on what was restored [rule 22]");
}

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('boundaries_standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
is($standby->safe_psql('postgres', $look), $seen, 'a standby tells on what a command would be decided');
$standby->stop;

done_testing();
