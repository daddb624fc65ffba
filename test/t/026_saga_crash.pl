# Sagas across crashes (rules 16 to 18): whatever dies, and whenever, no command of a saga is executed twice, none is lost,
# and every transfer comes to its end; timers fire once; an event that crashes the server ends as a dead letter, and keeps
# nobody else waiting.
#
# Workers wait at the points of src/base/testing.h where evpg.test_wait says so, as long as somebody holds an advisory
# lock: a prepared transaction, which does not let go of it when the server dies.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon crash);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest qw($wait_key $waiters create_accounts transfers_script);
use Test::More;
use Time::HiRes qw(usleep);

my $node = evpg_node('sagas', conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 12
restart_after_crash = on
evpg.test_mutation = 'hasty_launcher'
evpg.naptime = 100ms
evpg.workers = 2
EOC

create_accounts($node);
$node->safe_psql('postgres', <<'SQL');
-- what belongs to a transfer, and what came of it
CREATE VIEW transfer AS
  SELECT replace(aggregate_type, 'account', 'transfer') AS kind,
    CASE WHEN aggregate_type LIKE 'account%' THEN metadata->>'transfer' ELSE aggregate_id END AS id,
         coalesce(max(lower(substr(type, 9))) FILTER (WHERE type IN ('TransferCompleted', 'TransferFailed')), 'requested')
           AS status,
         count(*) FILTER (WHERE type = 'MoneyWithdrawn') AS taken, count(*) FILTER (WHERE type = 'MoneyDeposited') AS given
    FROM evpg.event WHERE aggregate_type LIKE 'transfer%' OR metadata ? 'transfer' GROUP BY 1, 2;
SQL

sub set
{
	my ($name, $value) = @_;

	query("ALTER SYSTEM SET $name = '$value'");
	query('SELECT pg_reload_conf()');
	return;
}

sub transfer
{
	my ($id, $kind) = @_;

	return query("SELECT count(*) FROM evpg_execute('transfer$kind', '$id', 'Request', '{\"from\": \"a1\", \"to\": \"a2\", "
		. "\"amount\": 1}')");
}

# Lets the workers come to a point, kills, and leaves no workers.
sub crash_at
{
	my ($victim, $point, $begin) = @_;

	query("BEGIN; SELECT pg_advisory_xact_lock($wait_key); PREPARE TRANSACTION 'holder'");
	$begin->();
	soon("SELECT EXISTS ($waiters)", "$victim, $point: a worker comes there");
	my $pid = query("$waiters LIMIT 1");
	set('evpg.workers', 0);
	crash($victim, $pid);
	query("ROLLBACK PREPARED 'holder'");
	is(query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evpg worker'"), 0,
		"$victim, $point: there are no workers");
	return;
}

# All that was begun comes to an end, with each thing done once.
sub all_is_well
{
	my ($what) = @_;

	set('evpg.workers', 2);
	soon("SELECT count(*) = 0 FROM transfer WHERE status = 'requested'", "$what: every transfer ends");
	soon('SELECT count(*) = 0 FROM evpg.saga_event', "$what: nothing is left to do");
	is(query("SELECT * FROM transfer WHERE NOT CASE status WHEN 'completed' THEN taken = 1 "
		. "AND given = 1 ELSE taken = given AND taken <= 1 END"), '',
		"$what: money is taken once and given once [B52, D30]");
	is(query("SELECT sum((state->>'balance')::int) "
		. "FROM unnest('{account,account_c}'::text[]) t, generate_series(1, 10) n, evpg_state(t, 'a' || n)"), 20000,
		"$what: the sum of the balances is what it was");
	is(query("SELECT count(*) FROM evpg.saga_instance WHERE status <> 'completed' AND saga LIKE 'transfer%'"), 0,
		"$what: every instance is completed");
	is(query('SELECT count(*) FROM evpg.timer'), 0, "$what: no timer is left");
	is(query('SELECT saga, key, sqlstate, message FROM evpg.dead_letter'), '', "$what: there is no dead letter");
	is(query(q{SELECT name, dispatched_total, dead_lettered_total FROM evpg.stat_consumer c
		WHERE kind = 'saga' AND (dead_lettered_total <> 0 OR dispatched_total <>
		(SELECT count(DISTINCT command_id) FROM evpg.event WHERE metadata#>>'{evpg,saga}' = c.name))}),
		'', "$what: each command that a saga sent counts once [A32]");
	is(inspect($node), '', "$what: all that is stored agrees");
	return;
}

soon("SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker'", 'there are two workers');
transfer('first', $_) foreach '', '_c';
all_is_well('without a crash');
is(query("SELECT count(*) FROM transfer WHERE status = 'completed'"), 2,
	'without a crash: transfers are completed [2.4 test 6]');
foreach my $account ('account', 'account_c')
{
	# the payee had 1000, and pays back what this takes
	is(query("SELECT status FROM evpg_try_execute('$account', 'a2', 'Withdraw', '{\"amount\": 1001}')"), 'ok',
		"$account: what was transferred can be withdrawn [2.4 test 6]");
	is(query("SELECT status FROM evpg_try_execute('$account', 'a2', 'Withdraw', '{\"amount\": 1}')"), 'rejected',
		"$account: and no more [2.4 test 6]");
	query("SELECT FROM evpg_execute('$account', 'a2', 'Deposit', '{\"amount\": 1001}')");
}

# ------------------------------------------------------------------ between two steps

foreach my $victim ('worker', 'postmaster')
{
	foreach my $point ('saga_claimed', 'saga_reacted')
	{
		foreach my $kind ('', '_c')
		{
			my $id = "$victim $point";

			set('evpg.test_wait', $point);
			set('evpg.workers', 0);
			soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'evpg worker'", "$id$kind: new workers");
			# one worker: another could begin the next attempt when this one is sent away
			crash_at($victim, "$point$kind", sub { transfer($id, $kind); set('evpg.workers', 1); });
			is(query("SELECT status, taken, given FROM transfer WHERE kind = 'transfer$kind' AND id = '$id'"),
				'requested|0|0', "$id$kind: no command of it is executed [D29]");
			is(query("SELECT count(*) FROM evpg.saga_instance WHERE saga = 'transfer$kind' AND key = '$id'"), 0,
				"$id$kind: there is no instance");
			is(query("SELECT attempts FROM evpg.saga_event WHERE saga = 'transfer$kind' AND key = '$id'"), 1,
				"$id$kind: the attempt is counted");
			all_is_well("$id$kind");
			is(query("SELECT status, taken, given FROM transfer WHERE kind = 'transfer$kind' AND id = '$id'"),
				'completed|1|1', "$id$kind: then it is done");
		}
	}
}
query('ALTER SYSTEM RESET evpg.test_wait');

# committed, one reaction at a time
set('evpg.workers', 0);
soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'evpg worker'", 'no workers');
transfer('committed', '_c');
foreach my $step ('1|0', '1|1', '1|1')
{
	is(query('SET synchronous_commit = on; SELECT dispatched FROM evpg_run_sagas(1)'), 1, 'a reaction is committed');
	crash('postmaster');
	is(query("SELECT taken, given FROM transfer WHERE kind = 'transfer_c' AND id = 'committed'"), $step,
		'the reaction is there after a crash');
}
all_is_well('committed');

# ------------------------------------------------------------------ under load

my $script = transfers_script();

foreach my $victim ('worker', 'postmaster', 'worker', 'postmaster', 'client backend')
{
	my $output = "$script.out";
	my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 3, '-T', 2, '-f', $script, '-d', $node->connstr('postgres') ], '>',
		$output, '2>', $output);

	usleep(500_000 + int(rand(1_000_000)));
	my $type = $victim eq 'worker' ? 'evpg worker' : 'client backend';
	crash($victim, $victim eq 'postmaster' ? undef
		: query("SELECT pid FROM pg_stat_activity WHERE backend_type = '$type' AND pid <> pg_backend_pid() "
		. "ORDER BY random() LIMIT 1"));
	$load->finish;
}
all_is_well('under load');
cmp_ok(query('SELECT count(*) FROM transfer'), '>', 50, 'under load: transfers');
cmp_ok(query("SELECT count(*) FROM transfer WHERE status = '$_'"), '>', 5, "under load: $_ transfers") foreach 'completed',
	'failed';
cmp_ok(query("SELECT count(*) FROM transfer WHERE status = 'failed' AND taken = 1"), '>', 0,
	'under load: some were paid back');

# ------------------------------------------------------------------ timers

my $deposit =
	q(SELECT evpg_schedule_command(clock_timestamp() + interval '%s', 'account', '%s', 'Deposit', '{"amount": 7}'));

query(q(SELECT count(*) FROM unnest('{worker,postmaster,later}'::text[]) t,
	evpg_execute('account', t, 'Open', '{"owner": "Ann"}')));
foreach my $victim ('worker', 'postmaster')
{
	set('evpg.test_wait', 'saga_reacted');
	set('evpg.workers', 0);
	soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'evpg worker'", 'new workers');
	crash_at($victim, 'timer', sub { query(sprintf($deposit, '0', $victim)); set('evpg.workers', 2); });
	is(query("SELECT attempts FROM evpg.timer"), 1, "$victim: a scheduled command is still there");
	set('evpg.workers', 2);
	soon('SELECT count(*) = 0 FROM evpg.timer', "$victim: it is executed");
	is(query("SELECT version, state->>'balance' FROM evpg_state('account', '$victim')"), '2|7', "$victim: once");
}
query('ALTER SYSTEM RESET evpg.test_wait');
query(sprintf($deposit, '500 ms', 'later'));
$node->restart;
soon('SELECT count(*) = 0 FROM evpg.timer', 'a timer that becomes due around a restart fires');
is(query("SELECT version, state->>'balance' FROM evpg_state('account', 'later')"), '2|7', 'once');

# ------------------------------------------------------------------ an event that crashes the server

set('evpg.workers', 2);
query("SELECT evpg_register_saga('poisonable', library => 'evpg_test', symbol => 'poisonable', max_attempts => 2, "
	. "backoff => '0')");
# what is committed may crash the server before the answer comes
$node->psql('postgres', q(SELECT count(*) FROM (VALUES (1, 'fine'), (2, 'ill'), (3, 'also fine'), (4, 'ill')) x (n, id),
  evpg_append('account', 'served ' || id, ARRAY[evpg_event('Served', jsonb_build_object('poison', n = 2))])),
  	stdout => \my $appended, stderr => \my $broken);
soon("SELECT count(*) = 1 FROM evpg.dead_letter WHERE saga = 'poisonable'",
	'an event that crashes the server ends as a dead letter');
is(query('SELECT key, attempts, sqlstate FROM evpg.dead_letter'), 'served ill|2|57P02', 'after max_attempts crashes');
soon("SELECT count(*) = 2 FROM evpg.saga_instance WHERE saga = 'poisonable'", 'the other instances go on');
is(query("SELECT string_agg(key || ' ' || (state->>'seen'), ', ' ORDER BY key) FROM evpg.saga_instance "
	. "WHERE saga = 'poisonable'"), 'served also fine 1, served fine 1', 'each event counts once');
is(query("SELECT count(*) FROM evpg.saga_event WHERE key = 'served ill'"), 2, 'what comes later for the ill one waits');
is(query("SELECT dead_lettered_total FROM evpg.stat_consumer WHERE name = 'poisonable'"), 1,
	'a reaction that crashes counts once, however many attempts there were [A32]');
is(query("SELECT evpg_discard_dead_letter(dead_letter_id, 'poison') FROM evpg.dead_letter"), 't', 'it is given up');
soon("SELECT count(*) = 3 FROM evpg.saga_instance WHERE saga = 'poisonable'",
	'the instance goes on after its dead letter was discarded');
# its first attempt need not be on disk: then it is made once more
my $crashes = () = slurp_file($node->logfile) =~ /evpg worker.*was terminated by signal 6/g;
ok($crashes == 3 || $crashes == 4,
	"there were $crashes crashes: those that count, and one or two that made it a suspect [rule 17]");

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
