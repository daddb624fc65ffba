# Sagas, rules 16 to 18: a crash between any two steps.  A worker waits at each point of src/base/testing.h that a saga
# passes, and is killed there, or the postmaster is.  What was committed by then is there, nothing else is; when it goes on,
# no command is executed twice, none is lost, each event is reacted to once, and timers fire once.
#
# Reactions of workers are not flushed: when a worker is killed the last ones may be lost, and are done again.  Before the
# postmaster is killed, all is flushed.
#
# Who holds the workers up is a prepared transaction, which lasts over the crash; so is who holds the stable position back.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query crash);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = evpg_node('steps', conf => <<'EOC');
shared_preload_libraries = 'evpg'
restart_after_crash = on
evpg.test_mutation = 'hasty_launcher'
evpg.naptime = 100ms
evpg.workers = 0
EOC
create_transfers($node);

# An event that cannot be reacted to: a command before the one that fails.
query(<<'SQL');
CREATE FUNCTION ill(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT CASE event.data WHEN '{}' THEN evpg_reaction('{}') ELSE
    evpg_reaction('{}', evpg_action_send('account', 'a1', 'Deposit', '{"amount": 1}'),
      evpg_action_send('account', 'a1', 'Jump')) END
$$;
SELECT evpg_register_saga('ill', 'ill', event_types => '{Ill}', max_attempts => 2, backoff => '0');
CREATE FUNCTION broken_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no key'; END $$;
SELECT evpg_register_saga('keyless', 'ill', key_function => 'broken_key', event_types => '{Keyless}');
SQL

# What a scenario begins with, before there is a worker; how much the version of its instance is at a point of the worker;
# and what comes after all.
my $mark = "BEGIN; SELECT FROM evpg_append('account', 'mark', ARRAY[evpg_event('Noted')]); PREPARE TRANSACTION 'mark'";
my @steps = qw(routed due counted claimed taken handled sent reacted committed);
my %scenarios = (
	# three reactions with a command each
	good => {
		begin => sub { request($node, $_[0], $_[1], 'a2') },
		points => [ map { my $n = $_; map { ["$_:$n", $n - ($_ ne 'committed')] } @steps } 1 .. 3 ],
		end => 'completed' },
	# the second one is refused: its handler fails the transfer, and pays back
	refused => {
		begin => sub { request($node, $_[0], $_[1], 'nobody') },
		points => [ map { [ $_, $_ eq 'committed:2' ? 2 : 1 ] } map({"$_:2"} @steps), qw(handled:3 sent:3 sent:4) ],
		end => 'failed account_not_open' },
	# a timer: the answer does not become visible before the deadline
	timer => {
		begin => sub {
			request($node, $_[0], $_[1], 'a2');
			query($mark);
			query('CALL evpg_run()');
		},
		later => 700,
		points => [ map { [ $_, $_ eq 'committed:1' ? 2 : 1 ] } map({"$_:1"} grep { $_ ne 'routed' } @steps), 'sent:2' ],
		end => 'failed deadline' });

# Lets a new worker come to a point, crashes, and leaves no worker.
sub crash_at
{
	my ($victim, $point) = @_;

	query(<<"SQL");
BEGIN; SELECT pg_advisory_xact_lock($wait_key); PREPARE TRANSACTION 'holder';
ALTER SYSTEM SET evpg.test_wait = 'saga_$point';
ALTER SYSTEM SET evpg.workers = 1;
SELECT pg_reload_conf();
SQL
	$node->poll_query_until('postgres', "SELECT EXISTS ($waiters)") or die "no worker comes to $point";
	my $flush = $victim eq 'postmaster' ? 'CHECKPOINT;' : '';
	my $pid = query(<<"SQL");
$flush
ALTER SYSTEM RESET evpg.test_wait;
ALTER SYSTEM SET evpg.workers = 0;
SELECT FROM pg_reload_conf();
$waiters;
SQL
	crash($victim, $pid);
	query("ROLLBACK PREPARED 'holder'");
	return;
}

my $kind = '';
foreach my $scenario (sort keys %scenarios)
{
	my ($begin, $end, $points, $later) = @{ $scenarios{$scenario} }{qw(begin end points later)};

	foreach my $victim ('worker', 'postmaster')
	{
		foreach my $step (@$points)
		{
			my ($point, $version) = @$step;
			my $id = "$scenario $point $victim";

			$kind = $kind eq '' ? '_c' : '';
			$begin->($kind, $id);
			query("SELECT evpg_set_clock_offset('$later s')") if $later;
			crash_at($victim, $point);
			cmp_ok(
				query("SELECT coalesce(max(version), 0) FROM evpg.saga_instance"
					. " WHERE saga = 'transfer$kind' AND key = '$id'"),
				$victim eq 'worker' ? '<=' : '==', $version,
					"$id$kind: what was committed is there, nothing else [rule 16]");
			query('CALL evpg_run()');
			query("ROLLBACK PREPARED 'mark'; SELECT evpg_set_clock_offset(); CALL evpg_run()") if $later;
			is(wrong($node), '', "$id$kind: then all is done, once [rule 16]");
			is(query("SELECT concat_ws(' ', status, reason) FROM transfer WHERE kind = 'transfer$kind' AND id = '$id'"),
				$end, "$id$kind: to the end [rule 16]");
		}
		# the other kind gets the points of this one
		$kind = $kind eq '' ? '_c' : '' unless @$points % 2;
	}
}

# ------------------------------------------------------------------ failures

# How an event of "ill" stands: attempts, dead letters and their attempts
sub ill
{
	my ($key) = @_;

	return query(<<"SQL");
SELECT concat_ws(' ', (SELECT attempts FROM evpg.saga_event WHERE key = '$key' ORDER BY position LIMIT 1),
                      (SELECT string_agg(attempts || ' ' || sqlstate, ',') FROM evpg.dead_letter WHERE key = '$key'))
SQL
}

foreach my $victim ('worker', 'postmaster')
{
	foreach my $case ([ 'put_off:1', '1', '2 2 VE018' ], [ 'dead_lettered:1', '2', '3 3 VE018' ])
	{
		my ($point, $before, $after) = @$case;
		my $id = "$point $victim";

		query("SELECT FROM evpg_append('account', '$id', ARRAY[evpg_event('Ill', '{\"n\": 1}'), evpg_event('Ill')])");
		crash_at($victim, $point);
		is(ill($id), $before, "$id: the attempts are counted, there is no dead letter [rule 17]");
		query('CALL evpg_run()');
		is(ill($id), $after, "$id: then there is one [rule 17]");
		is(query("SELECT evpg_discard_dead_letter(dead_letter_id, 'ill') FROM evpg.dead_letter WHERE key = '$id'"), 't',
			"$id: it is given up [rule 17]");
		query('CALL evpg_run()');
		is(query("SELECT version FROM evpg_saga('ill', '$id')"), 1, "$id: what waited behind it is done [rule 17]");
		is(wrong($node), '', "$id: no command of it is [rule 17]");
	}
	query("SELECT FROM evpg_append('account', 'keyless', ARRAY[evpg_event('Keyless')])");
	crash_at($victim, 'dead_lettered:1');
	is(query("SELECT count(*) FROM evpg.dead_letter WHERE saga = 'keyless' AND resolved_at IS NULL"), 0,
		"$victim: an event without a key: no dead letter [rule 17]");
	query('CALL evpg_run()');
	is(query("SELECT count(evpg_discard_dead_letter(dead_letter_id, 'ill')) FROM evpg.dead_letter "
		. "WHERE saga = 'keyless' AND resolved_at IS NULL"), 1, "$victim: then there is one [rule 17]");
}
# ------------------------------------------------------------------ workers that follow

query(<<'SQL');
CREATE FUNCTION count_live(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('n', (state->>'n')::int + 1) $$;
CREATE FUNCTION live(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF event.data ? 'ill' THEN
    RAISE EXCEPTION 'ill';
  END IF;
  RETURN evpg_reaction('{}', evpg_action_send('account', 'a1', 'Deposit', '{"amount": 1}'),
    evpg_action_send('account', 'a1', 'Withdraw', '{"amount": 1}'));
END $$;
SELECT evpg_register_projection('live', 'count_live', mode => 'async', constant_key => 'all', event_types => '{Live}',
  initial_state => '{"n": 0}');
SELECT evpg_register_saga('live 1', 'live', event_types => '{Live}', max_attempts => 1);
SELECT evpg_register_saga('live 2', 'live', event_types => '{Live}', max_attempts => 1);
ALTER SYSTEM SET evpg.workers = 2;
SELECT pg_reload_conf();
SQL

# "count of the projection, version of each saga", when they have come so far
sub live
{
	my ($count, $versions) = @_;
	my $query = q(SELECT concat_ws(' ', (SELECT state->>'n' FROM evpg_projection('live', 'all')),
	  (SELECT string_agg(version::text, ' ' ORDER BY saga) FROM evpg.saga_instance WHERE key = 'live')));

	$node->poll_query_until('postgres', "SELECT ($query) = '$count $versions $versions'");
	return query($query);
}

sub append_live
{
	my ($id, $data) = @_;

	return query("SELECT FROM evpg_append('account', '$id', ARRAY[evpg_event('Live', '$data')])");
}

append_live('live', '{}') foreach 1 .. 3;
is(live(3, 3), '3 3 3', 'workers: a projection and two sagas follow [1.2 test 13]');
is(query(q(SELECT bool_and(position = (SELECT max(position) FROM evpg.event WHERE type = 'Live')) FROM evpg.saga_instance
	WHERE key = 'live')), 't',
	'each instance knows the position of its last event [1.2 test 13]');
is(query(q(SELECT evpg_register_saga('live 1', 'live', event_types => '{Live}', max_attempts => 1))), 'f',
	'to start it twice changes nothing [1.2 test 13]');
append_live('live ill', '{"ill": 1}');
ok($node->poll_query_until('postgres',
	q(SELECT count(*) = 2 FROM evpg.dead_letter WHERE key = 'live ill' AND message = 'ill')),
	'one that fails is a dead letter of both sagas [1.2 test 13]');
append_live('live', '{}');
is(live(5, 4), '5 4 4', 'others go on [1.2 test 13]');
my $checkpoints = q(SELECT string_agg(checkpoint::text, ' ' ORDER BY name) FROM evpg.consumer WHERE name LIKE 'live%');
is(query("SELECT evpg_wait_for('live', (SELECT max(position) FROM evpg.event_log), '60 s')"), 't',
	'the projection has seen all [A48]');
my $before = query($checkpoints);
$node->restart;
is(query("SELECT bool_and(a::bigint >= b::bigint) "
	. "FROM unnest(string_to_array(($checkpoints), ' '), string_to_array('$before', ' ')) x (a, b)"), 't',
	'checkpoints last over a restart [1.2 test 9, 1.2 test 13]');
append_live('live', '{}');
is(live(6, 5), '6 5 5', 'after it only the new event is reacted to [1.2 test 9, 1.2 test 13]');
query('ALTER SYSTEM SET evpg.workers = 0; SELECT pg_reload_conf()');
is(query(q(SELECT count(*) FROM evpg.event WHERE metadata#>>'{evpg,key}' = 'live')), 20,
	'with the commands of each event, once [1.2 test 9]');
is(query(q(SELECT count(evpg_discard_dead_letter(dead_letter_id, 'ill')) FROM evpg.dead_letter WHERE resolved_at IS NULL)),
	2, 'the dead letters are given up');
is(wrong($node), '', 'all that was requested has come to its end');
is(inspect($node), '', 'all that is stored agrees');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
