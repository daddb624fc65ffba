-- expected_version.sql: what a caller may expect of a stream (rule 2).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(52);

SET test.kind = counter;
\ir include/expected_version.sql
SET test.kind = counter_c;
\ir include/expected_version.sql

SELECT * FROM finish();
