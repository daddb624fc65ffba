# Rules 16 and 17: what several sessions claim of the work of sagas, and what keeps a claim.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = evpg_node('claims', conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.workers = 0
EOC

query(q(SELECT evpg_register_aggregate('thing')));

# Starts a pass in a session that stops where it has claimed; returns the session and its process.
sub claiming_pass
{
	my ($wait_point) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	$session->query_safe("SET evpg.test_wait = '$wait_point'");
	$session->query_until(qr/begun/, "\\echo begun\nCALL evpg_run();\n");
	soon("SELECT count(*) = 1 FROM ($waiters) w WHERE w.pid = $pid", "a session waits at $wait_point");
	return ($session, $pid);
}

query($_) foreach (
	q(CREATE FUNCTION unlocks(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN PERFORM pg_advisory_unlock_all(); RETURN evpg_reaction('{"done": true}'); END $$),
	q(SELECT evpg_register_saga('unlocks', handler => 'unlocks', event_types => '{Unlocked}')));
my $append = q(SELECT FROM generate_series(1, 120) n, evpg_append('thing', 'unlocks ' || n, ARRAY[evpg_event('Unlocked')]));

foreach my $case ('once', 'twice')
{
	my $holder = $node->background_psql('postgres', on_error_stop => 1);

	query($append);
	query('SELECT evpg_run_sagas(0)');
	$holder->query_safe("SELECT pg_advisory_lock($wait_key)");
	my ($first, $pid) = claiming_pass($case eq 'once' ? 'saga_claimed:3' : 'saga_claimed');
	my $second;

	if ($case eq 'once')
	{
		is(query("SELECT count(*) FROM pg_locks WHERE objsubid = 17757 AND pid = $pid"), '48',
			'claims are held on, though the code of items before has released all advisory locks [rule 17]');
	}
	else
	{
		($second) = claiming_pass('saga_claimed');
		is(query('SELECT count(*) FROM evpg.saga_event WHERE attempts = 1'), '100',
			'another session claims what is left before it takes over what is claimed [rule 16]');
	}
	is(query('SELECT count(*) FROM evpg.saga_event WHERE attempts > 1'), '0', "$case: nothing is tried again [rule 17]");
	$holder->quit;
	$_->quit foreach grep { defined } $first, $second;
	query('CALL evpg_run()');
	is(query(q(SELECT count(*), min(version), max(version) FROM evpg.saga_instance WHERE saga = 'unlocks')),
		$case eq 'once' ? '120|1|1' : '120|2|2', "$case: all react once");
}

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
