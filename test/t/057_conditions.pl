# Rule 21 under load: of two appends whose conditions are in conflict exactly one wins, of those that are not none fails,
# also if the server is killed on the way; and the decisions of docs/boundaries.md, by several clients at once.
#
# EVPG_TEST_PAIRS is how many pairs there are, and how many appends without conflict.  100,000 take a quarter of an hour.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon crash);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $pairs = $ENV{EVPG_TEST_PAIRS} // 10_000;
my $clients = 4;
my $node = evpg_node('conditions', bare => 1,
	conf => "restart_after_crash = on\ndeadlock_timeout = 10ms\ngin_pending_list_limit = 64kB\n");
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

# ------------------------------------------------------------------ pairs in conflict, and others

# An attempt of a session to append the event of a key, which another session attempts as well, or for alone no other.  What
# comes of it is recorded with it.
query(<<'SQL');
SELECT evpg_enable_index('tags');
CREATE TABLE attempt (kind text, key int, session int, won boolean, PRIMARY KEY (kind, session, key));
CREATE FUNCTION attempt(kind text, session int, key int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  tag text := format('%s:%s', kind, key);
  own_tag text := format('%s:%s:%s', kind, key, session / 4);
  other_tag text := format('%s:%s:%s', kind, key, 1 - session / 4);
  won boolean := true;
  upto bigint;
BEGIN
  BEGIN
    IF kind = 'alone' OR key % 3 = 0 THEN  -- both check and append one tag
      PERFORM evpg_append_event('race', session::text, kind, tags => ARRAY[tag],
        condition => evpg_condition(tags => ARRAY[tag]));
    ELSIF key % 3 = 1 THEN  -- each checks what the other appends
      PERFORM evpg_append_event('race', session::text, kind, tags => ARRAY[own_tag],
        condition => evpg_condition(ARRAY[kind], ARRAY[other_tag]));
    ELSE  -- after what was read
      upto := evpg_condition_position(evpg_condition(tags => ARRAY[tag]));
      won := NOT EXISTS (SELECT FROM evpg.event e WHERE e.tags @> ARRAY[tag]);
      IF won THEN
        PERFORM evpg_append_event('race', session::text, kind, tags => ARRAY[own_tag, tag],
          condition => evpg_condition(tags => ARRAY[tag], after_position => upto));
      END IF;
    END IF;
  EXCEPTION WHEN SQLSTATE 'VE013' THEN
    won := false;
  END;
  INSERT INTO attempt VALUES (kind, key, session, won);
  RETURN concat_ws(' ', kind, session, key, won);
END $$;
-- Waits until the other session has come as far, so that both make their next attempts at the same time.
CREATE PROCEDURE meet(kind text, session int, key int) LANGUAGE plpgsql AS $$
BEGIN
  WHILE key > 4 AND NOT EXISTS (SELECT FROM attempt a WHERE a.kind = meet.kind AND a.session = (meet.session + 4) % 8
                                                        AND a.key = meet.key - 4) LOOP
    COMMIT;
    PERFORM pg_sleep(0.0001);
  END LOOP;
END $$;
SQL

# Session 0 kills a process after a part of its attempts: the statements for that.
my %kill = (
	postmaster => '\\! kill -KILL $(head -n 1 ' . $node->data_dir . '/postmaster.pid)',
	backend => "SELECT pg_backend_pid() AS pid \\gset\n\\setenv PID :pid\n\\! kill -KILL \$PID");

# Eight sessions make all attempts of a kind on so many keys, each transaction a batch of them.  Victims are killed one after
# the other, which ends all sessions: they begin again after what is recorded.  Returns what was answered, and the SQLSTATEs
# of errors.
sub attempt_all
{
	my ($kind, $count, $batch, @victims) = @_;
	my $sharing = $kind eq 'alone' ? 8 : 4;
	my $settings = $kind eq 'unlocked' ? "SET evpg.test_mutation = 'tags_unlocked';" : '';
	my (@answers, @errors);

	foreach my $round (0 .. @victims)
	{
		my $victim = $victims[$round];
		# asked before any client starts, which may be the one that kills the server
		my @last = map { query("SELECT coalesce(max(key), 0) FROM attempt WHERE kind = '$kind' AND session = $_") } 0 .. 7;
		my @sessions = map {
			my $session = $_;
			my @keys = grep { $_ % $sharing == $session % $sharing } $last[$session] + 1 .. $count;
			my @statements;

			foreach my $n (0 .. $#keys)
			{
				push @statements, 'COMMIT;' if $batch > 1 && $n > 0 && $n % $batch == 0;
				push @statements, "CALL meet('$kind', $session, $keys[$n]);" if $kind ne 'alone' && $n % $batch == 0;
				push @statements, 'BEGIN;' if $batch > 1 && $n % $batch == 0;
				push @statements, "SELECT attempt('$kind', $session, $keys[$n]);";
			}
			push @statements, 'COMMIT;' if $batch > 1;
			splice @statements, @statements / 3, 0, $kill{$victim} if $victim && $session == 0;
			start_client("$kind-$round-$session", '\set ON_ERROR_STOP on', $settings, @statements);
		} 0 .. 7;
		my ($answered, $failed) = finish_clients(@sessions);

		push @answers, @$answered;
		push @errors, @$failed;
		next unless $victim;
		crash('postmaster') if $victim eq 'postmaster';
		soon('SELECT true', "$kind: the server is there again after a crash");
	}
	return (\@answers, \@errors);
}

# Of each key one attempt of two has won, and its event is there.
sub check_pairs
{
	my ($kind, $count) = @_;

	is(query(<<"SQL"), $count, "$kind: of each pair exactly one wins, and one is refused [rule 21]");
SELECT count(*) FROM (SELECT FROM attempt WHERE kind = '$kind' GROUP BY key
                      HAVING count(*) FILTER (WHERE won) = 1 AND count(*) FILTER (WHERE NOT won) = 1) a
SQL
	is(query(<<"SQL"), "$count|$count", "$kind: of each pair one event is there [rule 21]");
SELECT count(*), count(DISTINCT substring(tags[1] FROM '^$kind:([0-9]+)')) FROM evpg.event WHERE type = '$kind'
SQL
	is(query("SELECT count(*) FROM (SELECT FROM attempt WHERE kind = '$kind' GROUP BY session HAVING bool_or(won)) s"), 8,
		"$kind: each session wins some");
	return;
}

my ($answers, $errors) = attempt_all('pair', $pairs, 1, 'postmaster', 'backend', 'backend');
check_pairs('pair', $pairs);
is(join(' ', @$errors), '', 'pair: no attempt fails in another way [rule 21]');
my %answered;
$answered{$_}++ foreach @$answers;
is(join(' ', grep { $answered{$_} > 1 } keys %answered), '', 'pair: none was answered twice');
my %recorded = map { $_ => 1 } split /\n/,
  query("SELECT concat_ws(' ', kind, session, key, won) FROM attempt WHERE kind = 'pair'");
is(join(' ', grep { !$recorded{$_} } keys %answered), '', 'pair: what was answered before a crash is so after it [rule 21]');

# What this finds if no locks are taken.
attempt_all('unlocked', $pairs / 10, 1);
cmp_ok(query(<<'SQL'), '>', 0, 'without locks both appends of some pairs succeed');
SELECT count(*) FROM (SELECT FROM attempt WHERE kind = 'unlocked' GROUP BY key HAVING count(*) FILTER (WHERE won) = 2) a
SQL

(undef, $errors) = attempt_all('batch', $pairs / 5, 10);
check_pairs('batch', $pairs / 5);
is(join(' ', @$errors), '', 'batch: several appends in a transaction, in one order, run into no deadlock [rule 21]');

(undef, $errors) = attempt_all('alone', $pairs, 1, 'backend', 'postmaster');
is(query("SELECT count(*), count(DISTINCT tags) FROM evpg.event WHERE type = 'alone'"), "$pairs|$pairs",
	'alone: of appends with disjoint tags none fails [rule 21]');
is(query("SELECT count(*), bool_and(won) FROM attempt WHERE kind = 'alone'"), "$pairs|t", 'alone: each of them was told so');
is(join(' ', @$errors), '', 'alone: for whatever reason');

# ------------------------------------------------------------------ rings

# each checks what the others append: at most one of a ring may win, and one does if the rest are refused
my $ring = 100;
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

# ------------------------------------------------------------------ the decisions of docs/boundaries.md

query(<<'SQL');
SELECT evpg_append_event('course', 'c' || n, 'CourseDefined', '{"capacity": 5}', tags => ARRAY['course:c' || n])
  FROM generate_series(1, 3) n;
SQL
(my $subscriptions, $errors) = finish_clients(
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

# The same decided in C, by the clients: for one place four students, one student four times, for one student four courses.
query(<<'SQL');
CREATE ROLE registrar LOGIN;
SELECT evpg_grant('registrar', 'writer');
SELECT evpg_append_event('course', c || n, 'CourseDefined',
    jsonb_build_object('capacity', CASE c WHEN 'one' THEN 1 ELSE 9 END), tags => ARRAY[format('course:%s%s', c, n)])
  FROM unnest('{one,same,many}'::text[]) c, generate_series(1, 60) n;
SQL
my %counts;
{
	local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE)} = ($node->host, $node->port, 'registrar', 'postgres');
	my @programs = map {
		my ($client, $file) = ($_, "$directory/course-$_");

		append_to_file("$file.in",
			join '', map { "one$_ s$client-$_\nsame$_ twin$_\nmany$_ eager" . int($_ / 4) . "\n" } 1 .. 60);
		+{
			name => "course-$client",
			run => IPC::Run::start(['evpg-course'], '<', "$file.in", '>', "$file.out", '2>', "$file.err")
		};
	} 1 .. $clients;
	my ($answered) = finish_clients(@programs);

	s/\d+ \S+/:/ && $counts{$_}++ foreach @$answered;
}
is(join(', ', map { "$_ $counts{$_}" } grep { /^(?:one|same)/ } sort keys %counts),
	'one: course is full 180, one: subscribed 60, same: subscribed 60, same: subscribed already 180',
	'in C: one of four clients subscribes, each time [rule 21]');
is(query(<<'SQL'), '0', 'in C: no student has more than two courses, or one twice [rule 21]');
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

# All clients send the same form, without a function: all that they need is the condition.
my ($placed, $refused) = finish_clients(
	map {
		my $client = $_;
		start_client("form-$client",
			map { "SELECT 'placed' FROM evpg_append_event('order', 'form $client-$_', 'OrderPlaced', tags => '{form:$_}', "
				. "condition => evpg_condition(tags => '{form:$_}'));" } 1 .. 50)
	} 1 .. $clients);
is(scalar(@$placed) . ' ' . join(' ', map { my $code = $_; scalar grep { $_ eq $code } @$refused } 'VE013'), '50 150',
	'each form is recorded once, and refused to the others [rule 21]');

my ($imported) = finish_clients(
	map { my $client = $_; start_client("import-$client", map { "SELECT import_customer('crm', '$_', '{}');" } 1 .. 50) }
	  1 .. $clients);
is(join(' ', map { my $what = $_; scalar grep { $_ eq $what } @$imported } 't', 'f'), '50 150',
	'each record of another system is imported once, by several imports at once [rule 21]');

done_testing();
