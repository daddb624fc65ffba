-- invariants.sql: what must hold of every state that a command leaves.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(41);

SET test.kind = counter;
\ir include/invariants.sql
SET test.kind = counter_c;
\ir include/invariants.sql

SET test.kind = counter;
SELECT is(try('null', 'Add', '{"n": 777}'), 'ok 1', 'NULL of an invariant holds, as of a CHECK constraint [B13]');
SELECT * FROM finish();
