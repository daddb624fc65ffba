# Rule 21 under load: of appends whose conditions are in conflict exactly one wins, of those that are not none fails, also if
# the server is killed on the way; and the decisions of docs/boundaries.md, by several clients at once.
#
# EVPG_TEST_PAIRS is how many keys are fought for.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon crash);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = $ENV{EVPG_TEST_PAIRS} // 400;
my $clients = 4;
my $node = evpg_node('conditions', bare => 1, conf => "synchronous_commit = on\ndeadlock_timeout = 10ms\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

# The functions, as they are documented.
my $recipes = join "\n",
  slurp_file(tree() . '/docs/boundaries.md') =~ /^(CREATE FUNCTION (?:(?!^CREATE FUNCTION).)*?^END \$\$;)$/msg;
is(() = $recipes =~ /^CREATE/mg, 6, 'the page has six functions');
query(<<"SQL");
CREATE EXTENSION evpg;
$recipes
SELECT evpg_register_aggregate(t) FROM unnest(
  '{race,alone,course,student,account,invoice,order,product,sign_up,customer}'::text[]) t;
SQL

# Starts a client that runs statements one after the other, whatever becomes of each.
sub start_client
{
	my ($name, @statements) = @_;

	PostgreSQL::Test::Utils::append_to_file("$directory/$name.sql",
		join("\n", '\set VERBOSITY sqlstate', @statements) . "\n");
	return {
		name => $name,
		run => IPC::Run::start(
			[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$directory/$name.sql" ],
			'>', "$directory/$name.out", '2>', "$directory/$name.err") };
}

# Waits for clients; returns what they have printed, and the SQLSTATEs of their errors.
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

# The append of an event with a tag, unless one exists.
sub append_once
{
	my ($type, $id, $tag) = @_;

	return "SELECT '$tag' FROM evpg_append_event('$type', '$id', 'Won', tags => '{$tag}', "
	  . "condition => evpg_condition(tags => '{$tag}', after_position => $_[3]));";
}

# ------------------------------------------------------------------ pairs in conflict, and others

my $winners = "SELECT count(*), count(DISTINCT tags) FROM evpg.event WHERE aggregate_type = 'race' AND tags[1] LIKE";
my ($won, $lost) = finish_clients(
	map { my $client = $_; start_client("race-$client", map { append_once('race', "$client-$_", "key:$_", 0) } 1 .. $keys) }
	  1 .. $clients);
is(query("$winners 'key:%'"), "$keys|$keys", 'of several appends under one condition exactly one wins, each time [rule 21]');
is(scalar @$won, $keys, 'each of them has been answered');
is(join(' ', @$lost), join(' ', ('VE013') x ($keys * ($clients - 1))), 'all others are refused by the condition [rule 21]');

# each checks what the others append: at most one of a ring may win, and one does if the rest are refused
my $ring = int($keys / 4);
my @skew = finish_clients(
	map {
		my ($client, $next) = ($_, $_ % $clients + 1);
		start_client("skew-$client",
			map { "SELECT '$client' FROM evpg_append_event('race', 'skew $client-$_', 'Won', tags => '{skew:$_:$client}', "
				. "condition => evpg_condition(tags => '{skew:$_:$next}'));" } 1 .. $ring)
	  } 1 .. $clients);
is(query(<<"SQL"), '0', 'no two appends have each missed that of the other [rule 21]');
SELECT count(*) FROM generate_series(1, $ring) k, generate_series(1, $clients) c
 WHERE EXISTS (SELECT FROM evpg.event WHERE tags = ARRAY[format('skew:%s:%s', k, c)])
   AND (SELECT min(position) FROM evpg.event WHERE tags = ARRAY[format('skew:%s:%s', k, c % $clients + 1)])
       < (SELECT position FROM evpg.event WHERE tags = ARRAY[format('skew:%s:%s', k, c)])
SQL
is(join(' ', grep { $_ ne 'VE013' } @{ $skew[1] }), '', 'and none waits in a ring [rule 21]');

my ($alone, $failed) = finish_clients(
	map {
		my $client = $_;
		start_client("alone-$client", map { append_once('alone', "$client", "own:$client:$_", 0) } 1 .. $keys)
	} 1 .. $clients);
is(scalar @$alone, $keys * $clients, 'of appends with disjoint tags none fails [rule 21]');
is(join(' ', @$failed), '', 'for whatever reason');

# ------------------------------------------------------------------ the server is killed on the way

foreach my $round (1 .. 2)
{
	my $start = query('SELECT last_value FROM evpg.event_position');
	my @fighting = map {
		my $client = $_;
		start_client("crash-$round-$client",
			map { append_once('race', "crash $client-$_", "crash:$round:$_", $start) } 1 .. 5 * $keys)
	} 1 .. $clients;

	soon("SELECT count(*) > $keys FROM evpg.event WHERE tags[1] LIKE 'crash:$round:%'", "round $round: clients are at work");
	crash('postmaster');
	my ($answers) = finish_clients(@fighting);
	my %answers;

	$answers{$_}++ foreach @$answers;
	is(join(' ', grep { $answers{$_} > 1 } keys %answers), '', "round $round: no key was won twice [rule 21]");
	is(query("SELECT count(*) - count(DISTINCT tags) FROM evpg.event WHERE tags[1] LIKE 'crash:$round:%'"), '0',
		"round $round: of each key one event at most is stored [rule 21]");
	my %stored = map { ($_ => 1) } split /\n/, query("SELECT tags[1] FROM evpg.event WHERE tags[1] LIKE 'crash:$round:%'");
	is(join(' ', grep { !$stored{$_} } keys %answers), '', "round $round: what was answered is there");
	cmp_ok(scalar keys %answers, '<', 5 * $keys, "round $round: the crash came on the way");
}

# ------------------------------------------------------------------ the decisions of docs/boundaries.md

query(<<'SQL');
SELECT evpg_append_event('course', 'c' || n, 'CourseDefined', '{"capacity": 5}', tags => ARRAY['course:c' || n])
  FROM generate_series(1, 3) n;
SQL
my ($subscriptions, $errors) = finish_clients(
	map {
		my $client = $_;
		start_client("subscribe-$client",
			map { my $student = $_; map { "SELECT subscribe_student('c$_', 's$student');" } 1 .. 3 } 1 .. 12)
	} 1 .. $clients);
is(join(' ', @$errors), '', 'no subscription fails');
is(scalar(grep { $_ eq 'subscribed' } @$subscriptions), 15, 'as many subscribe as there are places');
is(query(<<'SQL'), '5 5 5', 'each course is full, and none more than that [rule 21]');
SELECT string_agg(n::text, ' ')
  FROM (SELECT count(*) AS n FROM evpg.event WHERE type = 'StudentSubscribed' GROUP BY tags[1]) c
SQL
is(query(<<'SQL'), '0', 'no student has more than two courses, or one twice [rule 21]');
SELECT count(*) FROM (SELECT FROM evpg.event WHERE type = 'StudentSubscribed' GROUP BY tags[2]
                      HAVING count(*) > 2 OR count(*) > count(DISTINCT tags[1])) s
SQL

my ($names) = finish_clients(
	map { my $client = $_; start_client("name-$client", map { "SELECT register_account('$client-$_', 'Name$_');" } 1 .. 50) }
	  1 .. $clients);
is(join(' ', map { my $what = $_; scalar grep { $_ eq $what } @$names } 'registered', 'taken'), '50 150',
	'each name is registered once [rule 21]');

my $undone = "BEGIN;\nSELECT 0 * create_invoice(2026, 1);\nROLLBACK;";
my ($numbers) = finish_clients(
	map { start_client("invoice-$_", map { $_ % 5 ? 'SELECT create_invoice(2026, 1);' : $undone } 1 .. 25) } 1 .. $clients);
is(join(' ', sort { $a <=> $b } grep { $_ } @$numbers), join(' ', 1 .. 20 * $clients),
	'invoices have numbers without gaps and doubles, whatever rolls back [rule 21]');

# One client sets prices, the others order at the price that they have seen.
my $price = "SELECT version FROM evpg_append_event('product', 'p', 'PriceSet', '{\"price\": %d}', tags => '{product:p}');";
my $seen = "SELECT (data->>'price')::numeric FROM evpg.event WHERE type = 'PriceSet' ORDER BY position DESC LIMIT 1";
query(sprintf $price, 0);
my ($orders) = finish_clients(
	start_client('price', map { sprintf $price, $_ } 1 .. 60),
	map {
		my $client = $_;
		start_client("order-$client", map { "SELECT place_order('$client-$_', 'p', ($seen), grace => '0');" } 1 .. 40)
	} 2 .. $clients);
is(scalar(grep { /^\d+$/ } @$orders), 60, 'prices are set, whatever is ordered');
my $ordered = grep { $_ eq 'ordered' } @$orders;
is(query(<<'SQL'), $ordered, 'each order has the price that was set last before it [rule 21]');
SELECT concat(count(*) FILTER (WHERE paid = price), ' of ' || nullif(count(*) FILTER (WHERE paid <> price), 0))
  FROM (SELECT (o.data->>'price')::numeric AS paid,
               (SELECT (p.data->>'price')::numeric FROM evpg.event p
                 WHERE p.type = 'PriceSet' AND p.position < o.position ORDER BY p.position DESC LIMIT 1) AS price
          FROM evpg.event o WHERE o.type = 'ProductOrdered') x
SQL

query(<<'SQL');
SELECT evpg_append_event('sign_up', format('%s@example.org', n), 'SignUpBegun',
  tags => ARRAY['token:' || n, format('email:%s@example.org', n)]) FROM generate_series(1, 50) n;
SQL
my @confirmations = map { sprintf "SELECT confirm_sign_up('%s@%s', '%s');", $_, 'example.org', $_ } 1 .. 50;
my ($confirmed) = finish_clients(map { start_client("confirm-$_", @confirmations) } 1 .. $clients);
is(join(' ', map { my $what = $_; scalar grep { $_ eq $what } @$confirmed } 'confirmed', 'the token was used'), '50 150',
	'each token is used once [rule 21]');

my ($imported) = finish_clients(
	map { my $client = $_; start_client("import-$client", map { "SELECT import_customer('crm', '$_', '{}');" } 1 .. 50) }
	  1 .. $clients);
is(join(' ', map { my $what = $_; scalar grep { $_ eq $what } @$imported } 't', 'f'), '50 150',
	'each record of another system is imported once, by several imports at once [rule 21]');

done_testing();
