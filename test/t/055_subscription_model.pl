# Consumers of a subscription at random against a model (test/attack/subscription_model.py): a few seeds, which are
# printed.  In each, consumers and writers come, go, crash, roll back and prepare; what is handed out, acknowledged, parked
# and skipped must be what the model expects, and in the end every event is done or put aside.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('subscription_model', conf => <<'CONF');
shared_preload_libraries = 'evpg'
evpg.workers = 0
CONF

@ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'postgres');
$ENV{PYTHONDONTWRITEBYTECODE} = 1;

my $first = $ENV{SEED} // 79600;

foreach my $seed (1, 2, 301, 407, $first .. $first + 3)
{
	my ($out, $err) = run_command([
		'/usr/bin/python3', tree() . '/test/attack/subscription_model.py', '--seed', $seed, '--steps', 500 ]);

	note $out, $err;
	like($out, qr/^ok - seed $seed,/,
		"seed $seed: each event is acknowledged once, in order of its stream, or put aside [rule 20]");
}

$node->stop;
done_testing();
