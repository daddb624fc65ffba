-- The same by hand under SERIALIZABLE; pgbench tries again what fails.
\set n random(1, 10)
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT max("position") FROM bench.by_hand WHERE tag = 'hot:' || :n::bigint;
INSERT INTO bench.by_hand (tag, type, data) VALUES ('hot:' || :n::bigint, 'Taken', :data);
COMMIT;
