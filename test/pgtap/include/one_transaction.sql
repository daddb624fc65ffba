-- one_transaction.sql: for the aggregate type :kind.

SET test.kind = :kind;
-- what a session makes once is there
SELECT do_many(5) \g /dev/null
BEGIN;
SELECT blocks AS first_blocks, records AS first_records FROM do_many(995) \gset
SELECT locks() AS first_locks \gset
SELECT do_many(4000) \g /dev/null
SELECT blocks AS last_blocks, records AS last_records FROM do_many(1000) \gset
SELECT locks() AS last_locks \gset
SELECT pg_stat_get_xact_tuples_updated(oid) + pg_stat_get_xact_tuples_deleted(oid) AS changed
  FROM pg_class WHERE oid IN ('evpg.stream'::regclass, 'evpg.event_log'::regclass) ORDER BY 1 DESC LIMIT 1 \gset
COMMIT;
SELECT cmp_ok(:first_blocks::bigint, '>', 995::bigint, :'kind' || ': blocks are counted');
-- the indexes have grown by a level at most
SELECT cmp_ok(:last_blocks::bigint, '<', 2 * :first_blocks::bigint,
  :'kind' || ': the last thousand commands of 6,000 on a stream read less than twice the blocks of the first');
SELECT cmp_ok(:first_records::bigint, '>', 995::bigint, :'kind' || ': records of WAL are counted');
SELECT cmp_ok(:last_records::bigint, '<', (1.2 * :first_records)::bigint, :'kind' || ': they write no more records of WAL');
SELECT cmp_ok(:last_locks::bigint, '<', 50 + :first_locks::bigint, :'kind' || ': nor do they hold more locks');
SELECT is(:changed::bigint, 0::bigint, :'kind' || ': no row of streams and of the log is replaced');
-- the same in subtransactions, which are rolled back one by one
BEGIN;
SELECT undo(10) \g /dev/null
SELECT locks() AS first_locks \gset
SELECT undo(1000) \g /dev/null
SELECT locks() AS last_locks \gset
COMMIT;
SELECT is(:last_locks::bigint, :first_locks::bigint, :'kind' || ': commands that are rolled back leave no locks');
SELECT is((SELECT max(version) FROM evpg_read_stream(kind(), 'many', max_count => NULL)), 4800::bigint,
  :'kind' || ': the stream has one event for each command that was not refused');
