# evpg-tail on the whole log (B41, D20): every event is a line of JSON, at least once, in order of position; it continues
# where its checkpoint is, whatever killed it, with notifications and without.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon crash wait_until);
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('tail', conf => "synchronous_commit = on\nshared_preload_libraries = 'evpg'\nevpg.workers = 0\n");
my $directory = PostgreSQL::Test::Utils::tempdir;
my $checkpoint = "$directory/checkpoint";
my $json = JSON::PP->new->utf8;

$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
$ENV{PGDATABASE} = 'postgres';
delete $ENV{PGAPPNAME};

# Runs evpg-tail to its end: exit code, lines, standard error.
sub tail
{
	my @arguments = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'evpg-tail', @arguments ], '<', \undef, '>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return ($? >> 8, [ split /\n/, $out ], $err);
}

# Starts it, with its output in a file that grows.
sub start_tail
{
	my ($file, @arguments) = @_;

	return IPC::Run::start([ 'evpg-tail', @arguments ], '<', \undef, '>>', $file, '2>>', "$directory/err");
}

sub lines
{
	my ($file) = @_;

	return -e $file ? split /\n/, slurp_file($file) : ();
}

sub has_lines
{
	my ($file, $count) = @_;

	return wait_until(sub { $count <= lines($file) });
}

sub positions
{
	return map { $json->decode($_)->{position} } @_;
}

sub append
{
	my ($stream, $count) = @_;

	return query("SELECT count(*) FROM generate_series(1, $count) AS n, "
		. "evpg_append('account_c', '$stream', ARRAY[evpg_event('Noted', jsonb_build_object('n', n))])");
}

sub log_positions
{
	return query('SELECT string_agg(position::text, \' \' ORDER BY position) FROM evpg.event_log');
}

# The broken words of one line may stand in a file whose writer was killed.
sub whole
{
	return grep { eval { $json->decode($_); 1 } } @_;
}

# ------------------------------------------------------------------ to the end of the log

query(<<'SQL');
SELECT FROM evpg_append('account_c', 'a', ARRAY[evpg_event('Noted', '{"text": "line\nfeed, \"quotes\", ünïcode \u0001"}',
  '{"m": [1, 2]}', tags => '{t}')], command_id => 'c1');
SELECT FROM evpg_append('account', 'b', ARRAY[evpg_event('Noted'), evpg_event('Rare')]);
SQL
my ($code, $out, $err) = tail();
is("$code $err", '0 ', 'without --follow it ends at the end of the log');
is(join("\n", @$out), query('SELECT row_to_json(e) FROM evpg.event e ORDER BY position'),
	'each event is one line of JSON, whatever is in its data');
is($json->decode($out->[0])->{data}->{text}, "line\nfeed, \"quotes\", \x{fc}n\x{ef}code \x01",
	'what is read from a line is what was appended');
($code, $out) = tail('-b', 1);
is(scalar @$out, 3, 'in pages of one event they are the same');
($code, $out) = tail('-n', 2, '-b', 1);
is("$code @{[positions(@$out)]}", '0 1 2', '--max-events ends it');
($code, $out) = tail('-a', 'account', '-e', 'Rare', '-e', 'No"ted\\');
is("@{[positions(@$out)]}", '3', 'filters of aggregate and event types');
($code, $out) = tail('-p', 2);
is("@{[positions(@$out)]}", '3', '--position begins after it');

# ------------------------------------------------------------------ the checkpoint

tail('-c', $checkpoint, '-n', 2);
is(slurp_file($checkpoint), "2\n", 'the checkpoint holds the position of the last event');
($code, $out) = tail('-c', $checkpoint, '-p', 0);
is("@{[positions(@$out)]}", '3', 'the next run continues there, whatever --position is');
($code, $out) = tail('-c', $checkpoint);
is(scalar @$out, 0, 'and writes nothing twice');
append('a', 5);
($code, $out) = tail('-c', $checkpoint, '-e', 'Rare');
is(scalar(@$out) . ' ' . slurp_file($checkpoint), "0 8\n", 'where a filter finds nothing, the checkpoint moves on');
tail('-c', "$directory/now", '--from-now');
append('a', 1);
($code, $out) = tail('-c', "$directory/now", '--from-now');
is("@{[positions(@$out)]}", '9', '--from-now is where it was the first time');
is(join(' ', map { s/.*\///r } sort glob "$directory/*"), 'checkpoint checkpoint.lock now now.lock',
	'it leaves no other files');

# ------------------------------------------------------------------ what is refused

sub refused
{
	my ($arguments, $message, $name) = @_;
	my ($code, $out, $err) = tail(@$arguments);

	like($err, $message, $name);
	is("$code @$out", '1 ', "$name: exit code, and no output");
	return;
}

refused(['--nonsense'], qr/unrecognized option.*\nTry "evpg-tail --help"/, 'an unknown option is refused');
refused([ '-n', '0' ], qr/--max-events needs a number from 1/, 'a wrong number is refused');
refused([ '-b', '1x' ], qr/--batch needs a number from 1 to 100000/, 'a number with a letter is refused');
refused([ '-i', 'nan' ], qr/--interval needs seconds/, 'a wrong interval is refused');
refused([ 'postgres', 'more' ], qr/too many arguments/, 'a second database is refused');
refused([ '-s', 'x', '-c', $checkpoint ], qr/a subscription has a checkpoint of its own/,
	'a checkpoint beside a subscription is refused');
refused(['nowhere'], qr/database "nowhere" does not exist/, 'an unknown database ends it at once');
refused([ '-f', 'template1' ], qr/the database "template1" does not have the extension evpg/,
	'a database without evpg ends it');
append_to_file("$directory/broken", "12 and more\n");
refused([ '-c', "$directory/broken" ], qr/is not a checkpoint of evpg-tail/,
	'another file is not taken for a checkpoint');
is(slurp_file("$directory/broken"), "12 and more\n", 'nor is it overwritten');
append_to_file("$directory/ahead", "1000000\n");
refused([ '-c', "$directory/ahead" ], qr/position 1000000 is behind the end of the log/,
	'a checkpoint of another database is refused');
refused([ '-c', "$directory/no/where" ], qr/cannot create .*No such file/,
	'a checkpoint that cannot be written is refused');
{
	my $full;

	open $full, '>', '/dev/full' or die;
	my $process =
	  IPC::Run::start([ 'evpg-tail', '-c', "$directory/full" ], '<', \undef, '>', $full, '2>', \$err);

	$process->finish;
	like($err, qr/cannot write to standard output: No space left/, 'a full disk is an error');
	isnt(slurp_file("$directory/full"), "9\n", 'and what is not written does not count');
}

# ------------------------------------------------------------------ following

my $file = "$directory/follow";
my $process = start_tail($file, '-f', '-c', $checkpoint, '-i', '3600');

ok(has_lines($file, 1), 'with --follow it writes what is there');
refused([ '-c', $checkpoint ], qr/another process uses the checkpoint/, 'no second process can use its checkpoint');
query(q{SELECT evpg_register_aggregate('heard', library => 'evpg_bank', symbol => 'bank_account',
  broadcast => 'pointer')});
soon(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'evpg-tail'
  AND query LIKE '%stable_position%' AND state = 'idle' AND state_change < clock_timestamp() - interval '0.1 s'},
	'it waits');
my $before = lines($file);
query(q{SELECT FROM evpg_append('heard', 'h', ARRAY[evpg_event('Noted')])});
ok(has_lines($file, $before + 1), 'a notification wakes it');

# the notification comes while the position is not final yet
my $late = $node->background_psql('postgres');
$late->query_safe(q{BEGIN; SELECT FROM evpg_append('heard', 'late', ARRAY[evpg_event('Noted')])});
query(q{SELECT FROM evpg_append('heard', 'early', ARRAY[evpg_event('Noted')])});
$before = lines($file);
$late->query_safe('COMMIT');
ok(has_lines($file, $before + 2), 'an event whose transaction was behind an open one is read as soon as that has ended');
$late->quit;
$process->signal('TERM');
ok($process->finish, 'SIGTERM ends it with exit code 0');
my ($first) = positions((lines($file))[0]);
is("@{[positions(lines($file))]}", join(' ', grep { $_ >= $first } split / /, log_positions()), 'in order, each once');
is(slurp_file($checkpoint), query('SELECT max(position) FROM evpg.event_log') . "\n",
	'and the checkpoint is where it ended');

$process = start_tail($file, '-f', '-c', $checkpoint, '-i', '0.05', '--no-listen');
$before = lines($file);
append('a', 3);
ok(has_lines($file, $before + 3), 'without notifications it looks by itself');
query(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'evpg-tail'});
append('a', 3);
ok(has_lines($file, $before + 6), 'a connection that is terminated is made again');
crash('postmaster');
append('a', 3);
ok(has_lines($file, $before + 9), 'after a crash of the server it goes on, too');
$process->signal('INT');
ok($process->finish, 'SIGINT ends it with exit code 0');
($first) = positions((lines($file))[0]);
is("@{[positions(lines($file))]}", join(' ', grep { $_ >= $first } split / /, log_positions()),
	'nothing is lost, nothing comes twice');

# ------------------------------------------------------------------ the other end of the pipe

IPC::Run::run([ 'bash', '-c', 'evpg-tail -f -b 1 -i 3600 | head -n 2; echo ${PIPESTATUS[@]}' ],
	'<', \undef, '>', \my $piped);
like($piped, qr/"position":2,.*\n141 0\n\z/, 'it ends when what reads its output has ended');
append('big', 3000);
$process =
  IPC::Run::start([ 'evpg-tail', '-f', '-c', "$directory/stuck" ], '<', \undef, '>pipe', \*STUCK, '2>', \$err);
soon(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'evpg-tail' AND state = 'idle'},
	'its reader does not read');
$process->signal('TERM');
ok($process->finish, 'SIGTERM ends it although its reader is stuck');
my @stuck = do { local $/ = "\n"; <STUCK> };
close STUCK;
cmp_ok(slurp_file("$directory/stuck"), '<=', (positions(whole(@stuck)))[-1],
	'the checkpoint is not after what the reader gets');

# ------------------------------------------------------------------ killed again and again, under writers

my %scripts = (
	commit => <<'SQL',
\set s random(1, 12)
BEGIN;
SELECT count(*) FROM evpg_append('account_c', 's' || :s,
  array_fill(evpg_event('Noted', jsonb_build_object('text', repeat('x', 300))), ARRAY[1 + :s % 3]));
\sleep :s ms
COMMIT;
SQL
	rollback => <<'SQL');
BEGIN;
SELECT count(*) FROM evpg_append('heard', 'r:client_id', ARRAY[evpg_event('Noted')]);
ROLLBACK;
SQL
append_to_file("$directory/$_.sql", $scripts{$_}) foreach keys %scripts;
my ($base) = query('SELECT max(position) FROM evpg.event_log');
append_to_file("$directory/killed", "$base\n");
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', 8, '-t', 150, (map { ('-f', "$directory/$_.sql") } sort keys %scripts), 'postgres' ],
	'<', \undef, '>', \my $bench, '2>', \my $bench_err);
my $killed = 0;
my $out_file = "$directory/all";
while ($killed < 15)
{
	my $seen = -s $out_file // 0;

	$process = start_tail($out_file, '-f', '-c', "$directory/killed", '-b', 7, '-i', 0.02);
	# the later ones may find nothing to do
	wait_until(sub { (-s $out_file // 0) > $seen }) if $killed < 10;
	$process->signal('KILL');
	$process->finish;
	$killed++;
}
ok($load->finish, 'the writers end well') or diag($bench_err);
($code, $out, $err) = tail('-c', "$directory/killed");
is("$code $err", '0 ', 'the last one ends well');
append_to_file($out_file, join('', map { "$_\n" } @$out));
my @all = whole(lines($out_file));
my %times;
my @firsts = grep { !$times{$_}++ } positions(@all);
is("@firsts", query("SELECT string_agg(position::text, ' ' ORDER BY position) FROM evpg.event_log WHERE position > $base"),
	'killed 15 times, it has written every event, and the first copies in order');
cmp_ok(scalar(grep { $_ > 1 } values %times), '<=', 7 * $killed,
	'and none twice but those of the page in which it was killed');

# what a process leaves that is killed in the middle of a line
append_to_file("$directory/torn", '{"position":1,"aggre');
system('bash', '-c', "evpg-tail -n 1 >> $directory/torn");
is(scalar(whole(lines("$directory/torn"))), 1, 'a line that was torn spoils no other one');

# ------------------------------------------------------------------ elsewhere, and the terminal

$node->safe_psql('postgres', 'CREATE DATABASE elsewhere');
$node->safe_psql('elsewhere', 'CREATE SCHEMA "Odd ""one"; CREATE EXTENSION evpg SCHEMA "Odd ""one"');
($code, $out, $err) = tail('--progress', "dbname=elsewhere options='-c default_transaction_isolation=serializable'");
is($code, 0, 'the functions are found in a schema of any name, at the isolation level that readers need');
($code, $out, $err) = tail('--progress', '-n', 100);
like($err, qr/\r100 events, \d+\/s, position \d+ of \d+\e\[K\n\z/, 'the progress goes to standard error');
($code, $out, $err) = tail('--help');
like(join("\n", @$out), qr/^Usage: evpg-tail \[OPTION\].*\[DBNAME\]$/m, '--help');
my $page = slurp_file(tree() . '/docs/consumers.md');
my @undocumented = grep { $page !~ /`(?:-\w, )?\Q$_\E[=`]/ } join("\n", @$out) =~ /(--[a-z-]+)/g;
is("@undocumented", '', 'docs/consumers.md has every option of --help');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
