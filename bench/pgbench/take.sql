-- Decides on the last event with one of ten tags, and appends another one.
\set n random(1, 10)
SELECT bench.take('hot:' || :n::bigint);
