# bench/measure.sh: the functions of bench/run that measure; sourced by it.
#
# What they measure goes to files of $work, a line for each turn of a contender:
#   rates       contender clients commit round rate
#   times       contender clients commit round median p99 p99.9 lost: times of its commands in microseconds; attempts that
#               have lost a race, of 1,000 commands
#   latencies   contender median p99 median p99: of frames, see bench/latency
#   failures    contender clients commit: what has not been measured

# ------------------------------------------------------------------ one turn

# cpu: processor time that was spent since the start of the machine, by all and by the server, in ticks
cpu()
{
	cat /proc/stat /proc/[0-9]*/stat 2>/dev/null | awk -v server="$server" '
		$1 == "cpu" { all = $2 + $3 + $4 + $7 + $8 }
		$1 == server { own += $14 + $15 + $16 + $17 }		# with the children that ended
		$1 ~ /^[0-9]+$/ && $4 == server { own += $14 + $15 }
		END { print all, own }'
}

# others <cpu before> <cpu after> <its own seconds> <elapsed seconds>: whether others used more than a tenth of a processor
others()
{
	awk -v before="$1" -v after="$2" -v own="$3" -v elapsed="$4" -v ticks="$(getconf CLK_TCK)" 'BEGIN {
		split(before, b, " ")
		split(after, a, " ")
		exit !(((a[1] - b[1]) - (a[2] - b[2])) / ticks - own > elapsed / 10)
	}'
}

# turn: a rate; with --idle, of a turn in which no other process used the machine
turn()
{
	local before deadline=$((SECONDS + 900)) start elapsed measured

	if [ $idle = no ]; then
		measure
		return
	fi
	while [ $SECONDS -lt $deadline ]; do
		before=$(cpu)
		sleep 1
		if others "$before" "$(cpu)" 0 1; then
			continue
		fi
		before=$(cpu) start=$EPOCHREALTIME
		measured=$(measure) || return 1
		sleep 0.2				# until the server has noticed that its processes have ended
		elapsed=$(awk "BEGIN { print $EPOCHREALTIME - $start }")
		if ! others "$before" "$(cpu)" "$(awk '{ print $1 + $2 }' "$work/time")" "$elapsed"; then
			echo "$measured"
			return
		fi
	done
	die "the machine was not idle for a quarter of an hour"
}

measure()
{
	rm -f "$work/out" "$work/err" "$work/turn"
	case $program in
		statement) rate_of_statement ;;
		pgbench) rate_of_pgbench ;;
		consumer) rate_of_consumers ;;
		client) rate_of_client "$work/client" "$kind" "$clients" "$streams" "$whose" ;;
		emmett) rate_of_client node "$here/emmett.mjs" append "$clients" "$streams" ;;
		*) die "no program $program" ;;
	esac
}

# timed <command>...: its output goes to $work/out and $work/err, the processor time of it to $work/time
timed()
{
	local TIMEFORMAT='%U %S'

	{
		time PGHOST=$host PGDATABASE=$database PGOPTIONS="-c synchronous_commit=$(commit_setting) $session" \
			"$@" >"$work/out" 2>"$work/err"
	} 2>"$work/time"
}

# commit_setting: of synchronous_commit
commit_setting()
{
	echo "${commit/early/on} $([ "$commit" != early ] || echo '-c evpg.early_release=on')"
}

# rate_of_statement: runs the contender once; its statement tells its rate
rate_of_statement()
{
	session="-c max_parallel_workers_per_gather=0 -c evpg.state_cache_size=0 $session"
	timed psql -X -q -v ON_ERROR_STOP=1 -c "$statement" || die "$statement failed: $(cat "$work/err")"
	sed -n 's/^INFO:  rate //p' "$work/err" | grep . || die "cannot read the report of $statement: $(cat "$work/err")"
}

# rate_of_client <command>...: of bench/client.c, or another program with its arguments and its report
rate_of_client()
{
	# it has visited its streams before it begins
	timed "$@" "$(awk "BEGIN { print $warm / 2 }")" "$seconds" "$DATA" || die "$1 failed: $(cat "$work/err")"
	awk -v turn="$work/turn" '
		NF == 5 && $1 > 0 { print $1; print $2, $3, $4, $5 >turn; found = 1 }
		END { exit !found }' "$work/out" ||
		die "cannot read the report of $1: $(cat "$work/out" "$work/err")"
}

# rate_of_consumers: of bench/consumer.c, on a subscription and a queue of which nothing is read
rate_of_consumers()
{
	local count=$((batch * 2000 < events ? batch * 2000 : events)) limit=60

	[ "$kind" != cycle ] || count=1000000000 limit=$seconds
	sql "$database" -o /dev/null -c "CALL bench.begin_consumers('$kind', $count, $((2 * clients)))"
	timed "$work/consumer" "$kind" "$clients" "$batch" "$count" "$limit" || die "consumer failed: $(cat "$work/err")"
	grep -Ex '[0-9.]+' "$work/out" || die "cannot read the report of consumer: $(cat "$work/out" "$work/err")"
}

# rate_of_pgbench: transactions per second, without those of the warm-up
rate_of_pgbench()
{
	timed pgbench -n -M prepared -c "$clients" -j $((clients < cores ? clients : cores)) -T $((warm + seconds)) -P 1 \
		"${variables[@]}" -f "$scripts/$script.sql" ||
		die "pgbench failed with $script.sql: $(grep -v '^progress' "$work/err")"
	grep -q '^number of failed transactions: 0 ' "$work/out" || die "transactions of $script.sql failed: $(cat "$work/out")"
	# the warm-up is in the progress reports, the whole in the summary
	awk -v warm="$warm" '
		$1 == "progress:" && $2 < warm + 0.5 { early += $4 * ($2 - time); time = $2 }
		/^initial connection time/ { connect = $5 / 1000 }
		/^number of transactions actually processed/ { all = $NF }
		/^tps/ { whole = all / $3 + connect }
		END {
			if (time < warm - 0.5 || all <= early || whole <= time)
				exit 1
			printf "%.2f\n", (all - early) / (whole - time)
		}' "$work/err" "$work/out" || die "cannot read the report of pgbench on $script.sql: $(cat "$work/err" "$work/out")"
}

# ------------------------------------------------------------------ rounds

# in_turns <what> <function> <contender>...: calls the function with each contender, once in each round, in alternating order
in_turns()
{
	local what=$1 function=$2 round name
	local -a order=("${@:3}")

	for ((round = 1; round <= rounds; round++)); do
		say "$what, round $round of $rounds: ${order[*]}"
		for name in "${order[@]}"; do
			"$function" "$name" "$round"
		done
		mapfile -t order < <(printf '%s\n' "${order[@]}" | tac)
	done
}

# compare <clients> <commit> <contender>...: all rounds of contenders that know no better
compare()
{
	local given_clients=$1 given_commit=$2

	in_turns "${1:-many} client(s), commit ${2:-off, on}" take_turn "${@:3}"
}

# take_turn <contender> <round>
take_turn()
{
	local clients=$given_clients commit=$given_commit before= measured
	local host scripts database program script session streams statement kind whose wanted counts_flushes units variables
	local batch

	contender "$1"
	set_workers "$wanted"
	[ $counts_flushes = no ] || before=$(count_flushes)
	if ! measured=$(turn); then
		echo "$1 $clients $commit" >>"$work/failures"
		return
	fi
	echo "$1 $clients $commit $2 $(awk "BEGIN { print $measured * $units }")" >>"$work/rates"
	[ ! -s "$work/turn" ] || echo "$1 $clients $commit $2 $(cat "$work/turn")" >>"$work/times"
	[ -z "$before" ] ||
		echo "$1-flushes $clients $commit $2 $(flushes_of_commits "$before" "$(count_flushes)")" >>"$work/rates"
}

# count_flushes: of the server, and commits of the database; what a session has done counts when it has ended
count_flushes()
{
	sleep 0.5
	local flushes='SELECT wal_sync FROM pg_stat_wal'

	[ "$(sql "$database" -c 'SHOW server_version_num')" -lt 180000 ] ||
		flushes="SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'"
	sql "$database" -c "SELECT ($flushes), xact_commit FROM pg_stat_database WHERE datname = current_database()"
}

# flushes_of_commits <counts before> <counts after>: flushes of 1,000 commits
flushes_of_commits()
{
	awk -F'|' -v before="$1" -v after="$2" 'BEGIN {
		split(before, b)
		split(after, a)
		printf "%.1f\n", 1000 * (a[1] - b[1]) / (a[2] - b[2])
	}'
}

# hot: commands by many clients on few streams, without flushes, durable, and with evpg.early_release; and by hand.  They are
# compared to one client alone, and to clients with streams of their own.
hot()
{
	local n
	local -a off=(hot-1-1-off) durable=()

	for n in $hot_clients; do
		off+=("hot-$n-own-off" "hot-$n-1-off" "hot-$n-10-off" "hot-$n-1000-off")
		durable+=("hot-$n-1-on" "hot-$n-1-early" "hot-$n-10-on" "hot-$n-10-early" "hot-$n-1000-on" "hot-$n-1000-early")
	done
	off+=(hand-32-1-off hand-32-10-off hand-32-1000-off)
	durable+=(hand-32-1-on hand-32-1000-on)
	compare '' '' "${off[@]}"
	compare '' '' "${durable[@]}"
}

# ------------------------------------------------------------------ latencies

# latencies: the broadcaster and NOTIFY in turns
latencies()
{
	in_turns 'latency of frames' take_latency latency-worker latency-commit
}

take_latency()
{
	local clients=1 commit=on measured
	local host scripts database program script session streams statement kind whose wanted counts_flushes units variables

	contender "$1"
	set_workers "$wanted"
	if measured=$(PGDATABASE=$database PGOPTIONS=$session "$here/latency" $((seconds * 250))); then
		echo "$1 $measured" >>"$work/latencies"
	else
		echo "$1 1 on" >>"$work/failures"
	fi
}

# answers: how long a saga takes to react, on a server that is idle or busy with appends or with transfers of another saga
answers()
{
	sql evpg_bench_saga -o /dev/null -c "SELECT bench.register('c', 'async'), bench.register_answer()"
	in_turns reactions take_answer answer-idle answer-appends answer-transfers
	sql evpg_bench_saga -o /dev/null -c "SELECT evpg_drop_saga(name) FROM evpg.saga"
}

take_answer()
{
	local clients=1 commit=off load= measured
	local options
	local host scripts database program script session streams statement kind whose wanted counts_flushes units variables

	contender "$1"
	set_workers "$wanted"
	if [ "$1" != answer-idle ]; then
		options=(-c 8 -j 1)
		[ "$1" = answer-appends ] || options=(-c 1 -R "$TRANSFER_RATE")
		PGOPTIONS='-c synchronous_commit=off' pgbench -n -M prepared "${options[@]}" -T 600 "${variables[@]}" \
			-f "$scripts/$script.sql" "$database" >"$work/out" 2>"$work/err" &
		load=$!
		sleep "$warm"
	fi
	if measured=$(PGDATABASE=$database PGOPTIONS='-c synchronous_commit=off' \
		"$here/latency" $((seconds * 100)) bench_asking bench_answering); then
		echo "$1 $measured" >>"$work/latencies"
	else
		echo "$1 1 off" >>"$work/failures"
	fi
	[ -z "$load" ] || kill "$load" || die "pgbench failed with $script.sql: $(cat "$work/err")"
	wait "$load" 2>/dev/null || true
	sleep 1						# for requests that were not seen yet
	until_true "the saga of $database comes to an end" "$database" \
		"SELECT NOT EXISTS (SELECT FROM evpg.saga_instance WHERE status = 'running' AND saga = 'transfer_c')"
}

# deliveries: how long an event takes to a consumer of a subscription, on an idle server and beside clients that execute
# commands, which the subscription leaves out
deliveries()
{
	sql evpg_bench -o /dev/null -c "SELECT evpg_create_subscription('bench_delivery',
		aggregate_types => '{bench_events}', start_at => 'now')"
	in_turns 'latency of deliveries' take_delivery delivery-wait-off-idle delivery-wait-on-idle delivery-listen-off-idle \
		delivery-wait-off-writers delivery-listen-off-writers
	sql evpg_bench -o /dev/null -c "SELECT evpg_drop_subscription('bench_delivery')"
}

take_delivery()
{
	local clients=1 commit=on load= measured
	local host scripts database program script session streams statement kind whose wanted counts_flushes units variables

	contender "$1"
	set_workers "$wanted"
	if [[ $1 = *-writers ]]; then
		pgbench -n -M prepared -c 8 -j 1 -T 600 "${variables[@]}" -f "$scripts/$script.sql" "$database" \
			>"$work/out" 2>"$work/err" &
		load=$!
		sleep "$warm"
	fi
	if measured=$(PGDATABASE=$database "$here/latency" $((seconds * 100)) bench_events bench_delivery \
		$(cut -d- -f2,3 --output-delimiter=' ' <<<"$1")); then
		echo "$1 $measured" >>"$work/latencies"
	else
		echo "$1 1 on" >>"$work/failures"
	fi
	[ -z "$load" ] || kill "$load" || die "pgbench failed with $script.sql: $(cat "$work/err")"
	wait "$load" 2>/dev/null || true
}

# until_true <what> <database> <query>
until_true()
{
	local deadline=$((SECONDS + 300))

	until [ "$(sql "$2" -c "$3")" = t ]; do
		[ $SECONDS -lt $deadline ] || die "waited five minutes in vain: $1"
		sleep 0.2
	done
}

# ------------------------------------------------------------------ a session that is idle in a transaction

# held: evpg_append, with a worker that follows, in two databases; in one of them another session is idle in a transaction
# all the time, so that nothing there is cleaned up.  At the end, bytes that were written there for each event.
held()
{
	local given_clients=8 given_commit=off seconds=$(((held_seconds + 2 * rounds - 1) / (2 * rounds))) database holder_pid
	local -A before

	for database in evpg_bench_free evpg_bench_held; do
		make_evpg_database $database setup
		sql $database -o /dev/null -c "SELECT evpg_register_projection('bench_follower', library => 'evpg_bank',
			symbol => 'bank_balances', mode => 'async', aggregate_types => '{bench_append}', broadcast => 'none')"
		set_workers 1
		until_followed $database
		before[$database]=$(count_bytes $database)
	done
	coproc holder { exec psql -X -q -d evpg_bench_held >/dev/null; }
	holder_pid=$!
	echo 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM evpg.stream LIMIT 1;' >&"${holder[1]}"
	in_turns "a session idle in a transaction for $((seconds * rounds * 2)) s" take_held held-no held-yes
	for database in evpg_bench_free evpg_bench_held; do
		until_followed $database
		bytes_of_events $database "${before[$database]}" "$(count_bytes $database)" >>"$work/rates"
	done
	echo '\q' >&"${holder[1]}"
	wait $holder_pid
	for database in evpg_bench_free evpg_bench_held; do
		sql $database -o /dev/null -c "SELECT evpg_drop_projection('bench_follower')"
	done
}

# take_held <contender> <round>: its rate, and how many events the worker had before it, looked at five times a second
take_held()
{
	local watcher database lag

	case $1 in
		held-no) database=evpg_bench_free ;;
		held-yes) database=evpg_bench_held ;;
	esac
	until_followed $database
	while sleep 0.2; do
		sql $database -c "SELECT lag_events FROM evpg.stat_consumer WHERE name = 'bench_follower'"
	done >"$work/lags" 2>/dev/null &
	watcher=$!
	take_turn "$1" "$2"
	kill $watcher
	wait $watcher 2>/dev/null || true
	lag=$(sort -n "$work/lags" | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] + 0 }')
	echo "$1-lag 8 off $2 $lag" >>"$work/rates"
}

# not evpg_wait_for, which would hold a snapshot itself
until_followed()
{
	until_true "the projection of $1 follows" "$1" \
		"SELECT lag_events = 0 FROM evpg.stat_consumer WHERE name = 'bench_follower'"
}

# count_bytes <database>: events, bytes of the log, of the rows of projections, of the other tables of evpg; with indexes
count_bytes()
{
	sql "$1" -F ' ' -c "
		SELECT (SELECT count(*) FROM evpg.event_log), sum(size) FILTER (WHERE name = 'event_log'),
		       sum(size) FILTER (WHERE name = 'projection_state'),
		       sum(size) FILTER (WHERE name NOT IN ('event_log', 'projection_state'))
		  FROM (SELECT relname AS name, pg_total_relation_size(oid) AS size FROM pg_class
		         WHERE relnamespace = 'evpg'::regnamespace AND relkind = 'r') AS t"
}

# bytes_of_events <database> <before> <after>: lines for $work/rates
bytes_of_events()
{
	awk -v database="$1" -v before="$2" -v after="$3" 'BEGIN {
		split(before, b, " ")
		split(after, a, " ")
		split("log rows others", names, " ")
		for (i = 1; i <= 3; i++)
			printf "%s-%s 8 off 1 %.2f\n", database, names[i], (a[i + 1] - b[i + 1]) / (a[1] - b[1])
	}'
}

# consumers: outside of the database, of a log of $events events
consumers()
{
	local n name batch
	local -a names durable

	for n in 1 4; do
		names=()
		for batch in $batches; do
			for name in select read fetch next queue; do
				names+=("consume-$name-$batch")
			done
		done
		compare $n off "${names[@]}"
		compare $n on consume-fetch-100 consume-next-100 consume-queue-100
	done
	sql evpg_bench_log -o /dev/null -c "SELECT evpg_drop_subscription('bench', missing_ok => true)"
}

# held_subscription: a consumer in two databases; in one of them another session is idle in a transaction all the time
held_subscription()
{
	local given_clients=1 given_commit=off seconds=$(((held_seconds + 2 * rounds - 1) / (2 * rounds))) database holder_pid

	for database in evpg_bench_free evpg_bench_held; do
		make_evpg_database $database follow -v events=20000
		sql $database -o /dev/null -c 'CALL bench.begin_consumers(NULL, 0, 2)'
	done
	coproc holder { exec psql -X -q -d evpg_bench_held >/dev/null; }
	holder_pid=$!
	echo 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM evpg.stream LIMIT 1;' >&"${holder[1]}"
	in_turns "a session idle in a transaction for $((seconds * rounds * 2)) s" take_held_subscription \
		held-subscription-free held-subscription-held
	echo '\q' >&"${holder[1]}"
	wait $holder_pid
	awk '$1 == "held-subscription-held" { rate[++n] = $5 }
		END { print "held-first 1 off 1", rate[1]; print "held-last 1 off 1", rate[n] }' "$work/rates" >>"$work/rates.held"
	cat "$work/rates.held" >>"$work/rates"
}

# take_held_subscription <contender> <round>: its rate, and what 1,000 batches of it have left
take_held_subscription()
{
	local name=${1##*-} before

	before=$(look_at_subscriptions "evpg_bench_$name")
	take_turn "$1" "$2"
	awk -v name="$name" -v round="$2" -v seconds="$seconds" -v before="$before" \
		-v after="$(look_at_subscriptions "evpg_bench_$name")" -v contender="$1" '
		$1 == contender && $4 == round {
			split(before, b, " ")
			split(after, a, " ")
			batches = $5 * seconds / 10 / 1000
			printf "dead-%s 1 off %d %.1f\ngrown-%s 1 off %d %.1f\n", name, round, (a[1] - b[1]) / batches, name, round,
				(a[2] - b[2]) / batches
		}' "$work/rates" >"$work/left"
	cat "$work/left" >>"$work/rates"
}

# look_at_subscriptions <database>: dead rows, as the last VACUUM and what came since have left them, and bytes
look_at_subscriptions()
{
	sleep 0.5					# until the sessions have reported
	sql "$1" -F ' ' -c "
		SELECT sum(pg_stat_get_dead_tuples(oid)), sum(pg_total_relation_size(oid))
		  FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relname LIKE 'subscription%' AND relkind = 'r'"
}

# ------------------------------------------------------------------ a standby

# standby: commands, while a session reads on a standby what they append, or on the primary, or none does
standby()
{
	local given_clients=8 given_commit=off

	say "makes a standby"
	mkdir "$work/socket"
	sql evpg_bench -o /dev/null -f "$here/read.sql"
	pg_basebackup -D "$work/standby" -R -c fast >"$work/log" 2>&1 || die "cannot copy the server: $(cat "$work/log")"
	pg_ctl -D "$work/standby" -w -l "$work/standby.log" -o "-k $work/socket -c listen_addresses=''" start \
		>"$work/log" 2>&1 ||
		die "the standby does not start: $(cat "$work/log" "$work/standby.log")"
	in_turns 'a reader of the log' take_read read-nowhere read-standby read-primary
	stop_standby
}

stop_standby()
{
	[ ! -s "$work/standby/postmaster.pid" ] || pg_ctl -D "$work/standby" -m immediate stop >"$work/log" || true
	rm -rf "$work/standby"
}

# take_read <contender> <round>: its rate; the reader begins at the end of the log, and must have read all when it is over
take_read()
{
	local reader= from=${PGHOST:-} end

	[ "$1" != read-standby ] || from=$work/socket
	end=$(sql evpg_bench -c 'SELECT max(position) FROM evpg.event_log')
	if [ "$1" != read-nowhere ]; then
		PGHOST=$from sql evpg_bench -c "CALL bench.read_on($end)" >"$work/reader" 2>&1 &
		reader=$!
	fi
	take_turn "$1" "$2"
	[ -n "$reader" ] || return 0
	end=$(sql evpg_bench -c 'SELECT max(position) FROM evpg.event_log')
	PGHOST=$from until_true "the reader of $1 is at $end: $(cat "$work/reader")" evpg_bench \
		"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'reader at $end')"
	PGHOST=$from sql evpg_bench -o /dev/null \
		-c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reader at %'"
	wait $reader || true
}

# ------------------------------------------------------------------ bytes

# sizes: WAL, and bytes of tables with their indexes, for each of $SIZE_EVENTS events that one client appends, one in each
# transaction
sizes()
{
	local name

	for name in insert append emmett message-db; do
		if [ $name = insert ] || [ $name = append ] || wants $name; then
			say "bytes of an event: $name"
			take_size $name
		fi
	done
}

# take_size <contender>
take_size()
{
	local clients=1 commit=off tables before after
	local host scripts database program script session streams statement kind whose wanted counts_flushes units variables

	contender "$1"
	case $1 in
		insert) tables="relnamespace = 'bench'::regnamespace AND relname = 'twin'" ;;
		append) tables="relnamespace = 'evpg'::regnamespace" ;;
		message-db) tables="relnamespace = 'message_store'::regnamespace" ;;
		emmett) script=emmett tables="relname LIKE 'emt%'" ;;
	esac
	# first one after the other, so that pages are not written for the first time after a checkpoint when it counts
	append_many $((SIZE_EVENTS / 2)) || return 0
	before=$(look_at_size "$tables")
	append_many "$SIZE_EVENTS" || return 0
	after=$(look_at_size "$tables")
	awk -v name="$1" -v events="$SIZE_EVENTS" -v before="$before" -v after="$after" 'BEGIN {
		split(before, b, " ")
		split(after, a, " ")
		printf "%s-wal 1 off 1 %.1f\n%s-bytes 1 off 1 %.1f\n", name, (a[1] - b[1]) / events, name, (a[2] - b[2]) / events
	}' >>"$work/rates"
}

append_many()
{
	timed pgbench -n -M prepared -c 1 -t "$1" "${variables[@]}" -f "$scripts/$script.sql" || {
		say "pgbench failed with $script.sql: $(cat "$work/err")"
		echo "$script-bytes 1 off" >>"$work/failures"
		return 1
	}
}

look_at_size()
{
	sql "$database" -F ' ' -c "
		SELECT pg_current_wal_insert_lsn() - '0/0', sum(pg_total_relation_size(oid))
		  FROM pg_class WHERE relkind = 'r' AND $1"
}
