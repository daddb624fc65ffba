#!/usr/bin/perl
#
# What README.md and docs/ show is what happens.
#
# The ```sql blocks of each page run in order, in one psql session in a new database.  A statement followed by comments has
# this output, row by row (psql -A -t -F ' | ') or as an error; a statement without comments must not fail.  Blocks whose
# fence names a file (```c counter.c) are written to that file, and the directory is built and installed with PGXS as a
# third party would do it, before the session starts.  No page with such blocks escapes, and what another fence holds is
# listed here.
#
# Then: every link leads to a file and a heading, every test and source file that a page names exists, rules.md lists for
# each rule the tests that name it, reference.md names everything that there is, and every feature is in coverage.md once.

use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Find qw(find);
use File::Path qw(make_path);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = abs_path(dirname(__FILE__) . '/../..');

# The fenced blocks of a file: [info string, text, line number of the first line].
sub blocks
{
	my ($name) = @_;
	my @blocks;
	my $open;

	my $number = 0;
	foreach my $line (split /\n/, slurp_file("$top/$name"))
	{
		$number++;
		if (!$open && $line =~ /^\s*```(.*)$/)
		{
			$open = [ $1, '', $number + 1 ];
		}
		elsif ($open && $line eq '```')
		{
			push @blocks, $open;
			$open = undef;
		}
		elsif ($open)
		{
			$open->[1] .= "$line\n";
		}
	}
	die "$name: a block is not closed" if $open;
	return @blocks;
}

# The statements of a block of SQL: [text, expected output, line number].
sub statements
{
	my ($text, $number) = @_;
	my @statements;
	my ($statement, $start, $quoted) = ('', $number, 0);

	foreach my $line (split /\n/, $text)
	{
		my ($end, $comment);

		if ($statement eq '' && $line =~ /^\s*--\s?(.*)$/)
		{
			$statements[-1][1] .= "$1\n" if @statements;
		}
		elsif ($statement ne '' || $line =~ /\S/)
		{
			$start = $number if $statement eq '';
			$statement .= "$line\n";
			$quoted ^= 1 for $line =~ /\$\$/g;
			if (!$quoted && ($line =~ /;\s*(?:--\s?(.*))?$/ || $line =~ /^\\/))
			{
				push @statements, [ $statement, defined $1 ? "$1\n" : '', $start ];
				$statement = '';
			}
		}
		$number++;
	}
	die "the statement at line $start does not end" if $statement ne '';
	return @statements;
}

# What psql printed between two marks.
sub between
{
	my ($text, $number) = @_;

	return $text =~ /^mark \Q$number\E\n(.*?)^mark @{[$number + 1]}$/ms ? $1 : undef;
}

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
$node->start;

# All pages.
my @documents;
find({ no_chdir => 1,
	wanted => sub {
		$File::Find::prune = 1 if /\/(?:build|\.[^\/]+)$/;
		push @documents, s/^\Q$top\E\///r if /\.md$/;
	} }, $top);
@documents = sort @documents;
cmp_ok(scalar @documents, '>', 20, 'there are pages');

# What is in blocks that do not run: signatures, settings, names of targets, parts of statements; and what test/upgrade runs.
my %does_not_run = (
	'README.md' => [ 'make demo', 'apt-get' ],
	'bench/README.md' => [ 'make bench', 'evpg bench, ', '.*(?:clients|ratio|\\(ms\\)|per second).*\\n' ],
	'docs/applications.md' => ['\{"event": "Added"'],
	# see 058
	'docs/cdc.md' => [ '-- at (?:the source|the receiver|each receiver)', 'connector\.class' ],
	# the code is that of examples/consumers, see 053
	'docs/consumers.md' => [ 'evpg-tail', '\{"position":', '(?:async function|def) ', '        (?:with|status, )' ],
	'docs/operations.md' =>
	  [ 'shared_preload_libraries', '-- at the primary',
		'SELECT cron\.schedule', 'while true', '"\$(?:old|new|bin)/', 'sequences=' ],
	'docs/projections.md' => ['\{"event": "delta"'],
	'docs/reference.md' => [ 'evpg_\w+\(', 'SELECT evpg_inject\(e\.' ],
	'docs/tour.md' => ['Asynchronous notification'],
	'docs/tutorial.md' => ['static '],
	'CONTRIBUTING.md' => ['make '],
	'test/README.md' => ['make ']);
my @unknown;
my @run;

foreach my $name (@documents)
{
	my @blocks = blocks($name);

	push @run, $name if grep { $_->[0] eq 'sql' } @blocks;
	foreach my $block (grep { $_->[0] ne 'sql' && $_->[0] !~ /^\w+ \S+$/ } @blocks)
	{
		push @unknown, "$name:$block->[2]" if !grep { $block->[1] =~ /^$_/ } @{ $does_not_run{$name} };
	}
}
is(join("\n", @unknown), '', 'every block runs, or is of a kind that does not');
cmp_ok(scalar @run, '>=', 9, 'there are pages to run');

# Among what runs here is C41: the view for each role of projections.md, "A gateway that authorizes".
foreach my $name (@run)
{
	my @blocks = blocks($name);
	my $build = PostgreSQL::Test::Utils::tempdir();
	my @files;
	my $script = '';
	my @statements;

	foreach my $block (@blocks)
	{
		my ($info, $text, $number) = @$block;

		if ($info =~ /^(\w+) (\S+)$/)
		{
			append_to_file("$build/$2", $text);
			push @files, $2;
		}
		push @statements, statements($text, $number) if $info eq 'sql';
	}
	cmp_ok(scalar @statements, '>', 5, "$name has statements to run");

	if (@files)
	{
		ok(system_log('make', '-s', '-C', $build, 'all', 'install') == 0, "$name: @files build and install");
		ok(system_log('make', '-s', '-C', $build, 'unit') == 0, "$name: unit test") if grep { /_test\.c$/ } @files;
	}

	foreach my $i (0 .. $#statements)
	{
		$script .= "\\echo mark $i\n\\warn mark $i\n" . $statements[$i][0];
	}
	$script .= "\\echo mark @{[scalar @statements]}\n\\warn mark @{[scalar @statements]}\n";

	my $database = $name =~ /([\w-]+)\.md$/ ? lc $1 : die;
	my ($stdout, $stderr);

	$node->safe_psql('postgres', qq{CREATE DATABASE "$database"});
	IPC::Run::run(
		[ 'psql', '-X', '-q', '-A', '-t', '-F', ' | ', '-d', $node->connstr($database) ],
		'<', \$script, '>', \$stdout, '2>', \$stderr);

	foreach my $i (0 .. $#statements)
	{
		my ($statement, $expected, $number) = @{ $statements[$i] };
		my $output = between($stdout, $i);
		my $error = between($stderr, $i);
		my $title = "$name:$number " . (split /\n/, $statement)[0];

		s/ +$//mg foreach grep { defined } $output, $error, $expected;

		if (!defined $output || !defined $error)
		{
			fail("$title: the session ended before it");
		}
		elsif ($expected =~ /^ERROR:/)
		{
			$error =~ s/^psql:.*?: (?=ERROR:)//;
			$error =~ s/^CONTEXT:.*//ms;
			is($error, $expected, $title);
		}
		else
		{
			$error =~ s/^(?:psql:.*?: )?NOTICE:  .*?(?=^(?:psql:.*?: )?(?:NOTICE|WARNING|ERROR):  |\z)//msg;
			is($error, '', "$title does not fail");
			is($output, $expected, $title) if $expected ne '';
		}
	}
}

# ------------------------------------------------------------------ names

my @sources = glob("$top/src/* $top/src/*/*");
my @missing;
my %anchors;

# The anchors of a page, as GitHub makes them of its headings.
sub anchors
{
	my ($path) = @_;

	return $anchors{$path} //=
	  { map { (lc =~ s/[^\w -]//gr =~ s/ /-/gr, 1) } slurp_file($path) =~ /^#+ (.*)$/mg };
}

foreach my $name (@documents)
{
	my $text = slurp_file("$top/$name");

	$text =~ s/^```.*?^```$//msg;
	while ($text =~ /\]\(([^)#:]*)(?:#([^)]*))?\)/g)
	{
		my ($link, $anchor) = ($1, $2);
		my $path = $link eq '' ? "$top/$name" : dirname("$top/$name") . "/$link";

		push @missing, "$name links to $link" if !-e $path;
		push @missing, "$name links to $link#$anchor"
		  if defined $anchor && $path =~ /\.md$/ && -e $path && !anchors($path)->{$anchor};
	}
	while ($text =~ /\b((?:test|examples)\/[\w\/-]+\.(?:sql|spec|pl|c))\b/g)
	{
		push @missing, "$name names $1" if !-e "$top/$1";
	}
	while ($name =~ /^src|architecture/ && $text =~ /(?<![\w.\/])(\w+\.[ch])\b/g)
	{
		push @missing, "$name names $1" if !grep { /\/\Q$1\E$/ } @sources;
	}
}
is(join("\n", @missing), '', 'what the documentation links to and names is there');

# ------------------------------------------------------------------ the tests of each rule

# A test, with the files that it includes.
sub test_text
{
	my ($name) = @_;

	return slurp_file($name) =~ s/^\\ir (\S+)$/test_text(dirname($name) . "\/$1")/mger;
}

my $rules = qx{"$top/scripts/rules"};

is($rules, slurp_file("$top/docs/rules.md"), 'docs/rules.md lists the tests that name each rule (else run make rules)');
cmp_ok(scalar(() = $rules =~ /^## \d+\. .+\n\n- /mg), '>=', 19, 'and each rule has one');
unlike($rules, qr/^## .*\n\n(?!- )/m, 'none has not');

# ------------------------------------------------------------------ reference.md names everything that there is

my $reference = slurp_file("$top/docs/reference.md");
my @objects = split /\n/, $node->safe_psql('readme', <<'SQL');
LOAD 'evpg';
SELECT p.proname FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'evpg'
 WHERE p.proname LIKE 'evpg\_%'
UNION ALL SELECT 'evpg.' || relname FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relkind IN ('r', 'v', 'c')
UNION ALL SELECT attname FROM pg_attribute
 WHERE attrelid IN ('evpg.event'::regclass, 'evpg.new_event'::regclass, 'evpg.command'::regclass, 'evpg.outcome'::regclass)
   AND attnum > 0
UNION ALL SELECT name FROM pg_settings WHERE name LIKE 'evpg.%'
SQL
my @states = slurp_file("$top/src/base/errors.h") =~ /MAKE_SQLSTATE\((.*?)\)/g;

s/[', ]//g foreach @states;
cmp_ok(scalar @objects, '>', 50, 'there is something to name');
cmp_ok(scalar @states, '>', 10, 'there are SQLSTATEs to name');
is(join("\n", grep { $reference !~ /(?<![\w.])\Q$_\E(?!\w)/ } @objects),
	'', 'reference.md names every function, relation, column and setting');

# Each function once, with its arguments and defaults, and what it returns.
sub plain_signature
{
	my ($text) = @_;

	return $text =~ s/\btimestamp with time zone\b/timestamptz/gr =~ s/\binteger\b/int/gr
	  =~ s/::(?:\w+\.)?[\w ]+(?:\[\])?//gr =~ s/ DEFAULT / = /gr =~ s/'@ /'/gr =~ s/\(IN /(/r
	  =~ s/ (min|sec)(?:ute|ond)?/ $1/gr =~ s/["\s]//gr;
}

my @signatures = split /\n/, $node->safe_psql('readme', <<'SQL');
SET intervalstyle = postgres_verbose;
SELECT format('%s(%s)%s', p.proname, pg_get_function_arguments(p.oid),
  CASE WHEN p.prokind = 'f' AND 'o' <> ALL (coalesce(p.proargmodes, '{i}'))
       THEN ' RETURNS ' || pg_get_function_result(p.oid) END)
  FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'evpg'
 WHERE p.proname LIKE 'evpg\_%' ORDER BY 1
SQL
# the table of constructors has no column for what they return
my $shown = plain_signature($reference =~ s/^\| `(.*?\))` \| .*$/"`$1`"/mgr);
my @constructors = $reference =~ /^\| `(evpg_\w+)\(/mg;
my @unlike;

foreach my $signature (@signatures)
{
	my ($name) = $signature =~ /^(\w+)/;
	my $one = plain_signature((grep { $_ eq $name } @constructors) ? $signature =~ s/ RETURNS .*?$//r : $signature);

	push @unlike, $signature if 1 != (() = $shown =~ /`(?:CALL)?\Q$one\E`/g);
}
cmp_ok(scalar @signatures, '>', 70, 'there are signatures to show');
is(join("\n", @unlike), '', 'reference.md has the signature of each function, once');
is(join("\n", grep { $reference !~ /^\| $_ \|/m } @states), '', 'reference.md has every SQLSTATE of its own');
is(join("\n", grep { my $state = $_; !grep { $_ eq $state } @states } $reference =~ /^\| (VE\d+) \|/mg), '',
	'reference.md has no SQLSTATE that does not exist');

# Of views that show how things are, all columns with their types, in order.
my %short = ('double precision' => 'float8', 'timestamp with time zone' => 'timestamptz', integer => 'int');
my @views = split /\n/, $node->safe_psql('readme', <<'SQL');
SELECT c.relname, string_agg(a.attname || ':' || format_type(a.atttypid, NULL), ',' ORDER BY a.attnum)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE c.relnamespace = 'evpg'::regnamespace AND c.relkind = 'v' AND c.relname ~ '^(stat|progress)_' GROUP BY 1 ORDER BY 1
SQL

cmp_ok(scalar @views, '>=', 4, 'there are views to describe');
foreach my $view (@views)
{
	my ($name, $columns) = split /\|/, $view;
	my ($section) = $reference =~ /^`evpg\.$name` (?:has|shows how)(.*?)^(?:`evpg\.|#)/ms;
	my @described;

	$section //= '';
	while ($section =~ /^\| ([\w, ]+) \| ([\w, ]+) \|/mg)
	{
		my ($names, $types) = map { [ split /, / ] } $1, $2;

		push @described, map { "$names->[$_]:" . ($types->[$_] // $types->[0]) } 0 .. $#$names if $names->[0] ne 'column';
	}
	is(join("\n", @described),
		join("\n", map { s/:(.*)/':' . ($short{$1} \/\/ $1)/er } split /,/, $columns),
		"reference.md describes the columns of evpg.$name");
}

# ------------------------------------------------------------------ coverage.md has every feature

my %rows;
my %count;
my @wrong;
my $coverage = slurp_file("$top/docs/coverage.md");

foreach my $line (split /\n/, $coverage)
{
	my ($id, $feature, $status, $where, $why) = $line =~ /^\| ([A-D]\d\d) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$/ or next;

	$rows{$id}++;
	$count{$status}++;
	push @wrong, "$id has no status" if $status !~ /^(?:done|open|declined)$/;
	push @wrong, "$id is done, but names no test" if $status eq 'done' && $why !~ /\btest\/\S|examples\/\S/;
	push @wrong, "$id is done, but none of its tests names it"
	  if $status eq 'done' && !grep { test_text("$top/$_") =~ /\b$id\b/ } $why =~ m{\b((?:test|examples)/[\w/.-]*\w)}g;
	push @wrong, "$id has an empty cell" if $feature eq '' || $where eq '' || $why eq '';
}

my %last = (A => 52, B => 69, C => 48, D => 99);
my %gaps = map { $_ => 1 } 'B29', (map { "B$_" } 42 .. 49), (map { "C$_" } 24 .. 29, 33 .. 39),
  (map { "D$_" } 12 .. 19, 33 .. 39, 71 .. 79);

foreach my $letter (sort keys %last)
{
	foreach my $number (1 .. $last{$letter})
	{
		my $id = sprintf('%s%02d', $letter, $number);
		my $wanted = $gaps{$id} ? 0 : 1;

		push @wrong, "$id has " . ($rows{$id} || 0) . ' rows' if ($rows{$id} || 0) != $wanted;
	}
}
is(join("\n", @wrong), '', 'coverage.md has every feature once, with a status and a reason');
like($coverage =~ s/\s+/ /gr, qr/: $count{done} are done, $count{open} open, $count{declined} declined\./,
	'coverage.md counts them');

done_testing();
