# Consumers of subscriptions outside of the database: those of examples/consumers in Python and in JavaScript, and evpg-tail
# (D06, D20, D22).  Whatever is killed, and the server too, each event has its effect once where that is in the database, at
# least once outside; and what answers an event is done once.

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

my $node = evpg_node('consumers', conf => <<'CONF');
synchronous_commit = on
shared_preload_libraries = 'evpg'
evpg.workers = 1
CONF
my $directory = PostgreSQL::Test::Utils::tempdir;
my $examples = tree() . '/examples/consumers';
my %program = (py => '/usr/bin/python3', js => 'node');
# a root of scripts/version-root has no node
my @languages = ($ENV{NODE_PATH} // '') eq '' ? ('py') : ('py', 'js');

@ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'postgres');
delete $ENV{PGAPPNAME};
$ENV{PYTHONDONTWRITEBYTECODE} = 1;
$ENV{PYTHONPATH} = $examples;
$ENV{EXAMPLES} = $examples;

query(<<'SQL');
CREATE ROLE consumer LOGIN;
SELECT evpg_grant('consumer', 'subscriber'), evpg_grant('consumer', 'executor');
CREATE FUNCTION notice_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN command.data->>'text' LIKE '%of 13' THEN evpg_reject('unlucky') ELSE evpg_event('Noted', command.data) END
$$;
CREATE FUNCTION notice_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS 'SELECT state';
SELECT evpg_register_aggregate('notice', handler => 'notice_handle', reducer => 'notice_apply');
SELECT evpg_register_aggregate('deposit', handler => 'notice_handle', reducer => 'notice_apply', broadcast => 'pointer');
CREATE TABLE account_total (account text PRIMARY KEY, amount numeric NOT NULL, events bigint NOT NULL);
GRANT SELECT, INSERT, UPDATE ON account_total TO consumer;
SQL
append_to_file("$directory/deposit.sql", <<'SQL');
\set s random(1, 20)
\set amount random(1, 100)
SELECT FROM evpg_append('deposit', 's' || :s,
  ARRAY[evpg_event('Deposited', jsonb_build_object('amount', :amount)), evpg_event('Other')]);
SQL

# Starts an example, or a script that changes one.
sub start
{
	my ($language, $script, @arguments) = @_;

	local $ENV{PGUSER} = 'consumer';
	return IPC::Run::start([ $program{$language}, $script =~ m{/} ? $script : "$examples/$script.$language", @arguments ],
		'<', \undef, '>>', "$directory/out", '2>>', "$directory/err");
}

sub start_tail
{
	my ($file, @arguments) = @_;

	local $ENV{PGUSER} = 'consumer';
	return IPC::Run::start([ 'evpg-tail', '-f', '-i', '0.1', @arguments ],
		'<', \undef, '>>', $file, '2>>', "$directory/err");
}

sub kill_process
{
	my ($process) = @_;

	$process->signal('KILL');
	$process->finish;
	return;
}

sub finish
{
	my ($process, $name) = @_;

	$process->signal('TERM');
	return ok($process->finish, $name) || diag(slurp_file("$directory/err"));
}

sub deposit
{
	my ($stream, $amount) = @_;

	return query("SELECT FROM evpg_append('deposit', '$stream', "
		  . "ARRAY[evpg_event('Deposited', '{\"amount\": $amount}')])");
}

# Writers of deposits, who go on for some seconds.
sub start_load
{
	return IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-t', 200, '-f', "$directory/deposit.sql" ],
		'<', \undef, '>', "$directory/pgbench", '2>', "$directory/pgbench.err");
}

sub create
{
	my ($name, $more) = @_;

	return query("SELECT evpg_create_subscription('$name', aggregate_types => '{deposit}', event_types => '{Deposited}', "
		  . "lease_time => '2 seconds', backoff => '0.1 s', start_at => 'now' $more)");
}

sub position
{
	return query('SELECT coalesce(max(position), 0) FROM evpg.event_log');
}

# Whether a subscription has come to the end.
sub is_through
{
	my ($name) = @_;

	return "SELECT bool_and(checkpoint >= (SELECT max(position) FROM evpg.event WHERE type = 'Deposited')) "
	  . "FROM evpg.stat_subscription WHERE name = '$name'";
}

sub is_waiting
{
	return q{SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'consumer' AND state = 'idle'
	  AND state_change < clock_timestamp() - interval '0.2 s'};
}

# The deposits of streams of the load after a position, as one line for each account.
sub deposits_after
{
	my ($mark) = @_;

	return query(<<"SQL");
SELECT aggregate_id, sum((data->>'amount')::numeric), count(*) FROM evpg.event
 WHERE type = 'Deposited' AND aggregate_id LIKE 's%' AND position > $mark GROUP BY 1 ORDER BY 1
SQL
}

# What docs/consumers.md shows is in the examples.
my $programs = join "\n", map { slurp_file($_) } glob "$examples/*.py $examples/*.js";
my @shown = slurp_file(tree() . '/docs/consumers.md') =~ /^```(?:python|js)\n(.*?)^```$/msg;
cmp_ok(scalar @shown, '>=', 5, 'docs/consumers.md shows code');
is(join("\n", grep { index($programs, $_) < 0 } @shown), '', 'which is that of the examples');

# ------------------------------------------------------------------ exactly once, in the database

foreach my $language (@languages)
{
	my $mark = position();

	query('TRUNCATE account_total');
	create('totals', ', partitions => 4, max_attempts => 3');
	my $process = start($language, 'totals', 'totals', 'one');

	deposit('first', 5);
	soon(q{SELECT amount = 5 FROM account_total WHERE account = 'first'}, "$language: an event is counted");
	soon(is_waiting(), "$language: then it waits");
	deposit('first', 6);
	soon(q{SELECT amount = 11 FROM account_total WHERE account = 'first'}, "$language: and goes on");
	finish($process, "$language: SIGTERM ends it");
	is(query(q{SELECT count(*) FROM evpg.stat_subscription WHERE consumer IS NOT NULL}),
		0, "$language: and frees its partitions");

	# an event that it cannot handle
	deposit('bad', '"much"');
	deposit('good', 1);
	$process = start($language, 'totals', 'totals', 'one');
	soon(q{SELECT count(*) = 1 FROM evpg.parked_event WHERE name = 'totals'},
		"$language: an event that fails again and again is parked");
	like(query(q{SELECT attempts || ' ' || error FROM evpg.parked_event WHERE name = 'totals'}),
		qr/^3 .*numeric/, "$language: with its attempts, and the reason");
	soon(q{SELECT events = 1 FROM account_total WHERE account = 'good'}, "$language: it holds no other stream");
	finish($process, "$language: it ends well");

	# three, killed one after the other under load; connections are ended, and the server dies
	my @names = map { "c$_" } 0 .. 2;
	my @processes = map { start($language, 'totals', 'totals', $_) } @names;
	my $load = start_load();

	foreach my $n (1 .. 6)
	{
		my $events = query('SELECT coalesce(sum(events), 0) FROM account_total');
		my $victim = $n % 3;

		$node->poll_query_until('postgres',
			"SELECT sum(events) > $events OR (" . is_through('totals') . ') FROM account_total');
		kill_process($processes[$victim]);
		# every other one comes back under another name, and waits for its lease to run out
		$names[$victim] .= "x" if $n % 2;
		$processes[$victim] = start($language, 'totals', 'totals', $names[$victim]);
		query(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'consumer' LIMIT 1}) if $n % 2;
	}
	ok($load->finish, "$language: the writers end well") or diag(slurp_file("$directory/pgbench.err"));
	crash('postmaster');
	deposit('s1', 7);
	soon(is_through('totals'), "$language: they come to the end");
	is(query(q{SELECT * FROM account_total WHERE account LIKE 's%' ORDER BY account}),
		deposits_after($mark), "$language: each event is counted exactly once [D26]");
	finish($_, "$language: a consumer ends well") foreach @processes;
	query(q{SELECT evpg_drop_subscription('totals')});
}

# ------------------------------------------------------------------ at least once, outside of it

foreach my $language (@languages)
{
	my $mark = position();
	my $mails = "$directory/mails.$language";

	mkdir $mails or die;
	create('mail', ', partitions => 2');
	my @processes = map { start($language, 'mail', 'mail', "m$_", $mails) } 0 .. 1;
	my $load = start_load();

	foreach my $n (1 .. 4)
	{
		my $sent = () = glob "$mails/*";

		wait_until(sub { $sent < (() = glob "$mails/*") || query(is_through('mail')) eq 't' });
		kill_process($processes[ $n % 2 ]);
		$processes[ $n % 2 ] = start($language, 'mail', 'mail', 'm' . $n % 2, $mails);
	}
	ok($load->finish, "$language: the writers end well");
	soon(is_through('mail'), "$language: killed again and again, they come to the end");
	is(join("\n", sort map { s/.*\///r } grep { !/\.new$/ } glob "$mails/*"),
		query("SELECT event_id FROM evpg.event WHERE type = 'Deposited' AND position > $mark ORDER BY event_id::text"),
		"$language: there is a mail for each event");
	finish($_, "$language: a consumer ends well") foreach @processes;
	query(q{SELECT evpg_drop_subscription('mail')});
}

# ------------------------------------------------------------------ answered by commands

# A consumer that is killed after the command, before it has acknowledged.
append_to_file("$directory/killed.py", <<'PY');
import os, signal, subscription, react
subscription.Consumer.acknowledge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
subscription.Consumer("", "reaction", "r").run_outside(react.Reactor("").react)
PY
append_to_file("$directory/killed.js", <<'JS');
const { Consumer } = require(`${process.env.EXAMPLES}/subscription`);
const { react } = require(`${process.env.EXAMPLES}/react`);
Consumer.prototype.acknowledge = () => process.kill(process.pid, 'SIGKILL');
new Consumer({}, 'reaction', 'r').runOutside(react);
JS

foreach my $language (@languages)
{
	my $mark = position();

	create('reaction', '');
	my $killed = start($language, "$directory/killed.$language");
	query("SELECT FROM evpg_append('deposit', 'answered', ARRAY[evpg_event('Deposited', '{\"amount\": 4}')], "
		  . "correlation_id => 'business-$language')");
	ok(!$killed->finish && $killed->result(0) == 0 && ($killed->full_results)[0] == 9,
		"$language: a consumer is killed between the command and the acknowledgement");
	is(query("SELECT count(*) FROM evpg.event WHERE type = 'Noted' AND position > $mark"),
		1, "$language: the command was done");
	is(query(q{SELECT bool_and(in_flight = 1) FROM evpg.stat_subscription WHERE name = 'reaction'}),
		't', "$language: the event is not acknowledged");
	my $process = start($language, 'react', 'reaction', 'r');
	deposit('unlucky', 13);
	deposit('answered', 5);
	soon(is_through('reaction'), "$language: the next one acknowledges it, and goes on");
	is(query("SELECT aggregate_id, data->>'text' FROM evpg.event WHERE type = 'Noted' AND position > $mark "
			  . 'ORDER BY position'),
		"answered|Deposited of 4\nanswered|Deposited of 5",
		"$language: each command is done once, and a refusal is an answer");
	is(query(<<"SQL"), "business-$language|t", "$language: the answer has the correlation of its event, which is its cause");
SELECT n.correlation_id, n.causation_id = d.event_id::text FROM evpg.event n JOIN evpg.event d ON d.type = 'Deposited'
  AND n.command_id = 'note ' || d.event_id WHERE n.type = 'Noted' AND n.position > $mark ORDER BY n.position LIMIT 1
SQL
	finish($process, "$language: it ends well");
	query(q{SELECT evpg_drop_subscription('reaction')});
}

# ------------------------------------------------------------------ evpg-tail in a group

my $json = JSON::PP->new->utf8;
my $mark = position();
create('lines', ', partitions => 4');
my @processes = map { start_tail("$directory/lines.$_", '-s', 'lines', '-C', "t$_", '-b', 5) } 0 .. 2;
my $load = start_load();

foreach my $n (1 .. 8)
{
	my $file = "$directory/lines." . $n % 3;
	my $before = -s $file // 0;

	wait_until(sub { (-s $file // 0) > $before || query(is_through('lines')) eq 't' });
	kill_process($processes[ $n % 3 ]);
	$processes[ $n % 3 ] = start_tail($file, '-s', 'lines', '-C', 't' . $n % 3, '-b', 5);
	query(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'consumer' LIMIT 1}) if $n % 2;
}
ok($load->finish, 'the writers end well');
crash('postmaster');
deposit('s2', 8);
soon(is_through('lines'), 'three of evpg-tail share a subscription, are killed, and come to the end');
my %lines;
foreach my $file (map { "$directory/lines.$_" } 0 .. 2)
{
	foreach my $line (split /\n/, slurp_file($file))
	{
		# a line in which one was killed may be no JSON
		my $event = eval { $json->decode($line) } or next;

		$lines{ $event->{position} }++;
	}
}
is(join("\n", sort { $a <=> $b } keys %lines),
	query("SELECT position FROM evpg.event WHERE type = 'Deposited' AND position > $mark ORDER BY position"),
	'together they have written all events');
finish($_, 'SIGTERM ends one of them') foreach @processes;
is(query(q{SELECT count(*) FROM evpg.stat_subscription WHERE consumer IS NOT NULL}), 0, 'and its partitions are free');

# ------------------------------------------------------------------ evpg-tail and its lease

# Starts one whose reader does not read, with more events than a pipe holds.
sub start_stuck
{
	my ($consumer, $reader) = @_;

	query(q{SELECT evpg_drop_subscription('lines')});
	create('lines', '');
	query(q{SELECT FROM generate_series(1, 300) AS n, evpg_append('deposit', 'long', ARRAY[
	  evpg_event('Deposited', jsonb_build_object('amount', n, 'text', repeat('x', 1000)))])});
	local $ENV{PGUSER} = 'consumer';
	my $process = IPC::Run::start([ 'evpg-tail', '-s', 'lines', '-C', $consumer ],
		'<', \undef, '>pipe', $reader, '2>>', "$directory/$consumer.err");
	soon(qq{SELECT bool_or(in_flight = 300) FROM evpg.stat_subscription WHERE consumer = '$consumer'},
		"$consumer has a batch that its reader does not take");
	return $process;
}

my $stuck = start_stuck('slow', \*SLOW);
my ($until) = query(q{SELECT max(lease_until) FROM evpg.stat_subscription WHERE consumer = 'slow'});
soon("SELECT max(lease_until) > timestamptz '$until' + interval '3 s' FROM evpg.stat_subscription WHERE consumer = 'slow'",
	'it keeps its lease');
is(query(q{SELECT count(*) FROM evpg_fetch('lines', 'other')}), 0, 'so no other consumer gets the events');
is(scalar(() = <SLOW>), 300, 'its reader gets them when it reads on');
close SLOW;
ok($stuck->finish, 'then it ends well');
is(slurp_file("$directory/slow.err"), '', 'without complaints');

$stuck = start_stuck('stopped', \*STOPPED);
$stuck->signal('STOP');
soon(q{SELECT max(lease_until) < clock_timestamp() FROM evpg.stat_subscription WHERE consumer = 'stopped'},
	'one that is stopped loses its lease');
# events that were handed out before come one at a time
is(query(q{SELECT count(*) FROM evpg_fetch('lines', 'other')}), 1, 'and another consumer gets the events');
$stuck->signal('CONT');
is(scalar(() = <STOPPED>), 300, 'when it goes on, it writes what it has');
close STOPPED;
ok($stuck->finish, 'it ends well, too');
like(slurp_file("$directory/stopped.err"), qr/the lease was lost: another consumer gets the last 300 events, too/,
	'and tells that the events come twice');
query(q{SELECT evpg_drop_subscription('lines')});
create('lines', '');

# ------------------------------------------------------------------ evpg-tail to the end of a subscription

deposit('s3', 9);
my ($out, $err) = ('', '');
IPC::Run::run([ 'evpg-tail', '-s', 'lines', '-n', 1 ], '<', \undef, '>', \$out, '2>', \$err);
is($json->decode($out)->{attempt} . " $err", '1 ', 'a consumer without a name of its own gets what comes next');
IPC::Run::run([ 'evpg-tail', '-s', 'lines' ], '<', \undef, '>', \$out, '2>', \$err);
is("$out$err", '', 'without --follow it ends when nothing is handed out');
IPC::Run::run([ 'evpg-tail', '-s', 'unknown' ], '<', \undef, '>', \$out, '2>', \$err);
like($err, qr/subscription "unknown"/, 'an unknown subscription ends it');
is($? >> 8, 1, 'with exit code 1');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
