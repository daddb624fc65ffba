# Consumers of a subscription at random against a model (test/attack/subscription_model.py): a few seeds, which are
# printed.  In each, consumers and writers come, go, crash, roll back and prepare; what is handed out, acknowledged, parked
# and skipped must be what the model expects, and in the end every event is done or put aside.  In some, parked events are
# replayed, the subscription is moved, paused and dropped, and server processes are killed, the postmaster among them.
#
# SEED=N begins with another seed than the fixed ones; a failure prints the options that repeat it.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('subscription_model', conf => <<'CONF');
restart_after_crash = on
shared_preload_libraries = 'evpg'
evpg.workers = 0
CONF

@ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'postgres');
$ENV{PYTHONDONTWRITEBYTECODE} = 1;

my $first = $ENV{SEED} // 79600;
my $restart = sprintf("pg_ctl -w -D '%s' -l '%s' start", $node->data_dir, $node->logfile);

sub run_seeds
{
	my ($label, $options, @seeds) = @_;

	foreach my $seed (@seeds)
	{
		my ($out, $err) = run_command([
			'/usr/bin/python3', tree() . '/test/attack/subscription_model.py', '--seed', $seed, '--steps', 500, @$options ]);

		note $out, $err;
		like($out, qr/^ok - seed $seed,/, "seed $seed: $label [rule 20]");
	}
	return;
}

run_seeds('each event is acknowledged once, in order of its stream, or put aside', [], 1, 2, 301, 407, $first .. $first + 3);

# 8012: a newer event of a stream came before those that were to be replayed; 30096: some become due in a replay of others
run_seeds('parked events that are replayed come before newer ones of their partition',
	[ '--replay', 2 ], 8012, 20032, 30096, $first .. $first + 3);
run_seeds('so it is when the subscription is moved, paused, resumed and dropped',
	[ '--replay', 2, '--control', 1 ], 1, 2, $first .. $first + 3);
run_seeds('and when server processes and the postmaster are killed in fetches, acks and nacks',
	[ '--replay', 2, '--control', 1, '--kill', 1, '--restart', $restart ], 100, $first .. $first + 1);

$node->stop;
done_testing();
