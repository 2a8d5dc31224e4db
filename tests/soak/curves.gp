# SPDX-License-Identifier: GPL-3.0-or-later
# Draws what tests/soak/run has sampled: SOAK_CSV=soak.csv SOAK_PNG=soak.png SOAK_CALM_FROM=MINUTES gnuplot curves.gp
# The dashed line is where the calm part begins, in which the database's backends are left alone.

csv = system("echo $SOAK_CSV")
calm_from = system("echo $SOAK_CALM_FROM") + 0
set terminal pngcairo size 1600,2000 font "sans,11" noenhanced
set output system("echo $SOAK_PNG")

set datafile separator comma
set datafile missing ""
set style data lines
set grid
set key outside right top
set lmargin 10
set rmargin 44
set xlabel "minutes"
set xrange [0:*]
set yrange [0:*]
set offsets 0, 0, graph 0.05, 0
set arrow 1 from calm_from, graph 0 to calm_from, graph 1 nohead dashtype 2 linecolor rgb "black"

minutes(seconds) = seconds / 60
# The growth of a counter since the row before, each second.
rate(value) = (time = column("seconds"), result = (value - last_value) / (time - last_time), \
    last_time = time, last_value = value, result)
last_value = NaN
last_time = NaN

set multiplot layout 6,1

set title "memory of a process that it shares with no other, KiB"
plot for [name in "steady_worker1 steady_worker2 steady_supervisor" \
    ." replaced_worker1 replaced_worker2 replaced_supervisor"] \
    csv using (minutes(column("seconds"))):(column(name."_own")) title name

set title "descriptors of no client (both workers of a pool), of a supervisor; connections to the database"
plot for [name in "steady_descriptors_of_no_client replaced_descriptors_of_no_client" \
    ." steady_supervisor_descriptors replaced_supervisor_descriptors database_connections"] \
    csv using (minutes(column("seconds"))):(column(name)) title name

set title "requests that wait, and connections of nginx and of peers"
plot for [name in "steady_waiting replaced_waiting steady_connections replaced_connections"] \
    csv using (minutes(column("seconds"))):(column(name)) title name

set title "the largest backend of the database, KiB (left); prepared statements of a backend (right)"
set ytics nomirror
set y2tics
set y2range [0:8]
plot csv using (minutes(column("seconds"))):(column("database_backend_own_max")) title "database_backend_own_max", \
    csv using (minutes(column("seconds"))):(column("database_prepared_max")) axes x1y2 with points \
        title "database_prepared_max"
unset y2tics
set ytics mirror

set title "a second: answers, sessions looked up at their arrival or end, sessions looked up while they wait"
plot for [name in "steady_answers replaced_answers steady_lookups replaced_lookups steady_polls replaced_polls"] \
    csv using (minutes(column("seconds"))):(rate(column(name))) title name

set title "ms: latency of requests that do not wait (quick), from COMMIT to the answer of one who waits (payment)"
set logscale y
set yrange [0.1:*]
plot for [name in "quick_p50 quick_p99 quick_max payment_p50 payment_p99 payment_max"] \
    csv using (minutes(column("seconds"))):(column(name)) title name
unset multiplot
