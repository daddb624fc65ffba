-- The baseline of loading: a scan of one stream's 10,000 events in version order that reads what a fold reads.
SELECT count(version), sum(length(type)), sum(pg_column_size(data))
  FROM (SELECT version, type, data FROM evpg.event_log
         WHERE stream_id = (SELECT stream_id FROM evpg.stream WHERE aggregate_type = 'bench_load' AND aggregate_id = '1')
         ORDER BY version OFFSET 0) AS e;
