# The importer of examples/loan: all rows once, whatever happens in between: a second run, a kill in the middle, two at once,
# a file that is broken; and its read models, which follow the log and are rebuilt meanwhile, exactly.  With a real log of a
# bank (LOG=path, or found where make demo finds it) also its known totals.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Cwd qw(realpath);
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $import = realpath(tree() . '/examples/loan/import');
my $sample = realpath(tree() . '/examples/loan/sample.csv');
my $node = evpg_node('import', bare => 1, conf => "max_wal_size = 2GB\n");
my $directory = PostgreSQL::Test::Utils::tempdir;
my ($header, @rows) = split /(?<=\n)/, slurp_file($sample);
my $rows = @rows;
my $database;

delete @ENV{qw(PGUSER PGPASSWORD PGSERVICE PGOPTIONS)};
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

# A new database that has the loan application.
sub begin
{
	($database) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION evpg');
	$node->safe_psql($database, slurp_file(tree() . '/examples/loan/loan.sql'));
	$ENV{PGDATABASE} = $database;
	return;
}

# Runs the importer: exit code, stdout, stderr.
sub import_file
{
	my ($file, @options) = @_;
	my ($stdout, $stderr);

	IPC::Run::run([ $import, @options, $file ], '<', \undef, '>', \$stdout, '2>', \$stderr);
	return ($? >> 8, $stdout, $stderr);
}

sub imported_ok
{
	my ($file, $imported, $skipped, $what, @options) = @_;
	my ($code, $stdout, $stderr) = import_file($file, @options);

	is("$code " . ($stdout =~ s/,[^,]* s, .*//sr), "0 $imported events imported, $skipped skipped", $what) or diag($stderr);
	return;
}

sub value
{
	my ($statement) = @_;

	return $node->safe_psql($database, $statement);
}

# The read models, once workers or evpg_run have followed: the same rows as by plain SQL over the log.
sub read_models_ok
{
	my ($applications, $what) = @_;

	is(value("SELECT bool_and(evpg_wait_for(name, evpg_stable_position(), '5 minutes')) "
		. "FROM unnest('{outcomes,work_days}'::text[]) AS name"),
		't', "$what: the read models have followed");
	foreach my $pair ([ 'loan.outcomes', 'loan.outcomes_of_log' ], [ 'loan.work_day', 'loan.work_day_of_log' ])
	{
		my ($rows, $log) = @$pair;

		is(value("(TABLE $rows EXCEPT ALL TABLE $log) UNION ALL (TABLE $log EXCEPT ALL TABLE $rows)"), '',
			"$what: $rows is what the log says");
	}
	is(value('SELECT sum(applications) FROM loan.outcomes'), $applications, "$what: each application has an outcome");
	return;
}

sub builds
{
	return value('SELECT string_agg(build::text, \' \' ORDER BY name) FROM evpg.projection');
}

# Lets the import go on.
sub release
{
	my ($stop) = @_;

	$stop->query_safe('ROLLBACK');
	$stop->quit;
	return;
}

# Begins to rebuild both read models.  They cannot end before rebuilds_end(), for the rows that their ends change are locked.
my ($holder, $old_builds, $begun_at);

sub rebuilds_begin
{
	$holder = $node->background_psql($database, on_error_stop => 1);
	$holder->query_safe('BEGIN; SELECT name FROM evpg.projection FOR UPDATE');
	$old_builds = builds();
	$begun_at = value('SELECT last_position FROM evpg.stat_stable_position LIMIT 1');
	value('SELECT evpg_rebuild_projection(name, background => true) FROM evpg.projection');
	return;
}

# They come to their end, and events have been appended since they began: at least so many.  A rebuild that exchanges tables
# waits for older snapshots: the session that has stopped an import ends before.
sub rebuilds_end
{
	my ($appended, $what, $stop) = @_;

	is(value("SELECT string_agg(name, ' ' ORDER BY name) FROM evpg.progress_rebuild"), 'outcomes work_days',
		"$what: both read models are being rebuilt");
	is(builds(), $old_builds, "$what: meanwhile the old rows are read");
	cmp_ok(value("SELECT count(*) FROM evpg.event_log WHERE position > $begun_at"), '>=', $appended,
		"$what: events came in between beginning and end");
	$holder->query_safe('ROLLBACK');
	$holder->quit;
	release($stop) if defined $stop;
	ok($node->poll_query_until($database, 'SELECT count(*) = 0 FROM evpg.progress_rebuild'), "$what: the rebuilds are done");
	my @old = split / /, $old_builds;
	my @new = split / /, builds();
	is(scalar(grep { $new[$_] > $old[$_] } 0 .. 1), 2, "$what: both have new rows");
	return;
}

sub write_file
{
	my ($name, $text) = @_;
	my $file = "$directory/$name";

	unlink $file;
	open(my $handle, '>:raw', $file) or die "$file: $!";
	print $handle $text;
	close($handle) or die "$file: $!";
	return $file;
}

# ------------------------------------------------------------------ the sample, and again

begin('sample');
imported_ok($sample, $rows, 0, 'the sample is imported');
is(value('SELECT count(*) FROM evpg.event'), $rows, 'each row is an event');
my %cases = map { (split /,/)[1] => 1 } @rows;
is(value("SELECT count(*), sum(version) FROM evpg_streams('loan_application')"), keys(%cases) . "|$rows",
	'each case is a stream');
is(value("SELECT position FROM (SELECT position, occurred_at < lag(occurred_at) OVER (ORDER BY position) AS wrong "
	. "FROM evpg.event) e WHERE wrong"),
	'', 'positions follow time');
my $case = (split /,/, $rows[0])[1];
my $moment = (split /,/, $rows[0])[0];
is(value("SELECT occurred_at = '$moment', occurred_at < recorded_at "
	. "FROM evpg_read_stream('loan_application', '$case', max_count => 1)"),
	't|t', 'occurred_at is the time of the row');
my $final = 'SELECT status, applications, events FROM loan.final_states';
my $expected = value($final);
note $expected;
imported_ok($sample, 0, $rows, 'again: nothing is imported twice');
imported_ok($sample, 0, $rows, 'again, a row at a time', '--batch', 1);
my $gz = "$directory/sample.csv.gz";
system("gzip -c '$sample' > '$gz'") == 0 or die 'gzip';
imported_ok($gz, 0, $rows, 'again, compressed');
is(value('SELECT count(*) FROM evpg.event'), $rows, 'there are no more events');
is(inspect($node, $database), '', 'all that is stored agrees');
value('CALL evpg_run(NULL)');
read_models_ok(scalar keys %cases, 'the sample');
is(value('SELECT sum(started), sum(completed) FROM loan.work_day'), '3|2', 'the sample: work of employees');

# a file that has grown
begin('grown');
imported_ok(write_file('half.csv', join '', $header, @rows[ 0 .. 19 ]), 20, 0, 'half of it');
value('CALL evpg_run(NULL)');
imported_ok($sample, $rows - 20, 20, 'the rest');
is(value($final), $expected, 'the states are the same');
value('CALL evpg_run(NULL)');
read_models_ok(scalar keys %cases, 'in two parts');

# ------------------------------------------------------------------ killed in the middle

# A lock on a stream stops the importer where that case begins; there it is killed.
begin('killed');
my $blocked = (split /,/, $rows[-1])[1];
my $first = (grep { (split /,/, $rows[$_])[1] eq $blocked } 0 .. $#rows)[0];
my $session = $node->background_psql($database, on_error_stop => 1);
$session->query_safe("BEGIN; SELECT evpg_create_stream('loan_application', '$blocked')");
my $process = IPC::Run::start([ $import, '--batch', 5, $sample ], '<', \undef, '>', "$directory/out", '2>',
	"$directory/err");
ok($node->poll_query_until($database,
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'evpg loan import' AND wait_event_type = 'Lock'"),
	'the importer is in the middle of a batch');
my $whole = 5 * int($first / 5);
is(value('SELECT count(*) FROM evpg.event'), $whole, 'the batches before it are there as a whole');
# a rebuild meanwhile: it has the batches that are there
value('CALL evpg_run(NULL)');
$old_builds = builds();
value('SELECT evpg_rebuild_projection(name, background => true) FROM evpg.projection');
value('CALL evpg_run(NULL)');
is(value('SELECT count(*) FROM evpg.progress_rebuild JOIN evpg.projection USING (name) WHERE tables IS NULL'), 0,
	'rebuilds in the middle of an import come to their end');
isnt(builds(), $old_builds, 'rebuilds during an import have made new rows');
$process->kill_kill(grace => 0);
$session->query_safe('ROLLBACK');
$session->quit;
# its batch may be in flight still: the server does not look at the client before it has done
my ($code, $stdout, $stderr) = import_file($sample, '--batch', 5);
is($code, 0, 'rerun') or diag($stderr);
ok($node->poll_query_until($database,
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'evpg loan import'"), 'all importers are gone');
is(value('SELECT count(*), count(DISTINCT (aggregate_id, version)) FROM evpg.event'), "$rows|$rows",
	'each row is an event, once');
is(value($final), $expected, 'the states are the same');
# it tries again after a pause
foreach (1 .. 180)
{
	value('CALL evpg_run(NULL)');
	last if value('SELECT count(*) FROM evpg.progress_rebuild') == 0;
	sleep 1;
}
is(value('SELECT count(*) FROM evpg.progress_rebuild'), 0, 'those of tables, which wait for older snapshots, do after it');
read_models_ok(scalar keys %cases, 'killed');
is(inspect($node, $database), '', 'all that is stored agrees');

# killed for good: the server too
begin('crashed');
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->reload;
$session = $node->background_psql($database, on_error_stop => 1);
$session->query_safe("BEGIN; SELECT evpg_create_stream('loan_application', '$blocked')");
$process = IPC::Run::start([ $import, '--batch', 5, $sample ], '<', \undef, '>', "$directory/out", '2>', "$directory/err");
ok($node->poll_query_until($database,
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'evpg loan import' AND wait_event_type = 'Lock'"),
	'the importer waits');
$node->stop('immediate');
$process->finish;
is($process->result(0), 1, 'the server goes: exit code 1');
like(slurp_file("$directory/err"), qr/^import: .+$/m,
	'an import whose server goes away prints one line that names the error');
eval { $session->quit };
start_again($node);
is(value('SELECT count(*) FROM evpg.event'), $whole, 'the batches before it are there as a whole');
imported_ok($sample, $rows - $whole, $whole, 'rerun: the rest', '--batch', 5);
is(value($final), $expected, 'the states are the same');

# two at once
begin('twice');
my @two = map { IPC::Run::start([ $import, '--batch', 3, $sample ], '<', \undef, '>', "$directory/out$_", '2>',
	"$directory/err$_") } 1, 2;
$_->finish foreach @two;
is(join(' ', map { $_->result(0) } @two), '0 0', 'two importers at once')
	or diag(slurp_file("$directory/err1"), slurp_file("$directory/err2"));
my ($sum) = (0);
$sum += (split / /, slurp_file("$directory/out$_"))[0] foreach 1, 2;
is($sum, $rows, 'together they imported each row once');
is(value($final), $expected, 'the states are the same');
value('CALL evpg_run(NULL)');
read_models_ok(scalar keys %cases, 'two at once');

# ------------------------------------------------------------------ broken files

begin('broken');
my @columns = split /,/, $rows[3];

sub with_row
{
	my ($change) = @_;
	my @copy = @rows[ 0 .. 5 ];
	my @fields = split /,/, $copy[3];

	$change->(\@fields);
	$copy[3] = join ',', @fields;
	return join '', $header, @copy;
}

foreach my $test (
	[ 'an empty file', '', qr/empty/, 0 ],
	[ 'another header', "a,b,c\n1,2,3\n", qr/row 1: no column "time"/, 0 ],
	[ 'a row with too few fields', with_row(sub { splice @{ $_[0] }, 4, 2 }), qr/row 5: 6 fields/, 3 ],
	[ 'a time that is none', with_row(sub { $_[0][0] = 'yesterday' }), qr/row 5: time "yesterday" is not a time/, 3 ],
	[ 'a time without zone', with_row(sub { $_[0][0] = '2024-01-01T10:00:00' }), qr/row 5: .* no time zone/, 3 ],
	[ 'no case', with_row(sub { $_[0][1] = '' }), qr/row 5: no case/, 3 ],
	[ 'a case that is too long', with_row(sub { $_[0][1] = 'x' x 1025; $_[0][2] = 1 }), qr/row 5: .*1024/, 3 ],
	[ 'seq that is no number', with_row(sub { $_[0][2] = '1_000' }), qr/row 5: seq "1_000" is not an integer/, 3 ],
	[ 'seq that is 0', with_row(sub { $_[0][2] = 0 }), qr/row 5: seq "0"/, 3 ],
	[ 'a gap in seq', with_row(sub { $_[0][2] = 9 }), qr/row 5: case ".*" goes on with seq 9, not/, 3 ],
	[ 'no activity', with_row(sub { $_[0][5] = '' }), qr/row 5: no activity/, 3 ],
	[ 'a transition that is unknown', with_row(sub { $_[0][5] = 'W_x'; $_[0][6] = 'PAUSE' }),
		qr/row 5: unknown transition "PAUSE"/, 3 ],
	[ 'what is not UTF-8', with_row(sub { $_[0][7] = "\xff\n" }), qr/row 5: not UTF-8/, 3 ],
	[ 'a zero byte', with_row(sub { $_[0][7] = "\0\n" }), qr/row \d+: /, undef ],
	[ 'a quote that is never closed', with_row(sub { $_[0][7] = "\"x\n" }), qr/row \d+: /, 3 ])
{
	my ($what, $text, $error, $count) = @$test;

	value(join ' ',
		(map { "ALTER TABLE evpg.$_ DISABLE TRIGGER evpg_append_only; DELETE FROM evpg.$_;" } qw(event_log stream)),
		map { "ALTER TABLE evpg.$_ ENABLE ALWAYS TRIGGER evpg_append_only;" } qw(event_log stream));
	($code, $stdout, $stderr) = import_file(write_file('broken.csv', $text));
	is($code, 1, "$what: exit code 1");
	like($stderr, qr/^import: .*$error/m, "$what: the error names it");
	unlike($stderr, qr/Traceback/, "$what: and is no accident");
	is(value('SELECT count(*) FROM evpg.event'), $count, "$what: the rows before it are in") if defined $count;
}
($code, $stdout, $stderr) = import_file("$directory/nothing.csv");
is($code, 1, 'no file: exit code 1');
like($stderr, qr/^import: .*nothing\.csv: No such file/, 'no file: the error names it');
my $bytes = slurp_file($gz);
($code, $stdout, $stderr) = import_file(write_file('cut.csv.gz', substr($bytes, 0, length($bytes) / 2)));
is($code, 1, 'a compressed file that was cut: exit code 1');
like($stderr, qr/ends too early/, 'a compressed file that was cut: the error says so');
# a stream with another history
begin('other');
value("SELECT FROM evpg_append('loan_application', '$case', ARRAY[evpg_event('Other')])");
($code, $stdout, $stderr) = import_file($sample);
is($code, 1, 'a stream that has another event there: exit code 1');
like($stderr, qr/row 2: case "\Q$case\E" has another event at version 1/,
	'a stream that has another event there: the error says so');

# ------------------------------------------------------------------ workers follow

# Each database with the extension would have workers of its own.
$node->safe_psql('postgres', "DROP DATABASE $_") foreach qw(sample grown killed crashed twice broken other);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'evpg'\nevpg.workers = 2\nmax_worker_processes = 16\n");
$node->restart;
begin('followed');
imported_ok($sample, $rows, 0, 'with workers');
read_models_ok(scalar keys %cases, 'with workers');

# A long log, of copies of the sample; the import comes to a stop at two of them, and what is behind the first is appended
# while both read models are rebuilt.
begin('rebuilt');
my $copies = 120;
my @stops = (70, 100);
my @sessions;
foreach my $copy (@stops)
{
	my $stop = $node->background_psql($database, on_error_stop => 1);

	$stop->query_safe("BEGIN; SELECT evpg_create_stream('loan_application', '$copy$case')");
	push @sessions, $stop;
}
my $long = write_file('long.csv', join '', $header,
	map { my $copy = $_; map { s/^([^,]*),/$1,$copy/r } @rows } 0 .. $copies - 1);
$process = IPC::Run::start([ $import, '--batch', $rows, $long ], '<', \undef, '>', "$directory/out", '2>', "$directory/err");
foreach my $i (0, 1)
{
	my $events = $stops[$i] * $rows;

	ok( $node->poll_query_until(
			$database, "SELECT count(*) = 1 AND (SELECT count(*) FROM evpg.event_log) = $events FROM pg_stat_activity
			WHERE application_name = 'evpg loan import' AND wait_event_type = 'Lock'"),
		"rebuilt: the import comes to a stop after $events events");
	if ($i == 0)
	{
		rebuilds_begin();
		release($sessions[$i]);
	}
	else
	{
		rebuilds_end(($stops[1] - $stops[0]) * $rows, 'rebuilt', $sessions[$i]);
	}
}
$process->finish;
is($process->result(0), 0, 'rebuilt: the import goes on to its end') or diag(slurp_file("$directory/err"));
is(value('SELECT count(*) FROM evpg.event'), $copies * $rows, 'rebuilt: all events are there');
read_models_ok($copies * keys %cases, 'rebuilt');

# ------------------------------------------------------------------ a real log

my $log = $ENV{LOG};			# scripts/test looks for it
if (defined $log && $log ne '')
{
	begin('real');
	# killed in the middle, then run to the end, then again
	$process = IPC::Run::start([ $import, $log ], '<', \undef, '>', "$directory/out", '2>', "$directory/err");
	ok($node->poll_query_until($database, 'SELECT count(*) > 20000 FROM evpg.event_log'),
		'the log: the import is on its way');
	$process->kill_kill(grace => 0);
	$process = IPC::Run::start([ $import, $log ], '<', \undef, '>', "$directory/out", '2>', "$directory/err");
	ok($node->poll_query_until($database, 'SELECT count(*) > 60000 FROM evpg.event_log'), 'the log: run again, it goes on');
	rebuilds_begin();
	ok($node->poll_query_until($database, "SELECT count(*) > 20000 FROM evpg.event_log WHERE position > $begun_at"),
		'the log: while both read models are rebuilt');
	rebuilds_end(20000, 'the log');
	$process->finish;
	is($process->result(0), 0, 'the log: killed and run again') or diag(slurp_file("$directory/err"));
	cmp_ok((split / /, slurp_file("$directory/out"))[0], '<', 262200, 'the log: it did not begin anew');
	imported_ok($log, 0, 262200, 'the log: nothing is imported twice');
	is(value("SELECT count(*), sum(version) FROM evpg_streams('loan_application', max_count => NULL)"), '13087|262200',
		'the log: streams and events');
	is( value("SELECT string_agg(status || ' ' || applications, ', ') FROM loan.final_states"),
		'approved 2246, cancelled 2807, declined 7635, undecided 399', 'the log: how the applications ended');
	read_models_ok(13087, 'the log');
	is(value("SELECT string_agg(outcome || ' ' || applications, ', ' ORDER BY outcome) "
		. "FROM (SELECT outcome, sum(applications) AS applications FROM loan.outcomes GROUP BY outcome) o"),
		'approved 2246, cancelled 2807, declined 7635, undecided 399', 'the log: the outcomes');
	is(value('SELECT count(*), sum(started), sum(completed) FROM loan.work_day'), '2886|63376|64271',
		'the log: work of employees');
	my $declined = value("SELECT application FROM loan.application WHERE status = 'declined' ORDER BY application LIMIT 1");
	is(value("SELECT status, code FROM evpg_try_execute('loan_application', '$declined', 'Approve')"),
		'rejected|already_decided',
		'the log: a declined application cannot be approved');
}
else
{
	diag('there is no log of a bank (LOG=path): only the sample was imported');
}

$node->stop;
done_testing();
