-- Emmett's append as its client calls it, for the bytes that it writes.  (A colon would begin a variable.)
\set id random(1, :streams)
BEGIN;
SELECT success FROM emt_append_to_stream(ARRAY[gen_random_uuid()::text], ARRAY[:data::jsonb], '{"{}"}', '{1}',
  '{MoneyDeposited}', '{E}', 'bench-' || :id, 'bench', NULL, 'emt' || chr(58) || 'default');
COMMIT;
