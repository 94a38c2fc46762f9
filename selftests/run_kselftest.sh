#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Runs the programs that kselftest-list.txt names, each in the directory of its collection and for no longer
# than its `settings` say, and reports in TAP, version 13. Options and output are those of the script
# of this name that the kernel's selftests are installed with, but for namespaces: each program makes
# its own.
#
# The exit status is 1 if a program failed. A program tells by its own how it ended: 0 is passed, 2 failed
# as expected, 4 skipped.

here=$(cd "$(dirname "$0")" && pwd -P)
cd "$here" || exit 1

usage()
{
	cat <<END
Usage: $0 [OPTIONS]
  -t, --test COLLECTION:TEST      run this one (and others so named)
  -c, --collection COLLECTION     run all of a collection
  -S, --skip COLLECTION:TEST      leave this one out
  -l, --list                      print what there is
  -d, --dry-run                   print what would be run
  -s, --summary                   keep what programs print in output.log
  -p, --per-test-log [DIR]        keep it in a file each, in DIR or /tmp
  -o, --override-timeout SECONDS  for each program, instead of what settings say (0: no limit)
  -f, --no-error-on-fail          exit with 0 although programs failed
  -h, --help                      print this
KSELFTEST_<PROGRAM>_ARGS has arguments for a program: names of its tests.
END
	exit "$1"
}

die()
{
	echo "$0: $*" >&2
	exit 1
}

# wanted VALUE...: does an option that takes a value have one?
wanted()
{
	[ $# -gt 1 ] || usage 1
}

chosen="" left_out="" dry="" log="" logs="" limit="" fails=1
while [ $# -gt 0 ]; do
	case $1 in
	-t | --test)
		wanted "$@"
		grep -qxF -- "$2" kselftest-list.txt || die "no such test: $2"
		chosen="$chosen $2"
		shift
		;;
	-c | --collection)
		wanted "$@"
		grep -q -- "^$2:" kselftest-list.txt || die "no such collection: $2"
		chosen="$chosen $(grep -- "^$2:" kselftest-list.txt)"
		shift
		;;
	-S | --skip)
		wanted "$@"
		left_out="$left_out $2"
		shift
		;;
	-l | --list)
		cat kselftest-list.txt
		exit
		;;
	-d | --dry-run) dry=1 ;;
	-s | --summary) log=$here/output.log ;;
	-p | --per-test-log)
		logs=/tmp
		case ${2:-} in
		"" | -*) ;;
		*)
			mkdir -p "$2" || exit 1
			logs=$(cd "$2" && pwd -P)
			shift
			;;
		esac
		;;
	-o | --override-timeout)
		wanted "$@"
		limit=$2
		shift
		;;
	-f | --no-error-on-fail) fails=0 ;;
	-h | --help) usage 0 ;;
	*) usage 1 ;;
	esac
	shift
done
[ -n "$chosen" ] || chosen=$(cat kselftest-list.txt)

tests=""
for test in $chosen; do
	case " $left_out " in
	*" $test "*) ;;
	*) tests="$tests $test" ;;
	esac
done

# Who has run nothing has not passed.
[ -n "$tests" ] || die "no tests to run"

# limit_of COLLECTION: seconds that its programs may take.
limit_of()
{
	if [ -n "$limit" ]; then
		echo "$limit"
	else
		sed -n 's/^timeout=//p' "$1/settings" 2>/dev/null | grep . || echo 45
	fi
}

# arguments PROGRAM: those that the environment has for it.
arguments()
{
	name=$(printf %s "$1" | tr -c '[:alnum:]_' _ | tr '[:lower:]' '[:upper:]')
	eval "printf %s \"\${KSELFTEST_${name}_ARGS:-}\""
}

# bounded COMMAND...: becomes that, within the limit, if there is a program to see to that.
bounded()
{
	if [ "$seconds" != 0 ] && command -v timeout >/dev/null; then
		exec timeout -k 10 "$seconds" "$@"
	fi
	exec "$@"
}

# watched COMMAND...: within the limit, and until somebody interrupts us. What timeout runs is a process group of
# its own, which no terminal tells that.
watched()
{
	# Who is interrupted before there is something to end ends it then.
	interrupted=
	trap 'interrupted=1' INT TERM HUP
	bounded "$@" &
	trap 'kill $!; exit 1' INT TERM HUP
	[ -z "$interrupted" ] || {
		kill $!
		exit 1
	}
	wait $!
	ended=$?
	# Children that go on would keep us from the end of the output.
	kill -9 "-$!" 2>/dev/null
	return $ended
}

# run PROGRAM: its output, each line behind a #, goes where 4 does; leaves its exit status in $status.
run()
{
	# shellcheck disable=SC2046 # one word for each argument
	status=$(
		{
			{
				watched "./$1" $(arguments "$1") </dev/null 2>&1 3>&- 4>&-
				echo $? >&3
			} | sed -u 's/^/# /' >&4
		} 3>&1
	)
}

number=0 passed=0 failed=0 expected=0 skipped=0

# verdict COUNT LINE [DIRECTIVE]
verdict()
{
	echo "$2${3:+ # $3}"
	case $1 in
	passed) passed=$((passed + 1)) ;;
	failed) failed=$((failed + 1)) ;;
	expected) expected=$((expected + 1)) ;;
	skipped) skipped=$((skipped + 1)) ;;
	esac
}

# shellcheck disable=SC2086 # a word for each test
set -- $tests
if [ -n "$dry" ]; then
	printf '%s\n' "$@"
	exit
fi
[ -z "$log" ] || : >"$log"
echo "TAP version 13"
echo "1..$#"
last=""
for test; do
	number=$((number + 1))
	collection=${test%%:*} program=${test#*:}
	if [ "$collection" != "$last" ] && [ -w /dev/kmsg ]; then
		echo "kselftest: Running tests in $collection" >/dev/kmsg
	fi
	last=$collection
	seconds=$(limit_of "$collection")
	name="selftests: $collection: $program"
	# Not by the name of /dev/stdout: a file that is opened once more is written to at another place, and
	# others cannot be.
	exec 4>&1
	[ -z "$log" ] || exec 4>>"$log"
	[ -z "$logs" ] || exec 4>"$logs/$program"
	{
		echo "# timeout set to $seconds"
		echo "# $name"
	} >&4
	if [ -x "$collection/$program" ]; then
		cd "$collection" || exit 1
		run "$program"
		cd "$here" || exit 1
	else
		status=missing
	fi
	case $status in
	0) verdict passed "ok $number $name" ;;
	2) verdict expected "ok $number $name" XFAIL ;;
	4) verdict skipped "ok $number $name" SKIP ;;
	124 | 137) verdict failed "not ok $number $name" "TIMEOUT $seconds seconds" ;;
	missing) verdict failed "not ok $number $name" "no program $collection/$program" ;;
	*) verdict failed "not ok $number $name" "exit=$status" ;;
	esac
done
echo "# Totals: pass:$passed fail:$failed xfail:$expected xpass:0 skip:$skipped error:0"
[ "$failed" = 0 ] || exit "$fails"
