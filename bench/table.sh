# bench/table.sh: the functions of bench/run that print what was measured; sourced by it.
#
# A target is a number that the ratio must reach, "N/M" if a rate of M will do as well, or "<N" for a ratio that must stay
# below; "-" is none.  A row whose contender was not measured reads NOT MEASURED, and counts as a failure.

# median of an awk array with elements 1 to n, which it sorts
MEDIAN='
	function median(a, n,    i, j, t) {
		for (i = 2; i <= n; i++)
			for (j = i; j > 1 && a[j - 1] > a[j]; j--) { t = a[j]; a[j] = a[j - 1]; a[j - 1] = t }
		return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
	}
	function shown(number) {
		return sprintf(number < 10 ? "%.1f" : "%.0f", number)
	}
	function verdict(ratio, middle, target,    goal, met, text) {
		if (target == "-") return ""
		if (target ~ /^</) {
			met = ratio < substr(target, 2)
			return sprintf("  %s %s", target, met ? "met" : "MISSED")
		}
		split(target, goal, "/")
		met = ratio >= goal[1] || (goal[2] != "" && middle >= goal[2])
		text = goal[2] == "" ? "" : sprintf(" or %.3gM/s", goal[2] / 1e6)
		return sprintf("  %4.2f%s %s", goal[1], text, met ? "met" : "MISSED")
	}'

heading()
{
	printf '\n%s\n' "$1"
	printf '%-51s %7s %6s %11s %11s %11s  %6s  %s\n' '' clients commit "${2:-median/s}" lowest highest ratio target
}

heading_times()
{
	printf '\n%s\n' "$1"
	printf '%-51s %7s %6s %9s %8s %8s %8s  %6s  %s\n' '' clients commit median/s p50 p99 p99.9 ratio target
}

heading_latency()
{
	printf '\n%s\n%-51s %11s %11s  %s\n' "$1" '' median p99 target
}

# not_measured <text> <contender>
not_measured()
{
	printf '%-51s NOT MEASURED\n' "$1"
	echo "$2: there is no figure for the row \"$1\"" >>"$work/missing"
}

# row <text> <contender> <baseline or -> <clients> <commit> <target or ->: one line of the table
row()
{
	awk -v text="$1" -v name="$2" -v base="$3" -v clients="$4" -v commit="$5" -v target="$6" "$MEDIAN"'
		$2 == clients && $3 == commit {
			# a baseline may take several turns in a round: their mean
			if ($1 == name) { rate[$4] += $5; turns[$4]++ }
			if ($1 == base) { other[$4] += $5; others[$4]++ }
		}
		END {
			for (i in rate) {
				all[++n] = rate[i] / turns[i]
				if (i in other && other[i] > 0) ratios[++m] = all[n] / (other[i] / others[i])
			}
			if (n == 0 || (base != "-" && m == 0)) exit 1
			middle = median(all, n)
			line = sprintf("%-51s %7d %6s %11s %11s %11s", text, clients, commit, shown(middle), shown(all[1]),
						   shown(all[n]))
			if (m > 0) {
				ratio = median(ratios, m)
				line = line sprintf("  %6.2f", ratio)
			}
			print line verdict(ratio, middle, target)
		}' "$work/rates" || not_measured "$1" "$2"
}

# row_times <text> <contender> <baseline or -> <target or ->: one line of a table with percentiles in milliseconds.  The
# contender's name tells its clients and commit; the baseline may be of other ones.
row_times()
{
	awk -v text="$1" -v name="$2" -v base="$3" -v target="$4" "$MEDIAN"'
		FILENAME ~ /rates$/ && $1 == name { rate[$4] = $5; clients = $2; commit = $3 }
		FILENAME ~ /rates$/ && $1 == base { other[$4] = $5 }
		FILENAME ~ /times$/ && $1 == name { middle[++k] = $5; high[k] = $6; highest[k] = $7 }
		END {
			for (i in rate) {
				all[++n] = rate[i]
				if (i in other && other[i] > 0) ratios[++m] = rate[i] / other[i]
			}
			if (n == 0 || k == 0 || (base != "-" && m == 0)) exit 1
			line = sprintf("%-51s %7d %6s %9.0f %8.2f %8.2f %8.2f", text, clients, commit, median(all, n),
						   median(middle, k) / 1000, median(high, k) / 1000, median(highest, k) / 1000)
			if (m > 0) {
				ratio = median(ratios, m)
				line = line sprintf("  %6.2f", ratio)
			}
			print line verdict(ratio, 0, target)
		}' "$work/rates" "$work/times" || not_measured "$1" "$2"
}

# latency_row <text> <contender> <column of the median> <targets of median and p99 in ms, each or ->
latency_row()
{
	awk -v text="$1" -v name="$2" -v column="$3" -v middle_target="$4" -v high_target="$5" "$MEDIAN"'
		$1 == name { middle[++n] = $column; high[n] = $(column + 1) }
		END {
			if (n == 0) exit 1
			p50 = median(middle, n) / 1000
			p99 = median(high, n) / 1000
			printf "%-51s %11.2f %11.2f", text, p50, p99
			if (middle_target != "-") printf "  median %.1f %s", middle_target, p50 < middle_target ? "met" : "MISSED"
			if (high_target != "-") printf "  p99 %.1f %s", high_target, p99 < high_target ? "met" : "MISSED"
			print ""
		}' "$work/latencies" || not_measured "$1" "$2"
}
