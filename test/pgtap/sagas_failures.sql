-- sagas_failures.sql: reactions that fail: nothing of them is kept, they are tried again, and end as dead letters (rules 16,
-- 17).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(56);
SET test.kind = counter;
SET test.kind_of_saga = functions;
SELECT register_script('script') \g /dev/null
\ir include/saga_failure.sql
SELECT * FROM finish();
